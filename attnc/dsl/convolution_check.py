"""Fields of a convolution as they were written -> its checked parts."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from attnc.dsl.check import ELEMENTWISE
from attnc.dsl.convolution import Filter
from attnc.dsl.declared import declared_tensors
from attnc.dsl.expr import COMPARED, Expr, Name, Ref
from attnc.dsl.feature import FeatureMap
from attnc.dsl.fields import Fields, check_name, lifted, text_of
from attnc.dsl.grammar import OFFSET
from attnc.dsl.half_plane import MaskProblem
from attnc.dsl.limits import limited_text
from attnc.dsl.mask import MaskForm, mask_form
from attnc.dsl.paper import read_about, read_paper
from attnc.dsl.parse import parse
from attnc.dsl.source import Scope
from attnc.dsl.tap_transform import tap_transforms
from attnc.dsl.text import to_text
from attnc.dsl.variant import Declared, Meaning, Scale
from attnc.errors import FieldError, MaskNotAffine, NoFamily

_MASK_NAMES = frozenset({"i", "j", "causal", "full"})
_INDEX = {
    "weight": ("c", OFFSET),
    "skip": ("c",),
    "pregate": ("b", "t", "c"),
    "postgate": ("b", "t", "c"),
    "outer": ("z", "k1", "n1"),
    "inner": ("z", "k2", "n2"),
}
_SHOWN = {
    "weight": "w[c, i-j]",
    "skip": "D[c]",
    "pregate": "g[b, t, c]",
    "postgate": "g[b, t, c]",
    "outer": "F1[z, k1, n1]",
    "inner": "F2[z, k2, n2]",
}
_FORMULA = {
    "weight": "a filter that is a formula is evaluated once a step, and its taps handed over",
    "pregate": "a gate that is a formula is evaluated before the call, and handed over",
    "postgate": "a gate that is a formula is evaluated before the call, and handed over",
}


def checked_convolution(fields: Fields) -> dict[str, object]:
    """Read and check every field.

    Raises:
        DeclarationError: the first field that is refused.
    """
    check_name(fields, fields.name, "variant")
    declared = declared_tensors(fields)
    by_name = {tensor.name: tensor for tensor in declared}
    refs = {
        field: _ref(fields, field, value, by_name)
        for field in _INDEX
        if (value := getattr(fields, field)) is not None
    }
    _check_distinct(fields, refs)
    _check_factors(fields, refs)
    mask = _mask(fields)
    form, lowest, highest = _offsets(fields, mask)
    weight = refs["weight"]
    found = Filter(
        weight,
        refs.get("skip"),
        refs.get("pregate"),
        refs.get("postgate"),
        lowest,
        highest,
        tap_transforms(fields),
        refs.get("outer"),
        refs.get("inner"),
    )
    meaning = Meaning(
        feature_map=FeatureMap("offset", (), weight),
        scale=Scale(Fraction(1)),
        score=Name("s"),
        value=None,
        mask_form=form,
        log_decay=None,
        sink=None,
        normalize="none",
        chunk="auto",
        params=tuple(tensor for tensor in declared if tensor.kind == "param"),
        inputs=tuple(tensor for tensor in declared if tensor.kind == "input"),
    )
    return {
        "name": fields.name,
        "mask": mask,
        "meaning": meaning,
        "dim": None,
        "heads": None,
        "about": read_about(fields),
        "paper": read_paper(fields),
        "filter": found,
    }


def _ref(fields: Fields, field: str, value: object, declared: Mapping[str, Declared]) -> Ref:
    label = f"{field} of {fields.name!r}"
    text = limited_text(lifted(value), label) if isinstance(value, Expr) else value
    if not isinstance(text, str):
        raise fields.refuse(field, f"{label} is {value!r}, not an expression")
    source = fields.source(field, text)
    # what is a formula is read, for an error that says what to do
    ref = parse(source, Scope(frozenset(), ELEMENTWISE, declared))
    if isinstance(ref, Ref) and ref.index == _INDEX[field]:
        return ref
    kind = NoFamily if field == "weight" else FieldError
    raise kind(
        f"{label} is {to_text(ref)}, and has to be a declared tensor like {_SHOWN[field]}",
        where=source.at(None),
        notes=(_FORMULA[field],) if field in _FORMULA else (),
        hints=(f"declare a tensor of shape [{', '.join(_axes(field))}] and name it",),
    )


def _axes(field: str) -> tuple[str, ...]:
    return tuple("T" if letter == OFFSET else letter for letter in _INDEX[field])


def _check_distinct(fields: Fields, refs: Mapping[str, Ref]) -> None:
    if {"pregate", "postgate"} <= set(refs) and refs["pregate"].name == refs["postgate"].name:
        raise fields.refuse(
            "postgate",
            f"{fields.name!r} reads {refs['pregate'].name!r} as both of its gates",
            hints=("declare two inputs, and pass one tensor twice",),
        )


def _check_factors(fields: Fields, refs: Mapping[str, Ref]) -> None:
    given = [field for field in ("outer", "inner") if field in refs]
    if len(given) == 1:
        missing = "inner" if given == ["outer"] else "outer"
        raise fields.refuse(
            given[0],
            f"{fields.name!r} has an {given[0]} factor and no {missing} one",
            notes=("a transform of N1 * N2 points is two products, one by each factor",),
            hints=(f'add {missing} = "{_SHOWN[missing]}", or leave both out for the DFT',),
        )


def _mask(fields: Fields) -> Expr:
    value = fields.mask
    if not isinstance(value, str | Expr):
        raise fields.refuse(
            "mask",
            f"mask of {fields.name!r} is {value!r}, not a mask",
            hints=COMPARED if isinstance(value, bool) else (),
        )
    label = f"mask of {fields.name!r}"
    text = limited_text(lifted(value), label) if isinstance(value, Expr) else value
    instead = "the mask of a convolution takes numbers alone"
    scope = Scope(_MASK_NAMES, frozenset({"window", "prefix"}), {}, instead)
    return parse(fields.source("mask", text), scope)


def _offsets(fields: Fields, mask: Expr) -> tuple[MaskForm, int | None, int | None]:
    """The mask's form, and the bounds on i - j that it is."""
    source = fields.source("mask", text_of(fields.mask))
    try:
        form = mask_form(mask)
    except MaskProblem as problem:
        raise problem.error(
            problem.message,
            where=source.at(problem.span),
            notes=(problem.note,) if problem.note else (),
            hints=(problem.hint,) if problem.hint else (),
        ) from None
    lowest: int | None = None
    highest: int | None = None
    for plane in form.clauses[0] if len(form.clauses) == 1 else ():
        if (plane.i, plane.j) == (1, -1):
            lowest = -plane.c
        elif (plane.i, plane.j) == (-1, 1):
            highest = plane.c
        else:
            break
    else:
        if len(form.clauses) == 1 and (lowest is not None or highest is None):
            return form, lowest, highest
    raise MaskNotAffine(
        f"the mask of {fields.name!r} is no range of i - j that is bounded below, or full",
        where=source.at(None),
        notes=("tap 0 of a filter is the lowest offset i - j that its mask shows",),
        hints=("write causal, window(left, right), full, or (i - j >= 1) & (i - j < 64)",),
    )
