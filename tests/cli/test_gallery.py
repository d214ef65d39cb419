"""`attnc gallery`: pages made from declarations, kept in docs/gallery as they are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from attnc.cli.gallery import index_text, page_text
from attnc.cli.gallery_page import LENGTHS, Page
from attnc.dsl import loads
from attnc.ops.shipped import shipped

DOCS = Path(__file__).parent.parent.parent / "docs" / "gallery"
STALE = "docs/gallery/{} is not what its declaration makes: `make golden`, then read the diff"
MINE = """
[mine]
feature_map = "1 - s + s**2/3"
scale = 0.5
mask = "causal & window(9)"
normalize = "none"

[other]
feature_map = "softmax"
scale = "rsqrt(d)"
score = "sqrt(s**2 + 1) - u[b,i] * where(i < j, 1, 2)"
mask = "~(j <= i)"
inputs.u = { shape = ["b", "t"] }
"""


@pytest.mark.parametrize("name", shipped())
def test_a_page_of_the_docs_is_what_its_declaration_makes(name):
    kept = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page_text(shipped()[name]) == kept, STALE.format(f"{name}.md")


def test_the_index_lists_every_page_and_no_other():
    kept = (DOCS / "index.md").read_text(encoding="utf-8")
    assert index_text(tuple(shipped().values())) == kept, STALE.format("index.md")
    assert {path.stem for path in DOCS.glob("*.md")} == {*shipped(), "index"}
    assert len(shipped()) >= 18


@pytest.mark.parametrize("name", shipped())
def test_the_call_that_a_page_shows_runs_and_is_its_reference(name):
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    exec(code, found)
    assert found["expected"].abs().max() > 0.01


def test_files_of_ones_own_get_pages_too(attnc, declare, tmp_path):
    done = attnc("gallery", declare(MINE), "-o", tmp_path / "pages")
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == ["2", "pages", "and", "index.md", "in", str(tmp_path / "pages")]
    page, other, index = (
        (tmp_path / "pages" / f"{name}.md").read_text(encoding="utf-8")
        for name in ("mine", "other", "index")
    )
    assert "# mine\n\n```toml\n[mine]\n" in page
    assert r"w_{ij} &= 1 - s_{ij} + \tfrac{1}{3}s_{ij}^{2} \\" in page
    assert r"s_{ij} &= 0.5\; q_i \cdot k_j \\" in page
    assert r"\mathcal{M}_i &= \{\, j : j \le i\;\wedge\;i - j \le 9 \,\}" in page
    assert "| chunked | no | the mask is not exactly causal" in page
    assert "| decode | no | the mask is not exactly causal" in page
    assert "token by token" not in page
    assert r"\sqrt{s_{ij}^{2} + 1} - u_{b,i}\,\operatorname{where}(i < j, 1, 2)" in other
    assert r"j : \neg\left(j \le i\right) \,\}" in other
    assert "| [`mine`](mine.md) |  | state |  |" in index


def test_a_convolution_has_no_page_and_says_so(attnc, declare, tmp_path):
    text = '[c]\nweight = "w[c, i-j]"\nmask = "causal"\nparams.w = { shape = ["c", "T"] }\n'
    done = attnc("gallery", declare(text), "-o", tmp_path)
    assert (done.status, done.err) == (
        64, "error[A500]: 'c' is a convolution, and pages are of attention alone\n"
    )  # fmt: skip


def test_costs_grow_with_the_square_of_the_length_where_rows_see_all_and_else_linearly():
    def growth(name: str, phase: int) -> float:
        costs = [phases[phase][0] for _, phases in Page(shipped()[name]).costs()]
        return costs[-1] / costs[-2]

    assert LENGTHS[-1] == 4 * LENGTHS[-2]
    for phase in (0, 1):
        assert growth("flash", phase) == pytest.approx(16, rel=0.05)
        assert growth("based", phase) == pytest.approx(4, rel=0.05)
        assert growth("sinks", phase) == pytest.approx(4, rel=0.05)


def test_an_expression_in_latex_keeps_its_brackets():
    text = (
        '[v]\nfeature_map = "softmax"\nscale = 1.0\nscore = "s*(i - j)**2/(h + 1) - (s - (i - j))"'
    )
    page = Page(loads(text)["v"])
    assert r"\exp\left(\frac{s_{ij}\,\left(i - j\right)^{2}}{h + 1}" in page.formula
    assert r" - \left(s_{ij} - \left(i - j\right)\right)\right)" in page.formula
