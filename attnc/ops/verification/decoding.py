"""Hold decode against the same rows of one call: prefills in pieces, then steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.algebra import analyse
from attnc.codegen.planning.decode_planner import decode_form
from attnc.dsl.variant import Variant
from attnc.errors import InputError, PlanError
from attnc.ops.decode.beginning import State
from attnc.ops.decode.kv_cache import KVCache
from attnc.ops.decode.matrix_state import MatrixState
from attnc.ops.decode.sum_state import SumState
from attnc.ops.op import Op
from attnc.ops.reference.attend import Attended
from attnc.ops.verification.criterion import check, check_lse
from attnc.ops.verification.draw import Inputs, Shape
from attnc.ops.verification.report import Row

_STEPS = 3


def decodes(shape: Shape) -> bool:
    """Whether a shape has tokens enough for two prefills and steps, in sequences of one length."""
    return shape.tq == shape.tk > 2 * _STEPS and not shape.sequences


def decode_rows(
    op: Op,
    inputs: Inputs,
    shape: Shape,
    name: str,
    whole: tuple[Attended, Attended],
    *,
    allowed: Tensor | None,
    rounded: Tensor | None,
) -> Iterator[Row]:
    """The rows of each kind of state that the variant has; none where it has no decode.

    `whole` are the reference and pt; `allowed` is what a state's rounding adds to the bound, and
    `rounded` the lse of pt where the kernels' is no better.
    """
    ref, pt = whole
    for what, state in _states(op, inputs, shape):
        by_state = not isinstance(state, KVCache)
        out, lse = _decoded(op, inputs, state)
        verdict = check(out, ref.out, pt.out, allowed=allowed if by_state else None)
        yield Row.of(what, name, shape, verdict)
        if lse is not None and ref.lse is not None:
            among = pt.lse if by_state else rounded
            yield Row.of(f"lse, {what}", name, shape, check_lse(lse, ref.lse, among))


def _states(op: Op, inputs: Inputs, shape: Shape) -> Iterator[tuple[str, State]]:
    """Each kind of state before the first token, the memory of caches NaN.

    Raises: PlanError where the variant decodes, and no program holds the state of these sizes.
    """
    try:
        decode_form(op.request(None, "bf16", None, False), analyse(op.variant))
    except PlanError:
        return  # it has no decode, and the gallery says why
    kinds: list[dict[str, Any]] = [{}]
    if op.variant.over_cache:
        kinds.append({"capacity": shape.tq})
    for options in kinds:
        try:
            state = op.init_state(
                shape.batch, (shape.hq, shape.hkv), dim=(shape.qk, shape.v),
                dtype=inputs.q.dtype, device=inputs.q.device, **options,
            )  # fmt: skip
        except InputError:
            if options:
                raise
            continue  # a cache without a capacity is a ring, which not every mask allows
        cache = state.cache if isinstance(state, SumState) else state
        if isinstance(cache, KVCache):
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
        if isinstance(state, MatrixState):
            yield "decode, state", state
        elif isinstance(state, SumState):
            yield "decode, ring and state", state
        else:
            yield f"decode, {'ring' if state.kind == 'ring' else 'cache'}", state


def _decoded(op: Op, inputs: Inputs, state: State) -> tuple[Tensor, Tensor | None]:
    """Rows, and their lse where there is one: two prefills, then a token at a time."""
    tokens = inputs.q.shape[1]
    first = (tokens * 2 // 3) | 1
    first = min(first, tokens - _STEPS - 1)
    ends = [first, *range(tokens - _STEPS, tokens + 1)]
    outs, logs, start = [], [], 0
    for end in ends:
        part = slice(start, end)
        call: Any = op.step if end > tokens - _STEPS else op.prefill
        rows = [x[:, part] for x in inputs.qkv]
        given: dict[str, Any] = _tensors(
            op.variant, inputs, part, whole=not isinstance(state, MatrixState)
        )
        if op.variant.has_lse:
            out, lse, _ = call(*rows, state, return_lse=True, **given)
            logs.append(lse)
        else:
            out, _ = call(*rows, state, **given)
        outs.append(out)
        start = end
    return torch.cat(outs, 1), torch.cat(logs, 2) if logs else None


def _tensors(variant: Variant, inputs: Inputs, part: slice, *, whole: bool) -> dict[str, Tensor]:
    """Declared tensors of some tokens; over a cache those of all positions are `whole`."""
    cut = {"i"} if whole else {"t", "i", "j"}
    return {
        declared.name: inputs.tensors[declared.name][
            tuple(part if axis in cut else slice(None) for axis in declared.shape)
        ]
        for declared in (*variant.params, *variant.inputs)
    }
