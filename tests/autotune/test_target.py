"""Compile targets as text."""

from __future__ import annotations

import pytest

from attnc.autotune.target import KNOWN_TARGETS, Target
from attnc.errors import UsageError


def test_a_target_is_written_as_it_is_read():
    for text in KNOWN_TARGETS:
        assert str(Target.parse(text)) == text
    sizes = {str(t): t.warp_size for t in map(Target.parse, ("cuda:90", "hip:gfx942"))}
    assert sizes == {"cuda:90": 32, "hip:gfx942": 64}
    assert Target.parse("hip:gfx1100").warp_size == 32


def test_an_unknown_target_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        Target.parse("cuda:91")
    assert str(caught.value) == (
        "error[A500]: unknown target 'cuda:91'\n"
        "  note: the known ones are cuda:80, cuda:86, cuda:87, cuda:89, cuda:90, cuda:100, "
        "cuda:103, cuda:120, cuda:121, hip:gfx90a, hip:gfx942, hip:gfx950, hip:gfx1100, "
        "hip:gfx1201\n"
        "  hint: did you mean 'cuda:90'?"
    )
    with pytest.raises(UsageError, match="unknown target ''"):
        Target.parse("")
