"""What one pass of a convolution filters, and what multiplies it before and after."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.dsl.convolution import Filter


@dataclass(frozen=True, slots=True)
class Sides:
    """The tensors of one pass: `source` is filtered, `gate` multiplies it, `after` the result.

    `mirrored` turns the filter round, which makes it its own transpose.
    """

    name: str
    source: str
    gate: str
    after: str
    result: str
    mirrored: bool

    def tensors(self, *more: str) -> tuple[str, ...]:
        """The tensors [B, C, T] that the pass reads, each once."""
        names = (self.source, self.gate, self.after, *more)
        return tuple(dict.fromkeys(name for name in names if name))


def forward_sides(found: Filter, name: str) -> Sides:
    """o = postgate * (w * (pregate v) + D pregate v)."""
    return Sides(
        name, "v", gate_name(found, "pregate"), gate_name(found, "postgate"), "o", mirrored=False
    )


def dvalue_sides(found: Filter, name: str) -> Sides:
    """dv = pregate * du."""
    return Sides(
        name, "do", gate_name(found, "postgate"), gate_name(found, "pregate"), "dv", mirrored=True
    )


def dgate_sides(found: Filter, name: str) -> Sides:
    """dpostgate = do * z: the forward again, multiplied by what comes in."""
    return Sides(name, "v", gate_name(found, "pregate"), "do", "dpost", mirrored=False)


def gate_name(found: Filter, field: str) -> str:
    """The argument that a gate is, empty where there is none."""
    ref = getattr(found, field)
    return "" if ref is None else f"u_{ref.name}"
