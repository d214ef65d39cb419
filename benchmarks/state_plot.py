"""Time against T on log axes, from a record of `benchmarks.state`; wants matplotlib.

python -m benchmarks.state_plot IN.json OUT.svg
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    """Draw one line a group, phase and program: tokens of the sequence against milliseconds."""
    from matplotlib import pyplot

    source, target = sys.argv[1:3]
    record = json.loads(Path(source).read_text(encoding="utf-8"))
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in record["rows"]:
        group, _, sizes = row["row"].split("/")
        _, tokens, _, qk, _ = map(int, sizes.split("-"))
        for phase in ("forward", "backward"):
            if group in {"lightning", "based", "length"} and phase in row:
                label = f"{group} K={qk} {phase}, {row['who']}"
                lines[label].append((tokens, row[phase]["ms"]))
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for label, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="T, the tokens of a sequence", ylabel="ms",
             title=f"{record['card']}, {record['commit'][:7]}")  # fmt: skip
    axes.legend(fontsize=7)
    figure.savefig(target)


if __name__ == "__main__":
    main()
