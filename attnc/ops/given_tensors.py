"""The declared params and inputs of a call, as it gives them by name.

Copied as it is into wheels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch

from attnc.errors import InputError
from attnc.ops.inputs import Sizes
from attnc.ops.near import near

if TYPE_CHECKING:
    from attnc.dsl.variant import Declared, Variant

# arguments of other libraries, and what to do instead
_DROPOUT = ("dropout is not supported: apply it to the output, or to the inputs",)
_SCALES = ("scales come with torch.float8_e4m3fn tensors: multiply others by theirs",)
_MASK = ('the declaration says it: mask = "causal", and more in docs/masks.md',)
_SCALE = ("the declaration says it: scale = 0.125",)
_STARTS = ("starts of sequences are cu_seqlens_q=... and cu_seqlens_k=..., or one tensor as both",)
_LONGEST = ("leave it out: kernels read lengths from cu_seqlens_q and cu_seqlens_k",)
_OTHER = {"cu_seqlens_q": "cu_seqlens_k", "cu_seqlens_k": "cu_seqlens_q"}
_INSTEAD = {
    **dict.fromkeys(("dropout", "dropout_p"), _DROPOUT),
    **dict.fromkeys(("q_scale", "k_scale", "v_scale"), _SCALES),
    **dict.fromkeys(("mask", "attn_mask", "causal", "is_causal", "window_size"), _MASK),
    **dict.fromkeys(("scale", "softmax_scale", "sm_scale"), _SCALE),
    **dict.fromkeys(("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k"), _STARTS),
    **dict.fromkeys(("max_seqlen", "max_seqlen_q", "max_seqlen_k"), _LONGEST),
}


def check_tensors(
    variant: Variant,
    given: Mapping[str, torch.Tensor | float],
    sizes: Sizes,
    q: torch.Tensor,
    *,
    beside: str = "q",
) -> dict[str, torch.Tensor]:
    """The declared params and inputs, each of its declared shape, in declared order.

    They are on the device of `q`, a tensor that the caller knows as `beside`.

    Raises:
        InputError: one is missing, unknown, of a wrong shape, dtype or device.
    """
    declared = {tensor.name: tensor for tensor in (*variant.params, *variant.inputs)}
    for name in given:
        if name not in declared:
            close = get_close_matches(name, declared, 1)
            known = ", ".join(declared) or "none"
            hint = _INSTEAD.get(name) or tuple(f"did you mean {other!r}?" for other in close)
            raise InputError(
                f"{variant.name!r} takes no argument {name!r}",
                notes=(f"declared params and inputs: {known}",),
                hints=hint,
            )
    missing = [name for name in declared if name not in given]
    if missing:
        first = declared[missing[0]]
        if first.name in _OTHER:
            raise InputError(
                f"{variant.name!r} needs {first.kind} {first.name!r}",
                notes=("queries and keys of packed sequences have starts of their own",),
                hints=(f"pass {first.name}={_OTHER[first.name]} where they do not differ",),
            )
        raise InputError(
            f"{variant.name!r} needs {first.kind} {first.name!r}",
            notes=(f"declared with shape {_letters(first)} = {_lengths(first, sizes)}",),
            hints=(f"pass {first.name}=... to the call",),
        )
    if "cu_seqlens_q" in declared:
        sizes = _packed_sizes(given, sizes, q)
    found = {name: _whole_numbers(variant, name, given[name]) for name in declared}
    held = {name: _tensor(tensor, found[name], sizes, q) for name, tensor in declared.items()}
    for name, x in held.items():
        if x.device != q.device:
            raise InputError(f"{name!r} is on {x.device}, {beside} is on {q.device}")
    return held


def _packed_sizes(
    given: Mapping[str, torch.Tensor | float], sizes: Sizes, q: torch.Tensor
) -> Sizes:
    """How many sequences a packed call has; where they start is data, and stays on the device."""
    if sizes.batch != 1:
        raise InputError(
            f"packed sequences have B = 1, not {sizes.batch}",
            notes=("q is [1, tokens of all sequences, HQ, K]",),
            hints=("q.flatten(0, 1)[None] packs a batch of one length",),
        )
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        starts = given[name]
        if not isinstance(starts, torch.Tensor) or starts.dtype != torch.int32 or starts.dim() != 1:
            raise InputError(
                f"{name} is no int32 tensor of one dimension",
                notes=("it holds where sequences start, and where the last one ends: [N + 1]",),
                hints=("torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))",),
            )
        if starts.shape[0] < 2 or not starts.is_contiguous():
            raise InputError(
                f"{name} has shape {_shape(starts)} and strides {list(starts.stride())}",
                notes=("N + 1 numbers beside each other, of at least one sequence",),
            )
        if starts.device != q.device:
            raise InputError(f"{name} is on {starts.device}, q is on {q.device}")
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_starts(name, starts, sizes.tq if name == "cu_seqlens_q" else sizes.tk)
    first, second = (given[name].shape for name in ("cu_seqlens_q", "cu_seqlens_k"))  # type: ignore[union-attr]
    if first != second:
        raise InputError(
            f"cu_seqlens_q has {first[0] - 1} sequences, cu_seqlens_k has {second[0] - 1}"
        )
    return replace(sizes, sequences=first[0] - 1)


def _check_starts(name: str, starts: torch.Tensor, tokens: int) -> None:
    """Refuse sequences that are not the tokens; on a GPU looking would wait for the device."""
    first, last = int(starts[0]), int(starts[-1])
    if first == 0 and last == tokens and bool((starts.diff() >= 0).all()):
        return
    shown = f"from {first} to {last}" if (first, last) != (0, tokens) else "in falling order"
    raise InputError(
        f"{name} goes {shown}, and there are {tokens} tokens",
        notes=("sequence n has the tokens from entry n to entry n + 1: 0 first, all of them last",),
        hints=("torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))",),
    )


def _whole_numbers(
    variant: Variant, name: str, value: torch.Tensor | float
) -> torch.Tensor | float:
    """What a mask reads, as kernels compare it: fp32 holds whole numbers up to 2**24 exactly."""
    if name not in variant.mask_tensors or not isinstance(value, torch.Tensor):
        return value
    return value if value.is_floating_point() or value.is_complex() else value.to(torch.float32)


def _tensor(
    declared: Declared, value: torch.Tensor | float, sizes: Sizes, q: torch.Tensor
) -> torch.Tensor:
    if isinstance(value, int | float):
        if declared.shape:
            raise InputError(
                f"{declared.name!r} is a number, its shape is {_letters(declared)}",
                hints=(f"pass a tensor of shape {_lengths(declared, sizes)}",),
            )
        return torch.full((), float(value), dtype=torch.float32, device=q.device)
    lengths = _lengths(declared, sizes)
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"{declared.name!r} is a {type(value).__name__}, not a tensor",
            hints=(f"pass a tensor of shape {lengths}",),
        )
    if value.is_complex():
        raise InputError(
            f"{declared.name!r} is {value.dtype}, it must be real",
            notes=("of a complex number .float() leaves the real part alone",),
            hints=(
                f"axis z is both parts: torch.stack([{declared.name}.real, {declared.name}.imag])"
                if "z" in declared.shape
                else f"declare both parts, and pass {declared.name}.real and {declared.name}.imag",
            ),
        )
    if list(value.shape) != lengths:
        raise InputError(
            f"{declared.name!r} has shape {_shape(value)}, expected {lengths}",
            notes=(f"declared as {_letters(declared)}",),
        )
    if not value.is_floating_point() and "n" not in declared.shape:
        problem = f"{declared.name!r} is {value.dtype}, it must be floating point"
        raise InputError(problem, hints=(f"pass {declared.name}.float()",))
    counted = [axis for axis, letter in enumerate(declared.shape) if letter in sizes.counted]
    return near(value, counted, max(lengths)) if counted else value


def _letters(declared: Declared) -> str:
    return f"[{', '.join(declared.shape)}]"


def _lengths(declared: Declared, sizes: Sizes) -> list[int]:
    return sizes.lengths(declared.shape)


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
