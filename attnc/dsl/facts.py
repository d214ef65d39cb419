"""The plain fields: scale, normaliser, chunk, and the facts to plan with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction

from attnc.dsl.expr import Expr
from attnc.dsl.fields import Fields, lifted
from attnc.dsl.head_facts import Dim, Heads
from attnc.dsl.limits import limited_text
from attnc.dsl.variant import Scale
from attnc.errors import shown

MIN_DIM, MAX_DIM = 16, 256
_EXAMPLE = {"dim": "{ qk = 64, v = 64 }", "heads": "{ q = 32, kv = 8 }"}


def read_scale(fields: Fields) -> Scale:
    """A finite number that is not 0, or 1/sqrt(K)."""
    value = fields.scale
    if isinstance(value, Expr):
        value = limited_text(lifted(value), f"scale of {fields.name!r}")
    if isinstance(value, str):
        if value.replace(" ", "") == "rsqrt(d)":
            return Scale(None)
        if len(value) < 40 and "e" not in value.lower():
            with contextlib.suppress(ValueError, ZeroDivisionError):
                value = Fraction(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise fields.refuse(
            "scale",
            f"scale of {fields.name!r} is {shown(value)}",
            notes=('a scale is a finite number, or "rsqrt(d)" for 1/sqrt(K)',),
            hints=('a scale that is learned stands in the score: scale = 1.0, score = "s*tau"',)
            if isinstance(value, str) and value.isidentifier()
            else (),
        )
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise fields.refuse("scale", f"scale of {fields.name!r} is {value!r}, not a finite number")
    number = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    if number == 0 or abs(number) > 10**6:
        raise fields.refuse(
            "scale",
            f"scale of {fields.name!r} is {shown(value)}: 0 or over 1e6 in size is no scale",
        )
    return Scale(number)


def read_normalize(fields: Fields, softmax: bool) -> str:
    """`softmax` where the map implies it, else `sum` or `none`, which must be said."""
    value = fields.normalize
    if softmax:
        if value not in {None, "softmax"}:
            raise fields.refuse(
                "normalize",
                f"normalize of {fields.name!r} is {value!r}, softmax normalises by itself",
                hints=("leave normalize out",),
            )
        return "softmax"
    if value not in {"sum", "none"}:
        what = "is missing" if value is None else f"is {value!r}"
        raise fields.refuse(
            "normalize",
            f"normalize of {fields.name!r} {what}",
            notes=('rows are divided by the sum of their weights ("sum"), or not ("none")',),
            hints=('add normalize = "sum", or normalize = "none"',),
        )
    return str(value)


def read_chunk(fields: Fields, family: str) -> int | str:
    """A power of two from 16 to 256, or `auto`; what is no state has no chunks."""
    value = fields.chunk
    if value == "auto":
        return "auto"
    power = isinstance(value, int) and not isinstance(value, bool) and value & (value - 1) == 0
    if not power or not isinstance(value, int) or not 16 <= value <= 256:
        raise fields.refuse(
            "chunk",
            f"chunk of {fields.name!r} is {shown(value)}",
            notes=('a chunk is "auto", or a power of two from 16 to 256',),
        )
    if family != "state":
        what = f"a {family}" if family == "softmax" else "another weight"
        raise fields.refuse(
            "chunk",
            f"{fields.name!r} has a chunk and no state",
            notes=(f"a state is folded by chunks; {what} walks tiles, which are planned",),
            hints=("leave chunk out",),
        )
    return value


def _pair(fields: Fields, name: str, value: object, keys: tuple[str, str]) -> tuple[int, int]:
    parts: tuple[object, ...] = ()
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(keys))
        if unknown:
            raise fields.refuse(
                name,
                f"{name} of {fields.name!r} has an unknown key {unknown[0]!r}",
                notes=(f"{name} has {keys[0]} and {keys[1]}",),
            )
        parts = tuple(value.get(key) for key in keys)
    elif isinstance(value, tuple | list):
        parts = tuple(value)
    elif isinstance(value, int):
        parts = (value, value)
    whole = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
    if len(parts) != 2 or len(whole) != 2 or min(whole) < 1:
        raise fields.refuse(
            name,
            f"{name} of {fields.name!r} is {shown(value)}",
            hints=(f"write {name} = {_EXAMPLE[name]}",),
        )
    return whole[0], whole[1]


def read_dim(fields: Fields) -> Dim | None:
    """Head dims to plan with."""
    if fields.dim is None:
        return None
    dim = (fields.dim.qk, fields.dim.v) if isinstance(fields.dim, Dim) else fields.dim
    qk, v = _pair(fields, "dim", dim, ("qk", "v"))
    for size in (qk, v):
        if not MIN_DIM <= size <= MAX_DIM:
            raise fields.refuse(
                "dim", f"head dim {size} of {fields.name!r} is outside {MIN_DIM} to {MAX_DIM}"
            )
    return Dim(qk, v)


def read_heads(fields: Fields) -> Heads | None:
    """Head counts to plan with."""
    if fields.heads is None:
        return None
    heads = (fields.heads.q, fields.heads.kv) if isinstance(fields.heads, Heads) else fields.heads
    q, kv = _pair(fields, "heads", heads, ("q", "kv"))
    if q % kv:
        raise fields.refuse(
            "heads", f"{q} query heads of {fields.name!r} are not a multiple of {kv} kv heads"
        )
    return Heads(q, kv)
