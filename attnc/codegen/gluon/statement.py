"""A portable statement as Gluon has it: `gl` for `tl`, and a layout for every tile that is made.

Gluon is Triton with layouts named. The graph's statements need few of them: tiles that are created
say theirs, and a vector of rows that meets the accumulator takes on the accumulator's.
"""

from __future__ import annotations

import ast
import re

# a program's rows are shared by its consumer warp groups, and a statement sees one group's
_LAYOUTS = {
    ("BT",): "ROWS",
    ("BS",): "COLUMNS",
    ("BT", "BS"): "SCORES",
    ("BT", "BV"): "VALUES",
}
_MADE = {"zeros", "full"}
_ROWS_OF_VALUES = "ROWS_OF_VALUES"


def gluon_lines(lines: tuple[str, ...], *, accumulator: bool = False) -> tuple[str, ...]:
    """Statements over the tile of scores, or over the `accumulator`'s tile."""
    return tuple(gluon_text(line, accumulator=accumulator) for line in lines)


def gluon_text(text: str, *, accumulator: bool = False) -> str:
    """One statement or expression; empty text stays empty."""
    if not text:
        return text
    edits: list[tuple[int, int, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and _made(node):
            edits.append(_with_layout(text, node))
        if accumulator and isinstance(node, ast.Subscript) and _spreads_rows(node):
            value = node.value
            assert value.end_col_offset is not None
            inner = text[value.col_offset : value.end_col_offset]
            converted = f"gl.convert_layout({inner}, {_ROWS_OF_VALUES})"
            edits.append((value.col_offset, value.end_col_offset, converted))
    for start, stop, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[stop:]
    return re.sub(r"\btl\.", "gl.", text)


def _made(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _MADE
        and isinstance(function.value, ast.Name)
        and function.value.id == "tl"
    )


def _with_layout(text: str, call: ast.Call) -> tuple[int, int, str]:
    shape = call.args[0]
    assert isinstance(shape, ast.List) and call.end_col_offset is not None
    sides = tuple(side.id for side in shape.elts if isinstance(side, ast.Name))
    own = text[call.col_offset : call.end_col_offset]
    own = re.sub(r"\bBT\b", "BW", own)
    return call.col_offset, call.end_col_offset, f"{own[:-1]}, {_LAYOUTS[sides]})"


def _spreads_rows(node: ast.Subscript) -> bool:
    """Whether it is `x[:, None]`: a vector of rows, spread over columns."""
    if not isinstance(node.slice, ast.Tuple) or len(node.slice.elts) != 2:
        return False
    rows, columns = node.slice.elts
    return isinstance(rows, ast.Slice) and isinstance(columns, ast.Constant)
