"""Facts about heads to plan with before there are tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dim:
    """Head dims to plan with: `qk` of q and k, `v` of v."""

    qk: int
    v: int


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts to plan with: `q` a multiple of `kv`."""

    q: int
    kv: int
