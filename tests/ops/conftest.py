"""What the tests of ops share: the shipped attentions, compiled once a file."""

from __future__ import annotations

import pytest

from attnc.ops.op import Op
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import attentions


@pytest.fixture(scope="module")
def ops() -> dict[str, Op]:
    return {name: compile_op(variant) for name, variant in attentions().items()}
