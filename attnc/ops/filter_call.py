"""One call of a convolution, compiled here or shipped as binaries. Copied as it is into wheels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from attnc.errors import InputError
from attnc.ops.autograd import eager
from attnc.ops.convolution_autograd import CONVOLVE, Filtering, FilterOp
from attnc.ops.convolution_inputs import check_filter, check_tokens
from attnc.ops.gradients import apart, autocast, check_gradients, needs_gradient
from attnc.ops.tap_transforms import transformed

if TYPE_CHECKING:
    from attnc.dsl.convolution import Convolution


def filter_inputs(
    variant: Convolution,
    v: torch.Tensor,
    others: Sequence[object],
    tensors: Mapping[str, Any],
    *,
    training: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """v and the declared tensors in declared order, checked; the taps as they are used.

    Raises:
        InputError: shapes, dtypes, devices or arguments that do not fit the declaration.
    """
    _refuse_queries(variant, others, tensors)
    if not isinstance(training, bool):
        raise InputError(
            f"training is {training!r}, neither True nor False",
            hints=("a module's is module.training: True drops taps where a dropout is declared",),
        )
    (v,) = autocast(v)
    check_tokens(variant, v)
    given = check_filter(variant, tensors, v)
    check_gradients(variant, given)
    weight = variant.filter.weight.name
    given[weight] = transformed(variant, given[weight], training=training)
    return v, given


def run_filter(
    op: FilterOp, v: torch.Tensor, values: list[torch.Tensor], form: str | None, precision: str
) -> torch.Tensor:
    """o of checked inputs: with a backward where one is wanted, as an operator where seen."""
    if torch.compiler.is_compiling():
        v, *values = apart(v, *values)
    if needs_gradient(v, *values):
        return Filtering.apply(  # type: ignore[no-any-return, no-untyped-call]
            op.key, form or "", precision, v, *values
        )
    if not eager(v, *values):
        return CONVOLVE(op.key, v, values, form or "", precision)  # type: ignore[no-any-return]
    return op.filtered(v, values, form, precision)


def _refuse_queries(
    variant: Convolution, others: Sequence[object], tensors: Mapping[str, Any]
) -> None:
    named = [name for name in ("q", "k") if name in tensors]
    if not others and not named:
        return
    what = " and ".join(named) or f"{1 + len(others)} tensors"
    raise InputError(
        f"{variant.name!r} is a convolution and takes v alone, not {what}",
        notes=("its weight depends on i - j: there is no query and no key",),
        hints=("call op(v, NAME=...) with the declared tensors by name",),
    )
