"""One renderer draws every error, and an error keeps its fields on the way through a process."""

from __future__ import annotations

import pickle

import pytest

from attnc import errors
from attnc.errors import AttncError, DeclarationError, FieldError, Where

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, AttncError)
]


def test_an_error_in_a_file_shows_place_line_caret_notes_and_hints():
    error = FieldError(
        "what is wrong, with 2 numbers of 3",
        where=Where("scale = 0.0", 9, 3, "my.toml", 104),
        notes=("why", "why else"),
        hints=("what to do",),
    )
    assert error.render() == str(error)
    assert str(error) == (
        "error[A101]: what is wrong, with 2 numbers of 3\n"
        "    --> my.toml:104:9\n"
        "     |\n"
        " 104 | scale = 0.0\n"
        "     |         ^^^\n"
        "  note: why\n"
        "  note: why else\n"
        "  hint: what to do"
    )


def test_an_error_in_python_shows_whose_expression_it_is():
    error = FieldError("no", where=Where("s + z", 5, 1, label="score of 'mine'"))
    assert str(error) == (
        "error[A101]: no\n"
        " --> score of 'mine'\n"
        "  |\n"
        "  | s + z\n"
        "  |     ^"
    )  # fmt: skip


def test_a_caret_is_never_empty():
    assert Where("", 1, 0, "my.toml", 1).render()[-1] == "   | ^"


def test_an_error_without_a_place_is_one_line():
    assert str(AttncError("what")) == "error[A000]: what"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_survives_pickling_whole(kind):
    error = kind("what", where=Where("text", 1, 4, "f", 1), notes=("why",), hints=("do",))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.where, copy.notes, copy.hints) == (
        error.message, error.where, error.notes, error.hints,
    )  # fmt: skip
    assert str(copy) == str(error)


def test_every_kind_has_a_code_of_its_own():
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_refused_declarations_are_one_family():
    family = {kind.__name__ for kind in KINDS if issubclass(kind, DeclarationError)}
    assert family == {
        "DeclarationError", "FieldError", "TomlError", "SyntaxRefused", "UnknownName",
        "LimitExceeded", "NoFamily", "MaskNotAffine", "DecayRefused",
    }  # fmt: skip
