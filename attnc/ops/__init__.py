"""The public ops: a declaration and a function each."""

from attnc.ops.based import based_attention
from attnc.ops.flash import flash_attention
from attnc.ops.lightning import lightning_attention

__all__ = ["based_attention", "flash_attention", "lightning_attention"]
