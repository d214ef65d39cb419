"""What a verification found: rows of errors and bounds, as JSON and as a table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from attnc.ops.verification.criterion import Verdict
from attnc.ops.verification.draw import Shape

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `passed` means within the bound, and by a check that zeros would fail."""

    what: str
    dtype: str
    shape: str
    error: float
    bound: float
    passed: bool
    worst_index: tuple[int, ...]
    out_value: float
    ref_value: float
    reason: str

    @classmethod
    def of(cls, what: str, dtype: str, shape: Shape, verdict: Verdict) -> Row:
        """The row of a verdict."""
        reason = verdict.reason
        if verdict.passed and not verdict.sound:
            reason = f"{reason}: an output of zeros would pass, so this shows nothing"
        return cls(
            what=what,
            dtype=dtype,
            shape=str(shape),
            error=verdict.error,
            bound=verdict.bound,
            passed=verdict.sound,
            worst_index=verdict.worst_index,
            out_value=verdict.out_value,
            ref_value=verdict.ref_value,
            reason=reason,
        )

    @classmethod
    def refused(cls, what: str, dtype: str, shape: Shape, reason: str) -> Row:
        """The failed row of what could not be run at all."""
        nothing = float("nan")
        return cls(
            what=what, dtype=dtype, shape=str(shape), error=math.inf, bound=0.0, passed=False,
            worst_index=(), out_value=nothing, ref_value=nothing, reason=reason,
        )  # fmt: skip

    @property
    def ratio(self) -> float:
        """The error as a share of the bound."""
        if self.bound:
            return self.error / self.bound
        return math.inf if self.error else 0.0

    @property
    def worst(self) -> str:
        """The worst element with both its values."""
        if math.isnan(self.ref_value):
            return self.reason
        place = ", ".join(map(str, self.worst_index))
        return f"[{place}]: {self.out_value:.6g}, reference {self.ref_value:.6g}"

    def __str__(self) -> str:
        mark = "passed" if self.passed else "FAILED"
        return f"{mark} {self.what}, {self.dtype}, {self.shape}: {self.reason}; worst {self.worst}"


@dataclass(frozen=True, slots=True)
class Report:
    """All comparisons of one variant; `skipped` lists forms that no plan serves, and why."""

    variant: str
    device: str
    seed: int
    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was compared, and everything passed."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def worst(self) -> Row | None:
        """The row nearest to its bound, or farthest beyond; the first failure if there is one."""
        candidates = self.failures or self.rows
        return max(candidates, key=lambda row: row.ratio, default=None)

    def to_dict(self) -> dict[str, object]:
        """The report in JSON's types; an error that is not finite is given as a string."""
        rows = [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows]
        return {
            "variant": self.variant,
            "device": self.device,
            "seed": self.seed,
            "passed": self.passed,
            "rows": rows,
            "skipped": list(self.skipped),
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def table(self) -> Table:
        """A rich table, one line a comparison; the worst elements where something failed."""
        from rich.table import Table
        from rich.text import Text

        failed = bool(self.failures)
        title = f"{self.variant} on {self.device}, seed {self.seed}"
        table = Table(title=title, title_style="bold", box=None, header_style="bold")
        for heading in ("", "what", "dtype", "shape"):
            table.add_column(heading)
        for heading in ("error", "bound"):
            table.add_column(heading, justify="right")
        table.add_column("of bound", justify="right")
        if failed:
            table.add_column("worst element")
        for row in self.rows:
            mark = Text("pass", "green") if row.passed else Text("FAIL", "bold red")
            cells = [row.what, row.dtype, row.shape, f"{row.error:.2e}", f"{row.bound:.2e}"]
            cells.append(f"{row.ratio:.0%}")
            if failed:
                cells.append("" if row.passed else row.worst)
            table.add_row(mark, *(Text(cell) for cell in cells))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        lines = [f"{self.variant} on {self.device}, seed {self.seed}"]
        lines.extend(map(str, self.rows))
        lines.extend(f"skipped {text}" for text in self.skipped)
        return "\n".join(lines)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
