"""attnc, the attention compiler: declare a variant, get planned, readable, checked kernels.

Importing this package imports nothing else: each name is fetched from its home when it is first
used (PEP 562), so that specs, plans and emitted text need neither torch nor triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.codegen.plan import Request
    from attnc.codegen.planning.planner import plan
    from attnc.dsl import (
        Convolution,
        H,
        Input,
        Param,
        Sum,
        Term,
        Variant,
        b,
        blocks,
        c,
        causal,
        d,
        documents,
        elu,
        eq,
        exp,
        full,
        h,
        hkv,
        i,
        j,
        k,
        load,
        log,
        log1p,
        prefix,
        relu,
        s,
        sigmoid,
        silu,
        softcap,
        softplus,
        sqrt,
        t,
        tanh,
        v,
        where,
        window,
        x,
    )
    from attnc.errors import AttncError
    from attnc.ops import based_attention, flash_attention, lightning_attention
    from attnc.ops.block_table import block_table
    from attnc.ops.op import Op, compile
    from attnc.ops.shipped import shipped
    from attnc.ops.tuning.tune import tune
    from attnc.ops.verification.verify import verify

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "Variant", "Sum", "Term", "Convolution", "Param", "Input", "load",
    "s", "x", "v", "i", "j", "b", "h", "hkv", "t", "k", "c", "d", "H",
    "exp", "log", "log1p", "sqrt", "tanh", "sigmoid", "softplus", "relu", "elu", "silu",
    "where", "eq", "softcap",
    "causal", "full", "window", "prefix", "documents", "blocks",
    "Request", "plan",
    "Op", "compile", "verify", "tune", "flash_attention", "based_attention", "lightning_attention",
    "block_table", "shipped",
    "AttncError",
]
# fmt: on

_HOMES = {
    "Request": "attnc.codegen.plan",
    "plan": "attnc.codegen.planning.planner",
    "Op": "attnc.ops.op",
    "compile": "attnc.ops.op",
    "verify": "attnc.ops.verification.verify",
    "tune": "attnc.ops.tuning.tune",
    "block_table": "attnc.ops.block_table",
    "shipped": "attnc.ops.shipped",
    "flash_attention": "attnc.ops",
    "based_attention": "attnc.ops",
    "lightning_attention": "attnc.ops",
    "AttncError": "attnc.errors",
}
_FOLDERS = {"autotune", "cli", "codegen", "dsl", "errors", "ops"}


def __getattr__(name: str) -> object:
    if name in _FOLDERS:
        return import_module(f"attnc.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'attnc' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "attnc.dsl")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FOLDERS})
