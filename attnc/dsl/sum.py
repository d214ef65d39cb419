"""A sum of terms: several weights, each with a mask of its own, under one normaliser.

    o_i = sum_t sum_j M_t(i,j) w_t(s_t(i,j)) v_j / sum_t sum_j M_t(i,j) w_t(s_t(i,j))

w_t is exp(score), or a weight of the state family that is nowhere negative, times a factor. Source:
LoLCATs (arXiv 2410.10254), a softmax in a window and a linear weight before it in one quotient, and
Based (arXiv 2402.18668), whose layers alternate the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from operator import or_

from attnc.dsl.digest import declared_facts, digest_of, meaning_facts
from attnc.dsl.expr import Expr
from attnc.dsl.mask import CAUSAL, causal, union_of
from attnc.dsl.proof import distance
from attnc.dsl.text import to_text
from attnc.dsl.variant import Variant


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One term of a sum, as it is written.

    `feature_map`, `scale`, `score` and `mask` are those of a variant; `factor` is an expression in
    h, H and declared tensors that the term's weights are multiplied by, and has to be positive.
    """

    feature_map: str | Expr
    scale: str | int | float | Fraction | Expr
    score: str | Expr = "s"
    mask: str | Expr = "full"
    factor: str | int | float | Expr | None = None


class Sum(Variant):
    """A sum of terms under one normaliser.

    Args:
        name: a lowercase identifier; it names the emitted kernels.
        terms: two to four `Term`s; their order is that of the loops in a kernel.
        value: what a key hands over in every term, as for a `Variant`.
        sink: the logit of a key of value 0 that every row sees, as for a `Variant`.
        params, inputs: declared tensors by name; those of Python expressions are found.
        dim, heads: facts to plan with before tensors exist.
        about, paper: as a `Variant` has them.

    A row's lse is the log of its normaliser; where nothing is visible it is -inf, and o is 0. A
    factor whose sign no declaration proves is taken to be positive: where a tensor makes a row's
    normaliser negative, its lse is NaN.

    Raises:
        DeclarationError: a field that is refused; its text says where and why.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        *,
        terms: Iterable[Term | Mapping[str, object]],
        value: str | Expr = "v",
        sink: str | int | float | Expr | None = None,
        params: Mapping[str, object] | Iterable[object] = (),
        inputs: Mapping[str, object] | Iterable[object] = (),
        dim: object = None,
        heads: object = None,
        about: str = "",
        paper: object = None,
    ) -> None:
        from attnc.dsl.fields import Fields
        from attnc.dsl.terms_check import checked_sum, term_fields

        listed = tuple(term_fields(name, n, term) for n, term in enumerate(terms, 1))
        fields = Fields(
            name=name, feature_map=None, scale=None, value=value, sink=sink, params=params,
            inputs=inputs, dim=dim, heads=heads, about=about, paper=paper, terms=listed,
        )  # fmt: skip
        self._take(checked_sum(fields))

    @property
    def family(self) -> str:
        """`terms`: several weights, each of the softmax or of the state family."""
        return "terms"

    @property
    def digest(self) -> str:
        """sha256 of the meaning alone: not the name, the key order or the white space."""
        terms = [meaning_facts(term) for term in self.terms]
        whole = meaning_facts(self)
        kept: dict[str, object] = {n: whole[n] for n in ("value", "sink") if n in whole}
        return digest_of({"terms": terms, "declared": declared_facts(self), **kept})

    @property
    def summary(self) -> str:
        """The declaration on one line."""
        parts = [_term_text(term) for term in self.terms]
        if self.value is not None:
            parts.append(f"value {to_text(self.value)}")
        if self.sink is not None:
            parts.append(f"sink {to_text(self.sink)}")
        return ", ".join([*parts, f"normalize {self.normalize}"])


def folded_term(variant: Variant) -> tuple[int, int] | None:
    """The term that a state can carry past rows: its number from 0, and the N of its mask.

    Its weight has features, and its mask is i - j >= N: a key enters the state N tokens later and
    stays. Of several it is the one that sees the most; None where there is none.
    """
    found = [
        (reach, number)
        for number, term in enumerate(variant.terms)
        if term.family == "state" and (reach := distance(term.mask_form)) is not None
    ]
    return min(found)[::-1] if found else None


def folded_alone(variant: Variant, number: int) -> Variant:
    """Term `number` of a sum as a variant of its own, every key in the state at its own token.

    Its keys are to be handed over as many tokens late as its mask reaches back; without its factor.
    """
    term = variant.terms[number]
    meaning = replace(
        term.meaning, mask_form=CAUSAL, normalize="sum", factor=None, params=(), inputs=()
    )
    parts = {"name": f"{variant.name}_folded", "mask": causal, "meaning": meaning}
    return Variant.from_checked({**_facts_of(variant), **parts})


def terms_but(variant: Variant, number: int) -> tuple[Variant, ...]:
    """The terms of a sum but for one."""
    return tuple(term for n, term in enumerate(variant.terms) if n != number)


def without_term(variant: Variant, number: int) -> Sum:
    """A sum without one of its terms, the sink still there; one term may be all that is left."""
    kept = terms_but(variant, number)
    form = union_of(term.mask_form for term in kept)
    mask = reduce(or_, (term.mask for term in kept))
    meaning = replace(variant.meaning, mask_form=form, terms=kept)
    parts = {"name": f"{variant.name}_near", "mask": mask, "meaning": meaning}
    near = Sum.from_checked({**_facts_of(variant), **parts})
    assert isinstance(near, Sum)
    return near


def _facts_of(variant: Variant) -> dict[str, object]:
    return {"dim": variant.dim, "heads": variant.heads, "about": "", "paper": None}


def _term_text(term: Variant) -> str:
    parts = [str(term.feature_map)]
    if to_text(term.score) != "s":
        parts.append(f"score {to_text(term.score)}")
    parts += [f"scale {term.scale}", f"mask {to_text(term.mask)}"]
    if term.factor is not None:
        parts.append(f"factor {to_text(term.factor)}")
    return f"term ({', '.join(parts)})"
