"""What every result file says of itself: card, versions, commit, and when."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

import attnc


def provenance() -> dict[str, str]:
    """Card, driver-independent versions and the commit the figures belong to."""
    commit = os.environ.get("ATTNC_COMMIT", "")
    if not commit:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = found.stdout.strip() or "unknown"
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "attnc": attnc.__version__,
        "commit": commit,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(path: str | os.PathLike[str], rows: list[dict[str, object]]) -> None:
    """Write rows with their provenance, one row a line so that a diff reads."""
    head = json.dumps(provenance(), indent=1)[:-2]
    body = ",\n  ".join(json.dumps(row) for row in rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f'{head},\n "rows": [\n  {body}\n ]\n}}\n', encoding="utf-8")
