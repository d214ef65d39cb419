"""What tuning found, one readable file a device model, shared by any number of processes.

The user's folder comes first, then what the package ships. A file is replaced whole, under a lock,
so a reader sees an old or a new one; a distributed job that reads at start reads one answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from attnc.autotune.atomic_file import write_atomically
from attnc.autotune.module_cache import cache_directory
from attnc.codegen.planning.choice import Bucket, Choice
from attnc.errors import CacheError

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Tuned:
    """One answer: the tiles that won for a kernel on shapes of a bucket, and where that was seen.

    `ms` is the winner's median and `noise` the spread of its samples, as a share; `measured` of
    `candidates` were timed.
    """

    kernel: str
    variant: str
    phase: str
    dtype: str
    dims: tuple[int, int]
    bucket: Bucket
    choice: Choice
    ms: float
    noise: float
    measured: int
    candidates: int
    triton: str
    attnc: str
    when: str

    @property
    def key(self) -> str:
        """Where the answer stands in its file."""
        return f"{self.kernel} {self.bucket}"


class TuningStore:
    """The answers of one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_directory() / "tuning"

    def path(self, device: str) -> Path:
        """The file of a device model: an H100 and an H200 have one each."""
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        return self.folder / f"{slug}.json"

    def read(self, device: str) -> dict[str, Tuned]:
        """Every answer for a device, by key; what the package ships where the user has none.

        Raises:
            CacheError: the user's file is not one of ours.
        """
        shipped = files("attnc") / "autotune" / "tuned" / self.path(device).name
        found = _parse(shipped.read_text("utf-8"), str(shipped)) if shipped.is_file() else {}
        own = self.path(device)
        if own.is_file():
            found |= _parse(own.read_text(encoding="utf-8"), str(own))
        return found

    def devices(self) -> list[str]:
        """The device models that there are answers for, the package's own among them."""
        shipped = files("attnc") / "autotune" / "tuned"
        found = [*shipped.iterdir()] if shipped.is_dir() else []
        found += sorted(self.folder.glob("*.json"))
        texts = [path.read_text(encoding="utf-8") for path in found if path.name.endswith(".json")]
        return list(dict.fromkeys(str(json.loads(text)["device"]) for text in texts))

    def lookup(self, device: str, kernel: str, bucket: Bucket) -> Tuned | None:
        """The answer for a kernel and a bucket, None where it was never tuned."""
        return self.read(device).get(f"{kernel} {bucket}")

    def record(self, device: str, answers: list[Tuned]) -> Path:
        """Add answers; those of the same key give way. Safe beside other processes that do so."""
        path = self.path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            own = _parse(path.read_text("utf-8"), str(path)) if path.is_file() else {}
            own |= {answer.key: answer for answer in answers}
            write_atomically(path, _text(device, own).encode())
        return path

    def keep_run(self, device: str, name: str, run: Mapping[str, Any]) -> Path:
        """Keep all that one tuning run saw, for `attnc report`; the last run of a kernel stays."""
        path = self.path(device).with_suffix("") / f"{name}.json"
        write_atomically(path, (json.dumps({"device": device, **run}, indent=1) + "\n").encode())
        return path

    def runs(self) -> list[dict[str, Any]]:
        """Every run that was kept, by device and name.

        Raises:
            CacheError: a file is not one of ours.
        """
        found = []
        for path in sorted(self.folder.glob("*/*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise CacheError(
                    f"{path} is not a tuning run", notes=(str(error),), hints=("delete it",)
                ) from error
        return found

    def export_to(self, device: str, target: Path) -> int:
        """Write the user's answers for a device to a file; how many there were.

        What the package ships stays out: another version of it may know better.
        """
        own = self.path(device)
        found = _parse(own.read_text("utf-8"), str(own)) if own.is_file() else {}
        write_atomically(target, _text(device, found).encode())
        return len(found)

    def import_from(self, source: Path) -> tuple[str, int]:
        """Take the answers of an exported file: the device they are for, and how many.

        Raises:
            CacheError: the file is not an export.
        """
        try:
            text = source.read_text(encoding="utf-8")
        except OSError as error:
            raise CacheError(f"cannot read {source}: {error.strerror}") from error
        answers = _parse(text, str(source))
        device: str = json.loads(text)["device"]
        self.record(device, list(answers.values()))
        return device, len(answers)


def _text(device: str, answers: Mapping[str, Tuned]) -> str:
    rows = {key: asdict(answers[key]) for key in sorted(answers)}
    return json.dumps({"format": _FORMAT, "device": device, "tuned": rows}, indent=1) + "\n"


def _parse(text: str, where: str) -> dict[str, Tuned]:
    try:
        facts: dict[str, Any] = json.loads(text)
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}, this attnc reads {_FORMAT}")
        return {key: _tuned(row) for key, row in facts["tuned"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{where} is not a store of tuned kernels",
            notes=(f"{type(error).__name__}: {error}",),
            hints=("delete it, and tune again",),
        ) from error


def _tuned(row: dict[str, Any]) -> Tuned:
    return Tuned(
        **{
            **row,
            "dims": tuple(row["dims"]),
            "bucket": Bucket(**row["bucket"]),
            "choice": tuple(row["choice"]),
        }
    )
