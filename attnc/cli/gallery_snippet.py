"""A declaration -> the lines that call it on a CPU, and hold it against its reference."""

from __future__ import annotations

from math import isqrt

from attnc.dsl.convolution import Convolution
from attnc.dsl.variant import Declared, Variant

_TOKENS, _HQ, _HKV, _CHANNELS = 100, 4, 2, 8


def snippet(variant: Variant, loaded: str) -> str:
    """A script that runs where PyTorch is installed; tensors of the smallest telling shape.

    `loaded` is the expression that gives the variant.
    """
    qk, v = (64, 64) if variant.dim is None else (variant.dim.qk, variant.dim.v)
    declared = (*variant.params, *variant.inputs)
    given = "".join(f", {tensor.name}={tensor.name}" for tensor in declared)
    lines = [
        "import torch",
        "",
        "import attnc",
        "",
        f"op = attnc.compile({loaded})",
        f"q = torch.randn(1, {_TOKENS}, {_HQ}, {qk})  # [B, T, Hq, K]",
        f"k = torch.randn(1, {_TOKENS}, {_HKV}, {qk})  # [B, T, Hkv, K]",
        f"v = torch.randn(1, {_TOKENS}, {_HKV}, {v})  # [B, T, Hkv, V]",
        *(_drawn(variant, tensor, (qk, v)) for tensor in declared),
        f"o = op(q, k, v{given})",
        "",
        f"expected = op.reference(q, k, v{given})  # eager, fp64, from the same declaration",
        "torch.testing.assert_close(o, expected.float(), rtol=1e-4, atol=1e-4)",
    ]
    return "\n".join(lines)


def filter_snippet(variant: Convolution, loaded: str) -> str:
    """The same of a convolution; as many taps as the mask shows."""
    found = variant.filter
    factors = {ref.name for ref in (found.outer, found.inner) if ref is not None}
    declared = [t for t in (*variant.params, *variant.inputs) if t.name not in factors]
    given = "".join(f", {tensor.name}={tensor.name}" for tensor in declared)
    given += ", **factors" if factors else ""
    lines = [
        "import torch",
        "",
        "import attnc",
        "",
        f"op = attnc.compile({loaded})",
        f"v = torch.randn(1, {_TOKENS}, {_CHANNELS})  # [B, T, C]",
        *(_channel_tensor(variant, tensor) for tensor in declared),
        *([f"factors = op.init_factors({_TOKENS})  # the DFT's, by name"] if factors else []),
        f"o = op(v{given})",
        "",
        f"expected = op.reference(v{given})  # eager, fp64, from the same declaration",
        "torch.testing.assert_close(o, expected.float(), rtol=1e-4, atol=1e-4)",
    ]
    return "\n".join(lines)


def _channel_tensor(variant: Convolution, tensor: Declared) -> str:
    """Taps, of which a sum over all has the size of one token; skips and gates."""
    # centred taps are odd in number
    low, high = variant.filter.offsets(_TOKENS + (variant.filter.lowest is None))
    lengths = {"b": 1, "t": _TOKENS, "c": _CHANNELS, "T": high - low + 1}
    sizes = ", ".join(str(lengths[axis]) for axis in tensor.shape)
    if tensor.name == variant.filter.weight.name:
        return f"{tensor.name} = torch.randn({sizes}) / {isqrt(high - low + 1)}  # [C, taps]"
    return f"{tensor.name} = torch.rand({sizes})  # [{', '.join(tensor.shape)}]"


def _drawn(variant: Variant, tensor: Declared, dims: tuple[int, int]) -> str:
    """A tensor of the kind that the declaration reads: numbers of documents, a table, a bound."""
    sizes = ", ".join(str(_size(axis, dims)) for axis in tensor.shape)
    axes = f"[{', '.join(tensor.shape)}]"
    if tensor.name in variant.documents:
        return f"{tensor.name} = torch.arange({_TOKENS}).div(40).floor()[None]  # {axes}"
    if any("/" in axis for axis in tensor.shape):
        return f"{tensor.name} = torch.rand({sizes}) < 0.5  # {axes}: which blocks are computed"
    if tensor.name in variant.mask_tensors:
        return f"{tensor.name} = torch.randint(0, {_TOKENS}, ({sizes},))  # {axes}"
    return f"{tensor.name} = torch.rand({sizes})  # {axes}"


def _size(axis: str, dims: tuple[int, int]) -> int:
    letter, _, block = axis.partition("/")
    lengths = {"b": 1, "h": _HQ, "hkv": _HKV, "i": _TOKENS, "j": _TOKENS, "t": _TOKENS}
    lengths |= {"k": dims[0], "c": dims[1]}
    return -(-lengths[letter] // int(block or 1))
