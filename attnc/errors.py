"""The one error model: what, where, why, what to do; and the one renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

WIDTH = 96  # of a line shown in an error


@dataclass(frozen=True, slots=True)
class Where:
    """The text a mistake stands in: `line` and `column` count from 1, `length` is the caret's.

    `file` is empty for an expression written in Python; `label` then says whose it is.
    """

    text: str
    column: int = 1
    length: int = 1
    file: str = ""
    line: int = 0
    label: str = ""

    def render(self) -> list[str]:
        """The place, the line and a caret under the span."""
        place = f"{self.file}:{self.line}:{self.column}" if self.file else self.label
        number = str(self.line) if self.file else ""
        pad = " " * len(number)
        text, column = self._shown()
        caret = " " * (column - 1) + "^" * max(1, min(self.length, len(text) - column + 1))
        return [
            f" {pad}--> {place}",
            f" {pad} |",
            f" {number} | {text}",
            f" {pad} | {caret}",
        ]

    def _shown(self) -> tuple[str, int]:
        """What is near the caret of a long line, one character a column, and its column there."""
        text = "".join(letter if letter.isprintable() else " " for letter in self.text)
        if len(text) <= WIDTH:
            return text, self.column
        start = max(0, min(self.column - 1 - WIDTH // 4, len(text) - WIDTH))
        before, after = "..." if start else "", "..." if start + WIDTH < len(text) else ""
        cut = f"{before}{text[start : start + WIDTH]}{after}"
        return cut, self.column - start + len(before)


def shown(value: object) -> str:
    """A value for a message, cut where a hostile one would fill the screen."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write out integers of thousands of digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


class AttncError(Exception):
    """A mistake of the user's, with everything needed to mend it.

    `code` names the kind; `notes` say why, `hints` what to do.
    """

    code: ClassVar[str] = "A000"

    def __init__(
        self,
        message: str,
        *,
        where: Where | None = None,
        notes: tuple[str, ...] = (),
        hints: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.notes = notes
        self.hints = hints

    def render(self) -> str:
        """The whole error as plain text."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.where is not None:
            lines.extend(self.where.render())
        lines.extend(f"  note: {note}" for note in self.notes)
        lines.extend(f"  hint: {hint}" for hint in self.hints)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def __reduce__(self) -> tuple[object, ...]:
        state = (self.message, self.where, self.notes, self.hints)
        return (_rebuild, (type(self), *state))


def _rebuild(
    kind: type[AttncError],
    message: str,
    where: Where | None,
    notes: tuple[str, ...],
    hints: tuple[str, ...],
) -> AttncError:
    return kind(message, where=where, notes=notes, hints=hints)


class DeclarationError(AttncError):
    """A declaration that is refused."""

    code = "A100"


class FieldError(DeclarationError):
    """A field of a variant that is missing, unknown, or of a wrong kind."""

    code = "A101"


class TomlError(DeclarationError):
    """A file that is no TOML, or has no variant in it."""

    code = "A102"


class SyntaxRefused(DeclarationError):
    """An expression that is not in the grammar."""

    code = "A103"


class UnknownName(DeclarationError):
    """A name that is neither an index, a function nor declared."""

    code = "A104"


class LimitExceeded(DeclarationError):
    """An expression over a limit; it is refused before anything is expanded."""

    code = "A105"


class NoFamily(DeclarationError):
    """A weight that no family of kernels serves."""

    code = "A106"


class MaskNotAffine(DeclarationError):
    """A mask that is not algebra over affine comparisons of i and j."""

    code = "A107"


class DecayRefused(DeclarationError):
    """A log decay where none is possible, or one that is positive."""

    code = "A108"


class PlanError(AttncError):
    """No tile fits, no such device, or a form that is not legal."""

    code = "A200"


class InputError(AttncError):
    """A call whose shapes, dtypes, devices or arguments do not fit the declaration."""

    code = "A300"


class WorkerError(AttncError):
    """A worker process that died or raised."""

    code = "A400"


class CompileError(AttncError):
    """A kernel that the compiler refuses."""

    code = "A401"


class CacheError(AttncError):
    """A file of the cache that is not what its name says."""

    code = "A402"


class TritonMissing(AttncError):
    """What compiles and interprets kernels is not installed."""

    code = "A403"


class UsageError(AttncError):
    """A wrong command line."""

    code = "A500"
