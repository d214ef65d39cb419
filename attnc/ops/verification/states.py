"""Hold the states that a variant takes and returns against its fp64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnc.dsl.variant import Variant
from attnc.ops.op import Op
from attnc.ops.reference.attend import Attended, attend
from attnc.ops.verification.criterion import check, check_state
from attnc.ops.verification.draw import Inputs, Shape, draw_inputs
from attnc.ops.verification.gradients import gradient_rows
from attnc.ops.verification.report import Row

# tokens before the call, or before each sequence of it, whose state becomes its initial state
_PREFIX_TOKENS = 21


def state_rows(
    op: Op,
    variant: Variant,
    inputs: Inputs,
    shape: Shape,
    name: str,
    form: str,
    generator: torch.Generator,
    *,
    gradients: bool,
) -> Iterator[Row]:
    """A sequence split at an odd token equals the whole, and a state given comes through.

    Packed sequences take and return a state each, and are not split.
    """
    dtype = inputs.q.dtype
    start = _state_before(variant, inputs, shape, generator)
    ref, pt = (
        _attend(variant, inputs, rounding=rounding, initial=start) for rounding in (None, dtype)
    )
    assert ref.state is not None and pt.state is not None
    by = "" if form == "chunked" else f", {form}"
    call = partial(_call, op, form=form, return_state=True)
    whole, last = call(inputs, initial_state=start)
    yield Row.of(f"with a state given{by}", name, shape, check(whole, ref.out, pt.out))
    verdict = check_state(last, ref.state, pt.state, dtype)
    yield Row.of(f"state returned{by}", name, shape, verdict)
    if not shape.sequences:
        split = (shape.tq // 2) | 1
        split = split if split < shape.tq else 1
        out, state = _in_pieces(call, variant, inputs, start, split)
        verdict = check(out, ref.out, pt.out)
        yield Row.of(f"split at {split}{by}", name, shape, verdict)
        verdict = check_state(state, ref.state, pt.state, dtype)
        yield Row.of(f"state, split at {split}{by}", name, shape, verdict)
    if gradients and form == "chunked":
        yield from gradient_rows(
            op, inputs, shape, name, dtype, ("chunked",), generator, initial_state=start
        )


def _state_before(
    variant: Variant, inputs: Inputs, shape: Shape, generator: torch.Generator
) -> Tensor:
    """The state after some tokens that come before those of the call."""
    tokens = _PREFIX_TOKENS * max(1, shape.sequences)
    sizes = (shape.hq, shape.hkv, shape.qk, shape.v)
    earlier = Shape(shape.batch, tokens, tokens, *sizes, sequences=shape.sequences)
    before = draw_inputs(variant, earlier, inputs.q.dtype, generator, inputs.q.device)
    # params hold for the whole sequence, inputs belong to their tokens
    kept = {d.name: inputs.tensors[d.name] for d in variant.params}
    start = _attend(variant, Inputs(*before.qkv, {**before.tensors, **kept})).state
    assert start is not None
    return start.float()


def _in_pieces(
    call: Callable[..., Any], variant: Variant, inputs: Inputs, start: Tensor, split: int
) -> tuple[Tensor, Tensor]:
    """The rows of two calls, the second from the state that the first one left, and the last."""
    outs, state = [], start
    for part in (slice(0, split), slice(split, inputs.q.shape[1])):
        out, state = call(inputs.tokens(variant, part), initial_state=state)
        outs.append(out)
    return torch.cat(outs, 1), state


def _call(op: Op, inputs: Inputs, **options: Any) -> Any:
    given: dict[str, Any] = {**options, **inputs.tensors}
    return op(inputs.q, inputs.k, inputs.v, **given)


def _attend(
    variant: Variant,
    inputs: Inputs,
    *,
    rounding: torch.dtype | None = None,
    initial: Tensor | None = None,
) -> Attended:
    return attend(
        variant, *inputs.qkv, inputs.tensors,
        dtype=torch.float64 if rounding is None else torch.float32, rounding=rounding,
        initial_state=initial, return_state=True,
    )  # fmt: skip
