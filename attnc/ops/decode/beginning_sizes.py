"""What a state of no tokens is asked for, checked before anything is allocated."""

from __future__ import annotations

import torch

from attnc.errors import InputError
from attnc.ops.inputs import DTYPE_NAMES, check_head_dims


def check_counts(**counts: object) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        InputError: the first of them, by name.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"no state for {name} = {count!r}, which is no number of at least 1")


def check_state_dtype(dtype: object) -> None:
    """Refuse a dtype that no v of a call has.

    Raises:
        InputError: anything but fp16, bf16, fp32, and fp64 in the interpreter.
    """
    if dtype not in DTYPE_NAMES or DTYPE_NAMES[dtype] == "e4m3":
        raise InputError(
            f"no state for tensors of {dtype!r}; kernels exist for fp16, bf16 and fp32",
            hints=("dtype is that of v, torch.bfloat16 where it is not given",),
        )


def state_device(device: object) -> torch.device:
    """The device that a state is made on.

    Raises:
        InputError: what names no device, or a CUDA device where there is none.
    """
    try:
        place = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        raise InputError(
            f"no state on {device!r}, which is no device", hints=("device is that of v",)
        ) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"no state on {device!r}: torch finds no such device here",
            hints=(
                'pass device="cpu" for the interpreter: states are on cuda where none is given',
            ),
        )
    assert isinstance(place, torch.device)
    return place


def head_counts(heads: int | tuple[int, int]) -> tuple[int, int]:
    """HQ and HKV of `heads`, which are both where they are one number.

    Raises:
        InputError: no such numbers, or query heads that share unevenly.
    """
    pair = (heads, heads) if isinstance(heads, int) else heads
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"heads are {heads!r}", hints=("pass heads=8, or heads=(HQ, HKV)",))
    hq, hkv = pair
    check_counts(HQ=hq, HKV=hkv)
    if hq % hkv:
        raise InputError(f"{hq} query heads are not a multiple of {hkv} key/value heads")
    return hq, hkv


def head_dims(dim: int | tuple[int, int]) -> tuple[int, int]:
    """K and V of `dim`, which is both where it is one number.

    Raises:
        InputError: no such numbers, or a head dim that no kernel has.
    """
    pair = (dim, dim) if isinstance(dim, int) else dim
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"dim is {dim!r}", hints=("pass dim=64, or dim=(K, V)",))
    check_counts(K=pair[0], V=pair[1])
    check_head_dims(*pair)
    return pair[0], pair[1]
