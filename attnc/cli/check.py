"""`attnc check`: what a declaration is, without any algebra, so that it answers at once."""

from __future__ import annotations

from attnc.cli.find import find
from attnc.cli.screen import console, print_warning
from attnc.cli.status import OK
from attnc.dsl.convolution import Convolution
from attnc.dsl.mask import FULL
from attnc.dsl.proof import is_causal
from attnc.dsl.sum import folded_term
from attnc.dsl.variant import Variant


def check(which: str) -> int:
    """Say of each variant what it is and which forms compute it; warnings go to stderr."""
    from rich.text import Text

    found = find(which)
    screen = console()
    for variant in found.variants:
        text = Text.assemble(("ok ", "green"), (variant.name, "bold"), f": {_kind(variant)}")
        screen.print(text, soft_wrap=True)
        screen.print(f"   {variant.summary}", soft_wrap=True)
        screen.print(f"   forms: {', '.join(forms_of(variant))}{_why(variant)}", soft_wrap=True)
        for warning in variant.warnings():
            print_warning(warning)
    return OK


def _kind(variant: Variant) -> str:
    return "a sum of terms" if variant.terms else f"{variant.family} family"


def forms_of(variant: Variant) -> tuple[str, ...]:
    """The legal forms of a variant; `attnc explain` prints the algebra's reason for each."""
    if isinstance(variant, Convolution):
        return ("butterfly",) if variant.filter.learned else ("toeplitz", "fft", "three_pass")
    if variant.has_lse:
        return ("online", "chunked") if folded_term(variant) else ("online",)
    if variant.family == "pointwise":
        return ("parallel",)
    if is_causal(variant.mask_form):
        return ("parallel", "chunked", "recurrent")
    return ("parallel", "chunked") if variant.mask_form == FULL else ("parallel",)


def _why(variant: Variant) -> str:
    if variant.family != "state" or is_causal(variant.mask_form):
        return ""
    if variant.mask_form == FULL:
        return " (recurrent needs a mask that is exactly causal)"
    return " (chunked and recurrent need a mask that is exactly causal)"
