"""What a call of a convolution hands over, checked against the declaration. Copied into wheels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from attnc.dsl.butterfly import INNER_SIZES, OUTER_SIZES, axis_of, block_of
from attnc.errors import InputError
from attnc.ops.given_tensors import check_tensors
from attnc.ops.inputs import DTYPE_NAMES, Sizes, empty, nested

if TYPE_CHECKING:
    from attnc.dsl.convolution import Convolution


# what attention calls take them by
_STARTS = frozenset({"cu_seqlens", "cu_seqlens_q", "cu_seqlens_k"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSizes(Sizes):
    """The sizes of one call: B, T, C as batch, tk and hkv, and the taps."""

    taps: int
    factors: tuple[int, int] | None = None

    counted: ClassVar[frozenset[str]] = frozenset("T")

    def axis(self, letter: str) -> int:
        """The length of an axis of a declared tensor."""
        found = {"b": self.batch, "t": self.tk, "c": self.hkv, "T": self.taps}.get(letter)
        return axis_of(letter, *self.factors) if found is None and self.factors else found or 0


def check_tokens(variant: Convolution, v: torch.Tensor) -> None:
    """Refuse what is no v [B, T, C] that kernels take.

    Raises:
        InputError: a rank, a size, a dtype or a device that does not fit.
    """
    if not isinstance(v, torch.Tensor):
        raise InputError(f"v is a {type(v).__name__}, not a tensor")
    if v.is_nested:
        raise nested("v", "torch.nn.utils.rnn.pad_sequence(v.unbind(), batch_first=True)")
    if v.dim() != 3:
        raise InputError(
            f"v has {v.dim()} dimensions, not 3: shape {list(v.shape)}",
            notes=(f"{variant.name!r} is a convolution: v is [B, T, C]",),
            hints=(
                "a [B, C, T] tensor becomes one by .transpose(1, 2), and is not copied",
                "heads are channels: [B, T, H, D] becomes one by .flatten(2)",
            ),
        )
    if 0 in v.shape:
        raise empty(v=v)
    if v.dtype not in DTYPE_NAMES or v.dtype.itemsize == 1:
        raise InputError(
            f"v is {v.dtype}; kernels exist for fp16, bf16 and fp32",
            hints=("convert the tensors first",),
        )
    if v.device.type not in {"cpu", "cuda"}:
        raise InputError(
            f"v is on {v.device}; kernels run on cuda, and on cpu in Triton's interpreter"
        )
    if v.dtype == torch.float64 and v.device.type != "cpu":
        raise InputError("fp64 runs in the interpreter alone, to check gradients")


def check_filter(
    variant: Convolution, given: Mapping[str, torch.Tensor | float], v: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The declared params and inputs, each of its declared shape, in declared order.

    Raises:
        InputError: one is missing, unknown, of a wrong shape, dtype or device; a filter on both
            sides without a middle tap.
    """
    if not _STARTS.isdisjoint(given):
        raise InputError(
            f"{variant.name!r} takes no packed sequences: it is a convolution",
            notes=("sequences are the rows of v [B, T, C]",),
            hints=("pad them with zeros at the end, which is what a filter reads there",),
        )
    weight = given.get(variant.filter.weight.name)
    batch, tokens, channels = v.shape
    known = isinstance(weight, torch.Tensor) and weight.dim() == 2
    taps = weight.shape[1] if isinstance(weight, torch.Tensor) and known else tokens
    factors = factor_sizes(variant, given)
    sizes = FilterSizes(batch, tokens, tokens, channels, channels, 1, 1, taps=taps, factors=factors)
    found = check_tensors(variant, given, sizes, v, beside="v")
    name = variant.filter.weight.name
    if not taps:
        raise InputError(f"{name!r} has no taps: shape {list(found[name].shape)}")
    if variant.filter.lowest is None and taps % 2 == 0:
        raise InputError(
            f'{name!r} has {taps} taps, and under mask = "full" the middle one is offset 0',
            hints=("give it an odd number", 'or bound the offsets: mask = "window(left, right)"'),
        )
    low, high = variant.filter.offsets(taps)
    if high < low:
        raise InputError(f"the mask of {variant.name!r} leaves no tap of {name!r}")
    if factors is not None and tokens > block_of(*factors):
        raise InputError(
            f"v has {tokens:,} tokens, and factors of {factors[0]} and {factors[1]} points take "
            f"{block_of(*factors):,} at most",
            hints=("op.init_factors(tokens) gives factors that are large enough",),
        )
    return found


def factor_sizes(
    variant: Convolution, given: Mapping[str, torch.Tensor | float]
) -> tuple[int, int] | None:
    """N1 and N2 of the declared factors that a call hands over; None where none are declared.

    Raises:
        InputError: a factor of a size that no kernel has.
    """
    sizes: list[int] = []
    for ref, known in ((variant.filter.outer, OUTER_SIZES), (variant.filter.inner, INNER_SIZES)):
        if ref is None:
            return None
        factor = given.get(ref.name)
        rows = factor.shape[1] if isinstance(factor, torch.Tensor) and factor.dim() == 3 else 0
        if rows and rows not in known:
            raise InputError(
                f"{ref.name!r} is a factor of {rows} points; kernels take "
                f"{', '.join(map(str, known))}",
                hints=("op.init_factors(tokens) gives the factors of a DFT",),
            )
        sizes.append(rows or known[0])
    return sizes[0], sizes[1]
