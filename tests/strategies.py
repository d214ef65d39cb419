"""Hypothesis strategies over the whole grammar of declarations.

Declarations are drawn as TOML, so that a failing example prints as what a user would write.
"""

from __future__ import annotations

import re

import torch
from hypothesis import strategies as st

# weights that are positive almost everywhere: a sum of others comes near 0, where no digit is left
NONNEGATIVE = (
    "taylor(2)",
    "1 + s + s**2/2",
    "s**2 + 0.1",
    "(1 + s)**2 + 0.25",
    "0.25 + s**4",
    "elu(x) + 1",
    "relu(x)**2",
    "exp(x)",
    "sigmoid(x)",
    "softplus(x)",
    "abs(x)",
    "x**2 + 0.1",
)
SIGNED = (
    "identity",
    "taylor(1)",
    "taylor(3)",
    "s**3 - 2*s + 1/2",
    "0.5*s - 1",
    "3*s",
    "s - s**2",
    "silu(x)",
    "tanh(x)",
    "x - 0.5",
)
# functions of the score that are no polynomials, and are continuous: no digit decides a branch
BOUNDED = (
    "sigmoid(s)",
    "softplus(s) + 0.1",
    "relu(s) + 0.2",
    "exp(-s**2/2) + 0.1",
    "(1 + s**2)/(2 + s**2)",
    "0.3 + log1p(s**2)",
)
BENT = (
    "relu(s)**2",
    "tanh(s)",
    "s*sigmoid(s)",
    "where(s > 0, s, 0.1*s)",
    "min(s, 1)",
    "abs(s) - 1",
)
HIGH_DEGREE = ("taylor(3)", "s**3 - 2*s + 1/2", "0.25 + s**4")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PARAMS = {
    "slope": ("h",),
    "bias": ("h",),
    "shared": ("hkv",),
    "gain": (),
    "table": ("b", "h"),
    "w": ("c",),
    "rates": ("h", "k"),
}
INPUTS = {
    "u": ("b", "t", "h"),
    "y": ("b", "t"),
    "rel": ("h", "i", "j"),
    "back": ("j", "b", "i"),
    "late": ("t", "h", "b"),
    "g": ("b", "t", "h"),
    "gk": ("b", "t", "hkv"),
    "gt": ("b", "t"),
    "gc": ("b", "t", "h", "k"),
    "gs": ("b", "t", "k"),
}


def constants(low: int = 0, high: int = 40) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(str)


def mask_leaves() -> st.SearchStrategy[str]:
    """One mask, each comparison in parentheses as Python's precedence asks."""
    sides = st.sampled_from(["<", "<=", ">", ">="])
    return st.one_of(
        st.sampled_from(["causal", "full", "(i == j)"]),
        constants().map(lambda n: f"window({n})"),
        st.tuples(constants(), constants()).map(lambda n: f"window({n[0]}, {n[1]})"),
        constants(1).map(lambda n: f"prefix({n})"),
        st.tuples(sides, constants()).map(lambda n: f"(i - j {n[0]} {n[1]})"),
        st.tuples(sides, constants(0, 80)).map(lambda n: f"(i + j {n[0]} {n[1]})"),
        st.tuples(st.integers(1, 3), st.integers(1, 3), sides, st.integers(-20, 20)).map(
            lambda n: f"({n[0]}*i {n[2]} {n[1]}*j + {n[3]})"
        ),
    )


@st.composite
def masks(draw: st.DrawFn, *, most: int = 3) -> str:
    """Mask algebra: up to `most` masks, any of them complemented, joined by & and |."""
    mask = draw(mask_leaves())
    for _ in range(draw(st.integers(0, most - 1))):
        other = draw(st.sampled_from(["{}", "{}", "~{}"])).format(draw(mask_leaves()))
        mask = f"({mask} {draw(st.sampled_from('&|'))} {other})"
    return draw(st.sampled_from(["{}", "{}", "{}", "~{}"])).format(mask)


@st.composite
def data_masks(draw: st.DrawFn) -> str:
    """Mask algebra, at times with a prefix or a window whose length is an input n[b]."""
    mask = draw(masks())
    leaf = draw(st.sampled_from(["", "", "prefix(n[b])", "~prefix(n[b])", "window(n[b], 3)"]))
    return f"({mask} {draw(st.sampled_from('&|'))} {leaf})" if leaf else mask


# each wraps a score in one thing more
SCORES = (
    "softcap({}, 7)",
    "softcap({}, 0.8)",
    "({} - slope[h]*(i - j))",
    "({} - slope[h]*abs(i - j))",
    "({} + bias[h])",
    "({} + shared[hkv] - table[b,h])",
    "({}*gain)",
    "({} + u[b,i,h] - u[b,j,h])",
    "({} - y[j])",
    "({} + rel[h,i,j])",
    "({} - back[j,b,i])",
    "({} + late[j,h,b])",
    "elu({})",
    "where(i - j < 9, {}, 0.5*s)",
    "where((j >= 4) | (h == 0), {}, s - 1)",
    "(2*tanh({}))",
    "(3*sigmoid({}))",
    "min({}, 1.5)",
    "max({}, -2)",
    "log1p(abs({}))",
    "sqrt({}**2 + 0.5)",
    "({}*(h + 1)/H)",
    "({} + b/8 - 1/d)",
)


TABLES = ("blocks(kept, 16)", "blocks(kept, 32)", "blocks(kept, 64)")
# most variants have none
SINKS = ("", "", "", "0.5", "bias[h]", "2*slope[h] - 1", "shared[hkv] + h/8", "gain - table[b,h]")


def scores() -> st.SearchStrategy[str]:
    """Score expressions with params and inputs, built outward from s."""
    return st.lists(st.sampled_from(SCORES), max_size=3).map(_nested)


def _nested(wrappers: list[str]) -> str:
    score = "s"
    for wrapper in wrappers:
        score = wrapper.format(score)
    return score


# most variants hand over v as it is
VALUES = ("", "", "", "u[b,t,h]*v", "v*sigmoid(v) + bias[h]", "v/(1 + y[b,t]**2)", "w[c]*v")


def decays() -> st.SearchStrategy[str]:
    """Log decays that are negative for the tensors that `draw_inputs` gives them."""
    return st.sampled_from(
        [
            "-0.05",
            "-slope[h]",
            "-gain",
            "-shared[hkv]",
            "-exp(bias[h])",
            "log1p(-2**(-5-h))",
            "-(h + 1)/(8*H)",
            "-g[b,t,h]",
            "-softplus(g[b,t,h])",
            "log(sigmoid(g[b,t,h]))",
            "-slope[h]*softplus(gt[b,t])",
            "-gk[b,t,hkv]",
            "-gt[b,t]",
        ]
    )


def channel_decays() -> st.SearchStrategy[str]:
    """Decays a channel, for weights that keep the channels of phi(k)."""
    return st.sampled_from(
        [
            "-gc[b,t,h,k]",
            "-softplus(gc[b,t,h,k])/4",
            "-slope[h]*softplus(gs[b,t,k])",
            "-rates[h,k] - softplus(gt[b,t])/8",
            "-exp(bias[h])*gs[b,t,k]",
        ]
    )


@st.composite
def declarations(
    draw: st.DrawFn, family: str | None = None, *, causal: bool = False, grad: bool = False
) -> str:
    """The TOML of one variant named `drawn`; `causal` asks for exactly the causal mask.

    `grad` declares every tensor with a gradient.
    """
    family = family or draw(st.sampled_from(["softmax", "state", "pointwise"]))
    scale = draw(st.sampled_from(['"rsqrt(d)"', "1.0", "0.125", "0.3", "-0.2"]))
    mask = "causal" if causal or draw(st.booleans()) else draw(data_masks())
    if not causal and draw(st.integers(0, 5)) == 0:
        mask = f"({mask}) & documents(ids)"
    if not causal and draw(st.integers(0, 5)) == 0:
        mask = f"({mask}) & {draw(st.sampled_from(TABLES))}"
    value = draw(st.sampled_from(VALUES))
    handed = {"value": f'"{value}"'} if value else {}
    if family == "softmax":
        score = draw(scores())
        fields = {"feature_map": '"softmax"', "scale": scale, "mask": f'"{mask}"', **handed}
        sink = draw(st.sampled_from(SINKS))
        if sink:
            fields["sink"] = f'"{sink}"'
        return toml_of({**fields, "score": f'"{score}"'}, f"{score} {sink} {value}", grad)
    normalize = draw(st.sampled_from(["sum", "none"]))
    if family == "pointwise":
        score = draw(scores())
        weight = draw(st.sampled_from(BOUNDED if normalize == "sum" else (*BOUNDED, *BENT)))
        fields = {"feature_map": f'"{weight}"', "scale": scale, "mask": f'"{mask}"', **handed}
        fields |= {"normalize": f'"{normalize}"', "score": f'"{score}"'}
        return toml_of(fields, f"{score} {value}", grad)
    maps = NONNEGATIVE if normalize == "sum" else (*NONNEGATIVE, *SIGNED)
    fields = {"feature_map": f'"{draw(st.sampled_from(maps))}"', "scale": scale}
    fields |= {"normalize": f'"{normalize}"', **handed}
    decay = draw(st.one_of(st.none(), decays()))
    if decay is not None:
        fields["log_decay"] = f'"{decay}"'
        # a decay towards the future would be growth
        mask = mask if mask == "causal" else f"causal & {mask}"
    return toml_of({**fields, "mask": f'"{mask}"'}, f"{decay or ''} {value}", grad)


@st.composite
def channel_declarations(draw: st.DrawFn, *, causal: bool = False, grad: bool = False) -> str:
    """The TOML of one variant named `drawn` whose decay is one a channel of k."""
    normalize = draw(st.sampled_from(["sum", "none"]))
    maps = [text for text in NONNEGATIVE if "x" in text]
    maps += [] if normalize == "sum" else ["identity", "3*s", "silu(x)", "x - 0.5"]
    value = draw(st.sampled_from(VALUES))
    decay = draw(channel_decays())
    fields = {
        "feature_map": f'"{draw(st.sampled_from(maps))}"',
        "scale": draw(st.sampled_from(['"rsqrt(d)"', "0.3"])),
        "normalize": f'"{normalize}"',
        "log_decay": f'"{decay}"',
        "mask": '"causal"' if causal else f'"causal & {draw(masks())}"',
    }
    return toml_of(fields | ({"value": f'"{value}"'} if value else {}), f"{decay} {value}", grad)


def toml_of(fields: dict[str, str], expression: str, grad: bool) -> str:
    lines = ["[drawn]", *(f"{key} = {value}" for key, value in fields.items())]
    for kind, declared in (("params", PARAMS), ("inputs", INPUTS)):
        for name, axes in declared.items():
            if f"{name}[" in expression or (not axes and name in expression):
                listed = ", ".join(f'"{axis}"' for axis in axes)
                wanted = ", grad = true" if grad else ""
                lines.append(f"{kind}.{name} = {{ shape = [{listed}]{wanted} }}")
    size = re.search(r"blocks\(kept, (\d+)\)", fields["mask"])
    if size:
        axes = '"h", ' if "32" in size[1] else ""
        lines.append(f'inputs.kept = {{ shape = [{axes}"i/{size[1]}", "j/{size[1]}"] }}')
    if "n[b]" in fields["mask"]:
        lines.append('inputs.n = { shape = ["b"] }')
    if "documents(ids)" in fields["mask"]:
        lines.append('inputs.ids = { shape = ["b", "t"] }')
    return "\n".join(lines)
