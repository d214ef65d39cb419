"""Calls of a sum's decode that do not fit, and what is said of each."""

from __future__ import annotations

import pytest
import torch

from attnc.errors import AttncError
from attnc.ops.op import compile as compile_op
from tests.ops.test_decode_sum import DRAWN


def refused(name):
    sizes = {"dim": (16, 24), "dtype": torch.float32, "device": "cpu"}
    op = compile_op(DRAWN["hybrid"])
    state = op.init_state(2, (4, 2), **sizes)
    q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 1, 2, 16), torch.randn(2, 1, 2, 24)
    mix = {"mix": torch.zeros(4)}
    calls = {
        "a term that no window bounds": lambda: compile_op(DRAWN["two_far"]).init_state(
            2, 4, **sizes
        ),
        "too many features": lambda: op.init_state(2, 4, dim=64, device="cpu"),
        "pages": lambda: op.init_state(2, 4, page_size=8, **sizes),
        "another op's": lambda: compile_op(DRAWN["overlapping"]).step(q, k, v, state),
        "a smaller ring": lambda: compile_op(DRAWN["wide"]).step(q, k, v, state, z=mix["mix"]),
        "no term for it": lambda: compile_op(DRAWN["windows"]).prefill(q, k, v, state),
        "another dtype": lambda: op.step(q.half(), k.half(), v.half(), state, **mix),
        "a form": lambda: op.prefill(q, k, v, state, form="online", **mix),
        "no lengths in common": lambda: op.prefill(q, k, v, parted(state), **mix),
    }
    with pytest.raises(AttncError) as raised:
        calls[name]()
    return str(raised.value)


def parted(state):
    state.lengths[1] = 3
    return state


TEXTS = """
== a term that no window bounds
error[A300]: a cache of 'two_far' needs a capacity
  note: its mask is no window: a row sees all keys before it
  note: a state can hold term 2, but another's mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== too many features
error[A300]: a cache of 'hybrid' needs a capacity
  note: its mask is no window: a row sees all keys before it
  note: 2,145 features by 64 columns of v in fp32 take 549,120 B, a state may take 196,608 of the 262,144 B of registers of a program
  hint: pass capacity=..., the most tokens that a sequence may have
== pages
error[A300]: a cache of 'hybrid' needs a capacity
  note: its mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== another op's
error[A300]: the state is [2, 2, 153, 24], this call asks for [2, 2, 16, 24] and sums
  note: the state of 'overlapping' is [B, HS, F, V]; see docs/state.md
== a smaller ring
error[A300]: the cache is a ring of 7 keys, and 'wide' sees 301 keys
  hint: a state goes on with the op that made it
== no term for it
error[A300]: the state of 'windows' is a SumState, not a KVCache
  hint: init_state makes one
== another dtype
error[A300]: the cache is torch.float32 on cpu, this call is torch.float16 on cpu
== a form
error[A300]: a prefill beside a state has no form to choose
  note: its folded term goes by chunks, the others by pairs
== no lengths in common
error[A300]: the sequences of this cache have lengths from 0 to 3
  note: a prefill is one call of the op, whose rows end at one key
  hint: prefill before the lengths part, or each sequence in a cache of its own
"""  # noqa: E501


EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_does_not_fit_is_refused_and_the_text_says_why(name):
    assert refused(name) == EXPECTED[name]
