"""The backward's mathematics, derived from the declared expressions: nothing here names a variant.

    softmax   p = exp(score(s) - lse)    dscore = p * (do.v - delta)     ds = dscore * score'(s)
              a sink is a key of value 0, so dsink = -exp(sink - lse) * delta, summed over rows
    state     W = w(s) * D               dW = do'.v + dn                 ds = dW * D * w'(s)
    pointwise W = weight(score(s))       dW = do'.v + dn                 ds = dW * dW/ds
    a sum     p = f * w(s) * exp(-lse), and dscore as in a softmax where w(s) is exp(score);
              ds = f * w'(s) * exp(-lse) * (do.v - delta) for another weight of factor f, and
              df = sum of p / f * (do.v - delta)

with D the decay from key to query, delta = do.o - dlse, do' = do / n and dn = -do.o / n where the
row is normalised. A key hands over value(v), so dv = dvalue * d value/d v. A declared tensor's
gradient is the sum of dscore, of dvalue, or of the gradient of the log decay, times the derivative
by that tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.expression.differentiate import differentiate
from attnc.codegen.expression.symbolic import ref_symbol, symbol
from attnc.codegen.index import name_with, scalar_names
from attnc.dsl.expr import Ref
from attnc.dsl.variant import Declared, Variant

# marks the places where a value reads a tensor
VALUE = "_value"


@dataclass(frozen=True, slots=True)
class Partial:
    """One derivative by a declared tensor: where it is read, and the derivative there.

    `where` tells apart the places of a tensor that more than one expression reads; `beside` are
    the names of all tensors that have gradients.
    """

    declared: Declared
    index: tuple[str, ...]
    slope: sympy.Expr
    where: str = ""
    beside: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name of its accumulator; a tensor read at two places has two."""
        suffix = "".join(f"_{letter}" for letter in self.index) + self.where
        return name_with(suffix, self.declared.name, self.beside)

    def __str__(self) -> str:
        index = f"[{', '.join(self.index)}]" if self.index else ""
        return f"{self.declared.name}{index}"


@dataclass(frozen=True, slots=True)
class Derivation:
    """Every derivative that a backward needs.

    `score_slope` is d score / d s; `weight_slope` are the coefficients of w'(s), lowest degree
    first; `phi_slope` is phi'(x) and `value_slope` d value / d v. `score`, `decay`, `sink`, `value`
    and `factor` are the derivatives by declared tensors. A sum has those of all its `terms`.
    """

    algebra: Algebra
    score_slope: sympy.Expr | None
    weight_slope: tuple[Fraction, ...]
    phi_slope: sympy.Expr | None
    score: tuple[Partial, ...]
    decay: tuple[Partial, ...]
    sink: tuple[Partial, ...] = ()
    value_slope: sympy.Expr | None = None
    value: tuple[Partial, ...] = ()
    factor: tuple[Partial, ...] = ()
    terms: tuple[Derivation, ...] = ()

    @property
    def partials(self) -> tuple[Partial, ...]:
        """All derivatives by declared tensors."""
        return (*self.score, *self.decay, *self.sink, *self.value, *self.factor)

    def __str__(self) -> str:
        lines: list[str] = []
        if self.terms:
            lines.append("p          = weight * exp(-lse), in every term")
            lines.append("delta      = sum_c(do * o) - dlse")
            lines.append("dweight    = exp(-lse) * (do . v - delta)")
            for number, term in enumerate(self.terms, 1):
                lines.append(f"ds         = dweight * d weight/d s in term {number}:")
                lines += term._slopes()
        elif self.algebra.family == "softmax":
            lines.append("p          = exp(score - lse)")
            lines.append("delta      = sum_c(do * o) - dlse")
            lines.append("dscore     = p * (do . v - delta)")
            lines.append("ds         = dscore * d score/d s")
            lines.append(f"d score/d s = {self.score_slope}")
        else:
            summed = self.algebra.normalize == "sum"
            pointwise = self.algebra.score is not None
            own = "weight" if pointwise else "w(s)"
            lines.append(f"W          = {own}" + (" * D" if self.algebra.decay else ""))
            if summed:
                lines.append("dn         = -sum_c(do * o) / n")
                lines.append("dW         = (do / n) . v + dn")
            else:
                lines.append("dW         = do . v")
            if pointwise:
                lines.append("ds         = dW * d weight/d s")
                lines.append(f"d weight/d s = {self.score_slope}")
            else:
                lines.append("ds         = dW * w'(s)" + (" * D" if self.algebra.decay else ""))
                lines.append(f"w'(s)      = {self._weight_slope()}")
        lines.append("dq, dk     = scale * ds @ phi(k), scale * ds^T @ phi(q)")
        if self.phi_slope is not None:
            lines.append(f"phi'(x)    = {self.phi_slope}")
        if self.value_slope is not None:
            lines.append("dv         = (d o/d value)^T @ do * d value/d v")
            lines.append(f"d value/d v = {self.value_slope}")
        if self.algebra.decay:
            lines.append("dG         = sum over the pairs that a token lies between of dW * W")
        what = "weight" if self.algebra.family == "pointwise" else "score"
        for partial in self.score:
            lines.append(f"d {what}/d {partial} = {partial.slope}")
        for partial in self.decay:
            lines.append(f"d log_decay/d {partial} = {partial.slope}")
        if self.sink:
            lines.append("dsink      = -sum over rows of exp(sink - lse) * delta")
        for partial in self.sink:
            lines.append(f"d sink/d {partial} = {partial.slope}")
        lines.extend(f"d factor/d {partial} = {partial.slope}" for partial in self.factor)
        lines.extend(f"d value/d {partial} = {partial.slope}" for partial in self.value)
        return "\n".join(lines)

    def _slopes(self) -> list[str]:
        """What a term differs in."""
        if self.algebra.family == "softmax":
            return [f"d score/d s = {self.score_slope}"]
        lines = [f"w'(s)      = {self._weight_slope()}"]
        return lines + ([] if self.phi_slope is None else [f"phi'(x)    = {self.phi_slope}"])

    def _weight_slope(self) -> sympy.Expr:
        s = symbol("s")
        return sum((sympy.Rational(c) * s**m for m, c in enumerate(self.weight_slope)), 0 * s)


def derive(variant: Variant, algebra: Algebra, wanted: tuple[str, ...] | None = None) -> Derivation:
    """Differentiate score, weight, feature map and decay of a variant.

    `wanted` names the declared tensors whose gradient is asked for; all that are declared with
    `grad = true` where it is None.
    """
    declared = tuple(
        tensor
        for tensor in (*variant.params, *variant.inputs)
        if tensor.grad and (wanted is None or tensor.name in wanted)
    )
    terms = tuple(
        _derive(term, declared, f"_term{number}") for number, term in enumerate(algebra.terms, 1)
    )
    whole = _derive(algebra, declared)
    return replace(
        whole,
        score=(*whole.score, *(part for term in terms for part in term.score)),
        factor=tuple(part for term in terms for part in term.factor),
        terms=terms,
    )


def _derive(algebra: Algebra, declared: tuple[Declared, ...], where: str = "") -> Derivation:
    """The derivatives of one weight; `where` tells its terms' tensors apart."""
    score = algebra.score
    coefficients = algebra.coefficients
    return Derivation(
        algebra=algebra,
        score_slope=None if score is None else differentiate(score, symbol("s")),
        weight_slope=tuple(m * c for m, c in enumerate(coefficients))[1:] or (Fraction(0),),
        phi_slope=None if algebra.phi is None else differentiate(algebra.phi, symbol("x")),
        score=() if score is None else _partials(score, algebra.score_refs, declared, where),
        decay=()
        if algebra.log_decay is None
        else _partials(algebra.log_decay, algebra.decay_refs, declared),
        sink=()
        if algebra.sink is None
        else _partials(algebra.sink, algebra.sink_refs, declared, "_sink"),
        value_slope=None if algebra.value is None else differentiate(algebra.value, symbol("v")),
        value=()
        if algebra.value is None
        else _partials(algebra.value, algebra.value_refs, declared, VALUE),
        factor=()
        if algebra.factor is None
        else _partials(algebra.factor, algebra.factor_refs, declared, f"_factor{where}"),
    )


def _partials(
    expr: sympy.Expr, refs: tuple[Ref, ...], declared: tuple[Declared, ...], where: str = ""
) -> tuple[Partial, ...]:
    by_name = {tensor.name: tensor for tensor in declared}
    scalars = scalar_names(expr, declared)
    places = [(ref.name, ref.index, ref_symbol(ref)) for ref in refs if ref.name in by_name]
    places += [(name, (), symbol(name)) for name in sorted(scalars)]
    return tuple(
        Partial(by_name[name], tuple(index), differentiate(expr, by), where, tuple(by_name))
        for name, index, by in places
    )
