"""The passes that list which tiles a block of rows, or of keys, visits: `key_blocks`, `row_blocks`.

Positions decide by the corners of a block, documents by the least and the greatest number in it,
a table by its entry. All three err on the side of a visit, and mask code then decides.
"""

from __future__ import annotations

import re
from dataclasses import replace

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.plane_text import bound_lines, plane_text
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder
from attnc.codegen.index import pointer_lines, tensor_argument
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.tile_lists import TileLists
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.half_plane import HalfPlane
from attnc.dsl.mask import MaskForm
from attnc.dsl.variant import Declared, Variant

_SOME = {True: ("last", "b_right"), False: ("first", "b_left")}


def list_kernel(variant: Variant, algebra: Algebra, lists: TileLists) -> Kernel:
    """One program: one held block of one head, all blocks that it may visit."""
    mask = algebra.mask
    declared = {tensor.name: tensor for tensor in (*variant.params, *variant.inputs)}
    builder = GraphBuilder(lists.name)
    for name in mask.documents:
        _held_documents(builder, name, lists)
    for count in ("n_part", "n_full"):
        zero = f"{count} = tl.zeros([], tl.int32)"
        builder.fold(count, SETUP, (), zero, dtype="i32")
    _positions(builder, mask, lists)
    for name in mask.documents:
        _documents(builder, name, lists)
    for table in mask.blocks:
        _table(builder, declared[table.name])
    _append(builder)
    for place, count in enumerate(("n_part", "n_full")):
        builder.store(
            FINISH, (), count, name=f"store {count}", reads=(count,), tensor=lists.name,
            address=f"p_list + {place}" if place else "p_list",
        )  # fmt: skip
    tensors = [_argument(declared[name]) for name in mask.tensors]
    tensors.append(TensorArgument(lists.name, (), "i32", lists.layout, written=True))
    loop = KeyLoop("0", "NB", True, f"blocks of {lists.streamed}, BN at a time")
    scalars = ("TQ", "TK", "HQ", "HKV")
    graph = builder.build()
    bounds = tuple(bound_lines(mask.bounds))
    texts = (text for node in graph.nodes() for text in (node.address, *node.lines))
    read = set(re.findall(r"\bi_\w+|\bfirst\b|\blast\b", " ".join((*texts, *bounds))))
    setup = (*_setup(lists, read), *bounds)
    return Kernel(lists.name, "", tuple(tensors), scalars, ("BN",), graph, setup, (loop,))


def listed_at_once(mask: MaskForm, lists: TileLists) -> int:
    """BN: how many blocks a step looks at, few where it reads all their documents."""
    return max(1, min(128, 8192 // lists.streamed)) if mask.documents else 128


def _argument(tensor: Declared) -> TensorArgument:
    # an axis i/64 is ib in the name of its stride
    argument = tensor_argument(tensor)
    return replace(argument, axes=tuple(_axis(axis) for axis in argument.axes))


def _axis(letter: str) -> str:
    return f"{letter[0]}b" if "/" in letter else letter


def _setup(lists: TileLists, read: set[str]) -> tuple[str, ...]:
    """Which block of which head, the positions that it holds, and where its list stands.

    `read` are the program indices that the kernel goes on to use, and its ends of the held block.
    """
    held, streamed = ("TQ", "TK") if lists.of_rows else ("TK", "TQ")
    what = "rows" if lists.of_rows else "keys"
    lines = [f"# one program: the list of {lists.held} {what} of one "
             f"{'query head' if lists.per_head else 'batch entry'}"]  # fmt: skip
    lines.append(f"NT = tl.cdiv({held}, {lists.held})")
    lines.append(f"NB = tl.cdiv({streamed}, {lists.streamed})")
    lines.append("i_t = tl.program_id(0) % NT")
    if lists.per_head:
        lines.append("i_bh = (tl.program_id(0) // NT).to(tl.int64)")
        if "i_b" in read:
            lines.append("i_b = i_bh // HQ")
        if read & {"i_h", "i_hkv"}:
            lines.append("i_h = i_bh % HQ")
        if "i_hkv" in read:
            lines.append("i_hkv = i_h // (HQ // HKV)")
        lines.append("p_list = " + lists.name + " + (i_bh * NT + i_t) * (NB + 2)")
    else:
        lines.append("i_b = (tl.program_id(0) // NT).to(tl.int64)")
        lines.append("p_list = " + lists.name + " + (i_b * NT + i_t) * (NB + 2)")
    shift = " + TK - TQ" if lists.of_rows else ""
    if read & {"first", "last"}:
        lines.append(f"first = i_t * {lists.held}{shift}")
    if "last" in read:
        lines.append(f"last = tl.minimum(first + {lists.held}, TK) - 1")
    return tuple(lines)


def _held_documents(builder: GraphBuilder, name: str, lists: TileLists) -> None:
    """The least and the greatest number of the held block; a row before token 0 has none."""
    width = str(lists.held)
    ids, place, inside = f"b_u_{name}", f"o_u_{name}", f"m_u_{name}"
    lines = (f"{place} = first + tl.arange(0, {width})",
             f"{inside} = ({place} >= 0) & ({place} < TK)")  # fmt: skip
    builder.map(inside, SETUP, (width,), *lines, dtype="i1")
    builder.load(
        ids, SETUP, (width,), tensor=f"u_{name}", guard=inside, reads=(inside,),
        address=_documents_at(name, place),
    )  # fmt: skip
    for end, function, beyond in (("least", "min", "inf"), ("most", "max", "-inf")):
        line = f'n_{end}_{name} = tl.{function}(tl.where({inside}, {ids}, float("{beyond}")), 0)'
        builder.reduce(f"n_{end}_{name}", SETUP, (), line, reads=(ids, inside))


def _documents_at(name: str, place: str) -> str:
    return f"u_{name} + i_b * stride_u_{name}_b + {place}.to(tl.int64) * stride_u_{name}_t"


def _positions(builder: GraphBuilder, mask: MaskForm, lists: TileLists) -> None:
    """By positions: the blocks with a visible pair, and those without a hidden one."""
    size = lists.streamed
    shift = "" if lists.of_rows else " + TK - TQ"
    whole = f"(o_n + 1) * {size} <= {'TK' if lists.of_rows else 'TQ'}"
    some, every = "m_n", f"{whole}"
    if mask.clauses != ((),):
        some = f"m_n & {_clauses(mask, lists, some=True)}"
        every = f"({whole}) & {_clauses(mask, lists, some=False)}"
    lines = [f"b_some = {some}", f"b_every = {every}"]
    # a half-plane has two corners of a block, and a mask may read one end alone
    if "b_right" in some + every:
        lines.insert(0, f"b_right = tl.minimum(b_left + {size}, TK) - 1")
    if mask.documents or "b_left" in "".join(lines):
        lines.insert(0, f"b_left = o_n * {size}{shift}")
    note = "whether some pair of a block is visible, and whether all are"
    builder.map("b_some", STEP, ("BN",), *lines, name="positions", dtype="i1", note=note)


def _clauses(mask: MaskForm, lists: TileLists, *, some: bool) -> str:
    clauses = []
    for clause in mask.clauses:
        planes = [plane if lists.of_rows else plane.mirrored for plane in clause]
        texts = [_corner(plane, some=some) for plane in planes]
        joined = " & ".join(f"({text})" for text in texts)
        clauses.append(f"({joined})" if len(texts) > 1 < len(mask.clauses) else joined)
    return f"({' | '.join(clauses)})" if len(clauses) > 1 else clauses[0]


def _corner(plane: HalfPlane, *, some: bool) -> str:
    """The half-plane at its best corner of the block, or at its worst."""
    held = _SOME[(plane.i >= 0) == some][0]
    streamed = _SOME[(plane.j >= 0) == some][1]
    return plane_text(plane, held, streamed)


def _documents(builder: GraphBuilder, name: str, lists: TileLists) -> None:
    """By the numbers of documents: ranges that meet may share one, a lone number is one."""
    shape = ("BN", str(lists.streamed))
    ids, place, inside = f"b_s_{name}", f"o_s_{name}", f"m_s_{name}"
    lines = (f"{place} = b_left[:, None] + tl.arange(0, {lists.streamed})[None, :]",
             f"{inside} = ({place} >= 0) & ({place} < TK)")  # fmt: skip
    builder.map(inside, STEP, shape, *lines, dtype="i1", reads=("b_some",))
    builder.load(
        ids, STEP, shape, tensor=f"u_{name}", guard=inside, reads=(inside,),
        address=_documents_at(name, place),
    )  # fmt: skip
    for end, function, beyond in (("least", "min", "inf"), ("most", "max", "-inf")):
        line = f'b_{end}_{name} = tl.{function}(tl.where({inside}, {ids}, float("{beyond}")), 1)'
        builder.reduce(f"b_{end}_{name}", STEP, ("BN",), line, reads=(ids, inside))
    held, streamed = (f"n_{{}}_{name}", f"b_{{}}_{name}")
    meet = (f"({streamed.format('least')} <= {held.format('most')}) & "
            f"({held.format('least')} <= {streamed.format('most')})")  # fmt: skip
    one = (f"({streamed.format('least')} == {held.format('most')}) & "
           f"({streamed.format('most')} == {held.format('least')})")  # fmt: skip
    rows = "first" if lists.of_rows else "b_left"
    lines = (f"b_some = b_some & {meet}", f"b_every = b_every & {one} & ({rows} >= 0)")
    reads = ("b_some", f"b_least_{name}", f"b_most_{name}", f"n_least_{name}", f"n_most_{name}")
    builder.map("b_some", STEP, ("BN",), *lines, name=f"by {name}", dtype="i1", reads=reads)


def _table(builder: GraphBuilder, table: Declared) -> None:
    """By the table: an entry of 0 hides its block."""
    held, streamed = "i_t.to(tl.int64)", "o_n.to(tl.int64)"
    index = {"b": "i_b", "h": "i_h", "hkv": "i_hkv"}
    rows = builder.kernel == "key_blocks"
    index |= {"ib": held if rows else streamed, "jb": streamed if rows else held}
    axes = [_axis(letter) for letter in table.shape]
    places = (f"{index[axis]} * stride_u_{table.name}_{axis}" for axis in axes)
    lines, address = pointer_lines("p_kept", [f"u_{table.name}", *places])
    builder.load(
        "b_kept", STEP, ("BN",), tensor=f"u_{table.name}", lines=lines, address=address, guard="m_n"
    )
    line = "b_some = b_some & (b_kept != 0.0)"
    reads = ("b_some", "b_kept")
    builder.map("b_some", STEP, ("BN",), line, name="by the table", dtype="i1", reads=reads)


def _append(builder: GraphBuilder) -> None:
    """Blocks with mask code from the front of the list, those without from its back."""
    lines = ("b_every = b_every & b_some", "b_part = (b_some & ~b_every).to(tl.int32)",
             "b_full = b_every.to(tl.int32)")  # fmt: skip
    builder.map("b_part", STEP, ("BN",), *lines, dtype="i32", reads=("b_some",))
    places = {"n_part": ("b_part", "p_list + 1 + n_part + tl.cumsum(b_part, 0)"),
              "n_full": ("b_full", "p_list + NB + 2 - n_full - tl.cumsum(b_full, 0)")}  # fmt: skip
    for count, (which, address) in places.items():
        builder.store(
            STEP, ("BN",), "o_n", name=f"list {which}", reads=("b_part", count),
            tensor=builder.kernel, address=address, guard=f"{which} != 0",
        )  # fmt: skip
        line = f"{count} = {count} + tl.sum({which}, 0)"
        builder.fold(
            count, STEP, (), line, dtype="i32", name=f"fold {count}", reads=(count, "b_part")
        )
