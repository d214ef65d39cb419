"""The eager reference against the oracle's loops: two readings of one formula agree to 1e-12."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from attnc.dsl.toml_file import loads
from attnc.dsl.variant import Variant
from attnc.errors import InputError
from attnc.ops.reference import run as reference_run
from attnc.ops.reference.attend import attend, pt, reference
from attnc.ops.verification.criterion import check
from tests.oracle import Formula, attention

# fp64 both sides, in another order of summation: a few units in the last place of values near 1
TOLERANCE = 1e-12
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A declaration, the same as functions of numbers, and the shapes of its tensors."""

    name: str
    toml: str
    formula: Callable[[Arrays], Formula]
    tensors: Mapping[str, str] | None = None

    @property
    def variant(self) -> Variant:
        return loads(f"[{self.name}]\n{self.toml}", file="case.toml")[self.name]


def softmax(toml: str = "") -> str:
    return f'feature_map = "softmax"\nscale = 0.3\n{toml}'


CASES = [
    Case("full", softmax(), lambda a: Formula(0.3)),
    Case("causal", softmax('mask = "causal"'), lambda a: Formula(0.3, mask=lambda i, j: j <= i)),
    Case(
        "window",
        softmax('mask = "causal & window(3)"'),
        lambda a: Formula(0.3, mask=lambda i, j: i - 3 <= j <= i),
    ),
    Case(
        "both_sides",
        softmax('mask = "window(2, 1)"'),
        lambda a: Formula(0.3, mask=lambda i, j: i - 2 <= j <= i + 1),
    ),
    Case(
        "prefix",
        softmax('mask = "causal | prefix(4)"'),
        lambda a: Formula(0.3, mask=lambda i, j: j <= i or j < 4),
    ),
    Case(
        "complement",
        softmax('mask = "~window(2, 2) & ~(2*i - j < 3)"'),
        lambda a: Formula(0.3, mask=lambda i, j: not i - 2 <= j <= i + 2 and not 2 * i - j < 3),
    ),
    Case(
        "alibi",
        softmax(
            'score = "s - slope[h]*(i - j)"\nmask = "causal"\nparams.slope = { shape = ["h"] }'
        ),
        lambda a: Formula(
            0.3, score=lambda s, i, j, h, b: s - a["slope"][h] * (i - j), mask=lambda i, j: j <= i
        ),
        {"slope": "h"},
    ),
    Case(
        "capped",
        'feature_map = "softmax"\nscale = "rsqrt(d)"\nscore = "softcap(s, 0.7)"\n'
        'mask = "j <= i + 2"',
        lambda a: Formula(
            5**-0.5,
            score=lambda s, i, j, h, b: 0.7 * math.tanh(s / 0.7),
            mask=lambda i, j: j <= i + 2,
        ),
    ),
    Case(
        "bias",
        softmax(
            'score = "where(i < 2, s, sigmoid(s) + u[b,i,h] - u[b,j,h]) + r[h,i,j]"\n'
            'inputs.u = { shape = ["b", "t", "h"] }\ninputs.r = { shape = ["h", "i", "j"] }'
        ),
        lambda a: Formula(
            0.3,
            score=lambda s, i, j, h, b: (
                (
                    s
                    if i < 2
                    else 1 / (1 + math.exp(-s))
                    + (a["u"][b, i, h] if i >= 0 else 0)
                    - a["u"][b, j, h]
                )
                + a["r"][h, i - a["r"].shape[2] + a["r"].shape[1], j]
            ),
        ),
        {"u": "bth", "r": "hij"},
    ),
    Case(
        "linear",
        'feature_map = "elu(x) + 1"\nscale = 1.0\nmask = "causal"\nnormalize = "sum"',
        lambda a: Formula(
            1.0,
            weight=lambda s: s,
            phi=lambda x: x + 1 if x > 0 else math.exp(x),
            mask=lambda i, j: j <= i,
            normalize="sum",
        ),
    ),
    Case(
        "based",
        'feature_map = "taylor(2)"\nscale = "rsqrt(d)"\nmask = "causal"\nnormalize = "sum"',
        lambda a: Formula(
            5**-0.5,
            weight=lambda s: 1 + s + s * s / 2,
            mask=lambda i, j: j <= i,
            normalize="sum",
        ),
    ),
    Case(
        "lightning",
        'feature_map = "identity"\nscale = 1.0\nmask = "causal"\nnormalize = "none"\n'
        'log_decay = "-slope[h]"\nparams.slope = { shape = ["h"] }',
        lambda a: Formula(
            1.0,
            weight=lambda s: s,
            mask=lambda i, j: j <= i,
            log_decay=lambda t, h, b: -a["slope"][h],
        ),
        {"slope": "h"},
    ),
    Case(
        "gated",
        'feature_map = "s**3 - 2*s + 1/2"\nscale = 0.5\nmask = "causal & window(4)"\n'
        'normalize = "none"\nlog_decay = "-softplus(g[b,t,h])"\n'
        'inputs.g = { shape = ["b", "t", "h"] }',
        lambda a: Formula(
            0.5,
            weight=lambda s: s**3 - 2 * s + 0.5,
            mask=lambda i, j: i - 4 <= j <= i,
            log_decay=lambda t, h, b: -math.log1p(math.exp(a["g"][b, t, h])),
        ),
        {"g": "bth"},
    ),
    Case(
        "retnet",
        'feature_map = "identity"\nscale = "rsqrt(d)"\nmask = "causal"\nnormalize = "none"\n'
        'log_decay = "log1p(-2**(-5-h))"',
        lambda a: Formula(
            5**-0.5,
            weight=lambda s: s,
            mask=lambda i, j: j <= i,
            log_decay=lambda t, h, b: math.log1p(-(2.0 ** (-5 - h))),
        ),
    ),
]

SIZES = {"square": (9, 9), "decode": (3, 9), "more queries than keys": (9, 4)}


def arrays(case: Case, queries: int, keys: int, heads: int = 4, key_heads: int = 2) -> Arrays:
    """Random q, k, v and the declared tensors, which are positive (decays need that)."""
    rng = np.random.default_rng(secrets.randbits(32))
    sizes = {"b": 2, "h": heads, "t": keys, "i": queries, "j": keys}
    found = {
        "q": rng.normal(size=(2, queries, heads, 5)),
        "k": rng.normal(size=(2, keys, key_heads, 5)),
        "v": rng.normal(size=(2, keys, key_heads, 3)),
    }
    for name, letters in (case.tensors or {}).items():
        found[name] = rng.uniform(0.1, 1.0, size=[sizes[letter] for letter in letters])
    return found


def as_tensors(case: Case, found: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(found[name]) for name in case.tensors or {}}


def qkv(found: Arrays) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.from_numpy(found[name]) for name in "qkv")
    return q, k, v


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference_is_the_formula_pair_by_pair(case, size):
    found = arrays(case, *SIZES[size])
    expected, log_normaliser = attention(case.formula(found), *(found[name] for name in "qkv"))
    softmaxed = case.variant.family == "softmax"
    got = attend(
        case.variant, *qkv(found), as_tensors(case, found), return_lse=softmaxed
    )  # fmt: skip
    np.testing.assert_allclose(got.out.numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    if softmaxed:
        assert got.lse is not None
        np.testing.assert_allclose(got.lse.numpy(), log_normaliser, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_blocks_of_rows_and_heads_change_nothing(case, monkeypatch):
    found = arrays(case, 9, 9)
    whole = reference(case.variant, *qkv(found), as_tensors(case, found))
    monkeypatch.setitem(reference_run.BLOCK_ENTRIES, "cpu", 40)
    pieces = reference(case.variant, *qkv(found), as_tensors(case, found))
    torch.testing.assert_close(pieces, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_row_that_sees_nothing_gives_zero_and_an_lse_of_minus_infinity():
    case = next(case for case in CASES if case.name == "causal")
    found = arrays(case, 9, 4)
    got = attend(case.variant, *qkv(found), {}, return_lse=True)
    assert got.lse is not None
    assert (got.out[:, :5] == 0).all()
    assert (got.lse[:, :, :5] == -math.inf).all()
    assert got.lse[:, :, 5:].isfinite().all()


def test_a_decimal_in_a_mask_is_exact():
    case = Case(
        "decimal", softmax('mask = "0.1*i >= 3"'), lambda a: Formula(0.3, mask=lambda i, j: i >= 30)
    )
    found = arrays(case, 33, 2)
    got = attend(case.variant, *qkv(found), {}, return_lse=True)
    assert got.lse is not None
    # positions run from 2 - 33 to 1, so no row qualifies; with 33 keys the last three do
    assert (got.lse == -math.inf).all()
    found = arrays(case, 33, 33)
    got = attend(case.variant, *qkv(found), {}, return_lse=True)
    assert got.lse is not None
    assert got.lse.isfinite().any(1).any(0).nonzero().flatten().tolist() == [30, 31, 32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pt_errs_as_its_dtype_does_and_no_more(case, dtype):
    found = arrays(case, 40, 40)
    q, k, v = (x.to(dtype) for x in qkv(found))
    tensors = {name: x.float() for name, x in as_tensors(case, found).items()}
    expected = attend(case.variant, q, k, v, tensors).out
    rounded = pt(case.variant, q, k, v, tensors)
    assert isinstance(rounded, torch.Tensor)
    assert rounded.dtype == dtype
    error = float((rounded.double() - expected).abs().max())
    assert 0 < error < 100 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert check(rounded, expected, rounded).sound


def test_what_a_family_does_not_have_is_refused():
    flash = next(case for case in CASES if case.name == "causal")
    based = next(case for case in CASES if case.name == "based")
    found = arrays(based, 3, 9)
    with pytest.raises(InputError, match="only the softmax family and sums of terms have an lse"):
        reference(based.variant, *qkv(found), {}, return_lse=True)
    with pytest.raises(InputError, match="no state of fixed size"):
        reference(flash.variant, *qkv(found), {}, return_state=True)
    windowed = next(case for case in CASES if case.name == "gated")
    with pytest.raises(InputError, match="asks for mask = causal"):
        reference(windowed.variant, *qkv(found), {"g": torch.ones(2, 9, 4)}, return_state=True)
    with pytest.raises(InputError, match="not 3 queries and 9 keys"):
        reference(based.variant, *qkv(found), {}, return_state=True)
