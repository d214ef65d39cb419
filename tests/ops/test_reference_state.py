"""The reference's states, held against a fold token by token."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
import torch

from attnc.ops.reference import run as reference_run
from attnc.ops.reference.attend import attend
from tests.ops.test_reference import CASES, TOLERANCE, Arrays, Case, arrays, as_tensors, qkv
from tests.oracle import Decay, recurrence


def taylor_features(x: np.ndarray) -> np.ndarray:
    """Degrees descending; a1 <= a2 in lexicographic order."""
    pairs = [x[a] * x[b] for a in range(len(x)) for b in range(a, len(x))]
    return np.array([*pairs, *x, 1.0])


def taylor_queries(x: np.ndarray) -> np.ndarray:
    scale = len(x) ** -0.5
    pairs = [
        (0.5 if a == b else 1.0) * scale**2 * x[a] * x[b]
        for a in range(len(x))
        for b in range(a, len(x))
    ]
    return np.array([*pairs, *(scale * x), 1.0])


def no_decay(t: int, h: int, b: int) -> float:
    return 0.0


@pytest.mark.parametrize("blocks", [1 << 22, 60], ids=["one block", "many blocks"])
def test_a_taylor_state_goes_in_and_out_as_the_textbook_has_it(blocks, monkeypatch):
    monkeypatch.setitem(reference_run.BLOCK_ENTRIES, "cpu", blocks)
    case = next(case for case in CASES if case.name == "based")
    found = arrays(case, 9, 9)
    start = np.random.default_rng(secrets.randbits(32)).uniform(
        0.5, 1.0, size=(2, 2, 15 + 5 + 1, 3 + 1)
    )
    start[:, :, :-1] *= 0.01  # the normaliser stays away from 0
    expected, state = recurrence(
        found["q"], found["k"], found["v"], key_features=taylor_features,
        query_features=taylor_queries, log_decay=no_decay, state=start, summed=True,
    )  # fmt: skip
    got = attend(
        case.variant, *qkv(found), {}, initial_state=torch.from_numpy(start), return_state=True
    )
    assert got.state is not None
    np.testing.assert_allclose(got.out.numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(got.state.numpy(), state, rtol=TOLERANCE, atol=TOLERANCE)


def decay_of(case: Case, found: Arrays) -> Decay:
    log_decay = case.formula(found).log_decay
    assert log_decay is not None
    return log_decay


@pytest.mark.parametrize("name", ["lightning", "retnet"])
def test_a_decay_in_h_keeps_a_state_a_query_head(name):
    case = next(case for case in CASES if case.name == name)
    found = arrays(case, 9, 9)
    start = np.random.default_rng(secrets.randbits(32)).normal(size=(2, 4, 5, 3))
    scale = case.formula(found).scale
    expected, state = recurrence(
        found["q"], found["k"], found["v"], key_features=lambda x: x,
        query_features=lambda x: scale * x, log_decay=decay_of(case, found), state=start,
        summed=False,
    )  # fmt: skip
    got = attend(
        case.variant, *qkv(found), as_tensors(case, found),
        initial_state=torch.from_numpy(start), return_state=True,
    )  # fmt: skip
    assert got.state is not None
    np.testing.assert_allclose(got.out.numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(got.state.numpy(), state, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["lightning", "based", "linear", "retnet"])
def test_two_pieces_with_the_state_between_them_are_the_whole(name):
    case = next(case for case in CASES if case.name == name)
    found = arrays(case, 9, 9)
    tensors = as_tensors(case, found)
    q, k, v = qkv(found)
    whole = attend(case.variant, q, k, v, tensors, return_state=True)
    first = attend(case.variant, q[:, :4], k[:, :4], v[:, :4], tensors, return_state=True)
    last = attend(
        case.variant, q[:, 4:], k[:, 4:], v[:, 4:], tensors,
        initial_state=first.state, return_state=True,
    )  # fmt: skip
    torch.testing.assert_close(
        torch.cat([first.out, last.out], 1), whole.out, rtol=TOLERANCE, atol=TOLERANCE
    )
    torch.testing.assert_close(last.state, whole.state, rtol=TOLERANCE, atol=TOLERANCE)
