"""The whole rendered text of every refusal: refused.txt holds a declaration and what it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc import errors
from attnc.dsl import Input, Param, Variant, causal, dumps, h, i, j, load, loads, s, window
from attnc.errors import AttncError, DeclarationError, LimitExceeded

TEXT = (Path(__file__).parent / "refused.txt").read_text(encoding="utf-8")
CASES: dict[str, tuple[str, str]] = {}
for section in TEXT.split("=== ")[1:]:
    title, body = section.split("\n", 1)
    declaration, rendered = body.split("\n---\n", 1)
    CASES[title] = (declaration + "\n", rendered.strip("\n"))


@pytest.mark.parametrize("title", CASES)
def test_a_refused_declaration_gets_exactly_this_text(title):
    declaration, rendered = CASES[title]
    with pytest.raises(DeclarationError) as caught:
        loads(declaration, file="my.toml")
    assert str(caught.value) == rendered


def test_every_kind_of_refusal_is_pinned():
    kinds = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DeclarationError)
    }
    assert {rendered[6:10] for _, rendered in CASES.values()} == kinds


def test_every_caret_stands_under_its_own_span():
    for declaration, rendered in CASES.values():
        lines = rendered.split("\n")
        if len(lines) < 5 or not lines[1].startswith("  -->"):
            continue
        place, shown, caret = lines[1], lines[3], lines[4]
        line, column = (int(part) for part in place.rsplit(":", 2)[1:])
        assert shown == f" {line} | {declaration.splitlines()[line - 1]}"
        assert caret.index("^") == len(f" {line} | ") + column - 1
        assert len(caret) <= len(shown) + 1


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("+".join(["s"] * 101), "score of 'v' has 201 nodes, at most 200 are allowed"),
        ("s + " * 501 + "s", "score of 'v' has 2,005 characters, at most 2,000 are allowed"),
    ],
)
def test_a_text_over_a_limit_says_by_how_much(score, message):
    text = f'[v]\nfeature_map = "softmax"\nscale = 1.0\nscore = "{score}"\n'
    with pytest.raises(LimitExceeded) as caught:
        loads(text)
    assert caught.value.message == message


def softmax(**fields: object) -> Variant:
    return Variant("mine", feature_map="softmax", scale="rsqrt(d)", **fields)


slope = Param("slope", shape="h", grad=True)


@pytest.mark.parametrize(
    ("declare", "rendered"),
    [
        (
            lambda: softmax(score=s - slope[h] * (i - j), mask=causal & (i * j < 4)),
            "error[A107]: 'i * j' is not affine in i and j\n"
            " --> mask of 'mine'\n"
            "  |\n"
            "  | causal & (i * j < 4)\n"
            "  |           ^^^^^\n"
            "  note: a mask compares sums of i, j and numbers, so that its tiles have closed-form "
            "bounds\n"
            "  hint: write a term that depends on data into the score",
        ),
        (
            lambda: softmax(score="s - slop[h]", params=[slope]),
            "error[A104]: unknown name 'slop' in score of 'mine'\n"
            " --> score of 'mine'\n"
            "  |\n"
            "  | s - slop[h]\n"
            "  |     ^^^^\n"
            "  note: names here: H, b, d, h, hkv, i, j, s, slope\n"
            "  hint: did you mean 'slope'?",
        ),
        (
            lambda: softmax(log_decay=-slope[h], mask=causal),
            "error[A108]: 'mine' declares log_decay and softmax\n"
            " --> log_decay of 'mine'\n"
            "  |\n"
            "  | -slope[h]\n"
            "  | ^^^^^^^^^\n"
            "  note: a decay multiplies the weight; in a softmax that is a term of the score\n"
            '  hint: write it into the score: score = "s - slope[h]*(i - j)"',
        ),
        (
            lambda: softmax(chunk=True),
            "error[A101]: chunk of 'mine' is True\n"
            '  note: a chunk is "auto", or a power of two from 16 to 256',
        ),
        (
            lambda: softmax(mask=3),
            "error[A101]: mask of 'mine' is 3, not a mask",
        ),
        (
            lambda: softmax(mask=i == j),
            "error[A101]: mask of 'mine' is False, not a mask\n"
            "  hint: == and != compare values in Python: write eq(i, j), or ~eq(i, j)",
        ),
        (
            lambda: softmax(mask=causal & (i != j)),
            "error[A103]: True is no part of an expression\n"
            "  note: an expression is made of numbers, indices, functions and declared tensors\n"
            "  hint: == and != compare values in Python: write eq(i, j), or ~eq(i, j)",
        ),
        (
            lambda: softmax(score=s * Param("gain", shape=())[h]),
            "error[A101]: gain[h] does not fit the shape []\n  hint: write gain",
        ),
        (
            lambda: softmax(heads=(8, 3)),
            "error[A101]: 8 query heads of 'mine' are not a multiple of 3 kv heads",
        ),
        (
            lambda: Variant("Mine", feature_map="softmax", scale=1),
            "error[A101]: 'Mine' is no name for a variant\n"
            "  note: a name is a lowercase identifier: it becomes part of the emitted source\n"
            "  hint: use a to z, 0 to 9 and _, a letter first",
        ),
        (
            lambda: Input("g", shape="b,t,h")["h"],
            "error[A101]: g[h] does not fit the shape [b, t, h]\n  hint: write g[b, t, h]",
        ),
        (
            lambda: s + slope,
            "error[A103]: 'slope' has axes and no index\n"
            "  note: it is declared with shape [h]\n"
            "  hint: write slope[h]",
        ),
    ],
)
def test_a_variant_written_in_python_gets_exactly_this_text(declare, rendered):
    with pytest.raises(AttncError) as caught:
        declare()
    assert str(caught.value) == rendered


def test_a_missing_file_says_which(tmp_path):
    path = tmp_path / "gone.toml"
    with pytest.raises(AttncError) as caught:
        load(path)
    assert str(caught.value) == f"error[A102]: cannot read {path}: No such file or directory"


def test_a_declaration_that_passes_prints_as_what_it_says():
    variant = softmax(score=s - slope[h] * (i - j), mask=causal & window(37))
    assert dumps(variant) == (
        "[mine]\n"
        'feature_map = "softmax"\n'
        'scale = "rsqrt(d)"\n'
        'score = "s - slope[h] * (i - j)"\n'
        'mask = "causal & window(37)"\n'
        'params.slope = { shape = ["h"], grad = true }\n'
    )
