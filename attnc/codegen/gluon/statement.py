"""A portable statement as Gluon has it: `gl` for `tl`, and a layout for every tile that is made.

Gluon is Triton with layouts named. The graph's statements need few of them: tiles that are created
say theirs, and a vector of rows that meets an accumulator takes on the accumulator's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

_MADE = {"zeros", "full"}


@dataclass(frozen=True, slots=True)
class Layouts:
    """The names of a kernel's layouts: of vectors and tiles by their sides, and of `totals`.

    A program's `held` rows are shared by its consumer warp groups, and a statement sees one
    group's. `rows` holds a number for each of them beside scores, `rows_of_totals` beside the
    accumulators; `wide` are the buffers that lie as accumulators do.
    """

    by_sides: Mapping[tuple[str, ...], str]
    held: str
    rows: str = "ROWS"
    rows_of_totals: str = "ROWS_OF_TOTALS"
    wide: frozenset[str] = frozenset()


# the online form's: rows of queries, keys in columns
ONLINE = Layouts(
    {("BT",): "ROWS", ("BS",): "COLUMNS", ("BT", "BS"): "SCORES", ("BT", "BV"): "VALUES"},
    "BT",
    rows_of_totals="ROWS_OF_VALUES",
)


def gluon_lines(
    lines: tuple[str, ...], layouts: Layouts, *, accumulator: bool = False
) -> tuple[str, ...]:
    """Statements over the tile of scores, or over the `accumulator`'s tile."""
    return tuple(gluon_text(line, layouts, accumulator=accumulator) for line in lines)


def gluon_text(text: str, layouts: Layouts, *, accumulator: bool = False) -> str:
    """One statement or expression; empty text stays empty."""
    if not text:
        return text
    edits: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and _calls(node, _MADE):
            edits.append(_with_layout(text, node, layouts))
        if isinstance(node, ast.Call) and _calls(node, {"sum"}) and _reads(node, layouts.wide):
            # sums of an accumulator's rows meet those of the scores'
            assert node.end_col_offset is not None
            inner = text[node.col_offset : node.end_col_offset]
            converted = f"gl.convert_layout({inner}, {layouts.rows})"
            edits.append((node.col_offset, node.end_col_offset, converted))
        if accumulator and isinstance(node, ast.Subscript) and _spreads_rows(node):
            value = node.value
            assert value.end_col_offset is not None
            inner = text[value.col_offset : value.end_col_offset]
            converted = f"gl.convert_layout({inner}, {layouts.rows_of_totals})"
            edits.append((value.col_offset, value.end_col_offset, converted))
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return re.sub(r"\btl\.", "gl.", text)


def _calls(call: ast.Call, functions: set[str]) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in functions
        and isinstance(function.value, ast.Name)
        and function.value.id == "tl"
    )


def _reads(call: ast.Call, names: frozenset[str]) -> bool:
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(call))


def _with_layout(text: str, call: ast.Call, layouts: Layouts) -> tuple[int, int, str]:
    shape = call.args[0]
    assert isinstance(shape, ast.List) and call.end_col_offset is not None
    sides = tuple(side.id for side in shape.elts if isinstance(side, ast.Name))
    own = text[call.col_offset : call.end_col_offset]
    own = re.sub(rf"\b{layouts.held}\b", "BW", own)
    return call.col_offset, call.end_col_offset, f"{own[:-1]}, {layouts.by_sides[sides]})"


def _spreads_rows(node: ast.Subscript) -> bool:
    """Whether it is `x[:, None]`: a vector of rows, spread over columns."""
    if not isinstance(node.slice, ast.Tuple) or len(node.slice.elts) != 2:
        return False
    rows, columns = node.slice.elts
    return isinstance(rows, ast.Slice) and isinstance(columns, ast.Constant)
