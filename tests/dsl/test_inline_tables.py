"""Where the keys of inline tables stand, whatever lines they are written on."""

from __future__ import annotations

import re

import pytest

from attnc.dsl import loads
from attnc.dsl.inline_tables import inline_tables
from attnc.errors import AttncError

ONE_LINE = 'terms = [{ a = "x", b = 2 }, { a = "y, { a = 1 }", c = [1, { d = 3 }] }] # { e = 1 }'
MANY_LINES = """
[v]
terms = [ # { a = 1 }
  { b = "a = 1", a = 'x' },
  # { a = 2 }
  { a = "y \\" }", "quoted" = { a = 1 }, b = 3 },
]
c = [{ a = 4 }]
"""


def texts(lines: list[str], places: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Each key or value with what stands at its place."""
    return {key: re.split(r"[\s,]", lines[n][column:])[0] for key, (n, column) in places.items()}


def test_every_key_and_value_of_one_line_is_found():
    lines = [ONE_LINE]
    first, second = inline_tables(lines, 0)
    assert texts(lines, first.keys) == {"a": "a", "b": "b"}
    assert texts(lines, first.values) == {"a": '"x"', "b": "2"}
    assert lines[0][second.column] == "{"
    assert set(second.keys) == {"a", "c"}
    assert lines[0][second.values["a"][1] :].startswith('"y, {')
    assert lines[0][second.values["c"][1] :].startswith("[1,")


def test_comments_texts_and_nested_tables_hide_no_key_and_make_none():
    lines = MANY_LINES.splitlines()
    first, second = inline_tables(lines, 2)
    assert (first.line, second.line) == (3, 5)
    assert texts(lines, first.keys) == {"b": "b", "a": "a"}
    assert lines[3][first.keys["a"][1] :].startswith("a = 'x'")
    assert set(second.keys) == {"a", "quoted", "b"}
    assert lines[5][second.values["b"][1] :].startswith("3")


@pytest.mark.parametrize("text", ["terms = [", "terms = 3", "terms = [3, 4]", "terms = ]", ""])
def test_what_is_no_array_of_tables_has_none(text):
    assert inline_tables([text], 0) == []


@pytest.mark.parametrize(
    ("fields", "caret"),
    [
        ('feature_map = "elu(y) + 1", scale = 1.0', "y"),
        ('feature_map = "softmax", scale = 1.0, facter = 2', "facter"),
        ('feature_map = "softmax", scale = "two"', "two"),
        ('feature_map = "softmax"', "{"),
        ('feature_map = "softmax", scale = 1.0, chunk = 64', "chunk"),
        ('mask = "causal", scale = 1.0, feature_map = "taylor(x)"', "taylor(x)"),
        ('feature_map = "softmax", scale = 1.0, score = "s\\t+ cos"', "score"),
    ],
)
def test_a_mistake_in_a_term_is_pointed_at_where_it_stands(fields, caret):
    good = '{ feature_map = "taylor(2)", scale = 1.0, mask = "i - j >= 9" }'
    text = f"[v]\nterms = [\n  {good},\n  {{ {fields} }},\n]\n"
    with pytest.raises(AttncError) as caught:
        loads(text, file="my.toml")
    where = caught.value.where
    assert (where.file, where.line) == ("my.toml", 4)
    assert where.text[where.column - 1 :][: where.length] == caret


def test_a_term_on_a_hostile_line_is_read_at_once_and_its_mistake_still_placed():
    text = (
        '[v]\nterms = [\n{ feature_map = "softmax", scale = 1.0, facter = "'
        + '\\"' * 60_000
        + '" },\n]\n'
    )
    with pytest.raises(AttncError, match="unknown key 'facter'") as caught:
        loads(text, file="my.toml")
    assert (caught.value.where.file, caught.value.where.line) == ("my.toml", 2)
