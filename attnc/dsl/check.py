"""Fields as they were written -> the checked parts of a variant."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.dsl.decay import check_channels, check_decay
from attnc.dsl.declared import declared_tensors
from attnc.dsl.expr import (
    COMPARED,
    Compare,
    Expr,
    Logic,
    Name,
    Ref,
    walk,
)
from attnc.dsl.facts import read_chunk, read_dim, read_heads, read_normalize, read_scale
from attnc.dsl.feature import FeatureMap, feature_map, nonnegative
from attnc.dsl.fields import Fields, check_name, lifted, text_of
from attnc.dsl.gradient_check import check_grad
from attnc.dsl.grammar import FUNCTIONS, INDEX_NAMES
from attnc.dsl.half_plane import MaskProblem
from attnc.dsl.limits import limited_text
from attnc.dsl.mask import MaskForm, mask_form
from attnc.dsl.paper import read_about, read_paper
from attnc.dsl.parse import parse
from attnc.dsl.polynomial import constants_in_the_way
from attnc.dsl.real import check_real
from attnc.dsl.source import Scope
from attnc.dsl.text import to_text
from attnc.dsl.variant import Declared, Meaning, Variant
from attnc.errors import DeclarationError, SyntaxRefused

SCORE_NAMES = frozenset({"s", "i", "j", "h", "b", "hkv", "H", "d"})
DECAY_NAMES = frozenset({"h", "H"})
VALUE_NAMES = frozenset({"v", "h", "b", "hkv", "H"})
_CHANNELS = {"value": {"c"}, "log_decay": {"k"}}
_NOT_READ_AT = {
    "score": {"t"},
    "value": {"i"},
    "log_decay": {"i", "j"},
    "sink": {"i", "j", "t"},
    "factor": {"i", "j", "t"},
}
MASK_NAMES = frozenset({"i", "j", "causal", "full"})
MASK_FUNCTIONS = frozenset({"window", "prefix", "documents", "blocks"})
ELEMENTWISE = frozenset(FUNCTIONS) - MASK_FUNCTIONS - {"taylor"}


def checked(fields: Fields) -> dict[str, object]:
    """Read and check every field.

    Raises:
        DeclarationError: the first field that is refused.
    """
    check_name(fields, fields.name, "variant")
    declared = declared_tensors(fields)
    by_name = {tensor.name: tensor for tensor in declared}
    feature, score = read_weight(fields, by_name)
    softmax = feature.kind == "softmax"
    family = feature.kind if feature.kind in {"softmax", "pointwise"} else "state"
    mask, form = read_mask(fields, by_name)
    value = read_value(fields, by_name)
    log_decay: Expr | None = None
    if fields.log_decay is not None:
        log_decay = read_expression(fields, "log_decay", fields.log_decay, DECAY_NAMES, by_name)
        source = fields.source("log_decay", text_of(fields.log_decay))
        check_decay(fields.name, log_decay, source, form, family)
        check_channels(fields.name, log_decay, source, feature)
    sink: Expr | None = None
    if fields.sink is not None:
        if not softmax:
            raise fields.refuse(
                "sink",
                f"{fields.name!r} has a sink and no softmax",
                notes=("a sink adds exp(sink) to the sum that a softmax row is divided by",),
                hints=("leave sink out",),
            )
        sink = read_expression(fields, "sink", fields.sink, DECAY_NAMES, by_name)
    check_grad(fields, declared, score, value, log_decay, sink)
    meaning = Meaning(
        feature_map=feature,
        scale=read_scale(fields),
        score=score,
        value=value,
        mask_form=form,
        log_decay=log_decay,
        sink=sink,
        normalize=read_normalize(fields, softmax),
        chunk=read_chunk(fields, family),
        params=tuple(tensor for tensor in declared if tensor.kind == "param"),
        inputs=tuple(tensor for tensor in declared if tensor.kind == "input"),
    )
    return {
        "name": fields.name,
        "mask": mask,
        "meaning": meaning,
        "dim": read_dim(fields),
        "heads": read_heads(fields),
        "about": read_about(fields),
        "paper": read_paper(fields),
    }


def read_weight(fields: Fields, declared: Mapping[str, Declared]) -> tuple[FeatureMap, Expr]:
    """The feature map and the score, which is s itself where the weight folds into a state."""
    feature = _feature(fields)
    written = feature.expression
    if written is not None:
        check_real(written, fields.source("feature_map", str(fields.feature_map)))
    score = read_expression(fields, "score", fields.score, SCORE_NAMES, declared)
    if feature.kind not in {"softmax", "pointwise"} and to_text(score) != "s":
        raise fields.refuse(
            "score",
            f"{fields.name!r} has a score, and a weight that folds into a state",
            notes=(
                "a state keeps powers of q.k: a softmax and pointwise weights alone have a score",
            ),
            hints=("write the weight as feature_map, a polynomial in s",),
        )
    return feature, score


def _feature(fields: Fields) -> FeatureMap:
    value = fields.feature_map
    if not isinstance(value, str | Expr):
        raise fields.refuse(
            "feature_map",
            f"feature_map of {fields.name!r} is {value!r}, not text or an expression",
        )
    label = f"feature_map of {fields.name!r}"
    text = value if isinstance(value, str) else limited_text(lifted(value), label)
    return feature_map(text, fields.source("feature_map", text))


def read_expression(
    fields: Fields,
    name: str,
    value: object,
    names: frozenset[str],
    declared: Mapping[str, Declared],
) -> Expr:
    """Text and Python expressions take one road: the parser's whitelist."""
    label = f"{name} of {fields.name!r}"
    text = limited_text(lifted(value), label) if isinstance(value, Expr) else value
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = repr(text)
    if not isinstance(text, str):
        raise fields.refuse(name, f"{name} of {fields.name!r} is {value!r}, not an expression")
    source = fields.source(name, text)
    expr = parse(source, Scope(names, ELEMENTWISE, declared))
    for node in walk(expr):
        if not isinstance(node, Ref):
            continue
        channels = {"k", "c"} - _CHANNELS.get(name, set())
        if channels & set(node.index):
            raise DeclarationError(
                f"{to_text(node)} varies a channel",
                where=source.at(node.span),
                notes=(
                    "a decay varies the channels of k, a value those of v, "
                    "a score and a sink are one a head",
                ),
                hints=("use a decay a channel, g[t, h, k], or a value a channel, w[c] * v",),
            )
        wrong = _NOT_READ_AT[name] & set(node.index)
        if wrong:
            raise DeclarationError(
                f"{to_text(node)} is read at {min(wrong)}, and a {name} has no {min(wrong)}",
                where=source.at(node.span),
                hints=(
                    "a score reads a token axis at i or j, a decay or a value at t, a sink or a "
                    "factor at none",
                ),
            )
    if isinstance(expr, Compare | Logic):
        raise SyntaxRefused(
            f"{name} of {fields.name!r} is a condition, not a number",
            where=source.at(None),
            hints=("write where(condition, a, b)",),
        )
    check_real(expr, source)
    return expr


def read_value(fields: Fields, by_name: Mapping[str, Declared]) -> Expr | None:
    """What a key hands over; None where that is v as it comes."""
    value = read_expression(fields, "value", fields.value, VALUE_NAMES, by_name)
    if to_text(value) == "v":
        return None
    if not any(isinstance(node, Name) and node.id == "v" for node in walk(value)):
        raise fields.refuse(
            "value",
            f"value of {fields.name!r} does not read v",
            notes=("it says what becomes of each element of v before it is summed",),
            hints=('write it around v: value = "dt[t,h] * v"',),
        )
    return value


def read_mask(fields: Fields, declared: Mapping[str, Declared]) -> tuple[Expr, MaskForm]:
    """The mask as it was written, and its normal form."""
    value = fields.mask
    if not isinstance(value, str | Expr):
        raise fields.refuse(
            "mask",
            f"mask of {fields.name!r} is {value!r}, not a mask",
            hints=COMPARED if isinstance(value, bool) else (),
        )
    label = f"mask of {fields.name!r}"
    text = limited_text(lifted(value), label) if isinstance(value, Expr) else value
    source = fields.source("mask", text)
    names = MASK_NAMES | (INDEX_NAMES - {"s", "x"})
    hidden = INDEX_NAMES - {"i", "j", "b", "h", "hkv"}
    mask = parse(source, Scope(names, MASK_FUNCTIONS | ELEMENTWISE, declared, hidden=hidden))
    try:
        form = mask_form(mask)
    except MaskProblem as problem:
        source = fields.source("mask", text_of(fields.mask))
        raise problem.error(
            problem.message,
            where=source.at(problem.span),
            notes=(problem.note,) if problem.note else (),
            hints=(problem.hint,) if problem.hint else (),
        ) from None
    for name in form.tensors:
        if declared[name].grad:
            raise fields.refuse(
                f"{declared[name].kind}s.{name}",
                f"{name!r} asks for a gradient and has none",
                notes=("it says which pairs are visible, and no more",),
                hints=("set grad = false",),
            )
    return mask, form


def warnings_of(variant: Variant) -> tuple[str, ...]:
    """What is legal and probably not meant."""
    found: list[str] = []
    for term in () if variant.terms else (variant,):
        number = term.scale.number
        sign = 1 if number is None or number > 0 else -1
        if term.normalize == "sum" and not nonnegative(term.feature_map, sign):
            found.append(
                f"{term.name}: the weight {term.feature_map} is not provably nonnegative, so a "
                'row sum may vanish or change sign under normalize = "sum"'
            )
    weight = variant.feature_map.weight
    for constant in constants_in_the_way(weight, "s") if weight is not None else ():
        found.append(
            f"{variant.name}: the weight {variant.feature_map} folds into a state where "
            f"{to_text(constant)} is written as a number"
        )
    used = variant.used
    found.extend(
        f"{variant.name}: {tensor.kind} {tensor.name!r} is declared and not used"
        for tensor in (*variant.params, *variant.inputs)
        if tensor.name not in used
    )
    for part in variant.terms or (variant,):
        if not part.mask_form.clauses:
            found.append(f"{part.name}: the mask hides every key")
    return tuple(found)
