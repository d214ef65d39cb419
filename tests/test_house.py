"""What no other tool checks: the price of an import, and that the docs tell the truth."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import attnc
from tests.conftest import PROFILE
from tests.mutate import MUTATIONS

ROOT = Path(__file__).parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HEAVY = {"torch", "triton", "sympy", "networkx", "jinja2", "rich", "click", "numpy"}


def run_python(*arguments: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints; its failure is the test's failure."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def heavy_modules_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds once it ran the code."""
    probe = f"{code}\nimport json, sys\nsys.stdout.write(json.dumps(sorted(sys.modules)))"
    return HEAVY & set(json.loads(run_python("-c", probe)))


@pytest.mark.skipif(PROFILE != "quick", reason="the thorough profile draws anew")
def test_a_test_draws_the_same_numbers_whenever_it_runs():
    assert (secrets.randbits(16), secrets.randbits(16)) == (44384, 2520)


def test_importing_attnc_imports_nothing_heavy():
    assert heavy_modules_after("import attnc; attnc.__version__; dir(attnc)") == set()


@pytest.mark.parametrize("module", ["attnc.errors", "attnc.dsl"])
def test_a_declaration_needs_only_the_standard_library(module):
    assert heavy_modules_after(f"import {module}") == set()


def test_declaring_a_variant_through_the_top_level_names_imports_nothing_heavy():
    code = """
from attnc import Param, Variant, causal, h, i, j, s, softcap, window
slope = Param("slope", shape="h", grad=True)
Variant("mine", feature_map="softmax", scale="rsqrt(d)",
        score=softcap(s, 7) - slope[h] * (i - j), mask=causal & window(37))
"""
    assert heavy_modules_after(code) == set()


def test_every_stage_of_codegen_imports_neither_torch_nor_triton():
    modules = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "attnc" / "codegen").rglob("*.py")
        if path.name != "__init__.py"
    )
    assert modules
    code = "\n".join(f"import {module}" for module in modules)
    assert heavy_modules_after(code).isdisjoint({"torch", "triton"})


def test_every_public_name_resolves_and_is_listed():
    missing = [name for name in attnc.__all__ if not hasattr(attnc, name)]
    assert missing == []
    assert set(attnc.__all__) <= set(dir(attnc))


def test_a_name_that_attnc_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'flash_atention'"):
        attnc.flash_atention  # noqa: B018
    with pytest.raises(ImportError):
        from attnc import flash_atention  # noqa: F401


def test_the_changelog_names_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {attnc.__version__}" in text or "## Unreleased" in text


def test_the_constraints_are_within_the_declared_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(
        re.fullmatch(r"(\w+)>=([\d.]+)(?:; .*)?", requirement).groups()
        for requirement in project["dependencies"]
    )
    oldest = pins(ROOT / "constraints-oldest.txt")
    assert as_numbers(oldest["triton"])[:2] == as_numbers(floors["triton"])
    for path in (ROOT / "constraints.txt", ROOT / "constraints-oldest.txt"):
        for name, version in pins(path).items():
            assert as_numbers(version) >= as_numbers(floors[name]), (path.name, name)


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)==([\d.]+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_of_the_docs_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert missing == []


def fenced(language: str, *, apart: str = "\n") -> list[Any]:
    """Every fenced block of a language in the docs, as test parameters named by page and line.

    Pages whose path starts with `apart` are left out.
    """
    blocks = []
    for page in (p for p in DOCS if not p.relative_to(ROOT).as_posix().startswith(apart)):
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, block.start()) + 1
            name = f"{page.relative_to(ROOT).as_posix()}:{line}"
            blocks.append(pytest.param(block[1], id=name))
    return blocks


@pytest.mark.parametrize("text", fenced("toml"))
def test_every_declaration_in_the_docs_is_a_legal_variant(text, tmp_path):
    path = tmp_path / "variants.toml"
    path.write_text(text, encoding="utf-8")
    assert set(attnc.load(path)) == set(tomllib.loads(text))


def test_the_first_example_of_the_readme_runs_from_a_plain_script(tmp_path):
    """As users start: a file without a main of its own, which a worker must not run again."""
    script = tmp_path / "example.py"
    script.write_text(fenced("python", apart="docs/")[0].values[0], encoding="utf-8")
    run_python(script.name, cwd=tmp_path)


# the gallery's calls run in tests/cli/test_gallery.py
def test_every_other_python_example_in_the_docs_runs(tmp_path):
    """One process runs them all, each in a namespace of its own: PyTorch is imported once."""
    scripts = []
    for block in fenced("python", apart="docs/gallery/")[1:]:
        script = tmp_path / re.sub(r"\W+", "_", block.id)
        script.write_text(block.values[0], encoding="utf-8")
        scripts.append(script.name)
    assert len(scripts) > 5
    run_all = f"import runpy\nfor script in {scripts}: runpy.run_path(script, run_name='__main__')"
    run_python("-c", run_all, cwd=tmp_path)


def test_the_two_parts_of_the_suite_are_the_whole_of_it_and_share_nothing(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_quick(): pass\n"
        "@pytest.mark.rest\n"
        "def test_slow(): pass\n"
        "@pytest.mark.rest(keep=3)\n"
        "@pytest.mark.parametrize('n', range(7))\n"
        "def test_many(n): pass\n"
    )

    def collected(*options: str) -> set[str]:
        shown = run_python("-m", "pytest", "--collect-only", "-q", *options, cwd=tmp_path)
        return set(re.findall(r"::(\S+)", shown))

    first, rest = collected("--part", "first"), collected("--part", "rest")
    assert first == {"test_quick", "test_many[0]", "test_many[3]", "test_many[6]"}
    assert not first & rest
    assert first | rest == collected()
    assert len(first | rest) == 9


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_what_a_mutation_breaks_stands_once_in_its_file(mutation):
    """Or `make mutate`, which takes half an hour, would break nothing and say so late."""
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1


def test_a_file_of_ours_stays_short_enough_to_read_in_one_go():
    files = [path for end in ("py", "jinja", "c") for path in (ROOT / "attnc").rglob(f"*.{end}")]
    written = (path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    files += [path for path in written if path.parent.name != "golden"]
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(files) > 450
    assert not [f"{name}: {lines} lines" for name, lines in long.items() if lines > 300]
