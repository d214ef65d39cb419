"""What is emitted parses, lints, stands alone, and is the same bytes each time."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.resources import files
from itertools import product
from pathlib import Path

import jinja2
import pytest

from attnc.codegen.text.long_line import broken
from attnc.codegen.text.render import render
from attnc.codegen.text.template import environment
from attnc.dsl.toml_file import dumps, loads
from attnc.ops.op import compile as compile_op
from attnc.ops.shipped import convolutions, shipped
from tests.codegen.emitted import DIMS, all_variants, plan_of, requests

ROOT = Path(__file__).parent.parent.parent
PRINT_DIGEST = """
import hashlib
from attnc.codegen.text.long_line import broken
from attnc.codegen.text.render import render
from tests.codegen import emitted
total = hashlib.sha256()
# every thirteenth: planning all of them twice takes minutes on a slow machine
for label in [*emitted.requests()][::13]:
    total.update(label.encode() + render(emitted.plan_of(label)).encode())
print(total.hexdigest())
"""


THIRDS = [pytest.param(third, marks=pytest.mark.rest(keep=3)) for third in range(3)]


@pytest.fixture(scope="module", params=THIRDS, ids="{}_of_3".format)
def texts(request) -> dict[str, str]:
    """What every third plan is emitted as, from one of the first three on."""
    return {label: render(plan_of(label)) for label in [*requests()][request.param :: 3]}


def test_every_text_parses_and_imports_torch_and_triton_alone(texts):
    for label, text in texts.items():
        imported = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
        assert imported == {"torch", "triton"}, label


def test_the_linter_and_the_formatter_leave_every_text_alone(texts, tmp_path):
    for label, text in texts.items():
        (tmp_path / f"{label}.py").write_text(text, encoding="utf-8")
    # F holds unused names, PLR0133 and SIM dead conditions
    lint = "check --isolated --no-cache --line-length 100 --select E,W,F,I,PLR0133,SIM,RET"
    for command in (
        lint + " --ignore E501",
        "format --isolated --no-cache --line-length 100 --check --diff",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command.split(), "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_line_is_over_a_hundred_columns(texts):
    long = {(len(line), line) for text in texts.values() for line in text.splitlines()}
    assert sorted((size, line) for size, line in long if size > 100) == []


def test_every_function_uses_every_name_it_makes_and_every_helper_is_called(texts):
    for label, text in texts.items():
        module = ast.parse(text)
        read = {n.id for n in ast.walk(module) if isinstance(n, ast.Name)}
        functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            known = function.name in {"forward", "backward"}
            assert known or function.name in read, f"{label} {function.name}"
            nodes = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
            loaded = {n.id for n in nodes if isinstance(n.ctx, ast.Load)}
            stored = {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
            unused = {name for name in stored - loaded if name != "_"}
            assert not unused, f"{label} {function.name}: {sorted(unused)}"


def test_entries_and_heads_are_on_the_first_axis_of_a_grid_since_the_others_end_at_65535(texts):
    for label, text in texts.items():
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        grids = [call.slice for call in calls if isinstance(call, ast.Subscript)]
        assert grids, label
        for grid in grids:
            others = " ".join(map(ast.unparse, grid.elts[1:]))
            assert not re.search(r"\b(B|T|TQ|TK|NC|NT)\b", others), f"{label}: {ast.unparse(grid)}"


def test_the_bytes_are_the_same_under_another_hash_seed():
    digests = set()
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@pytest.mark.parametrize("name", all_variants())
def test_a_name_changes_nothing_but_the_name(name):
    dims = DIMS.get(name, ((64, 64),))[0]
    texts = []
    # of one length, so that the wrapped lines of the header break at the same place
    for other in ("zebra", "heron"):
        # of a sum, each term's header has the name too
        declared = re.sub(rf"\[{name}(?=[\].])", f"[{other}", dumps(all_variants()[name]))
        variant = loads(declared)[other]
        for form in compile_op(variant).forms():
            text = compile_op(variant).source(dim=dims, form=form)
            assert name not in text.replace("linear weight", "")
            assert other in text
            texts.append(text.replace(other, name))
    half = len(texts) // 2
    assert texts[:half] == texts[half:]


@pytest.mark.parametrize("name", convolutions())
def test_a_convolutions_name_changes_nothing_but_the_name(name):
    declared = dumps(convolutions()[name])
    texts = []
    for other in ("zebra", "heron"):
        op = compile_op(loads(declared.replace(f"[{name}]", f"[{other}]"))[other])
        for form, backward in product(op.forms(), (False, True)):
            text = op.source(form=form, backward=backward)
            assert name not in text and other in text
            texts.append(text.replace(other, name))
    half = len(texts) // 2
    assert texts[:half] == texts[half:]


def test_no_template_knows_a_variant():
    for entry in (files("attnc") / "templates").iterdir():
        text = entry.read_text(encoding="utf-8").lower()
        for name in (*shipped(), "flash", "alibi", "softcap", "taylor", "elu"):
            assert name not in text, f"{entry.name} names {name}"


@pytest.mark.parametrize("template", ["module", "attend", "state", "scan", "output", "gates"])
def test_a_template_variable_that_is_missing_raises(template):
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        environment().get_template(f"{template}.jinja").render()


def test_a_loop_without_a_mask_has_no_mask_code():
    """A full tile that still compares positions would be right, and slow."""
    op = compile_op(shipped()["flash_window"], backend="triton")
    text = op.source(dim=(64, 64))
    parts = text.split("# full tiles: every row sees every key, no mask\n")
    assert len(parts) == 2
    full, masked = parts[1].split("# keys right of the full tiles: the mask decides\n")
    assert not {"o_s", "m_s", "b_i"} & set(re.findall(r"\w+", full))
    assert {"o_s", "m_s", "b_i"} <= set(re.findall(r"\w+", masked))


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("a" * 84, ["long_name = " + "a" * 84]),
        (f"tl.load(p + {'a' * 80}).to(tl.float32)",
         ["long_name = tl.load(", f"    p + {'a' * 80},", ").to(tl.float32)"]),
        (f"{'a' * 45} & ({'b' * 35}) & c",
         ["long_name = (", f"    {'a' * 45} & ({'b' * 35}) & c", ")"]),
        (f"({'a' * 60}) | ({'b' * 40} & c)",
         [f"long_name = ({'a' * 60}) | (", f"    {'b' * 40} & c", ")"]),
        (f"({'a' * 80}) | ({'b' * 8} & c)",
         ["long_name = (", f"    {'a' * 80}", f") | ({'b' * 8} & c)"]),
        (f"tl.where({'a' * 80}, b_x, 0.0)",
         ["long_name = tl.where(", f"    {'a' * 80}, b_x, 0.0", ")"]),
        (f"b_z * b_l + tl.sum({'a' * 70}, 0)",
         ["long_name = b_z * b_l + tl.sum(", f"    {'a' * 70}, 0", ")"]),
        (f"tl.sum({'a' * 70}, 0) + tl.sum({'b' * 70}, 0)",
         ["long_name = tl.sum(", f"    {'a' * 70}, 0", f") + tl.sum({'b' * 70}, 0)"]),
        (f"tl.sum({'a' * 40}, 0) + {'b' * 35}",
         ["long_name = (", f"    tl.sum({'a' * 40}, 0) + {'b' * 35}", ")"]),
        (f"b_m & (({'a' * 60}) | ({'b' * 50}))",
         ["long_name = b_m & (", f"    ({'a' * 60})", f"    | ({'b' * 50})", ")"]),
        (f"{'a' * 50} * tl.where(x, {'c' * 30}, 0.0) / ({'b' * 30} + c)",
         ["long_name = (", f"    {'a' * 50}", f"    * tl.where(x, {'c' * 30}, 0.0)",
          f"    / ({'b' * 30} + c)", ")"]),
        (f"{'a' * 60} | b[c | d] | ({'e' * 40} & f)",
         ["long_name = (", f"    {'a' * 60}", "    | b[c | d]", f"    | ({'e' * 40} & f)", ")"]),
    ],
    ids=["fits", "load", "one line", "two operands", "a long first operand", "a call",
         "a call behind", "two calls", "a call before a name", "two lines in brackets",
         "a quotient", "three operands"],
)  # fmt: skip
def test_a_long_assignment_is_broken_as_the_formatter_breaks_it(value, lines):
    text = broken(f"def f():\n    long_name = {value}\n    return long_name\n")
    assert text.split("\n")[1:-2] == ["    " + line for line in lines]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "-"],
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == text
