"""Mask -> the runs of tiles that a program visits, in closed form: keys of rows, rows of keys.

A clause is a conjunction of half-planes i*I + j*J + c >= 0. For the rows a program holds, at
positions [first, last], each half-plane bounds the keys that some row sees (the hull) and the keys
that every row sees (the full run). Tiles of the full run carry no mask code.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.expression.plane_text import bound_lines, greater, lesser
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.dsl.half_plane import HalfPlane
from attnc.dsl.mask import MaskForm


@dataclass(frozen=True, slots=True)
class KeyLoop:
    """One loop over key tiles from `start` to `stop`, with or without mask code.

    With `lines`, it counts tiles of a list instead, and they say where each stands.
    """

    start: str
    stop: str
    masked: bool
    note: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Runs:
    """A loop around the loops, over disjoint runs of tiles: `lines` compute the bounds of one.

    `start` says where all runs end, which the loop goes on to reach.
    """

    start: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The statements that compute the bounds, then the loops in order of the keys.

    `bounds` are the declared tensors that the statements read, `lists` the tiles listed before;
    `per_head` says that they differ by query head.
    """

    lines: tuple[str, ...]
    loops: tuple[KeyLoop, ...]
    runs: Runs | None = None
    bounds: tuple[str, ...] = ()
    per_head: bool = False
    lists: TileLists | None = None


_FULL = "full tiles: every row sees every key, no mask"


@dataclass(frozen=True, slots=True)
class Course:
    """What a program walks over: `what` there are `count` of, in tiles of `tile`.

    A row stands at position row + TK - TQ; `shifted` says that bounds are rows, not positions.
    `floor` and `ceiling` bound every clause too, as texts: that of the hull, of the full run.
    """

    what: str
    count: str
    tile: str
    shifted: bool
    floor: tuple[str, str] | None = None
    ceiling: tuple[str, str] | None = None


KEYS = Course("keys", "TK", "BS", False)
ROWS = Course("rows", "TQ", "BT", True)


def key_range(mask: MaskForm) -> KeyRange:
    """Bounds and loops over key tiles, for rows at positions [first, last]."""
    return range_over(mask, KEYS)


def row_range(mask: MaskForm) -> KeyRange:
    """Bounds and loops over row tiles, for keys [first, last]: the mask from the other side."""
    return range_over(mirrored(mask), ROWS)


def mirrored(mask: MaskForm) -> MaskForm:
    """The mask with rows and keys exchanged."""
    clauses = tuple(tuple(plane.mirrored for plane in clause) for clause in mask.clauses)
    return MaskForm(clauses, mask.documents, mask.blocks)


def range_over(mask: MaskForm, walk: Course) -> KeyRange:
    """Bounds and loops for any mask in disjunctive normal form."""
    lists = tile_lists(mask, of_rows=not walk.shifted)
    found = _positions_range(mask, walk) if lists is None else _listed_range(lists, walk)
    bounds = mask.bounds if found.loops else ()
    return KeyRange(
        (*bound_lines(bounds), *found.lines),
        found.loops,
        found.runs,
        tuple(dict.fromkeys(bound[0] for bound in bounds)),
        any("h" in bound for bound in bounds) or bool(lists and lists.per_head),
        lists,
    )


def _listed_range(lists: TileLists, walk: Course) -> KeyRange:
    """The tiles of a list: those with mask code, then those without."""
    held, program = ("BS", "i_s") if walk.shifted else ("BT", "i_t")
    count, start, tile = lists.shape[1], "i_t" if walk.shifted else "i_s", walk.tile
    heads = "(i_b * HQ + i_h)" if lists.per_head else "i_b"
    size = lists.streamed
    lines = (
        "# the list of what this tile visits: blocks with mask code in front, those without behind",
        f"NB = tl.cdiv({walk.count}, {size})",
        f"i_list = {heads} * {count.replace('triton', 'tl')} + {program} * {held} // {lists.held}",
        f"p_list = {lists.name} + i_list * (NB + 2)",
        "n_part = tl.load(p_list)",
        "n_full = tl.load(p_list + 1)",
    )
    step = f"i_n // ({size} // {tile})"
    inside = f"* {size} + i_n % ({size} // {tile}) * {tile}"
    loops = (
        KeyLoop("0", f"n_part * ({size} // {tile})", True, f"{walk.what} of which the mask decides",
                (f"{start} = tl.load(p_list + 2 + {step}) {inside}",)),
        KeyLoop("0", f"n_full * ({size} // {tile})", False, _FULL,
                (f"{start} = tl.load(p_list + NB + 1 - {step}) {inside}",)),
    )  # fmt: skip
    return KeyRange(lines, loops)


def _positions_range(mask: MaskForm, walk: Course) -> KeyRange:
    what = walk.what
    left = f"{what} left of the full tiles: the mask decides"
    right = f"{what} right of the full tiles: the mask decides"
    if mask.clauses == ((),):
        note = f"# every pair is visible, the ragged tail of the {what} apart"
        full = KeyLoop("0", "full_hi", False, _FULL)
        ragged = f"the ragged tail: {what} past {walk.count} are masked"
        tail = KeyLoop("full_hi", walk.count, True, ragged)
        whole = f"full_hi = {walk.count} // {walk.tile} * {walk.tile}"
        return KeyRange((note, whole), (full, tail))
    if not mask.clauses:
        return KeyRange(("# the mask is empty: no pair is visible",), ())
    single = len(mask.clauses) == 1
    lines: list[str] = []
    for number, clause in enumerate(mask.clauses):
        suffix = "" if single else f"_{number}"
        lines.extend(_clause_lines(clause, suffix, single, walk))
    bounded_left = not single or bool(walk.floor) or _has_left(mask.clauses[0])
    loops: list[KeyLoop] = []
    if bounded_left:
        loops.append(KeyLoop("lo", "full_lo", True, left))
        loops.append(KeyLoop("full_lo", "full_hi", False, _FULL))
    else:
        loops.append(KeyLoop("0", "full_hi", False, _FULL))
    loops.append(KeyLoop("full_hi", "hi", True, right))
    runs = None if single else _runs(len(mask.clauses), walk)
    return KeyRange(tuple(lines), tuple(loops), runs)


def _has_left(clause: tuple[HalfPlane, ...]) -> bool:
    return any(plane.j >= 0 for plane in clause)


def _clause_lines(
    clause: tuple[HalfPlane, ...], suffix: str, single: bool, walk: Course
) -> list[str]:
    """Hull and full run of one clause, then rounded to whole tiles."""
    lower = [plane for plane in clause if plane.j > 0]
    upper = [plane for plane in clause if plane.j < 0]
    rows = [plane for plane in clause if plane.j == 0]
    lo, hi = f"lo{suffix}", f"hi{suffix}"
    full_lo, full_hi = f"full_lo{suffix}", f"full_hi{suffix}"
    left = bool(lower) or bool(rows) or not single or bool(walk.floor)
    tile = walk.tile
    sees, all_of = "some row sees a key of", "every row sees all of"
    if walk.shifted:
        sees, all_of = "some key is seen by a row of", "every key is seen by all of"
    lines = [f"# {sees} [lo, hi); {all_of} [full_lo, full_hi)"]
    if not single:
        lines = [f"# clause {suffix[1:]}: {sees} [{lo}, {hi}),",
                 f"# and {all_of} [{full_lo}, {full_hi})"]  # fmt: skip
    last, first = [walk.count], [walk.count]
    for plane in upper:
        some, every = ("last", "first") if plane.i >= 0 else ("first", "last")
        last.append(_upper(plane, some, walk))
        first.append(_upper(plane, every, walk))
    if walk.ceiling:
        last.append(walk.ceiling[0])
        first.append(walk.ceiling[1])
    lines.extend(_bound(hi, "tl.minimum", last))
    lines.extend(_bound(full_hi, "tl.minimum", first))
    if left:
        least, most = ["0"], ["0"]
        for plane in lower:
            # j >= -(i*I + c) / J: the least over the rows is where i*I is greatest
            some, every = ("last", "first") if plane.i >= 0 else ("first", "last")
            least.append(_lower(plane, some, walk))
            most.append(_lower(plane, every, walk))
        if walk.floor:
            least.append(walk.floor[0])
            most.append(walk.floor[1])
        lines.extend(_bound(lo, "tl.maximum", least))
        lines.extend(_bound(full_lo, "tl.maximum", most))
    for plane in rows:
        some, every = ("last", "first") if plane.i >= 0 else ("first", "last")
        lines.append(f"{hi} = tl.where({_row_test(plane, some)}, {hi}, 0)")
        lines.append(f"{full_hi} = tl.where({_row_test(plane, every)}, {full_hi}, 0)")
    if not single:
        # a clause of no tile is no run
        lines.append(f"{hi} = tl.where({lo} < {hi}, {hi}, 0)")
        lines.append(f"{full_hi} = tl.minimum({full_hi}, {hi})")
    if left:
        lines.append(f"{lo} = tl.minimum({lo}, {hi}) // {tile} * {tile}")
        up = f"tl.cdiv({full_lo}, {tile}) * {tile}, tl.cdiv({hi}, {tile}) * {tile}"
        lines.append(f"{full_lo} = tl.minimum({up})")
        lines.append(f"{full_hi} = tl.maximum({full_hi} // {tile} * {tile}, {full_lo})")
    else:
        lines.append(f"{full_hi} = {full_hi} // {tile} * {tile}")
    return lines


def _bound(name: str, function: str, values: list[str]) -> list[str]:
    """`name` = the minimum or maximum of the values, two at a time."""
    first, *rest = dict.fromkeys(values)
    if not rest:
        return [f"{name} = {first}"]
    lines = [f"{name} = {function}({first}, {rest[0]})"]
    return lines + [f"{name} = {function}({name}, {value})" for value in rest[1:]]


def _upper(plane: HalfPlane, fixed: str, walk: Course) -> str:
    """One past the greatest j of j <= (i*I + c) / -J at a fixed i, never below 0."""
    step = -plane.j
    value = greater(plane, plane.i, fixed, step)
    if walk.shifted:
        if step == 1:
            return f"tl.maximum({value} - (TK - TQ), 0)"
        # positions may be negative, down to -TQ, and // rounds towards 0: divide what is not
        return f"tl.maximum(tl.maximum({value} + {step} * TQ, 0) // {step} - TK, 0)"
    return f"tl.maximum({value}, 0)" if step == 1 else f"tl.maximum({value}, 0) // {step}"


def _lower(plane: HalfPlane, fixed: str, walk: Course) -> str:
    """The least j of j >= -(i*I + c) / J at a fixed i; the caller takes 0 for less."""
    value = lesser(plane, plane.i, fixed)
    if walk.shifted:
        if plane.j == 1:
            return f"{value} - (TK - TQ)"
        return f"tl.cdiv(tl.maximum({value} + {plane.j} * TQ, 0), {plane.j}) - TK"
    if plane.j == 1:
        return value if plane.i or plane.bound else str(max(-plane.c, 0))
    return f"tl.cdiv(tl.maximum({value}, 0), {plane.j})"


def _row_test(plane: HalfPlane, row: str) -> str:
    return f"{greater(plane, plane.i, row)} >= 0"


def _runs(count: int, walk: Course) -> Runs:
    """The tiles of all clauses, each once: one clause after the other, by where they start.

    `done` is where the tiles visited so far end. Each run takes the clause that starts first of
    those that reach further, so there are at most as many runs as clauses. A `for` over the
    clauses would do, but Triton 3.6 drops a number that a `for` carries where only the bounds of
    loops inside it read it, and every run would start from 0.
    """
    tile = walk.tile
    lines = ["# of the clauses that reach past what is done, the one that starts first"]
    names = ("lo", "hi", "full_lo", "full_hi")
    lines += [f"{name} = {name}_0" for name in names]
    for n in range(1, count):
        lines.append(f"starts = tl.maximum(lo_{n}, done) < tl.maximum(lo, done)")
        lines.append(f"sooner = (hi_{n} > done) & ((hi <= done) | starts)")
        lines += [f"{name} = tl.where(sooner, {name}_{n}, {name})" for name in names]
    lines.append("lo = tl.maximum(lo, done)")
    # the full tiles that are left lie inside what is left
    lines.append("full_lo = tl.maximum(full_lo, lo)")
    lines.append("full_hi = tl.maximum(full_hi, full_lo)")
    lines.append(f"done = tl.maximum(done, tl.cdiv(hi, {tile}) * {tile})")
    reach = _bound("reach", "tl.maximum", [f"hi_{n}" for n in range(count)])
    return Runs(tuple(reach), tuple(lines))
