"""What the copy engine takes, and what an op says of tensors and devices that it does not."""

from __future__ import annotations

import pytest
import torch

from attnc.errors import AttncError, InputError
from attnc.ops.descriptors import describing, undescribable
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import shipped


def tensor(*sizes: int) -> torch.Tensor:
    return torch.zeros(sizes, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "whole",
    [tensor(2, 5, 3, 64), tensor(2, 3, 5, 64).transpose(1, 2), tensor(2, 5, 3, 72)[..., :64]],
    ids=["contiguous", "transposed", "a slice of wider rows"],
)
def test_rows_in_multiples_of_16_bytes_are_taken(whole):
    assert undescribable(whole) == ""


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (tensor(2, 5, 3, 128)[..., ::2], "its channels are 2 elements apart, not adjacent"),
        (tensor(2, 5, 3, 65)[..., :64], "its axis 0 steps by 1950 bytes, no multiple of 16"),
        (tensor(1, 5, 3, 64).expand(2, -1, -1, -1), "its axis 0 is expanded: all of it is one row"),
        (tensor(2 * 5 * 64 + 1)[1:].view(2, 5, 1, 64), "its address is no multiple of 16"),
    ],
)  # fmt: skip
def test_what_the_copy_engine_cannot_read_is_said(odd, why):
    assert undescribable(odd) == why


def test_a_launcher_names_the_tensor_and_does_not_run():
    ran = []
    launch = describing(lambda *tensors: ran.append(tensors))
    good = tensor(1, 8, 2, 64)
    launch(good, good, good)
    with pytest.raises(InputError, match="cannot read v: its channels are 2") as caught:
        launch(good, good, tensor(1, 8, 2, 128)[..., ::2])
    assert caught.value.hints == ("give v.contiguous(), or leave the backend out",)
    assert len(ran) == 1


def test_a_gluon_op_names_a_tensor_that_it_cannot_read_on_a_cpu_too():
    op = compile_op(shipped()["flash"], backend="gluon")
    q = torch.randn(1, 16, 1, 64, dtype=torch.bfloat16)
    odd = torch.randn(1, 16, 1, 128, dtype=torch.bfloat16)[..., ::2]
    with pytest.raises(InputError, match="cannot read k: its channels are 2"):
        op(q, odd, q)


def test_an_op_of_an_unknown_backend_is_refused():
    with pytest.raises(AttncError, match="unknown backend 'cuda'"):
        compile_op(shipped()["flash"], backend="cuda")
