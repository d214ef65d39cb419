"""Where gluon's kernels are taken unasked: what an H100 measured, and the rule that follows.

The rule counts the keys that a row sees, so it means the same with and without a mask. Between
what was measured to be slower and what was measured to be faster it says triton.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.algebra import Algebra
from attnc.codegen.plan import Request
from attnc.codegen.planning.visibility import visible_fraction
from attnc.dsl.mask import MaskForm
from attnc.dsl.variant import Variant


@dataclass(frozen=True, slots=True)
class Measured:
    """A phase of heads whose tile has `columns`: gluon was faster where rows see `keys` keys.

    `seen` is what an H100 measured in bf16 beside the triton backend, B*T = 16384, H*D = 2048.
    """

    phase: str
    columns: int
    keys: int
    seen: str


# a causal row of T tokens sees a little under T / 2 of them
_MEASURED = (
    Measured("forward", 64, 1000, "1.2x triton's speed at T=4096 (causal 1.1x), 1.1x at T=1024"),
    Measured(
        "forward", 128, 100, "1.6x triton's speed at T=4096 (causal 1.7x), 1.6x in a window of 128"
    ),
    Measured(
        "backward", 64, 500, "1.9x triton's speed at T=4096 (causal 1.8x), 1.6x at T=1024 causal"
    ),
    Measured(
        "backward", 128, 100, "1.7x triton's speed at T=4096 (causal 1.7x), 1.4x in a window of 128"
    ),
)
# an op whose tensors go as descriptors keeps the host for 11 us; a shorter kernel would wait for it
_LEAST_US = 15.0
# a program has that many rows at least
_LEAST_ROWS = 128

_LAUNCHERS = {
    "interpreted": "on a CPU its schedule gains nothing; ask for it to have it interpreted",
    "packaged": "what launches binaries hands over pointers, and its kernels take descriptors",
}


def against(request: Request, algebra: Algebra, columns: int) -> str:
    """Why kernels that could be had are not taken unasked; empty where they are."""
    work = request.workload
    if request.launcher in _LAUNCHERS:
        return _LAUNCHERS[request.launcher]
    known = _known(request.phase, columns)
    if known is None:
        return f"no card has measured its {request.phase} with tiles of {columns} columns"
    unlike = untimed(request.variant, algebra.mask)
    if unlike:
        return f"no card has measured it with {unlike}"
    if work.tq < _LEAST_ROWS:
        return f"{work.tq} queries do not fill the {_LEAST_ROWS} rows of its programs"
    seen = visible_fraction(algebra.mask, work.tq, work.tk)
    if seen * work.tk < known.keys:
        return (
            f"rows see {seen * work.tk:.0f} keys, "
            f"and it is known to be faster from {known.keys} on at {columns} columns"
        )
    pairs = work.batch * work.hq * work.tq * work.tk * seen
    least_us = 2.0 * pairs * sum(request.dims) / request.device.tflops * 1e-6
    if least_us < _LEAST_US:
        return f"{least_us:.0f} us at the roofline are less than the host needs to launch it"
    return ""


def why_taken(request: Request, columns: int) -> str:
    """Why kernels are taken unasked."""
    known = _known(request.phase, columns)
    assert known is not None
    return f"measured on an H100 at {columns} columns: {known.seen}"


def _known(phase: str, columns: int) -> Measured | None:
    found = (item for item in _MEASURED if (item.phase, item.columns) == (phase, columns))
    return next(found, None)


def untimed(variant: Variant, mask: MaskForm) -> str:
    """What no card has timed of a variant; empty where one has timed the like."""
    declared = (*variant.params, *variant.inputs)
    # an element a pair: consumers would wait for its loads
    paired = next((t.name for t in declared if {"i", "j"} <= set(t.shape)), "")
    if paired:
        return f"a tensor of pairs, {paired}"
    if mask.documents or mask.blocks:
        return "a mask whose tiles are listed by data"
    if mask.bounds:
        return f"a mask whose bounds are loaded, {mask.bounds[0][0]}"
    if len(mask.clauses) > 1:
        return "a mask that is a union, of several runs of tiles"
    return ""
