"""What every test file shares: GPU tests skip in the open, goldens compare byte for byte."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from random import Random
from zlib import crc32

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"

# A drawn variant compiles or interprets kernels, so the time limit is pytest-timeout's alone.
# The quick profile draws the same examples and inputs everywhere: a commit that passed passes
# again. The thorough one draws anew at each run, and is how what nobody thought of is found.
settings.register_profile(
    "quick", deadline=None, max_examples=20, print_blob=True, derandomize=True, database=None
)
settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden from what is emitted now, instead of comparing",
    )
    parser.addoption(
        "--part",
        choices=("first", "rest"),
        help="all but what is marked `rest`, or that alone; everything without this option",
    )


def pytest_report_header() -> str:
    versions = (f"{name} {metadata.version(name)}" for name in ("torch", "triton", "numpy"))
    return "attnc on " + ", ".join(versions)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the part asked for, and skip GPU tests where there is no GPU.

    Without GPU tests torch is not imported.
    """
    part = config.getoption("--part")
    if part:
        left_out = [item for item, rest in _of_the_rest(items) if rest == (part == "first")]
        gone = set(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in gone]
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    reason = _why_no_gpu()
    if reason:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))


def _of_the_rest(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, bool]]:
    """Each test, and whether it is of the rest: all of its cases, or all but one in `keep`."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("rest")
        if mark is None:
            yield item, False
            continue
        test = item.nodeid.partition("[")[0]
        keep = mark.kwargs.get("keep", 0)
        yield item, keep == 0 or seen[test] % keep > 0
        seen[test] += 1


def _why_no_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    return f"needs an NVIDIA GPU, and torch {torch.__version__} ({built}) sees none"


@pytest.fixture(autouse=True)
def seeds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed what tests and `verify` draw: by the test's own name in the quick profile, else anew."""
    if PROFILE == "quick":
        by_name = Random(crc32(request.node.nodeid.encode()))
        monkeypatch.setattr(secrets, "randbits", by_name.getrandbits)
    # drawn whether or not torch is there, or the next draws would depend on it
    seed = secrets.randbits(32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file tests/golden/NAME, or write that file under --update-golden."""
    update: bool = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
            return
        assert path.exists(), f"tests/golden/{name} does not exist: `make golden` writes it"
        kept = path.read_bytes().decode("utf-8")
        assert text == kept, f"tests/golden/{name} differs: `make golden`, then read the diff"

    return check


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the suite runs in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
