"""The loops of a mask, run as plain Python: every visible pair once, nothing twice, no gaps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.codegen.tile_range import KeyRange, key_range, row_range
from attnc.dsl import loads
from attnc.dsl.mask import MaskForm
from tests.strategies import data_masks


class _Number(int):
    """What a load gives."""

    def to(self, _kind: object) -> _Number:
        return self


class _Loader(int):
    """The address of a declared number: what is added to it leads to the same."""

    def __add__(self, _place: object) -> _Loader:
        return self


class _Integers:
    """What the bounds call of triton.language, on integers."""

    minimum = staticmethod(lambda *values: _Number(min(values)))
    maximum = staticmethod(lambda *values: _Number(max(values)))
    load = _Number
    float32 = int32 = None

    @staticmethod
    def cdiv(a: int, b: int) -> int:
        # Triton divides towards zero: a negative numerator would show here
        assert a >= 0
        return -(-a // b)

    @staticmethod
    def where(condition: bool, yes: int, no: int) -> int:
        return yes if condition else no


def visits(found: KeyRange, sizes: dict[str, int], tile: str) -> list[tuple[int, bool]]:
    """The first element of every tile that the loops visit, in order, and whether it is masked."""
    names: dict[str, object] = {"tl": _Integers, **sizes}
    exec("\n".join(found.lines), names)
    tiles: list[tuple[int, bool]] = []

    def walk() -> None:
        for loop in found.loops:
            exec(f"found = range({loop.start}, {loop.stop}, {tile})", names)
            tiles.extend((at, loop.masked) for at in names["found"])

    if found.runs is None:
        walk()
        return tiles
    exec("\n".join(("done = 0", *found.runs.start)), names)
    while names["done"] < names["reach"]:
        before = names["done"]
        exec("\n".join(found.runs.lines), names)
        assert names["done"] > before, "a run that goes nowhere would never end"
        walk()
    return tiles


def form_of(mask: str) -> MaskForm:
    text = f'[m]\nfeature_map = "softmax"\nscale = 1.0\nmask = "{mask}"\n'
    if "[b]" in mask:
        text += 'inputs.n = { shape = ["b"] }\n'
    return loads(text)["m"].mask_form


def check_walk(
    form: MaskForm, tq: int, tk: int, n: int, *, rows: bool, tile: tuple[int, int] = (8, 4)
) -> list[list[bool]]:
    """Every program of one pass: whether each tile that it visits is masked."""
    held, streamed = tile
    tiles = {"BT": streamed, "BS": held} if rows else {"BT": held, "BS": streamed}
    found = (row_range if rows else key_range)(form)
    walks = []
    for start in range(0, tk if rows else tq, held):
        first = start if rows else start + tk - tq
        sizes = {"TQ": tq, "TK": tk, "first": first, "last": min(first + held, tk) - 1, **tiles}
        sizes |= {"u_n": _Loader(n), "i_b": 0, "stride_u_n_b": 0}
        visited = visits(found, sizes, "BT" if rows else "BS")
        walks.append([masked for _, masked in visited])
        starts = [at for at, _ in visited]
        assert starts == sorted(set(starts)), "a tile is visited twice, or out of order"
        whole = tq if rows else tk
        assert all(at % streamed == 0 and 0 <= at < whole for at in starts)
        masked = dict(visited)
        for mine in range(start, min(start + held, tk if rows else tq)):
            for other in range(whole):
                row, column = (other, mine) if rows else (mine, other)
                seen = form.visible(row + tk - tq, column, {"n": n})
                at = other // streamed * streamed
                assert not seen or at in masked, "a visible pair is not visited"
                assert seen or masked.get(at, True), "a hidden pair is visited without a mask"
        for at, is_masked in visited:
            assert is_masked or at + streamed <= whole, "a ragged tile has no guard"
    return walks


@settings(max_examples=300, deadline=None)
@given(
    mask=data_masks(),
    tq=st.integers(1, 60),
    tk=st.integers(1, 60),
    n=st.integers(0, 64),
    rows=st.booleans(),
    tile=st.tuples(st.sampled_from([4, 8, 16]), st.sampled_from([4, 8, 16])),
)
def test_the_loops_visit_every_visible_pair_once_and_full_tiles_hide_none(
    mask, tq, tk, n, rows, tile
):
    check_walk(form_of(mask), tq, tk, n, rows=rows, tile=tile)


@pytest.mark.parametrize(
    ("mask", "most", "full"),
    [("full", 16, 16), ("causal", 16, 15), ("causal & window(15)", 2, 0), ("prefix(64)", 4, 4)],
)
def test_the_loops_visit_few_tiles_more_than_they_must(mask, most, full):
    """A bound that is right and loose would show in no test of values."""
    walks = check_walk(form_of(mask), 256, 256, 0, rows=False, tile=(16, 16))
    assert max(len(walk) for walk in walks) == most
    assert max(walk.count(False) for walk in walks) == full


def test_an_empty_mask_visits_nothing():
    assert check_walk(form_of("~full"), 32, 32, 0, rows=False) == [[]] * 4


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    "mask", ["causal & (window(5) | prefix(4))", "~window(60, 60) & window(63, 63)"]
)
def test_what_lies_between_the_clauses_of_a_mask_costs_nothing(mask, rows):
    """A band beside the first keys, and two bands: a few tiles, however far they are apart."""
    counts = [len(walk) for walk in check_walk(form_of(mask), 400, 400, 0, rows=rows)]
    usual = sorted(counts)[len(counts) // 2]
    assert usual <= 8
    if rows:
        # the first keys are seen by every row
        assert (max(counts) >= 98) is ("prefix" in mask)
    else:
        assert max(counts) <= 8


def test_a_prefix_from_an_input_bounds_the_loops():
    def counts(mask: str, n: int) -> list[int]:
        return [len(walk) for walk in check_walk(form_of(mask), 400, 400, n, rows=False)]

    assert counts("causal | prefix(n[b])", 8) == counts("causal", 0)
    assert counts("causal | prefix(n[b])", 400) == [100] * 50
