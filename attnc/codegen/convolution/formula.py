"""Convolution -> the formula of an output, in LaTeX."""

from __future__ import annotations

from attnc.codegen.text.formula import aligned
from attnc.dsl.convolution import Convolution, Filter
from attnc.dsl.expr import Name, Ref
from attnc.dsl.latex import to_latex
from attnc.dsl.mask import FULL
from attnc.dsl.tap_transform import TapTransform

_SQUASH = (r"\operatorname{squash}_{\lambda}(x)", r"\operatorname{sign}(x) \max(|x| - \lambda, 0)")
_SMOOTH = (r"\operatorname{smooth}_{n}(w)_d", r"\tfrac{1}{n} \sum_{|e| \le (n - 1) / 2} w_{d+e}")
_DROPOUT = (
    r"\operatorname{dropout}_{p}(x)",
    r"0 \text{ with probability } p \text{ in training, else } x / (1 - p)",
)
_MADE = {"squash": _SQUASH, "smooth": _SMOOTH, "dropout": _DROPOUT}


def filter_formula(variant: Convolution) -> str:
    """The definition of channel c: output, what is filtered, taps and their tokens, one a line."""
    found = variant.filter
    token = "v" if found.pregate is None else "u"
    taps = r"\hat{w}" if found.transforms else _named(found.weight)
    rest = rf"\sum_{{j \in \mathcal{{M}}_i}} {taps}_{{c,i-j}}\, {token}_{{j,c}}"
    if found.learned:
        rest = "z_{i,c}"
    if found.skip is not None:
        rest += rf" + {_named(found.skip)}_{{c}}\, {token}_{{i,c}}"
    if found.postgate is not None:
        inner = rest if found.skip is None else rf"\left({rest}\right)"
        rest = rf"{_named(found.postgate)}_{{i,c}}\, {inner}"
    rows = [("o_{i,c}", rest)]
    if found.pregate is not None:
        rows.append(("u_{j,c}", rf"{_named(found.pregate)}_{{j,c}}\, v_{{j,c}}"))
    if found.learned:
        rows += _by_factors(found, taps, token)
    else:
        everything = variant.mask_form == FULL
        shown = r"\text{all tokens}" if everything else rf"\{{\, j : {to_latex(variant.mask)} \,\}}"
        rows.append((r"\mathcal{M}_i", shown))
    if found.transforms:
        rows += _made(found.transforms, _named(found.weight))
    return aligned(rows)


def _by_factors(found: Filter, taps: str, token: str) -> list[tuple[str, str]]:
    """The transform of a channel's tokens by two factors; that of its taps and the way back."""
    outer, inner = _named(found.outer), _named(found.inner)
    columns = rf"\sum_{{n_1}} {outer}_{{k_1,n_1}}\, {token}_{{n_1 N_2 + n_2,c}}"
    twisted = rf"e^{{-2 \pi i\, k_1 n_2 / N}} {columns}"
    return [
        ("z_c", rf"\operatorname{{Re}}\, F^{{-1}} \left(F {taps}_c \odot Z_c\right)"),
        ("Z_{k_1 + N_1 k_2,c}", rf"\sum_{{n_2}} {inner}_{{k_2,n_2}}\, {twisted}"),
    ]


def _made(transforms: tuple[TapTransform, ...], weight: str) -> list[tuple[str, str]]:
    """The taps that are used, and what each function is."""
    text = f"{weight}_c"
    for transform in transforms:
        number = str(transform).partition("(")[2]
        text = rf"\operatorname{{{transform.name}}}_{{{number.rstrip(')')}}}({text})"
    return [(r"\hat{w}_c", text), *(_MADE[name] for name in sorted({x.name for x in transforms}))]


def _named(ref: Ref | None) -> str:
    assert ref is not None, "the declaration has it"
    return to_latex(Name(ref.name))
