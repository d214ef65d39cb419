"""Convolution -> its algebra: which forms compute it, and what its backward derives."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from attnc.codegen.algebra import Algebra, FormVerdict
from attnc.codegen.derive import Derivation, Partial
from attnc.dsl.convolution import Convolution, Filter
from attnc.dsl.proof import is_causal, within_causal
from attnc.dsl.text import to_text

TOEPLITZ, FFT, THREE_PASS, BUTTERFLY = "toeplitz", "fft", "three_pass", "butterfly"
FORMS = (TOEPLITZ, FFT, THREE_PASS, BUTTERFLY)
STEP_FORM = "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterAlgebra(Algebra):
    """A weight that is a function of i - j and the channel: Toeplitz blocks, or transforms."""

    filter: Filter

    def __str__(self) -> str:
        lines = ["family     conv"]
        lines.append(f"weight     {to_text(self.filter.weight)}: a function of i - j and c alone")
        lines.append(f"mask       {self.mask}")
        lines.extend(
            f"{field:<10} {to_text(ref)}" for field, ref in self.filter.refs if field != "weight"
        )
        lines.extend(
            f"{verdict.form:<10} {'legal' if verdict.legal else 'no'}: {verdict.reason}"
            for verdict in self.forms
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterDerivation(Derivation):
    """What a convolution's backward computes; every derivative is a convolution too."""

    filter: Filter

    def __str__(self) -> str:
        found = self.filter
        gate = "do" if found.postgate is None else f"do * {found.postgate.name}"
        inner = "v" if found.pregate is None else f"v * {found.pregate.name}"
        skip = "" if found.skip is None else f" + {found.skip.name}[c] * dz"
        lines = [f"u          = {inner}", f"dz         = {gate}"]
        if found.outer is None or found.inner is None:
            lines.append(f"du[j]      = sum_i {found.weight.name}[c, i-j] dz[i]{skip}")
        else:
            outer, second = found.outer.name, found.inner.name
            lines.append("dZ         = conj(W) * DFT(dz)")
            lines.append(f"dA         = conj(T) * (dZ @ conj({second}))")
            lines.append(f"du         = Re({outer}^H @ dA){skip}")
        lines.append("dv         = du" + ("" if found.pregate is None else " * pregate"))
        wanted = {partial.declared.name for partial in self.partials}
        texts = {
            "weight": "dw[c, d]   = sum over b, j of dz[j + d] u[j]",
            "skip": "dskip[c]   = sum over b, j of dz[j] u[j]",
            "pregate": "dpregate   = du * v",
            "postgate": "dpostgate  = do * z",
            "outer": "douter     = sum over b, c of dA @ u^T",
            "inner": "dinner     = sum over b, c of dZ^T @ conj(A * T)",
        }
        if found.learned:
            texts["weight"] = "dw         = inverse DFT of the sum over b of conj(Z) * DFT(dz)"
        lines.extend(texts[field] for field, ref in found.refs if ref.name in wanted)
        return "\n".join(lines)


def analyse_convolution(variant: Convolution) -> FilterAlgebra:
    """Derive the algebra of a checked convolution."""
    form = variant.mask_form
    return FilterAlgebra(
        family="conv",
        normalize="none",
        coefficients=(),
        phi=None,
        score=None,
        score_refs=(),
        value=None,
        value_refs=(),
        log_decay=None,
        decay=None,
        decay_refs=(),
        heads_differ=False,
        sink=None,
        sink_refs=(),
        mask=form,
        causal=is_causal(form),
        within_causal=within_causal(form),
        forms=_verdicts(variant.filter),
        filter=variant.filter,
    )


def _verdicts(found: Filter) -> tuple[FormVerdict, ...]:
    """Which forms compute it: learned factors are a transform of their own."""
    toeplitz = "any filter, by products with Toeplitz blocks: O(T * taps) work"
    fft = "any filter, by DFTs as matrix products: O(T * sqrt(T)) work to a block, pieces beyond"
    three_pass = "any filter, by DFTs of three factors through memory: O(T * cbrt(T)) work"
    butterfly = "sequences of one block, by the declared factors, one sequence a transform"
    if found.learned:
        toeplitz = "with learned factors the result is no sum of taps at offsets i - j"
        fft = three_pass = "the factors are declared, and need be no DFT"
    else:
        butterfly = "no factors are declared: the DFT's pack two sequences, which is half the work"
    return (
        FormVerdict(TOEPLITZ, not found.learned, toeplitz),
        FormVerdict(FFT, not found.learned, fft),
        FormVerdict(THREE_PASS, not found.learned, three_pass),
        FormVerdict(BUTTERFLY, found.learned, butterfly),
    )


def derive_convolution(
    variant: Convolution, algebra: FilterAlgebra, wanted: tuple[str, ...] | None
) -> FilterDerivation:
    """The gradients asked for: of v always, and of declared tensors with `grad = true`."""
    declared = {
        tensor.name: tensor
        for tensor in (*variant.params, *variant.inputs)
        if tensor.grad and (wanted is None or tensor.name in wanted)
    }
    partials = tuple(
        Partial(declared[ref.name], ref.index, sympy.Integer(1))
        for _, ref in variant.filter.refs
        if ref.name in declared
    )
    return FilterDerivation(
        algebra=algebra, score_slope=None, weight_slope=(), phi_slope=None, score=partials,
        decay=(), filter=variant.filter,
    )  # fmt: skip
