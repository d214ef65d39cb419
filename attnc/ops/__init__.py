"""The public ops, a declaration and a function each; imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.ops.based import based_attention
    from attnc.ops.flash import flash_attention
    from attnc.ops.lightning import lightning_attention

__all__ = ["based_attention", "flash_attention", "lightning_attention"]

# the names of the shipped variants must not cost an import of torch
_HOMES = {
    "based_attention": "attnc.ops.based",
    "flash_attention": "attnc.ops.flash",
    "lightning_attention": "attnc.ops.lightning",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
