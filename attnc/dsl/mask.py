"""Masks as algebra: a union of clauses, each a conjunction of half-planes in i and j."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attnc.dsl.expr import (
    Call,
    Compare,
    Expr,
    Logic,
    Name,
    lift,
)
from attnc.dsl.half_plane import (
    NO_BOUNDS,
    Clause,
    HalfPlane,
    MaskProblem,
    is_bound,
    plane_of,
    plane_within,
)
from attnc.dsl.mask_data import CU_SEQLENS, BlockTable, data_apart
from attnc.dsl.text import to_text
from attnc.errors import LimitExceeded, MaskNotAffine

MAX_CLAUSES = 16
MAX_PLANES = 8


@dataclass(frozen=True, slots=True)
class MaskForm:
    """Disjunctive normal form: a pair is visible when all half-planes of some clause hold.

    One empty clause is the full mask; no clause at all hides everything. `documents` name the
    inputs [b, t] that have to be equal at query and key besides, `blocks` the tables that have to
    keep the pair's block. `packed` says that positions are those of sequences packed into one.
    """

    clauses: tuple[Clause, ...]
    documents: tuple[str, ...] = ()
    blocks: tuple[BlockTable, ...] = ()
    packed: bool = False

    def visible(self, row: int, column: int, bounds: Mapping[str, int] = NO_BOUNDS) -> bool:
        """Whether position `row` sees key `column`, `bounds` the declared numbers by name."""
        return any(
            all(plane.holds(row, column, bounds) for plane in clause) for clause in self.clauses
        )

    @property
    def bounds(self) -> tuple[tuple[str, ...], ...]:
        """The declared tensors that bound it, each by name and index letters."""
        found = {plane.bound for clause in self.clauses for plane in clause if plane.bound}
        return tuple(sorted(found))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all declared tensors that it reads."""
        tables = (table.name for table in self.blocks)
        return tuple(sorted({*self.documents, *tables, *(bound[0] for bound in self.bounds)}))

    @property
    def all_tensors(self) -> tuple[str, ...]:
        """The same, and where sequences start."""
        return (*self.tensors, *(sorted(CU_SEQLENS) if self.packed else ()))

    def __str__(self) -> str:
        text = self._positions()
        data = [f"one document by {name}" for name in self.documents]
        data += [f"kept by {table}" for table in self.blocks]
        data += ["in one packed sequence"] if self.packed else []
        return " and ".join([f"({text})", *data]) if data else text

    def _positions(self) -> str:
        if not self.clauses:
            return "nothing"
        if self.clauses == ((),):
            return "everything"
        return " or ".join(
            "(" + " and ".join(str(plane) for plane in clause) + ")" for clause in self.clauses
        )


FULL = MaskForm(((),))
CAUSAL = MaskForm(((HalfPlane(1, -1, 0),),))

full = Name("full")
causal = Name("causal")


def window(left: object, right: object | None = None) -> Expr:
    """i - left <= j <= i + right, inclusive; no bound on the right where it is not given.

    Each is a number, or a declared tensor with a number a batch entry or head: `w["h"]`.
    """
    args = (lift(left),) if right is None else (lift(left), lift(right))
    return Call("window", args)


def prefix(n: object) -> Expr:
    """j < n: the first n keys; n is a number, or a declared tensor of them: `n["b"]`."""
    return Call("prefix", (lift(n),))


def mask_form(mask: Expr) -> MaskForm:
    """The canonical form: equal masks of one clause set have equal forms.

    Raises:
        MaskProblem: a part that is not affine in i and j, or more than 16 clauses.
    """
    rest, data = data_apart(mask)
    clauses: list[Clause] = [()] if rest is None else _clauses(rest, positive=True)
    documents, blocks = data
    return MaskForm(_canonical(clauses), documents, blocks)


def union_of(forms: Iterable[MaskForm]) -> MaskForm:
    """The pairs that some form shows; nobody walks it, so it may have any number of clauses."""
    clauses = {clause for form in forms for clause in form.clauses}
    return MaskForm(((),) if () in clauses else tuple(sorted(clauses)))


def _clauses(mask: Expr, *, positive: bool) -> list[Clause]:
    match mask:
        case Call(function="documents" | "blocks" as function, args=args):
            raise MaskProblem(
                MaskNotAffine,
                f"{function}(...) joins the rest of a mask by & alone",
                mask.span,
                "under | or ~ it would show what no position says, and every tile would be visited",
                f"write (the rest of the mask) & {to_text(mask)}",
            )
        case Name(id="full"):
            return [()] if positive else []
        case Name(id="causal"):
            return _planes([HalfPlane(1, -1, 0)], positive)
        case Call(function="window" | "prefix" as function, args=args) if any(
            not is_bound(arg) for arg in args
        ):
            raise MaskProblem(
                MaskNotAffine,
                f"{function} takes whole numbers of at least 0: {to_text(mask)!r}",
                mask.span,
                "or a declared tensor with a number for each b, h or hkv",
                hint="no bound on the left is j <= i + right" if function == "window" else "",
            )
        case Call(function="window", args=args):
            planes = [plane_within(HalfPlane(-1, 1, 0), args[0])]
            if len(args) == 2:
                planes.append(plane_within(HalfPlane(1, -1, 0), args[1]))
            return _planes(planes, positive)
        case Call(function="prefix", args=(n,)):
            return _planes([plane_within(HalfPlane(0, -1, -1), n)], positive)
        case Compare(op=op, left=left, right=right):
            return _comparison(op, left, right, positive)
        case Logic(op="~", operands=(operand,)):
            return _clauses(operand, positive=not positive)
        case Logic(op=op, operands=operands):
            parts = [_clauses(operand, positive=positive) for operand in operands]
            # De Morgan: a negated & is a union
            both = (op == "&") == positive
            result = parts[0]
            for part in parts[1:]:
                result = _product(result, part) if both else [*result, *part]
                result = list(_canonical(result))
            return result
    raise MaskProblem(
        MaskNotAffine,
        f"{to_text(mask)!r} is no mask",
        getattr(mask, "span", None),
        "a mask is built of causal, full, window(...), prefix(n) and comparisons, with & | ~",
    )


def _comparison(op: str, left: Expr, right: Expr, positive: bool) -> list[Clause]:
    if op in {"==", "!="}:
        both = [plane_of("<=", left, right), plane_of("<=", right, left)]
        return _planes(both, positive == (op == "=="))
    return _planes([plane_of(op, left, right)], positive)


def _planes(planes: list[HalfPlane], positive: bool) -> list[Clause]:
    """The conjunction of some half-planes, or its complement, a union."""
    if positive:
        return [tuple(planes)]
    return [(plane.complement,) for plane in planes]


def _product(left: list[Clause], right: list[Clause]) -> list[Clause]:
    if len(left) * len(right) > MAX_CLAUSES * MAX_CLAUSES:
        raise MaskProblem(LimitExceeded, f"the mask has more than {MAX_CLAUSES} clauses", None)
    return [(*first, *second) for first in left for second in right]


def _canonical(clauses: list[Clause]) -> tuple[Clause, ...]:
    """Clauses without redundant half-planes, without subsumed clauses, in a fixed order."""
    simplified = {clause for clause in map(_simplify, clauses) if clause is not None}
    kept = [
        clause
        for clause in simplified
        if not any(other != clause and _implies(clause, other) for other in simplified)
    ]
    if len(kept) > MAX_CLAUSES or any(len(clause) > MAX_PLANES for clause in kept):
        raise MaskProblem(
            LimitExceeded,
            f"the mask has more than {MAX_CLAUSES} clauses or {MAX_PLANES} bounds in one",
            None,
            hint="simplify the mask, or sum two variants",
        )
    return tuple(sorted(kept))


def _simplify(clause: Clause) -> Clause | None:
    """The strongest of parallel half-planes; None where they contradict each other."""
    strongest: dict[_Side, int] = {}
    for plane in clause:
        side = _side(plane)
        if side == (0, 0, (), 0):
            if plane.c < 0:
                return None
            continue
        strongest[side] = min(plane.c, strongest.get(side, plane.c))
    for (i, j, bound, sign), c in strongest.items():
        opposite = strongest.get((-i, -j, bound, -sign))
        if opposite is not None and c + opposite < 0:
            return None
    return tuple(
        sorted(HalfPlane(i, j, c, bound, sign) for (i, j, bound, sign), c in strongest.items())
    )


_Side = tuple[int, int, tuple[str, ...], int]


def _side(plane: HalfPlane) -> _Side:
    """What two half-planes share that differ by their constants alone."""
    return plane.i, plane.j, plane.bound, plane.sign


def _implies(clause: Clause, other: Clause) -> bool:
    """Whether every half-plane of `other` is implied by a parallel one of `clause`."""
    return all(any(_side(p) == _side(o) and p.c <= o.c for p in clause) for o in other)
