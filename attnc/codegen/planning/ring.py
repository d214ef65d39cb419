"""How many keys a ring buffer needs, where one is enough: for all terms, or beside a state."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.symbolic import symbol
from attnc.dsl.variant import Variant


def ring_size(variant: Variant, algebra: Algebra) -> tuple[int | None, str]:
    """How many keys a ring buffer needs, the new one among them; None and why where none does.

    A ring forgets positions, so the mask and the score must not depend on where the window stands.
    """
    return _widest(variant, algebra.terms or (algebra,))


def folded_ring_size(variant: Variant, algebra: Algebra) -> tuple[int | None, str]:
    """The same where a state holds the keys of the folded term of a sum.

    A key stays in the ring until it enters the state: N tokens, and the new one beside.
    """
    if algebra.folded is None:
        if not algebra.terms:
            return None, algebra.keeps_state.reason
        return None, algebra.legal("chunked").reason
    others = [term for n, term in enumerate(algebra.terms) if n != algebra.folded]
    size, why = _widest(variant, others)
    if size is None:
        why = why.replace("its ", "another's ")
        return None, f"a state can hold term {algebra.folded + 1}, but {why}"
    return max(size, algebra.distance + 1), ""


def _widest(variant: Variant, parts: Sequence[Algebra]) -> tuple[int | None, str]:
    sizes = [1]
    for part in parts:
        planes = (plane for clause in part.mask.clauses for plane in clause)
        if part.mask.tensors or any(plane.i != -plane.j for plane in planes):
            return None, "its mask depends on more than the distance of query and key"
        for clause in part.mask.clauses:
            bounds = [plane.c // plane.j + 1 for plane in clause if plane.j > 0]
            if not bounds:
                return None, "its mask is no window: a row sees all keys before it"
            sizes.append(min(bounds))
    used, declared = variant.used, (*variant.params, *variant.inputs)
    if any({"i", "j", "t"} & set(tensor.shape) for tensor in declared if tensor.name in used):
        return None, "a declared tensor has a value a token, which a ring does not keep"
    shift, at = symbol("shift"), {name: symbol(name) for name in ("i", "j")}
    for part in parts:
        if part.score is None:
            continue  # a polynomial of s knows no position
        moved = part.score.subs({s: s + shift for s in at.values()}, simultaneous=True)
        if sympy.expand(moved - part.score) != 0:
            return None, "its score depends on more than the distance of query and key"
    return max(sizes), ""
