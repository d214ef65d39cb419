"""What a call hands over, checked against the declaration. Copied as it is into wheels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch

from attnc.errors import InputError

if TYPE_CHECKING:
    from attnc.dsl.variant import Declared, Variant

DTYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "e4m3",
}
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256
# arguments of other libraries, and what to do instead
_DROPOUT = ("dropout is not supported: apply it to the output, or to the inputs",)
_SCALES = ("scales come with torch.float8_e4m3fn tensors: multiply others by theirs",)
_MASK = ('the declaration says it: mask = "causal", and more in docs/masks.md',)
_SCALE = ("the declaration says it: scale = 0.125",)
_INSTEAD = {
    **dict.fromkeys(("dropout", "dropout_p"), _DROPOUT),
    **dict.fromkeys(("q_scale", "k_scale", "v_scale"), _SCALES),
    **dict.fromkeys(("mask", "attn_mask", "causal", "is_causal", "window_size"), _MASK),
    **dict.fromkeys(("scale", "softmax_scale", "sm_scale"), _SCALE),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one call by letter: B, TQ, TK, HQ, HKV, K, V; how many sequences are packed."""

    batch: int
    tq: int
    tk: int
    hq: int
    hkv: int
    head_dim: int
    value_dim: int
    sequences: int = 0

    def lengths(self, axes: Sequence[str]) -> list[int]:
        """The shape of a declared tensor; one without tokens has an entry for each sequence."""
        apart = self.sequences > 0 and not {"t", "i", "j"} & set(axes)
        return [self.sequences if apart and a == "b" else self.axis(a) for a in axes]

    def axis(self, letter: str) -> int:
        """The length of an axis of a declared tensor; i/64 counts blocks of 64 queries."""
        letter, _, size = letter.partition("/")
        length = {
            "b": self.batch,
            "h": self.hq,
            "hkv": self.hkv,
            "i": self.tq,
            "j": self.tk,
            "t": self.tk,
            "k": self.head_dim,
            "c": self.value_dim,
            "n": self.sequences + 1,
        }[letter]
        return -(-length // int(size or 1))


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Sizes:
    """Sizes of q [B, TQ, HQ, K], k [B, TK, HKV, K], v [B, TK, HKV, V].

    Raises:
        InputError: ranks, sizes, dtypes or devices that do not fit together.
    """
    for name, tensor, letters in (
        ("q", q, "[B, TQ, HQ, K]"),
        ("k", k, "[B, TK, HKV, K]"),
        ("v", v, "[B, TK, HKV, V]"),
    ):
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}, not a tensor")
        if tensor.dim() != 4:
            raise InputError(
                f"{name} has {tensor.dim()} dimensions, not 4: shape {_shape(tensor)}",
                notes=(f"{name} is {letters}, the layout of flash-attn and fla",),
                hints=("a [B, H, T, D] tensor becomes one by .transpose(1, 2)",),
            )
    batch, tq, hq, head_dim = q.shape
    tk, hkv, value_dim = v.shape[1:]
    expected = {"k": (batch, tk, hkv, head_dim), "v": (batch, tk, hkv, value_dim)}
    for name, tensor in (("k", k), ("v", v)):
        if tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{name} has shape {_shape(tensor)}, expected {list(expected[name])}",
                notes=(
                    f"q is {_shape(q)}, k is {_shape(k)}, v is {_shape(v)}",
                    "B and K come from q, TK and HKV must agree between k and v",
                ),
            )
    if hkv == 0 or hq % hkv:
        raise InputError(
            f"{hq} query heads are not a multiple of {hkv} key/value heads",
            notes=("query head h reads key/value head h // (HQ / HKV)",),
            hints=("heads stand in dimension 2: [B, T, H, D]",),
        )
    check_head_dims(head_dim, value_dim)
    _check_types(q, k, v)
    return Sizes(batch, tq, tk, hq, hkv, head_dim, value_dim)


def check_head_dims(head_dim: int, value_dim: int) -> None:
    """Refuse head dims that no kernel has.

    Raises:
        InputError: one outside the range.
    """
    for name, dim in (("K", head_dim), ("V", value_dim)):
        if not MIN_HEAD_DIM <= dim <= MAX_HEAD_DIM:
            raise InputError(
                f"head dim {name} = {dim} is outside {MIN_HEAD_DIM} to {MAX_HEAD_DIM}",
                hints=("split or pad the heads",),
            )


def _check_types(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.dtype not in DTYPE_NAMES:
        raise InputError(
            f"q is {q.dtype}; kernels exist for fp16, bf16 and fp32, and for e4m3 with scales",
            hints=("convert the tensors first",),
        )
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise InputError(f"{name} is {tensor.dtype}, q is {q.dtype}: they must be of one type")
        if tensor.device != q.device:
            raise InputError(f"{name} is on {tensor.device}, q is on {q.device}")
    if q.device.type not in {"cpu", "cuda"}:
        raise InputError(
            f"q is on {q.device}; kernels run on cuda, and on cpu in Triton's interpreter"
        )
    if q.dtype == torch.float64 and q.device.type != "cpu":
        raise InputError("fp64 runs in the interpreter alone, to check gradients")


def check_tensors(
    variant: Variant, given: Mapping[str, torch.Tensor | float], sizes: Sizes, q: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The declared params and inputs, each of its declared shape, in declared order.

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
        raise InputError(
            f"{variant.name!r} needs {first.kind} {first.name!r}",
            notes=(f"declared with shape {_letters(first)} = {_lengths(first, sizes)}",),
            hints=(f"pass {first.name}=... to the call",),
        )
    if "cu_seqlens_q" in declared:
        sizes = _packed_sizes(given, sizes, q)
    found = {name: _whole_numbers(variant, name, given[name]) for name in declared}
    return {name: _tensor(tensor, found[name], sizes, q) for name, tensor in declared.items()}


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
    if list(value.shape) != lengths:
        raise InputError(
            f"{declared.name!r} has shape {_shape(value)}, expected {lengths}",
            notes=(f"declared as {_letters(declared)}",),
        )
    if not value.is_floating_point() and "n" not in declared.shape:
        raise InputError(f"{declared.name!r} is {value.dtype}, it must be floating point")
    if value.device != q.device:
        raise InputError(f"{declared.name!r} is on {value.device}, q is on {q.device}")
    return value


def check_state(
    variant: Variant, state: torch.Tensor | None, shape: tuple[int, ...], q: torch.Tensor
) -> torch.Tensor:
    """The initial state, zeros when none is given; fp32 (fp64 for an fp64 call), contiguous."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=q.device)
    if not isinstance(state, torch.Tensor):
        raise InputError(
            f"initial_state is a {type(state).__name__}, not a tensor",
            notes=(f"the state of {variant.name!r} is {list(shape)}; see docs/state.md",),
            hints=("a state of decode hands it over by .packed()",),
        )
    if tuple(state.shape) != shape:
        raise InputError(
            f"initial_state has shape {_shape(state)}, expected {list(shape)}",
            notes=(f"the state of {variant.name!r} is [B, HS, F, columns]; see docs/state.md",),
        )
    if state.dtype != dtype:
        raise InputError(f"initial_state is {state.dtype}, it must be {dtype}")
    if state.device != q.device:
        raise InputError(f"initial_state is on {state.device}, q is on {q.device}")
    return state.contiguous()


def _letters(declared: Declared) -> str:
    return f"[{', '.join(declared.shape)}]"


def _lengths(declared: Declared, sizes: Sizes) -> list[int]:
    return sizes.lengths(declared.shape)


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)
