"""Caches, states and calls of a decode that do not fit, and what is said of each."""

from __future__ import annotations

import pytest
import torch

from attnc.errors import AttncError
from attnc.ops.op import compile as compile_op
from tests.ops.test_decode_cache import VARIANTS, drawn


def refused(name):
    flash, x = compile_op(VARIANTS["flash"]), drawn("flash", torch.float32)
    state = flash.init_state(2, (4, 2), dim=(32, 40), dtype=torch.float32, device="cpu", capacity=4)
    one, five = ([t[:, :n] for t in x.qkv] for n in (1, 5))
    full = flash.init_state(2, (4, 2), dim=(32, 40), dtype=torch.float32, device="cpu", capacity=1)
    placed, linear = compile_op(VARIANTS["placed"]), compile_op(VARIANTS["linear"])
    sizes = {"dim": (32, 40), "dtype": torch.float32, "device": "cpu"}
    ring = compile_op(VARIANTS["narrow"]).init_state(2, (4, 2), **sizes)
    table = torch.tensor([[0], [2]], dtype=torch.int32)

    def twice():
        flash.step(*one, full)
        flash.step(*one, full)

    calls = {
        "no capacity": lambda: flash.init_state(2, 4, **sizes),
        "a ring of another": lambda: flash.prefill(*one, ring),
        "too few pages": lambda: flash.init_state(2, 4, capacity=20, page_size=8, pages=5, **sizes),
        "no such page": lambda: flash.init_state(
            2, 4, capacity=8, page_size=8, pages=2, block_table=table, **sizes
        ),
        "a table of another type": lambda: flash.init_state(
            2, 4, capacity=8, page_size=8, block_table=table.long(), **sizes
        ),
        "a table and no pages": lambda: flash.init_state(
            2, 4, capacity=8, block_table=table, **sizes
        ),
        "no ring": lambda: placed.init_state(2, 4, **sizes),
        "pages of nothing": lambda: flash.init_state(2, 4, page_size=16, **sizes),
        "no such mask": lambda: compile_op(VARIANTS["lookahead"]).init_state(2, 4, **sizes),
        "blocks": lambda: compile_op(VARIANTS["kept"]).init_state(2, 4, **sizes),
        "a value": lambda: compile_op(VARIANTS["weighed"]).init_state(2, 4, **sizes),
        "a window a head": lambda: compile_op(VARIANTS["by_head"]).init_state(2, 4, **sizes),
        "a term ahead": lambda: compile_op(VARIANTS["forward"]).init_state(2, 4, **sizes),
        "a far term": lambda: compile_op(VARIANTS["mixed"]).init_state(2, 4, **sizes),
        "a placed term": lambda: compile_op(VARIANTS["placed_sum"]).init_state(2, 4, **sizes),
        "too many": lambda: flash.prefill(*five, state),
        "full": twice,
        "no state": lambda: flash.prefill(*one),
        "another head": lambda: flash.step(one[0], *(t[:, :, :1] for t in one[1:]), state),
        "another dtype": lambda: flash.step(*(t.half() for t in one), state),
        "capacity of a state": lambda: linear.init_state(2, 4, capacity=9, **sizes),
        "more keys": lambda: flash.prefill(one[0], *five[1:], state),
    }
    with pytest.raises(AttncError) as raised:
        calls[name]()
    return str(raised.value)


TEXTS = """
== no capacity
error[A300]: a cache of 'flash' needs a capacity
  note: its mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== no ring
error[A300]: a cache of 'placed' needs a capacity
  note: its mask depends on more than the distance of query and key
  hint: pass capacity=..., the most tokens that a sequence may have
== pages of nothing
error[A300]: a cache of 'flash' needs a capacity
  note: its mask is no window: a row sees all keys before it
  hint: pass capacity=..., the most tokens that a sequence may have
== a ring of another
error[A300]: the cache is a ring of 7 keys, and 'flash' sees all keys
  note: its mask is no window: a row sees all keys before it
  hint: a state goes on with the op that made it
== too few pages
error[A300]: 5 pages of 8 tokens hold no 2 sequences of 20
  hint: pass pages=6 or more, or a block_table
== no such page
error[A300]: block_table names page 2, and there are 2
== a table of another type
error[A300]: block_table is torch.int64 [2, 1], expected torch.int32 [2, 1]
  note: a row a sequence, a page for each 8 of 8 tokens
== a table and no pages
error[A300]: the cache has a block_table and no page_size
  hint: page_size=16 makes a cache of pages of 16 tokens
== no such mask
error[A200]: 'lookahead' has no decode
  note: its mask shows a query keys that come after it, and a step knows none of them
  hint: and the mask with causal, or call the op on the whole sequence
== blocks
error[A200]: 'kept' has no decode
  note: its mask keeps blocks by a table, which no step walks yet
  hint: call the op with one query and all keys: TQ = 1 ends at the last key
== a value
error[A200]: 'weighed' has no decode
  note: its value is an expression, and a cache keeps v as it comes
  hint: declare no value, and hand the step what it says
== a window a head
error[A200]: 'by_head' has no decode
  note: its mask is bounded by a number a query head, and heads share a walk
  hint: bound the mask by a number, or by one a batch entry
== a term ahead
error[A200]: 'forward' has no decode
  note: its mask shows a query keys that come after it, and a step knows none of them
  hint: and the mask with causal, or call the op on the whole sequence
== a far term
error[A300]: a cache of 'mixed' needs a capacity
  note: its mask depends on more than the distance of query and key
  note: no term is a polynomial in s of all keys from some distance on, i - j >= N, and no other folds into a state
  hint: pass capacity=..., the most tokens that a sequence may have
== a placed term
error[A300]: a cache of 'placed_sum' needs a capacity
  note: its score depends on more than the distance of query and key
  note: no term is a polynomial in s of all keys from some distance on, i - j >= N, and no other folds into a state
  hint: pass capacity=..., the most tokens that a sequence may have
== too many
error[A300]: the cache is full: it holds 0 tokens of 4, and 5 more come
  hint: init_state(capacity=...) makes a larger one
== full
error[A300]: the cache is full: it holds 1 tokens of 1, and 1 more comes
  hint: init_state(capacity=...) makes a larger one
== no state
error[A300]: the state of 'flash' is a NoneType, not a KVCache
  hint: init_state makes one
== another head
error[A300]: the cache is for B, HKV, K, V = [2, 2, 32, 40], this call asks for [2, 1, 32, 40]
== another dtype
error[A300]: the cache is torch.float32 on cpu, this call is torch.float16 on cpu
== capacity of a state
error[A300]: the state of 'linear' has no capacity: its size is fixed
  hint: leave capacity, page_size, pages and block_table out
== more keys
error[A300]: a prefill takes as many queries as keys, not 1 and 5
"""  # noqa: E501


EXPECTED = dict(part.rstrip("\n").split("\n", 1) for part in TEXTS.split("\n== ")[1:])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_does_not_fit_is_refused_and_the_text_says_why(name):
    assert refused(name) == EXPECTED[name]
