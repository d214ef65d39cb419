"""Lists of names as a formatter leaves them: signatures, calls, unpackings of emitted kernels."""

from __future__ import annotations

from collections.abc import Iterable

_WIDTH = 100


def taken(names: list[str], used: Iterable[str]) -> str:
    """The names on the left of an unpacking, those that nobody reads marked so."""
    return ", ".join(name if name in used else f"_{name}" for name in names)


def call(function: str, names: list[str]) -> str:
    """A call that stands behind `        done = `."""
    line = f"{function}({', '.join(names)})"
    if len(line) + len("        done = ") <= _WIDTH:
        return line
    inner = "".join(f"\n            {name}," for name in names)
    handed = f"            {', '.join(names)}"
    inner = f"\n{handed}" if len(handed) <= _WIDTH else inner
    return f"{function}({inner}\n        )"


def assigned(targets: str, function: str, names: str) -> str:
    """A call in a body, and what it is unpacked into."""
    line = f"    {targets} = {function}({names})"
    return line if len(line) <= _WIDTH else f"    {targets} = {function}(\n        {names}\n    )"


def partition(function: str, names: list[str]) -> str:
    """A function of some warps, and what it is handed, as a formatter would leave them."""
    handed = ", ".join(names)
    line = f"            ({function}, ({handed})),"
    if len(line) <= _WIDTH:
        return line
    inner = listed("                (", names, "),")
    return f"            (\n                {function},\n{inner}\n            ),"


def listed(before: str, names: list[str], after: str) -> str:
    """A list on one line, or a name a line where it is too long for one."""
    line = f"{before}{', '.join(names)}{',' if len(names) == 1 else ''}{after}"
    if len(line) <= _WIDTH:
        return line
    indent = " " * (len(before) - len(before.lstrip()))
    return "\n".join([before, *(f"{indent}    {name}," for name in names), f"{indent}{after}"])
