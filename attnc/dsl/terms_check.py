"""Fields of a sum of terms as they were written -> its checked parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from fractions import Fraction
from functools import reduce
from operator import or_

from attnc.dsl.check import (
    DECAY_NAMES,
    read_expression,
    read_mask,
    read_value,
    read_weight,
)
from attnc.dsl.decay import interval
from attnc.dsl.declared import declared_tensors
from attnc.dsl.expr import Expr, Name
from attnc.dsl.facts import read_dim, read_heads, read_scale
from attnc.dsl.feature import FeatureMap, nonnegative
from attnc.dsl.fields import Fields, check_name
from attnc.dsl.gradient_check import check_grad
from attnc.dsl.mask import union_of
from attnc.dsl.paper import read_about, read_paper
from attnc.dsl.source import Source
from attnc.dsl.sum import Term
from attnc.dsl.variant import Declared, Meaning, Scale, Variant
from attnc.errors import FieldError, LimitExceeded, NoFamily, Where

MAX_TERMS = 4
TERM_KEYS = tuple(field.name for field in dataclass_fields(Term))
# what a term cannot say by itself, and why
NOT_IN_A_TERM = {
    "value": "all terms hand over one value: write it beside terms",
    "sink": "a sink is seen once a row: write it beside terms",
    "normalize": "the normaliser is one, the sum of all terms",
    "log_decay": "a sum of terms has no decay yet",
    "chunk": "the planner chooses the chunk of a sum",
    "params": "tensors are declared beside terms",
    "inputs": "tensors are declared beside terms",
    "dim": "head dims are those of all terms: write them beside terms",
    "heads": "head counts are those of all terms: write them beside terms",
    "about": "it is said of the sum: write it beside terms",
    "paper": "it is said of the sum: write it beside terms",
}


def term_fields(
    name: str,
    number: int,
    term: object,
    where: Mapping[str, Where | None] | None = None,
    sources: Mapping[str, Source] | None = None,
) -> Fields:
    """The fields of term `number`, counted from 1; `where` places its keys, "" the term itself.

    Raises:
        FieldError: no table, a key that a term has not, or one that it lacks.
    """
    title = f"term {number} of {name}"
    places = where or {}
    if isinstance(term, Term):
        written: dict[str, object] = {key: getattr(term, key) for key in TERM_KEYS}
    elif isinstance(term, Mapping):
        written = dict(term)
    else:
        raise FieldError(
            f"{title} is {term!r}, not a table",
            where=places.get(""),
            hints=('write { feature_map = "softmax", scale = "rsqrt(d)", mask = "causal" }',),
        )
    for key in written:
        if key in TERM_KEYS:
            continue
        if key in NOT_IN_A_TERM:
            raise FieldError(
                f"{title} has a {key}", where=places.get(key), notes=(NOT_IN_A_TERM[key],)
            )
        close = get_close_matches(key, TERM_KEYS, 1)
        raise FieldError(
            f"{title} has an unknown key {key!r}",
            where=places.get(key),
            notes=(f"keys of a term are {', '.join(TERM_KEYS)}",),
            hints=(f"did you mean {close[0]!r}?",) if close else (),
        )
    for required in ("feature_map", "scale"):
        if required not in written:
            raise FieldError(
                f"{title} has no {required}",
                where=places.get(""),
                hints=('add feature_map = "softmax"',)
                if required == "feature_map"
                else ('add scale = "rsqrt(d)", or scale = 1.0',),
            )
    return Fields(name=title, sources=sources or {}, **written)  # type: ignore[arg-type]


def checked_sum(fields: Fields) -> dict[str, object]:
    """Read and check every field.

    Raises:
        DeclarationError: the first field that is refused.
    """
    check_name(fields, fields.name, "variant")
    if len(fields.terms) < 2:
        raise fields.refuse(
            "terms",
            f"{fields.name!r} has {'one term' if fields.terms else 'no terms'}",
            notes=("a sum has two terms at least",),
            hints=("one weight is a variant of its own: write its fields without terms",),
        )
    if len(fields.terms) > MAX_TERMS:
        raise LimitExceeded(
            f"{fields.name!r} has {len(fields.terms)} terms, at most {MAX_TERMS} are allowed",
            where=fields.refuse("terms", "").where,
            notes=("each has loops of its own in every kernel",),
        )
    if fields.normalize not in {None, "sum"}:
        raise fields.refuse(
            "normalize",
            f"normalize of {fields.name!r} is {fields.normalize!r}, and can be 'sum' alone",
            notes=("terms share one normaliser, without which exp(score) has no size of its own",),
            hints=("leave normalize out",),
        )
    declared = declared_tensors(fields)
    by_name = {tensor.name: tensor for tensor in declared}
    terms = tuple(_term(part, by_name) for part in fields.terms)
    value = read_value(fields, by_name)
    sink: Expr | None = None
    if fields.sink is not None:
        sink = read_expression(fields, "sink", fields.sink, DECAY_NAMES, by_name)
    read = [expr for term in terms for expr in (term.score, term.factor)]
    check_grad(fields, declared, value, sink, *read)
    mask = reduce(or_, (term.mask for term in terms))
    meaning = Meaning(
        feature_map=FeatureMap("terms"),
        scale=Scale(Fraction(1)),
        score=Name("s"),
        value=value,
        mask_form=union_of(term.mask_form for term in terms),
        log_decay=None,
        sink=sink,
        normalize="sum",
        chunk="auto",
        params=tuple(tensor for tensor in declared if tensor.kind == "param"),
        inputs=tuple(tensor for tensor in declared if tensor.kind == "input"),
        terms=terms,
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


def _term(fields: Fields, declared: Mapping[str, Declared]) -> Variant:
    feature, score = read_weight(fields, declared)
    scale = read_scale(fields)
    mask, form = read_mask(fields, declared)
    if form.documents or form.blocks:
        name = (*form.documents, *(table.name for table in form.blocks))[0]
        raise fields.refuse(
            "mask",
            f"mask of {fields.name!r} asks {name!r} which pairs are visible",
            notes=(
                "documents and tables of blocks have one list of tiles a kernel, not one a term",
            ),
            hints=("pack documents with cu_seqlens_q and cu_seqlens_k",),
        )
    source = fields.source("feature_map", str(fields.feature_map))
    if feature.weight is not None:
        raise NoFamily(
            f"the weight {feature} of {fields.name!r} is no polynomial in s",
            where=source.at(None),
            notes=("a term is a softmax, a polynomial in s, or a map of the channels of q and k",),
            hints=("a variant of its own may have this weight",),
        )
    sign = 1 if scale.number is None or scale.number > 0 else -1
    if not nonnegative(feature, sign):
        raise NoFamily(
            f"the weight {feature} of {fields.name!r} is not provably nonnegative",
            where=source.at(None),
            notes=("the normaliser of a row is the sum of all terms, and is kept as its log",),
            hints=("an even power, taylor(2), or a map such as elu(x) + 1 is nowhere negative",),
        )
    return Variant.from_checked(
        {
            "name": fields.name,
            "mask": mask,
            "meaning": Meaning(
                feature_map=feature,
                scale=scale,
                score=score,
                value=None,
                mask_form=form,
                log_decay=None,
                sink=None,
                normalize="softmax" if feature.kind == "softmax" else "sum",
                chunk="auto",
                params=tuple(t for t in declared.values() if t.kind == "param"),
                inputs=tuple(t for t in declared.values() if t.kind == "input"),
                factor=_factor(fields, declared),
            ),
            "dim": None,
            "heads": None,
            "about": "",
            "paper": None,
        }
    )


def _factor(fields: Fields, declared: Mapping[str, Declared]) -> Expr | None:
    if fields.factor is None:
        return None
    factor = read_expression(fields, "factor", fields.factor, DECAY_NAMES, declared)
    _, high = interval(factor)
    if high <= 0:
        raise fields.refuse(
            "factor",
            f"factor of {fields.name!r} is not positive: at most {high:g}",
            notes=("the normaliser of a row is the sum of all terms, and is kept as its log",),
            hints=("exp(...), sigmoid(...) and softplus(...) are positive for any tensor",),
        )
    return factor
