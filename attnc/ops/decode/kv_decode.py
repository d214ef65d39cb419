"""Prefill and step over a cache of keys and values, of what no state of fixed size holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnc.codegen.algebra import Algebra
from attnc.codegen.plan import Workload
from attnc.codegen.planning.ring import ring_size
from attnc.codegen.text.launch import used_tensors
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.built import launch
from attnc.ops.decode.kv_cache import KVCache
from attnc.ops.given_tensors import check_tensors
from attnc.ops.inputs import Sizes

if TYPE_CHECKING:
    from attnc.ops.decode.decoding import Decoding


def cache_kind(
    variant: Variant,
    algebra: Algebra,
    capacity: int | None,
    page_size: int | None,
    folded: tuple[int | None, str],
) -> tuple[str, int]:
    """How a cache keeps its keys, and how many: a ring where a window needs no more.

    `folded` is how many keys a ring beside a state holds, or why there is none.

    Raises:
        InputError: no capacity, and a mask whose rows see more and more keys.
    """
    for what, number in (("capacity", capacity), ("page_size", page_size)):
        if number is not None and not isinstance(number, int):
            raise InputError(
                f"{what} is {number!r}, no number of tokens",
                hints=(f"pass a whole number, {what}=1024",),
            )
    if page_size is not None and page_size < 1:
        raise InputError(f"a page of {page_size} tokens holds none")
    if capacity is not None:
        if capacity < 1:
            raise InputError(f"a cache of {capacity} tokens holds none")
        return ("contiguous" if page_size is None else "paged"), capacity
    size, why = ring_size(variant, algebra)
    reasons = [why]
    if size is None and page_size is None and algebra.terms:
        if folded[0] is not None:
            return "folded", folded[0]
        reasons.append(folded[1])
    if size is None or page_size is not None:
        notes = tuple(filter(None, reasons)) or ("pages are counted from a capacity",)
        raise InputError(
            f"a cache of {variant.name!r} needs a capacity",
            notes=notes,
            hints=("pass capacity=..., the most tokens that a sequence may have",),
        )
    return "ring", size


def check_pages(
    batch: int, capacity: int, page_size: int | None, pages: int | None,
    block_table: torch.Tensor | None, device: torch.device,
) -> None:  # fmt: skip
    """See that pages hold the capacity, and that a table names those that there are.

    What stands in a table is read on a CPU alone: on a GPU looking would wait for the device.

    Raises:
        InputError: too few pages, a table of another shape or type, or one that names others.
    """
    if page_size is None:
        if pages is not None or block_table is not None:
            given = "pages" if block_table is None else "a block_table"
            raise InputError(
                f"the cache has {given} and no page_size",
                hints=("page_size=16 makes a cache of pages of 16 tokens",),
            )
        return
    each = -(-capacity // page_size)
    there = batch * each if pages is None else pages
    if block_table is None:
        if there < batch * each:
            raise InputError(
                f"{there} pages of {page_size} tokens hold no {batch} sequences of {capacity}",
                hints=(f"pass pages={batch * each} or more, or a block_table",),
            )
        return
    if block_table.dtype != torch.int32 or list(block_table.shape) != [batch, each]:
        raise InputError(
            f"block_table is {block_table.dtype} {list(block_table.shape)}, "
            f"expected torch.int32 {[batch, each]}",
            notes=(f"a row a sequence, a page for each {page_size} of {capacity} tokens",),
        )
    if block_table.device.type != device.type:
        raise InputError(f"block_table is on {block_table.device}, the cache is on {device}")
    if device.type == "cpu":
        least, most = int(block_table.min()), int(block_table.max())
        if least < 0 or most >= there:
            raise InputError(
                f"block_table names page {least if least < 0 else most}, and there are {there}"
            )


def check_cache(
    op: Decoding,
    state: object,
    sizes: Sizes,
    q: torch.Tensor,
    ring: tuple[int | None, str] | None = None,
) -> KVCache:
    """The state of a call, seen to be a cache that fits it; `ring` is how many keys one needs.

    Raises:
        InputError: it is none, one of other sizes, dtype or device, or a ring of too few keys.
    """
    if not isinstance(state, KVCache):
        raise InputError(
            f"the state of {op.variant.name!r} is a {type(state).__name__}, not a KVCache",
            hints=("init_state makes one",),
        )
    batch = state.lengths.shape[0]
    held = [batch, *state.keys.shape[2:], state.values.shape[3]]
    asked = [sizes.batch, sizes.hkv, sizes.head_dim, sizes.value_dim]
    if held != asked:
        raise InputError(
            f"the cache is for B, HKV, K, V = {held}, this call asks for {asked}",
        )
    if state.keys.dtype != q.dtype or state.keys.device != q.device:
        raise InputError(
            f"the cache is {state.keys.dtype} on {state.keys.device}, "
            f"this call is {q.dtype} on {q.device}"
        )
    if state.kind == "ring":
        size, why = ring or op.ring
        if size is None or size > state.capacity:
            wanted = f"{size} keys" if size else "all keys"
            raise InputError(
                f"the cache is a ring of {state.capacity} keys, and {op.variant.name!r} sees "
                f"{wanted}",
                notes=(why,) if why else (),
                hints=("a state goes on with the op that made it",),
            )
    return state


def prefill_cache(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: KVCache,
    tensors: Mapping[str, torch.Tensor | float],
    options: Mapping[str, Any],
) -> Any:
    """What the op returns for the new rows over all keys so far, the cache written in place."""
    held, new = state.length(), k.shape[1]
    state.room(new, held)
    # rows of a ring see no more of the past than it holds
    start = max(0, held - state.capacity + 1) if state.kind == "ring" else 0
    if state.kind == "ring":
        keys, values = k, v
        if held > start:
            old = state.read(start, held)
            keys, values = (torch.cat(pair, 1) for pair in zip(old, (k, v), strict=True))
    elif held:
        state.write(held, k, v)
        keys, values = state.read(0, held + new)
    else:
        keys, values = k, v
    given = {name: _so_far(op, name, x, state, held + new) for name, x in tensors.items()}
    result = op(q, keys, values, **options, **given)
    if state.kind == "ring" or not held:
        state.write(held, k, v)
    state.lengths.add_(new)
    state.tokens = held + new
    return result


def _so_far(
    op: Decoding, name: str, value: torch.Tensor | float, state: KVCache, tokens: int
) -> torch.Tensor | float:
    """A declared tensor of all positions of the cache, cut to those that have a token."""
    declared = {t.name: t for t in (*op.variant.params, *op.variant.inputs)}.get(name)
    if declared is None or not isinstance(value, torch.Tensor):
        return value
    for axis, letter in enumerate(declared.shape):
        if letter in {"t", "j"} and value.shape[axis : axis + 1] == (state.capacity,):
            value = value.narrow(axis, 0, tokens)
    return value


def step_cache(
    op: Decoding,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: KVCache,
    tensors: Mapping[str, torch.Tensor | float],
    sizes: Sizes,
    precision: str,
    *,
    kind: str = "",
    beside: Sequence[torch.Tensor] = (),
) -> list[torch.Tensor]:
    """o [B, 1, HQ, V] and any lse [B, HQ, 1]; the token enters the cache, the lengths advance.

    `kind` is the planner's, where that is not the cache's own; `beside` is a state in place.
    """
    state.room(1, state.tokens)
    given = check_tensors(op.variant, tensors, replace(sizes, tk=state.capacity), q)
    workload = Workload(sizes.batch, 1, state.capacity, sizes.hq, sizes.hkv)
    kind = kind or state.kind
    built = op._decode_plans.find(q, v, list(given.values()), workload, precision, cache=kind)
    caches = [state.keys, state.values]
    named = [given[name] for name in used_tensors(built.plan)]
    table = [] if state.block_table is None else [state.block_table]
    arguments = [q, k, v, *named, state.lengths, *caches, *table, *beside]
    first, end = 4 + len(named), len(arguments)
    written = (first, first + 1, *range(end - len(beside), end))
    results = launch(built, q, arguments, written=written)
    state.lengths.add_(1)
    state.tokens += 1
    return results
