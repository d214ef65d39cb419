"""A declaration -> the lines that call it on a CPU, and hold it against its reference."""

from __future__ import annotations

from attnc.dsl.variant import Declared, Variant

_TOKENS, _HQ, _HKV = 100, 4, 2


def snippet(variant: Variant) -> str:
    """A script that runs where PyTorch is installed; tensors of the smallest telling shape."""
    qk, v = (64, 64) if variant.dim is None else (variant.dim.qk, variant.dim.v)
    declared = (*variant.params, *variant.inputs)
    given = "".join(f", {tensor.name}={tensor.name}" for tensor in declared)
    lines = [
        "import torch",
        "",
        "import attnc",
        "",
        f'op = attnc.compile(attnc.shipped()["{variant.name}"])',
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
