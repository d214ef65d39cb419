"""`attnc gallery`: pages made from declarations, kept in docs/gallery as they are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from attnc.cli.gallery import index_text, page_of, page_text
from attnc.cli.gallery_page import LENGTHS
from attnc.dsl import loads
from attnc.ops.shipped import convolutions, shipped

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

FILTERS = """
[ahead]
weight = "w[c, i-j]"
mask = "(i - j >= 2) & (i - j < 40)"
postgate = "out[b,t,c]"
params.w = { shape = ["c", "T"] }
inputs.out = { shape = ["b", "t", "c"] }

[centred]
weight = "w[c, i-j]"
transforms = ["smooth(3)", "dropout(0.5)"]
params.w = { shape = ["c", "T"] }
"""


@pytest.mark.rest(keep=3)
@pytest.mark.parametrize("name", shipped())
def test_a_page_of_the_docs_is_what_its_declaration_makes(name):
    kept = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page_text(shipped()[name]) == kept, STALE.format(f"{name}.md")


def test_the_index_lists_every_page_and_no_other():
    kept = (DOCS / "index.md").read_text(encoding="utf-8")
    assert index_text(tuple(shipped().values())) == kept, STALE.format("index.md")
    assert {path.stem for path in DOCS.glob("*.md")} == {*shipped(), "index"}
    assert len(shipped()) >= 22


@pytest.mark.rest(keep=3)
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


def test_a_convolution_of_ones_own_has_a_page_of_the_same_parts(attnc, declare, tmp_path):
    done = attnc("gallery", declare(FILTERS), "-o", tmp_path)
    assert (done.status, done.err) == (0, "")
    ahead, centred, index = (
        (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        for name in ("ahead", "centred", "index")
    )
    parts = re.findall("^## .*", (DOCS / "flash.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall("^## .*", ahead, re.MULTILINE) == parts
    assert r"\mathcal{M}_i &= \{\, j : i - j \ge 2\;\wedge\;i - j < 40 \,\}" in ahead
    assert r"o_{i,c} &= \text{out}_{i,c}\, \sum_{j \in \mathcal{M}_i} w_{c,i-j}\, v_{j,c}" in ahead
    assert "| decode | yes | a ring of 40 inputs a channel |" in ahead
    assert "B=2 T=8,192 C=1,024, 38 taps a channel: the toeplitz form" in ahead
    assert r"\mathcal{M}_i &= \text{all tokens} \\" in centred
    assert (
        r"\hat{w}_c &= \operatorname{dropout}_{0.5}(\operatorname{smooth}_{3}(w_c)) \\" in centred
    )
    assert "| decode | no | its filter weighs tokens that come later |" in centred
    # the middle one of an odd number of taps is the token's own
    assert "w = torch.randn(8, 101) / 10" in centred
    assert "| [`ahead`](ahead.md) |  | conv |  |" in index


@pytest.mark.parametrize("text, name", [(MINE, "mine"), (FILTERS, "centred")])
def test_a_page_of_ones_own_calls_it_by_its_file(text, name, attnc, declare, tmp_path):
    attnc("gallery", f"{declare(text)}:{name}", "-o", tmp_path / "pages")
    page = (tmp_path / "pages" / f"{name}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert f"attnc plan mine.toml:{name}" in page
    (command,) = re.findall(r"<code>attnc (emit .*)</code>", page)
    assert attnc(*command.split()).status == 0


@pytest.mark.parametrize("name", convolutions())
def test_the_command_under_a_convolutions_source_prints_that_source(name, attnc):
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"<code>attnc (emit .*)</code> prints them", text)
    (source,) = re.findall(r"^```py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert attnc(*command.split()).out == source


def test_what_a_transform_costs_grows_as_it_and_what_four_taps_cost_with_the_tokens():
    def flops(name: str) -> list[float]:
        return [phases[0][0] for _, phases in page_of(shipped()[name]).costs()]

    short, long = flops("short_conv"), flops("hyena")
    assert short[-1] / short[-2] == pytest.approx(4, rel=0.01)
    # 64 times the tokens: more than in proportion, far from the square
    assert 64 < long[-1] / long[0] < 512
    assert [cells[1] for cells, _ in page_of(shipped()["hyena"]).costs()][-1] == "three_pass"
    # a learned transform ends at a block
    assert [cells[0] for cells, _ in page_of(shipped()["butterfly_conv"]).costs()][-1] == "4,096"


def test_costs_grow_with_the_square_of_the_length_where_rows_see_all_and_else_linearly():
    def growth(name: str, phase: int) -> float:
        costs = [phases[phase][0] for _, phases in page_of(shipped()[name]).costs()]
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
    page = page_of(loads(text)["v"])
    assert r"\exp\left(\frac{s_{ij}\,\left(i - j\right)^{2}}{h + 1}" in page.formula
    assert r" - \left(s_{ij} - \left(i - j\right)\right)\right)" in page.formula
