"""What a call asks for beside its tensors, checked against what the variant has."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attnc.codegen.algebra import FORMS, Algebra
from attnc.codegen.convolution.algebra import FORMS as CONVOLUTION_FORMS
from attnc.dsl.mask_data import CU_SEQLENS
from attnc.errors import InputError, PlanError
from attnc.ops.inputs import Sizes

# three tf32 products keep the accuracy of fp32: 1e-6 where one keeps 1e-3
PRECISIONS = {"fp32": "tf32x3", "tf32": "tf32"}


def forms_with_kernels(algebra: Algebra) -> tuple[str, ...]:
    """The legal forms that have kernels."""
    return tuple(v.form for v in algebra.forms if v.legal)


def check_precision(precision: object) -> None:
    """Refuse what names no precision.

    Raises:
        InputError: anything but `fp32` and `tf32`.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is neither 'fp32' nor 'tf32'")


def check_form_name(form: object) -> None:
    """Refuse what names no form of any op; None leaves the choice to the planner.

    Raises:
        InputError: with the forms that there are.
    """
    if form is not None and form not in (*FORMS, *CONVOLUTION_FORMS):
        raise InputError(
            f"{form!r} is no form",
            notes=(
                f"those of attention are {', '.join(FORMS)}",
                f"and those of a convolution {', '.join(CONVOLUTION_FORMS)}",
            ),
            hints=("op.forms() names those of an op, and None takes the planner's choice",),
        )


def check_options(
    name: str,
    algebra: Algebra,
    sizes: Sizes,
    *,
    return_lse: bool,
    stateful: bool,
    form: str | None,
    precision: str,
    given: Mapping[str, torch.Tensor],
) -> None:
    """Refuse what the variant of that name does not have; `given` are the declared tensors.

    Raises:
        InputError: an lse, a state, a form or a precision that is not there for these sizes.
        PlanError: a form that is not legal.
    """
    kind = "is a sum of terms" if algebra.terms else f"belongs to the {algebra.family} family"
    check_precision(precision)
    if return_lse and not algebra.has_lse:
        instead = "return_state=True gives what a later call continues from"
        hints = (instead,) if algebra.keeps_state.legal else ()
        raise InputError(f"{name!r} has no lse: it {kind}", hints=hints)
    if stateful and algebra.has_lse:
        raise InputError(
            f"{name!r} has no state: it {kind}",
            notes=(algebra.keeps_state.reason,),
            hints=("return_lse=True gives what combines with another call's keys",),
        )
    if form is not None:
        _check_form(name, algebra, form)
    any_length = "online" if algebra.has_lse else "parallel"
    if form in {"chunked", "recurrent"} and sizes.tq != sizes.tk:
        raise InputError(
            f"the {form} form needs TQ = TK, not {sizes.tq} and {sizes.tk}",
            hints=(f"the {any_length} form takes any lengths; it is chosen when form is left out",),
        )
    if stateful or form in {"chunked", "recurrent"}:
        _check_starts(given, any_length)
    if not stateful:
        return
    verdict = algebra.keeps_state
    if not verdict.legal:
        raise InputError(f"{name!r} has no state", notes=(verdict.reason,))
    if form not in {None, "chunked", "recurrent"}:
        raise InputError(f"the {form} form keeps no state", hints=("leave form out",))
    if sizes.tq != sizes.tk:
        raise InputError(
            f"a state needs TQ = TK, not {sizes.tq} and {sizes.tk}",
            notes=("each token of k and v enters the state at its query's position",),
        )


def one_length(sizes: Sizes, given: Mapping[str, torch.Tensor]) -> bool:
    """Whether queries and keys are known to be the same tokens, in every packed sequence too.

    Where sequences start is data, which nobody reads unasked: one tensor given for both says it.
    """
    starts = [given.get(name) for name in sorted(CU_SEQLENS)]
    return sizes.tq == sizes.tk and starts[0] is starts[1]


def _check_starts(given: Mapping[str, torch.Tensor], any_length: str) -> None:
    """Refuse sequences whose queries and keys differ in number, of a fold over tokens."""
    starts = [given.get(name) for name in sorted(CU_SEQLENS)]
    if starts[0] is starts[1] or torch.equal(*starts):  # type: ignore[arg-type]
        return
    raise InputError(
        "cu_seqlens_q and cu_seqlens_k differ, and a fold over tokens takes each with its query",
        hints=(f"the {any_length} form takes any lengths; it is chosen when form is left out",),
    )


def _check_form(name: str, algebra: Algebra, form: str) -> None:
    check_form_name(form)
    usable = ", ".join(forms_with_kernels(algebra))
    verdict = algebra.legal(form)
    if not verdict.legal:
        raise PlanError(
            f"{name!r} has no {form} form",
            notes=(verdict.reason,),
            hints=(f"its forms with kernels are: {usable}",),
        )
