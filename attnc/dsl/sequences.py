"""A variant over sequences that are packed into one: positions and masks are each one's own."""

from __future__ import annotations

from dataclasses import replace

from attnc.dsl.expr import Expr, Name, walk
from attnc.dsl.mask_data import CU_SEQLENS
from attnc.dsl.variant import Declared, Variant
from attnc.errors import InputError


def over_sequences(variant: Variant) -> Variant:
    """The variant that takes `cu_seqlens_q` and `cu_seqlens_k`, int32 [N + 1], beside its tensors.

    Raises:
        InputError: a variant whose meaning does not split into sequences.
    """
    problem = _problem(variant)
    if problem:
        raise InputError(
            f"{variant.name!r} takes no packed sequences: {problem}",
            hints=("call it once a sequence",),
        )
    starts = tuple(Declared(name, ("n",), kind="input") for name in sorted(CU_SEQLENS))
    inputs = sorted((*variant.inputs, *starts), key=lambda tensor: tensor.name)
    return _with(variant, tuple(inputs), packed=True)


def alone_of(variant: Variant) -> Variant:
    """The variant that each sequence of a packed call is a call of."""
    inputs = tuple(tensor for tensor in variant.inputs if tensor.name not in CU_SEQLENS)
    return _with(variant, inputs, packed=False)


def _with(variant: Variant, inputs: tuple[Declared, ...], *, packed: bool) -> Variant:
    form = replace(variant.mask_form, packed=packed)
    parts: dict[str, object] = {name: getattr(variant, name) for name in Variant.__slots__}
    parts["meaning"] = replace(variant.meaning, mask_form=form, inputs=inputs)
    return type(variant).from_checked(parts)


def _problem(variant: Variant) -> str:
    if variant.mask_form.documents or variant.mask_form.blocks:
        return "documents and tables of blocks hold for a sequence as a whole"
    for tensor in (*variant.params, *variant.inputs):
        if {"i", "j"} <= set(tensor.shape):
            return f"{tensor.name!r} has an axis of queries and one of keys"
        if tensor.grad and "b" in tensor.shape and not {"t", "i", "j"} & set(tensor.shape):
            return f"{tensor.name!r} has a gradient for each b, which no kernel keeps apart yet"
    of_terms = [x for term in variant.terms for x in (term.score, term.factor)]
    whole = (variant.score, variant.value, variant.log_decay, variant.sink)
    for expression in (*whole, *of_terms):
        if expression is not None and _uses_batch(expression):
            return "it reads the number b of a batch entry"
    return ""


def _uses_batch(expression: Expr) -> bool:
    return any(isinstance(node, Name) and node.id == "b" for node in walk(expression))
