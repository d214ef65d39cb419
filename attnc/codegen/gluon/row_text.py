"""What a fused backward does by rows, `clear` and `cast`, as text of the second backend.

Four warps share BT rows; a thread holds eight channels of one, as many as it moves at once.
"""

from __future__ import annotations

import re

from attnc.codegen.gluon.pass_statements import constants_stated, statements
from attnc.codegen.gluon.statement import Layouts
from attnc.codegen.plan import PassPlan, Plan
from attnc.codegen.text.template import render_text

# the passes that are printed so
BY_ROWS = frozenset({"clear", "cast"})
# a thread's channels, and the lanes of a warp
_CHANNELS, _LANES = 8, 32


def row_text(plan: Plan, step: PassPlan, symbol: str) -> str:
    """The one function of a pass."""
    kernel = step.kernel
    sides = {("BT",): "ROWS", ("BT", "BK"): "TILE", ("BT", "BV"): "TILE"}
    # no group holds a share of the rows
    layouts = Layouts(sides, held="BW")
    nodes = statements(plan, kernel, kernel.graph.nodes(), layouts, frozenset())
    names = frozenset(re.findall(r"\w+", " ".join(text for node in nodes for text in node.texts())))
    text = render_text(
        "gluon_rows.jinja",
        symbol=symbol,
        tensors=kernel.tensors,
        strides=[stride for tensor in kernel.tensors for stride in tensor.strides],
        scalars=list(kernel.scalars),
        names=names,
        nodes=nodes,
    )
    text = re.sub(r"\bACC\b", "gl.float32", re.sub(r"\btl\.", "gl.", text))
    return constants_stated(text, _constants(plan, step))


def _constants(plan: Plan, step: PassPlan) -> dict[str, str]:
    tile = step.tile
    across = tile["BK"] // _CHANNELS
    lanes = f"[{_LANES // across}, {across}]"
    return {
        "K": str(plan.dims[0]),
        "V": str(plan.dims[1]),
        **{name: str(tile[name]) for name in ("BT", "BK", "BV")},
        "TILE": f"gl.BlockedLayout([1, {_CHANNELS}], {lanes}, [{step.num_warps}, 1], [1, 0])",
        "ROWS": "gl.SliceLayout(1, TILE)",
        "CHANNELS": "gl.SliceLayout(0, TILE)",
    }
