"""What a call hands over, checked against the declaration. Copied as it is into wheels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from attnc.errors import InputError

if TYPE_CHECKING:
    from attnc.dsl.variant import Variant

DTYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "e4m3",
}
MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256


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

    # axes of declared tensors that kernels count in 32 bits all along
    counted: ClassVar[frozenset[str]] = frozenset("kc")

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
        if tensor.is_nested:
            raise nested(name, f"{name}.values()[None], with its offsets as cu_seqlens")
        if tensor.dim() != 4:
            raise InputError(
                f"{name} has {tensor.dim()} dimensions, not 4: shape {list(tensor.shape)}",
                notes=(f"{name} is {letters}, the layout of flash-attn and fla",),
                hints=("a [B, H, T, D] tensor becomes one by .transpose(1, 2)",),
            )
    batch, tq, hq, head_dim = q.shape
    tk, hkv, value_dim = v.shape[1:]
    expected = {"k": (batch, tk, hkv, head_dim), "v": (batch, tk, hkv, value_dim)}
    for name, tensor in (("k", k), ("v", v)):
        if tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}",
                notes=(
                    f"q is {list(q.shape)}, k is {list(k.shape)}, v is {list(v.shape)}",
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
            f"initial_state has shape {list(state.shape)}, expected {list(shape)}",
            notes=(f"the state of {variant.name!r} is [B, HS, F, columns]; see docs/state.md",),
        )
    if state.dtype != dtype:
        raise InputError(f"initial_state is {state.dtype}, it must be {dtype}")
    if state.device != q.device:
        raise InputError(f"initial_state is on {state.device}, q is on {q.device}")
    return state.contiguous()


def nested(name: str, instead: str) -> InputError:
    """The error of a tensor whose entries have lengths of their own."""
    return InputError(
        f"{name} is a nested tensor",
        notes=("kernels take strided ones",),
        hints=(f"pass {instead}",),
    )


def empty(**tensors: torch.Tensor) -> InputError:
    """The error of a call that has nothing to compute."""
    sizes = ", ".join(f"{name} is {list(x.shape)}" for name, x in tensors.items())
    rows = next(iter(tensors.values())).numel()
    output = "rows that see no key are 0" if rows else "its output is empty too"
    return InputError(f"empty input: {sizes}", hints=(f"skip the call: {output}",))
