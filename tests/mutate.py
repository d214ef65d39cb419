"""Break every derived gradient in turn, and see that a test fails: `make mutate`.

python tests/mutate.py [--jobs N] [--only TEXT]

Each mutation flips a sign or drops a term in a copy of the package; the gradient tests then run on
the copy, N copies side by side. One that survives is printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).parent.parent
CODEGEN = "attnc/codegen"
GRADIENT = f"{CODEGEN}/kernels/gradient"
# the tests that know no tolerance but fp64's; drawn ones would shrink what they find
TESTS = (
    "tests/ops/test_gradients.py",
    "tests/ops/test_sinks.py",
    "tests/ops/test_documents.py",
    "tests/ops/test_blocks.py",
    "tests/ops/test_sequences.py",
    "tests/ops/test_terms.py",
    "tests/ops/test_terms_backward.py",
    "tests/ops/test_walks.py",
    "tests/ops/test_fft.py",
    "tests/ops/test_butterfly.py",
    "tests/ops/test_three_pass.py",
    "tests/ops/test_channel_gates.py",
    "tests/ops/test_pointwise.py",
)
# what a part of a mutated file's path is tested by: that file runs first, and -x stops there
FIRST = {
    "convolution/factor_sums": "tests/ops/test_butterfly.py",
    "convolution/inner_passes": "tests/ops/test_three_pass.py",
    "convolution": "tests/ops/test_fft.py",
    "channel": "tests/ops/test_channel_gates.py",
    "gradient/walk": "tests/ops/test_walks.py",
    "gradient/facts": "tests/ops/test_pointwise.py",
    "gradient/factor_sums": "tests/ops/test_terms.py",
    "gradient/folded_walk": "tests/ops/test_terms_backward.py",
    "border": "tests/ops/test_terms_backward.py",
    "sink": "tests/ops/test_sinks.py",
    "visible": "tests/ops/test_documents.py",
    "block_lists": "tests/ops/test_blocks.py",
    "sequences": "tests/ops/test_sequences.py",
}
CHOSEN = (
    "gradcheck_passes_for_a_shipped or declared_tensor or states_of or tensor_of_a_sink"
    " or inside_documents or owes_nothing or of_the_formula or of_each_sequence"
    " or tensor_of_a_sum_of_terms or of_a_walk_are or given_on_both"
    " or gradcheck_passes_by_t or gradcheck_passes_for_learned or its_gradient_by_chunks"
    " or is_the_dense_formula"
)


@dataclass(frozen=True)
class Mutation:
    """A text that stands once in a file, and what takes its place."""

    what: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation("the score by s", f"{CODEGEN}/derive.py",
             "differentiate(score, symbol(\"s\")),", "-differentiate(score, symbol(\"s\")),"),
    Mutation("the weight by s", f"{CODEGEN}/derive.py", "tuple(m * c for", "tuple(-m * c for"),
    Mutation("the feature map", f"{CODEGEN}/derive.py",
             "else differentiate(algebra.phi, ", "else -differentiate(algebra.phi, "),
    Mutation("a declared tensor", f"{CODEGEN}/derive.py",
             "differentiate(expr, by), where", "-differentiate(expr, by), where"),
    Mutation("the softmax's normaliser", f"{GRADIENT}/pairs.py",
             "b_p * (b_dp - b_d", "b_p * (b_dp + b_d"),
    Mutation("the sum's normaliser, by pairs", f"{GRADIENT}/pairs.py",
             "b_dp = b_dp + b_d", "b_dp = b_dp - b_d"),
    Mutation("a pointwise weight's normaliser", f"{GRADIENT}/pairs.py",
             "b_ds = b_dp + b_d", "b_ds = b_dp - b_d"),
    Mutation("a pointwise weight's slope", f"{GRADIENT}/pairs.py",
             'side.tile, f"b_g = b_ds * {factor}"', 'side.tile, "b_g = b_ds"'),
    Mutation("what a slope that is a number hides", f"{GRADIENT}/pairs.py",
             '_visible(builder, facts, side, loaded, "b_ds")', "pass"),
    Mutation("the scale of a pointwise weight", f"{GRADIENT}/facts.py",
             "(self.softmax or self.algebra.score is not None)", "self.softmax"),
    Mutation("the gradient of lse", f"{GRADIENT}/delta.py", "{line} - b_dl", "{line} + b_dl"),
    Mutation("the sum's normaliser, by rows", f"{GRADIENT}/delta.py",
             "\"-tl.sum\"", "\"tl.sum\""),
    Mutation("the sum's normaliser, by chunks", f"{GRADIENT}/delta.py",
             "b_d = -tl.sum", "b_d = tl.sum"),
    Mutation("the normaliser inside a chunk", f"{GRADIENT}/chunk_pairs.py",
             "b_dw = b_dw + b_d", "b_dw = b_dw - b_d"),
    Mutation("keys' exponents in a chunk", f"{GRADIENT}/chunk_pairs.py",
             "b_r = b_r - ", "b_r = b_r + "),
    Mutation("a token's log decay, from rows", f"{GRADIENT}/chunk_gradient.py",
             "tl.sum(b_r, 0) - tl.cumsum", "tl.sum(b_r, 0) + tl.cumsum"),
    Mutation("a token's log decay, from keys", f"{GRADIENT}/chunk_gradient.py",
             "b_dg + tl.cumsum(b_cj, 0) - b_cj", "b_dg - tl.cumsum(b_cj, 0) + b_cj"),
    Mutation("pairs across a chunk", f"{GRADIENT}/state_terms.py",
             "b_dd = b_dd + tl.sum(b_h", "b_dd = b_dd - tl.sum(b_h"),
    Mutation("the sums' part of dq", f"{GRADIENT}/state_terms.py",
             'sums = f" + {row} * b_z', 'sums = f" - {row} * b_z'),
    Mutation("a constant decay by pairs", f"{GRADIENT}/partial_sums.py",
             "b_dc = b_dc + tl.sum", "b_dc = b_dc - tl.sum"),
    Mutation("a gated decay by pairs", f"{GRADIENT}/gate_sums.py",
             "b_r.to(tl.float64) - b_x", "b_r.to(tl.float64) + b_x"),
    Mutation("queries' part of a state", f"{GRADIENT}/carry.py",
             "fold_state(builder, chunk, QUERIES)\n    states",
             "fold_state(builder, chunk, KEYS)\n    states"),
    Mutation("queries' part of a walk's state", f"{GRADIENT}/walk.py",
             "fold_tile(builder, chunk, n, QUERIES, sums=keys)",
             "fold_tile(builder, chunk, n, KEYS, sums=keys)"),
    Mutation("the decay of what a walk hands to keys", f"{GRADIENT}/state_terms.py",
             '"b_u = tl.exp2(b_gl - b_g)", f"{target}', '"b_u = tl.exp2(b_g)", f"{target}'),
    Mutation("a walk's sums", f"{GRADIENT}/state_terms.py",
             'sums = f" + b_u[:, None] * {gathered}', 'sums = f" - b_u[:, None] * {gathered}'),
    Mutation("the state before a segment", "attnc/templates/walk.jinja",
             "i_n < NS - 1", "i_n < NS"),
    Mutation("exponents of channels in a chunk", f"{GRADIENT}/channel_gradient.py",
             "b_qe * b_x - b_ke * b_y", "b_qe * b_x + b_ke * b_y"),
    Mutation("channels across a chunk", f"{GRADIENT}/channel_gradient.py",
             "b_a = b_a * tl.exp2", "b_a = -b_a * tl.exp2"),
    Mutation("channels by pairs", f"{GRADIENT}/channel_gate_sums.py",
             "b_r.to(tl.float64) - b_x", "b_r.to(tl.float64) + b_x"),
    Mutation("the factor of a term", f"{GRADIENT}/pairs.py",
             'f"b_p = b_p0 * {part.factor}"', '"b_p = b_p0 * 1.0"'),
    Mutation("a term's weight under the normaliser", f"{GRADIENT}/pairs.py",
             "b_dw = b_dp - b_d", "b_dw = b_dp + b_d"),
    Mutation("the scale of a softmax term", f"{GRADIENT}/pairs.py",
             'line += f" * {number(facts.scale)}"', 'line += ""'),
    Mutation("a map's part of dq", f"{GRADIENT}/feature_gradient.py",
             'f"{into} = {into} + {gradient}"', 'f"{into} = {into} - {gradient}"'),
    Mutation("the gradient of a factor", f"{GRADIENT}/factor_sums.py",
             '"b_p0 * (b_dp - b_d[:, None])"', '"b_p0 * (b_d[:, None] - b_dp)"'),
    Mutation("the sink", f"{GRADIENT}/sink_sums.py",
             "b_dsink = -tl.sum", "b_dsink = tl.sum"),
    Mutation("delta's rounding, by rows", f"{GRADIENT}/partial_sums.py",
             'else "(b_z - b_dl)"', 'else "(b_dl - b_z)"'),
    Mutation("delta's rounding, for keys", f"{GRADIENT}/delta.py",
             'b_de = b_z + {share}', 'b_de = {share} - b_z'),
    Mutation("the sink's share of delta", f"{GRADIENT}/delta.py",
             '"(1.0 - b_ps) * b_d"', '"b_d"'),
    Mutation("documents in a backward", f"{CODEGEN}/kernels/visible.py",
             "m_st & ({query} == {key})", "m_st & ({query} >= {key})"),
    Mutation("a row of sums of a packed sequence", f"{CODEGEN}/kernels/sequences.py",
             "\"i_slot - i_t\"", "\"0\""),
    Mutation("the blocks that keys list", f"{CODEGEN}/kernels/block_lists.py",
             "plane if lists.of_rows else plane.mirrored", "plane"),
    Mutation("dk's order of features", f"{GRADIENT}/feature_gradient.py",
             "if other != r]", "if other == r]"),
    Mutation("the rows that lie ahead of keys", f"{GRADIENT}/folded_walk.py",
             '"o_l = (i_c + LAG) * BC + r_c"', '"o_l = (i_c + LAG + 1) * BC + r_c"'),
    Mutation("delta of rows that meet a state", f"{GRADIENT}/folded_walk.py",
             'line = "b_d = -b_d"', 'line = "b_d = b_d"'),
    Mutation("the factor of what a state has given", f"{GRADIENT}/border.py",
             'f" * {factor}" if factor else ""', '""'),
    Mutation("the border's keys", f"{CODEGEN}/border_range.py",
             "({row} // BC - LAG) * BC", "({row} // BC - LAG + 1) * BC"),
    Mutation("the spectrum's gradient", f"{CODEGEN}/convolution/spectrum.py",
             "b_ur * b_zi - b_ui * b_zr", "b_ur * b_zi + b_ui * b_zr"),
    Mutation("the inner factor's gradient", f"{CODEGEN}/convolution/factor_sums.py",
             '(("i", "r"), ("r", "n"))', '(("i", "r"), ("r", "i"))'),
    Mutation("the outer factor's gradient", f"{CODEGEN}/convolution/factor_sums.py",
             'learned_dft(builder, STEP, adjoint=True)', 'learned_dft(builder, STEP)'),
    Mutation("the sums of three passes", f"{CODEGEN}/convolution/inner_passes.py",
             "b_ur * b_zi - b_ui * b_zr", "b_ur * b_zi + b_ui * b_zr"),
    Mutation("the mirrored filter's spectrum", f"{CODEGEN}/convolution/fft.py",
             '("+", "-") if mirrored', '("-", "+") if mirrored'),
)  # fmt: skip


def survives(mutation: Mutation) -> bool:
    """Whether the tests pass on a copy with the mutation."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("attnc", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / mutation.file
        text = file.read_text(encoding="utf-8")
        if mutation.old not in text:
            sys.exit(f"{mutation.what}: {mutation.old!r} does not stand in {mutation.file}")
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        cache = {"ATTNC_CACHE_DIR": str(copy / "cache"), "PYTHONPATH": folder}
        first = next((test for part, test in FIRST.items() if part in mutation.file), TESTS[0])
        files = dict.fromkeys((first, *TESTS))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
        command += ["-k", CHOSEN]
        done = subprocess.run(
            command, cwd=copy, env={**os.environ, **cache}, capture_output=True, check=False
        )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="those whose name has this text")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.what]
    survivors = []
    with ThreadPoolExecutor(options.jobs) as pool:
        found = {pool.submit(survives, mutation): mutation for mutation in chosen}
        for done in track(as_completed(found), "mutating", total=len(found)):
            mutation = found[done]
            print("SURVIVED" if done.result() else "caught", mutation.what, sep=": ", flush=True)
            survivors += [mutation.what] if done.result() else []
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
