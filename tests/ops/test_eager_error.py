"""What verify takes for eager torch's error where a gradient has few numbers."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from attnc.ops.verification.eager_error import Drawn, draws_of, telling

# of a slope's one number: what came in, the reference's gradient, eager torch's error
DRAWS = [("first", 0.01, 0.5), ("second", 4.0, 0.1), ("third", 2.0, 0.9), ("fourth", 9.0, 7.0)]


def drawn_in_turn():
    turn = count()

    def draw() -> Drawn[str]:
        incoming, value, error = DRAWS[next(turn)]
        ref = {"slope": torch.tensor([value]), "q": torch.full((9,), value)}
        return Drawn(incoming, ref, {"slope": error, "q": error})

    return draw, turn


def test_the_largest_error_of_all_draws_counts_and_the_reference_that_stands_out_is_held():
    draw, turn = drawn_in_turn()
    found = telling(draw, lambda ref: {"slope": 3})
    assert next(turn) == 3
    assert found.incoming == "second"
    assert found.ref["slope"].item() == 4.0
    # q has many numbers: its error is the held draw's own
    assert found.eager == {"slope": 0.9, "q": 0.1}


def test_gradients_of_many_numbers_are_drawn_once():
    draw, turn = drawn_in_turn()
    assert telling(draw, lambda ref: {}).incoming == "first"
    assert next(turn) == 1


@pytest.mark.parametrize(("numbers", "draws"), [(1, 32), (5, 7), (8, 4), (4000, 4)])
def test_fewer_numbers_take_more_draws(numbers, draws):
    assert draws_of(numbers, least=4) == draws
