"""The passes that come before others where a decay has a value a token, or a channel."""

from __future__ import annotations

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.printer import Printer
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.channel_gates import channel_gates_kernel
from attnc.codegen.kernels.gates import gates_kernel
from attnc.codegen.plan import PassPlan, Request
from attnc.codegen.planning.candidate import pass_plan

# tokens a step where a program of a backward sums all channels
CHANNEL_TOKENS = 32
# elements of a tile of channels that four warps hold
_WORDS = 4096


def gates_pass(request: Request, algebra: Algebra, printer: Printer) -> PassPlan:
    """The sums over all tokens that a parallel form takes its differences of."""
    if algebra.by_channel:
        kernel = channel_gates_kernel(request.variant, algebra, printer)
        # few channels a program: more programs, and longer runs of tokens
        return pass_plan(request, kernel, {"BC": 128, "BK": 16}, 4, 1)
    return pass_plan(request, gates_kernel(request.variant, algebra, printer), {"BC": 1024}, 4, 1)


def inside_pass(request: Request, kernel: Kernel, rows: int, tile_k: int) -> PassPlan:
    """A pass over chunks of `rows` tokens that stand alone."""
    tiles = {"BC": rows, "BK": tile_k}
    if "LEVELS" in kernel.constants:
        tiles["LEVELS"] = rows.bit_length() - 1
    # the fp64 sums of a tile of channels take two registers an element
    return pass_plan(request, kernel, tiles, 8 if rows * tile_k > _WORDS else 4, 1)
