"""TOML files: shipped ones, every way to write a table, and the way back."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given

from attnc.dsl import Declared, Dim, Heads, Paper, dumps, load, loads
from attnc.dsl.toml_file import MAX_BYTES
from attnc.errors import TomlError
from tests.strategies import declarations

VARIANTS = Path(__file__).parent.parent.parent / "attnc" / "ops" / "variants"


@pytest.mark.parametrize("path", sorted(VARIANTS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_file_holds_one_variant_of_its_name_and_warns_of_nothing(path):
    (variant,) = load(path).values()
    assert variant.name == path.stem
    assert variant.warnings() == ()
    assert variant.about.endswith(".")
    assert variant.paper.title and variant.paper.by
    assert variant.paper.url == f"https://arxiv.org/abs/{variant.paper.arxiv}"


@pytest.mark.parametrize("path", sorted(VARIANTS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_variant_written_back_loads_equal(path):
    (variant,) = load(path).values()
    assert loads(dumps(variant)) == {variant.name: variant}
    again = loads(dumps(variant))[variant.name]
    assert (again.about, again.paper) == (variant.about, variant.paper)


def test_a_paper_is_no_part_of_what_a_variant_means():
    body = '[v]\nfeature_map = "softmax"\nscale = 1.0\n'
    paper = 'paper = { title = "T \\"q\\" é", arxiv = "3001.12345" }\n'
    plain, told = (loads(text)["v"] for text in (body, f"{body}about = 'A \\ line.'\n{paper}"))
    assert plain == told and hash(plain) == hash(told)
    assert (plain.about, plain.paper) == ("", None)
    assert told.paper == Paper('T "q" é', "3001.12345")
    assert str(told.paper) == 'T "q" é (arXiv 3001.12345)'
    again = pickle.loads(pickle.dumps(loads(dumps(told))["v"]))
    assert (again.about, again.paper) == ("A \\ line.", told.paper)


@given(declarations())
def test_any_variant_written_back_loads_equal(text):
    variant = loads(text)["drawn"]
    assert loads(dumps(variant)) == {"drawn": variant}


def test_a_table_is_equal_dotted_inline_or_with_its_own_header():
    dotted = 'params.slope = { shape = ["h"], grad = true }'
    deeper = 'params.slope.shape = ["h"]\nparams.slope.grad = true'
    header = '[v.params.slope]\nshape = ["h"]\ngrad = true'
    inline = 'params = { slope = { shape = ["h"], grad = true } }'
    body = '[v]\nfeature_map = "softmax"\nscale = 1.0\nscore = "s*slope[h]"\n'
    found = [loads(body + way)["v"] for way in (dotted, deeper, header, inline)]
    assert all(variant == found[0] for variant in found)
    assert found[0].params == (Declared("slope", ("h",), True, "param"),)


def test_the_facts_to_plan_with_are_read():
    body = '[v]\nfeature_map = "softmax"\nscale = 1.0\n'
    variant = loads(f"{body}dim = {{ qk = 192, v = 128 }}\nheads = {{ q = 8, kv = 2 }}")["v"]
    assert variant.dim == Dim(192, 128)
    assert variant.heads == Heads(8, 2)


def test_variants_keep_the_order_of_the_file():
    body = 'feature_map = "softmax"\nscale = 1.0\n'
    assert list(loads("".join(f"[{name}]\n{body}" for name in "zab"))) == ["z", "a", "b"]


def test_a_file_is_read_from_its_path(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[v]\nfeature_map = "softmax"\nscale = 1.0\n')
    assert list(load(path)) == list(load(str(path))) == ["v"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TomlError, match=r"my\.toml is no UTF-8 text"):
        load(path)
    path.write_text("#" * MAX_BYTES + "\n")
    with pytest.raises(TomlError, match=f"is over {MAX_BYTES:,} bytes"):
        load(path)
    with pytest.raises(TomlError, match=r"cannot read .*gone\.toml: No such file"):
        load(tmp_path / "gone.toml")
