"""What a mask asks of data: documents, and tables of blocks. Both join the rest of it by &."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.dsl.expr import Call, Expr, Logic, Number, Ref, lift
from attnc.dsl.half_plane import MaskProblem
from attnc.errors import LimitExceeded

MIN_BLOCK, MAX_BLOCK = 16, 1024
# where packed sequences start, by keys and by queries
CU_SEQLENS = frozenset({"cu_seqlens_k", "cu_seqlens_q"})


@dataclass(frozen=True, slots=True, order=True)
class BlockTable:
    """A declared table of 0 and 1, an entry for each `size` queries and `size` keys.

    `axes` are those before the two of blocks, of b, h and hkv.
    """

    name: str
    axes: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.name}[{', '.join((*self.axes, f'i/{self.size}', f'j/{self.size}'))}]"


def documents(ids: Expr) -> Expr:
    """The pairs of one document: `ids`, an input of shape b,t, is equal at query and key."""
    if isinstance(ids, Ref) or not hasattr(ids, "declared"):
        return Call("documents", (ids,))
    return Call("documents", (ids["b", "t"],))  # type: ignore[index]


def blocks(table: Expr, size: object) -> Expr:
    """The pairs of the blocks of `size` queries and `size` keys whose entry in `table` is not 0.

    `table` is an input of shape i/size,j/size, with b, h or hkv before: `Input("table",
    shape="h,i/64,j/64")`. Queries are counted from the first, whatever their positions.
    """
    declared = getattr(table, "declared", None)
    if declared is not None and not isinstance(table, Ref):
        table = Ref(declared.name, declared.shape, None, declared)
    return Call("blocks", (table, lift(size)))


Data = tuple[tuple[str, ...], tuple[BlockTable, ...]]


def data_apart(mask: Expr) -> tuple[Expr | None, Data]:
    """What a mask says of positions, None where nothing, and what it asks of data.

    Raises:
        MaskProblem: more than one table of blocks.
    """
    rest, found = _apart(mask)
    names = {call.args[0].name for call in found if call.function == "documents"}  # type: ignore[attr-defined]
    tables = {table_of(call) for call in found if call.function == "blocks"}
    if len(tables) > 1:
        raise MaskProblem(
            LimitExceeded,
            "a mask has one table of blocks at most",
            found[-1].span,
            hint="multiply the tables: what is kept is what both keep",
        )
    return rest, (tuple(sorted(names)), tuple(tables))


def table_of(call: Call) -> BlockTable:
    """The table that a parsed `blocks(table, size)` names."""
    match call.args:
        case (Ref(name=name, index=(*axes, _, _)), Number(value=size)):
            return BlockTable(name, tuple(axes), int(size))
    raise AssertionError(f"no table in {call!r}")


def _apart(mask: Expr) -> tuple[Expr | None, list[Call]]:
    match mask:
        case Call(function="documents" | "blocks"):
            return None, [mask]
        case Logic(op="&", operands=operands):
            parts = [_apart(operand) for operand in operands]
            kept = [part for part, _ in parts if part is not None]
            found = [call for _, calls in parts for call in calls]
            if not found:
                return mask, []
            rest = None if not kept else kept[0] if len(kept) == 1 else Logic("&", tuple(kept))
            return rest, found
    return mask, []
