"""Variant -> Algebra: the canonical weight, its family, and which forms the algebra allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import sympy

from attnc.codegen.expression.symbolic import refs_of, symbol, to_sympy
from attnc.dsl.expr import Expr, Ref
from attnc.dsl.mask import MaskForm
from attnc.dsl.proof import is_causal, is_full, within_causal
from attnc.dsl.scale_names import SCALES
from attnc.dsl.sum import folded_term
from attnc.dsl.variant import Variant

FORMS = ("online", "parallel", "chunked", "recurrent")
_HEAD_LETTERS = {"h"}


@dataclass(frozen=True, slots=True)
class FormVerdict:
    """Whether one form computes the variant; `reason` says why or why not."""

    form: str
    legal: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Algebra:
    """What the variant's expressions mean, with nothing decided about tiles.

    `coefficients` are those of the weight as a polynomial in s, lowest degree first (state family).
    `score` is the exponent of a softmax; of a pointwise variant it is the whole weight.
    `heads_differ` says whether query heads of one key/value head need a state each.
    `decay` is None, `"constant"` (one value a head), `"gated"` (one a token) or `"channel"` (one a
    channel of k, of every token or of all). A sum has `terms`, and its own mask is what they see
    together; `factor` multiplies the weights of a term. The `folded` term is the one that a state
    carries in the chunked form: it sees what is `distance` tokens back or more. `scaled` tensors
    come with scales a head.
    """

    family: str
    normalize: str
    coefficients: tuple[Fraction, ...]
    phi: sympy.Expr | None
    score: sympy.Expr | None
    score_refs: tuple[Ref, ...]
    value: sympy.Expr | None
    value_refs: tuple[Ref, ...]
    log_decay: sympy.Expr | None
    decay: str | None
    decay_refs: tuple[Ref, ...]
    heads_differ: bool
    sink: sympy.Expr | None
    sink_refs: tuple[Ref, ...]
    mask: MaskForm
    causal: bool
    within_causal: bool
    forms: tuple[FormVerdict, ...]
    factor: sympy.Expr | None = None
    factor_refs: tuple[Ref, ...] = ()
    terms: tuple[Algebra, ...] = ()
    folded: int | None = None
    distance: int = 0
    scaled: bool = False

    @property
    def degree(self) -> int:
        """The degree of the weight in s; 1 for a mapped or a linear weight."""
        return len(self.coefficients) - 1

    @property
    def by_channel(self) -> bool:
        """Whether every channel of phi(k), so every row of the state, has a decay of its own."""
        return self.decay == "channel"

    @property
    def direct(self) -> bool:
        """Whether the features are the channels of phi(k) themselves: w = c * s."""
        return self.degree == 1 and self.coefficients[0] == 0

    @property
    def state(self) -> Algebra:
        """What a state keeps: of a sum, the folded term and what all terms hand over."""
        if self.folded is None:
            return self
        return replace(
            self.terms[self.folded],
            value=self.value,
            value_refs=self.value_refs,
            heads_differ=self.heads_differ,
        )

    @property
    def global_sum(self) -> bool:
        """Whether every query sees every key undecayed, so that one state serves all queries."""
        return self.family == "state" and is_full(self.mask)

    @property
    def plain_score(self) -> bool:
        """Whether the score is s itself, so that the scale folds into the exponent."""
        return bool(self.score == symbol("s"))

    @property
    def has_lse(self) -> bool:
        """Whether rows are divided by a sum that is kept as its log."""
        return self.normalize == "softmax"

    @property
    def over_cache(self) -> bool:
        """Whether decode keeps keys and values, since no state of fixed size holds the weight."""
        return self.family != "state"

    @property
    def weight(self) -> str:
        """The weight as text, its factor in front."""
        if self.family == "softmax":
            text = f"exp({self.score})"
        elif self.family == "pointwise":
            text = str(self.score)
        else:
            s = symbol("s")
            powers = enumerate(self.coefficients)
            total = sum(sympy.Rational(c.numerator, c.denominator) * s**m for m, c in powers)
            text = str(total)
        return text if self.factor is None else f"{self.factor} * ({text})"

    @property
    def keeps_state(self) -> FormVerdict:
        """Whether a call can hand a state to the next: a fold over tokens does, a sum does not."""
        return self.legal("recurrent")

    def legal(self, form: str) -> FormVerdict:
        """The verdict on one form, of a convolution's too."""
        why = "that is a form of convolutions, whose weight is a function of i - j alone"
        other = FormVerdict(form, False, why)
        return next((verdict for verdict in self.forms if verdict.form == form), other)

    def __str__(self) -> str:
        lines = [f"family     {self.family}"]
        for number, term in enumerate(self.terms, 1):
            lines.append(f"term {number}     {term.weight} where {term.mask}")
            if term.phi is not None:
                lines.append(f"phi(x)     {term.phi}, in term {number}")
        if not self.terms:
            lines.append(f"weight     {self.weight}")
            if self.phi is not None:
                lines.append(f"phi(x)     {self.phi}")
        if self.log_decay is not None:
            lines.append(f"log decay  {self.log_decay} ({self.decay})")
        if self.value is not None:
            lines.append(f"value      {self.value}")
        if self.sink is not None:
            lines.append(f"sink       {self.sink}")
        if self.scaled:
            lines.append(f"scales     {', '.join(SCALES)}: q, k and v are multiplied by theirs")
        lines.append(f"mask       {self.mask}")
        lines.append(f"normalize  {'by the sum of all terms' if self.terms else self.normalize}")
        lines.extend(
            f"{verdict.form:<10} {'legal' if verdict.legal else 'no'}: {verdict.reason}"
            for verdict in self.forms
        )
        return "\n".join(lines)


def analyse(variant: Variant) -> Algebra:
    """Derive the algebra of a checked variant."""
    if variant.terms:
        return _analyse_sum(variant)
    feature_map = variant.feature_map
    causal = is_causal(variant.mask_form)
    decay_refs = refs_of(variant.log_decay)
    return Algebra(
        family=variant.family,
        normalize=variant.normalize,
        coefficients=feature_map.coefficients,
        phi=None if feature_map.phi is None else to_sympy(feature_map.phi),
        score=_score(variant),
        score_refs=() if variant.family == "state" else refs_of(variant.score),
        value=None if variant.value is None else to_sympy(variant.value),
        value_refs=refs_of(variant.value),
        log_decay=None if variant.log_decay is None else to_sympy(variant.log_decay),
        decay=_decay_kind(variant.log_decay, decay_refs),
        decay_refs=decay_refs,
        heads_differ=_uses_head(variant.log_decay) or _uses_head(variant.value),
        sink=None if variant.sink is None else to_sympy(variant.sink),
        sink_refs=refs_of(variant.sink),
        mask=variant.mask_form,
        causal=causal,
        within_causal=within_causal(variant.mask_form),
        forms=_forms(variant.family, causal, variant.mask_form),
        factor=None if variant.factor is None else to_sympy(variant.factor),
        factor_refs=refs_of(variant.factor),
        scaled=variant.scaled,
    )


def _analyse_sum(variant: Variant) -> Algebra:
    """The algebra of a sum: its terms', and what they share.

    Its normaliser is kept as its log, as a softmax's is.
    """
    apart = "its terms see different keys: calls hand over no state, decode keeps one by a ring"
    number, reach = folded_term(variant) or (None, 0)
    return Algebra(
        family=variant.family,
        normalize="softmax",
        coefficients=(),
        phi=None,
        score=None,
        score_refs=(),
        value=None if variant.value is None else to_sympy(variant.value),
        value_refs=refs_of(variant.value),
        log_decay=None,
        decay=None,
        decay_refs=(),
        heads_differ=_uses_head(variant.value),
        sink=None if variant.sink is None else to_sympy(variant.sink),
        sink_refs=refs_of(variant.sink),
        mask=variant.mask_form,
        causal=is_causal(variant.mask_form),
        within_causal=within_causal(variant.mask_form),
        forms=(
            FormVerdict("online", True, "every term folds into one (maximum, sum, accumulator)"),
            FormVerdict("parallel", False, "the online form is a sum's own"),
            _chunked_sum(number, reach),
            FormVerdict("recurrent", False, apart),
        ),
        terms=tuple(analyse(term) for term in variant.terms),
        folded=number,
        distance=reach,
    )


def _chunked_sum(number: int | None, reach: int) -> FormVerdict:
    """Whether a state carries one term of a sum from chunk to chunk."""
    if number is None:
        why = "no term is a polynomial in s of all keys from some distance on, i - j >= N"
        return FormVerdict("chunked", False, f"{why}, and no other folds into a state")
    folds = f"a state carries term {number + 1}, of keys {reach} tokens back or more"
    return FormVerdict("chunked", True, f"{folds}; the other terms and its border go by pairs")


def _score(variant: Variant) -> sympy.Expr | None:
    """The exponent of a softmax, the weight that a pointwise variant makes of its score."""
    if variant.family == "state":
        return None
    score, weight = to_sympy(variant.score), variant.feature_map.weight
    return score if weight is None else to_sympy(weight).xreplace({symbol("s"): score})


def _decay_kind(log_decay: Expr | None, refs: tuple[Ref, ...]) -> str | None:
    if log_decay is None:
        return None
    if any("k" in ref.index for ref in refs):
        return "channel"
    return "gated" if any("t" in ref.index for ref in refs) else "constant"


def _uses_head(expression: Expr | None) -> bool:
    if expression is None:
        return False
    symbols = {s.name for s in to_sympy(expression).free_symbols}
    return bool(symbols & _HEAD_LETTERS) or any(
        _HEAD_LETTERS & set(ref.index) for ref in refs_of(expression)
    )


def _forms(family: str, causal: bool, mask: MaskForm) -> tuple[FormVerdict, ...]:
    if family == "pointwise":
        no_state = "the weight is no polynomial in s, so no state of fixed size holds it"
        return (
            FormVerdict("online", False, "the weight is not exp(score)"),
            FormVerdict("parallel", True, "any weight and mask, one tile of weights at a time"),
            FormVerdict("chunked", False, no_state),
            FormVerdict("recurrent", False, no_state),
        )
    if family == "softmax":
        no_state = "exp(score) is no finite polynomial in s, so no state of fixed size holds it"
        return (
            FormVerdict("online", True, "exp(score) folds as (maximum, sum, accumulator)"),
            FormVerdict("parallel", False, "the online form is the softmax family's own"),
            FormVerdict("chunked", False, no_state),
            FormVerdict("recurrent", False, no_state),
        )
    folds = "the weight is a polynomial in s: S = decay * S + phi(k)^T v"
    summed = "every query sees every key, and one state, S = sum of phi(k)^T v, serves them all"
    needs_causal = "the mask is not exactly causal, and a fold over tokens sees just j <= i"
    full = is_full(mask)
    return (
        FormVerdict("online", False, "the weight is not exp(score)"),
        FormVerdict("parallel", True, "any mask, one tile of weights at a time"),
        FormVerdict(
            "chunked", causal or full, folds if causal else summed if full else needs_causal
        ),
        FormVerdict("recurrent", causal, folds if causal else needs_causal),
    )
