"""What a variant is: expressions, masks, `Variant`, TOML, legality."""

from attnc.dsl.convolution import Convolution
from attnc.dsl.expr import Expr, eq
from attnc.dsl.head_facts import Dim, Heads
from attnc.dsl.mask import MaskForm, causal, full, prefix, window
from attnc.dsl.mask_data import blocks, documents
from attnc.dsl.paper import Paper
from attnc.dsl.sum import Sum, Term
from attnc.dsl.symbols import (
    H,
    Input,
    Param,
    abs_,
    b,
    c,
    d,
    elu,
    exp,
    h,
    hkv,
    i,
    j,
    k,
    log,
    log1p,
    max_,
    min_,
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
    x,
)
from attnc.dsl.toml_file import dumps, load, loads
from attnc.dsl.variant import Declared, Variant

# fmt: off
__all__ = [
    "Variant", "Sum", "Term", "Convolution", "Param", "Input", "Declared", "Dim", "Heads",
    "Paper", "Expr", "MaskForm",
    "load", "loads", "dumps",
    "s", "x", "v", "i", "j", "b", "h", "hkv", "t", "k", "c", "d", "H",
    "exp", "log", "log1p", "sqrt", "tanh", "sigmoid", "softplus", "relu", "elu", "silu",
    "abs_", "min_", "max_", "where", "eq", "softcap",
    "causal", "full", "window", "prefix", "documents", "blocks",
]
# fmt: on
