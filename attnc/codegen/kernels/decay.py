"""Log decays as text, in log2 so that one exp2 serves."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from attnc.codegen.expression.printer import Printer, number

LOG2E = 1.4426950408889634


def constant_decay(
    log_decay: sympy.Expr, bindings: Mapping[str, str], printer: Printer
) -> tuple[str, ...]:
    """`b_c` = the log2 decay a token of this program's head."""
    bound = printer.bound(bindings)
    return (*bound.statements("b_c", log_decay), f"b_c = b_c * {number(LOG2E)}")


def index_bindings(expression: sympy.Expr) -> tuple[list[str], dict[str, str]]:
    """Scalar indices as floats, exact to 2**24: the statements, and the text of each symbol."""
    names = {s.name for s in expression.free_symbols}
    index = {"h": "i_h", "b": "i_b", "hkv": "i_hkv", "H": "HQ", "d": "K"}
    used = {name: text for name, text in index.items() if name in names}
    lines = [f"f_{name} = tl.cast({text}, ACC)" for name, text in used.items()]
    return lines, {name: f"f_{name}" for name in used}
