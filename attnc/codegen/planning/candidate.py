"""One candidate of a pass: its tiles, its cost, and the reason against it."""

from __future__ import annotations

import sympy

from attnc.codegen.expression.printer import Printer
from attnc.codegen.expression.symbolic import is_polynomial_in
from attnc.codegen.features import MIN_TILE, Features, power_of_two
from attnc.codegen.kernel import Kernel
from attnc.codegen.kernels.scales import LEAST_CHANNELS
from attnc.codegen.plan import Cost, PassPlan, Request
from attnc.codegen.planning.cost import estimate
from attnc.codegen.planning.work import pass_work
from attnc.codegen.wide_rows import with_wide_rows
from attnc.errors import PlanError

# the passes of a candidate, and its place among those of equal rank
Found = list[tuple[tuple[PassPlan, ...], tuple[int, ...]]]

# the first capability with an instruction for tanh
_TANH = 75
# the fewest columns of v that a program of the recurrent form holds a state by
LEAST_COLUMNS = 16
# more carried words a thread than this and the compiler spills on every target
_REGISTER_LIMIT = 232


def tile_dims(request: Request) -> tuple[int, int]:
    """BK and BV: whole heads, in powers of two."""
    head_dim, value_dim = request.dims
    least = LEAST_CHANNELS if request.variant.scaled else MIN_TILE
    return (
        max(least, power_of_two(head_dim)),
        max(request.device.min_columns, power_of_two(value_dim)),
    )


def printer_for(request: Request) -> Printer:
    """A printer of a request's expressions.

    A score of bf16 or 8-bit tensors takes the hardware's tanh, right to 11 bits where they hold 8
    or 4. Features, decays, whose errors add up over tokens, and other dtypes do not, nor does a
    score with a kink behind the tanh: on its wrong side a gradient is another one.
    """
    fast = (
        request.variant.family == "softmax"
        and request.dtype in {"bf16", "e4m3"}
        and request.device.capability >= _TANH
        and is_polynomial_in(request.variant.score, sympy.tanh)
    )
    return Printer({}, fast_tanh=fast)


def is_wide(request: Request) -> bool:
    """Whether dots are split in three: both halves of each operand then stand in registers."""
    return request.dtype == "fp32" and request.precision == "tf32x3"


def state_too_large(request: Request, features: Features, *, columns: int | None = None) -> str:
    """Why no program can carry the state, told before a kernel of thousands of tiles is built.

    `columns` are the fewest of v that a program may hold; the device's, where products read them.
    """
    columns = columns or request.device.min_columns
    registers = request.device.register_file * 4
    limit = registers * 3 // 4
    # too many to fit are too many to cut into tiles
    count = features.count if features.count * columns * 4 > limit else features.padded_count
    nbytes = count * columns * 4
    if nbytes <= limit:
        return ""
    return (
        f"{features.count:,} features by {columns} columns of v in fp32 take {nbytes:,} B, "
        f"a state may take {limit:,} of the {registers:,} B of registers of a program"
    )


def no_state_fits(request: Request, why: str, free: str) -> PlanError:
    """The refusal of a state that no program can carry; `free` is the form that keeps none."""
    head_dim, value_dim = request.dims
    name = request.variant.name
    return PlanError(
        f"no tile of {name!r} at K={head_dim}, V={value_dim}, {request.dtype} holds its state",
        notes=(why,),
        hints=(f"the {free} form keeps no state; or use a smaller K or a lower order",),
    )


def pass_plan(
    request: Request, kernel: Kernel, tiles: dict[str, int], warps: int, stages: int
) -> PassPlan:
    """A pass with its tiles, and what it costs at the workload."""
    if not request.decode:
        # a cache lies as it was made, by a server maybe
        kernel = with_wide_rows(kernel, request.dims, request.dtype)
    cost: Cost = estimate(
        kernel,
        tiles,
        io=request.dtype,
        num_warps=warps,
        num_stages=stages,
        device=request.device,
        work=pass_work(request, kernel, tiles),
        precision=request.precision,
    )
    return PassPlan(kernel, tuple(tiles.items()), warps, stages, cost)


def refuse(request: Request, step: PassPlan) -> str:
    """Why a pass does not fit the device, empty where it does."""
    if request.dtype == "fp64":
        return ""  # the interpreter alone runs it, and has neither SRAM nor registers
    budget = request.device.sram_bytes
    if step.cost.sram_bytes > budget:
        return f"needs {step.cost.sram_bytes:,} B of SRAM, the budget is {budget:,} B"
    limit = min(_REGISTER_LIMIT, request.device.registers)
    if step.cost.registers > limit:
        return f"needs about {step.cost.registers} registers a thread, at most {limit} are there"
    return ""
