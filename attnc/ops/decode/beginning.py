"""The state that an op begins with: a matrix, a cache of keys and values, or both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch

from attnc.codegen.algebra import Algebra
from attnc.codegen.features import features_of
from attnc.codegen.planning.candidate import LEAST_COLUMNS, no_state_fits, state_too_large
from attnc.codegen.planning.decode_planner import decode_form
from attnc.codegen.planning.ring import ring_size
from attnc.dsl.sum import folded_alone, without_term
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.decode.beginning_sizes import (
    check_counts,
    check_state_dtype,
    head_counts,
    head_dims,
    state_device,
)
from attnc.ops.decode.decode_plans import DecodePlans
from attnc.ops.decode.kv_cache import KVCache
from attnc.ops.decode.kv_decode import cache_kind, check_pages
from attnc.ops.decode.matrix_state import MatrixState
from attnc.ops.decode.sum_decode import folded_ring
from attnc.ops.decode.sum_state import SumState
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.placement import planner_device
from attnc.ops.planned import Planned

State = MatrixState | KVCache | SumState


class Beginning(Planned, ABC):
    """The part of an op that makes a state of no tokens."""

    _algebra: Algebra
    _decode_plans: DecodePlans

    def state_shape(
        self, batch: int, hq: int, hkv: int, head_dim: int, value_dim: int
    ) -> tuple[int, int, int, int]:
        """[B, HS, F, V] of the state, V + 1 columns where a normaliser goes with it.

        Raises:
            PlanError: no program of any form could carry so many features.
        """
        kept = self._algebra.state
        features = features_of(kept, head_dim)
        if not torch.compiler.is_compiling():
            # told here, before anything of that size is allocated
            request = self.request((head_dim, value_dim), "fp32", None, False)
            too_large = state_too_large(request, features, columns=LEAST_COLUMNS)
            if too_large:
                raise no_state_fits(request, too_large, "parallel")
        heads = hq if kept.heads_differ else hkv
        columns = value_dim + (1 if kept.normalize == "sum" else 0)
        return (batch, heads, features.count, columns)

    @cached_property
    def ring(self) -> tuple[int | None, str]:
        """How many keys a ring of this op holds; None and why where none does."""
        return ring_size(self.variant, self._algebra)

    def init_state(
        self,
        batch: int,
        heads: int | tuple[int, int],
        *,
        dim: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
        capacity: int | None = None,
        page_size: int | None = None,
        pages: int | None = None,
        block_table: torch.Tensor | None = None,
    ) -> State:
        """The state before the first token of `batch` sequences: a MatrixState, or a KVCache.

        Of a sum of terms it is a SumState, without a capacity, where a state can hold a term.
        `heads` are HQ, or (HQ, HKV); `dim` is K, or (K, V), as declared where not given; `dtype` is
        that of q, k and v. A softmax or pointwise variant, or a sum of terms, takes the `capacity`
        of its cache, unless its window is a ring; with `page_size` the cache is paged: `pages` of
        it, in the order of a `block_table` [B, ceil(capacity / page_size)] int32.

        Raises:
            InputError: sizes that do not fit together, or none where none are declared.
            PlanError: the variant has no decode; the text says why.
        """
        decode_form(self.request(None, "bf16", None, False), self._algebra)
        check_counts(batch=batch)
        check_state_dtype(dtype)
        hq, hkv = head_counts(heads)
        head_dim, value_dim = self._head_dims(dim)
        place = state_device(device)
        if not self._over_cache:
            if (capacity, page_size, pages, block_table) != (None,) * 4:
                raise InputError(
                    f"the state of {self.variant.name!r} has no capacity: its size is fixed",
                    hints=("leave capacity, page_size, pages and block_table out",),
                )
            return self._matrix(batch, (hq, hkv), (head_dim, value_dim), dtype, place)
        fold: tuple[int | None, str] = (None, "")
        if self._algebra.terms and capacity is None:
            planned_for = self._device or planner_device(place)
            name = DTYPE_NAMES[dtype]
            asked = self.request((head_dim, value_dim), name, None, False, device=planned_for)
            fold = folded_ring(asked, self._algebra)
        kind, size = cache_kind(self.variant, self._algebra, capacity, page_size, fold)
        check_pages(batch, size, page_size, pages, block_table, place)
        cache = KVCache.empty(
            batch, hkv, (head_dim, value_dim), size, kind="ring" if kind == "folded" else kind,
            dtype=dtype, device=place, page_size=page_size or 0, pages=pages,
            block_table=block_table,
        )  # fmt: skip
        if kind != "folded":
            return cache
        matrix = self._matrix(batch, (hq, hkv), (head_dim, value_dim), dtype, place)
        return SumState(cache, matrix)

    @cached_property
    def folded(self) -> Any:
        """The op of the term that a state holds, its keys handed over late."""
        assert self._algebra.folded is not None
        return self._like(folded_alone(self.variant, self._algebra.folded), "")

    @cached_property
    def near(self) -> Any:
        """The op of the terms that no state holds."""
        assert self._algebra.folded is not None
        return self._like(without_term(self.variant, self._algebra.folded), "")

    @abstractmethod
    def _like(self, variant: Variant, out: str) -> Any:
        """An op of another variant, asked for as this one was."""

    @property
    def _over_cache(self) -> bool:
        """Whether a cache of keys is what goes from token to token, not a state."""
        return self._algebra.over_cache

    def _head_dims(self, dim: int | tuple[int, int] | None) -> tuple[int, int]:
        declared = self.variant.dim
        if dim is None and declared is None:
            raise InputError(
                f"{self.variant.name!r} declares no head dims, and a state has some",
                hints=("pass dim=64, or dim=(K, V)",),
            )
        if dim is None:
            assert declared is not None
            return declared.qk, declared.v
        return head_dims(dim)

    def _matrix(
        self,
        batch: int,
        heads: tuple[int, int],
        dims: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> MatrixState:
        return MatrixState.zeros(
            self.state_shape(batch, *heads, *dims),
            summed=self._algebra.state.normalize == "sum",
            dtype=torch.float64 if dtype == torch.float64 else torch.float32,
            device=device,
        )
