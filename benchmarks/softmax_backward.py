"""The softmax backward of both backends beside cuDNN and FlexAttention, interleaved in one process.

python -m benchmarks.softmax_backward OUT.json [--work plain,variants] [--dims 64,128]
    [--tokens 1024,16384] [--who triton,gluon,fused,cudnn,flex] [--tiles N] [--only NAME]
    [--seconds N]

Ours are whole backwards (dq and delta, then dk and dv) of the first plan, or of `--tiles` plans;
`fused` are gluon's that sum dq in any order, with what clears and rounds the sum;
theirs run through autograd on a graph that is kept. Gradients are held to the criterion at two
heads before they are timed. Cells are those of `benchmarks.softmax`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from attnc.autotune.module_cache import load_module
from attnc.codegen.plan import Plan
from attnc.codegen.planning.backend import of_phase
from attnc.codegen.planning.planner import plans
from attnc.ops.built import store_plan
from attnc.ops.op import compile as compile_op
from attnc.ops.reference.gradient import Incoming, reference_gradients
from attnc.ops.verification.criterion import check_gradient
from benchmarks.backward import kernel_ms
from benchmarks.softmax import Contenders, main, timed_rows
from benchmarks.softmax_cells import Cell

Grads = Sequence[torch.Tensor]
_WHO = {"plain": ("triton", "gluon", "fused", "cudnn"), "variants": ("triton", "gluon", "flex")}


def plans_of(cell: Cell, backend: str, *, fused: bool = False) -> tuple[Plan, ...]:
    """The plans of one backend, in order of rank; with `fused` those that add dq up, if any."""
    op = compile_op(cell.variant, backend=backend, deterministic=not fused)
    request = op.request((cell.dim, cell.dim), "bf16", None, False)
    found = plans(of_phase(request, "backward"))
    return tuple(plan for plan in found if plan.deterministic != fused)


class Backwards(Contenders):
    """Who runs the backward of a cell: calls that give dq, dk, dv as [B, T, H, D]."""

    def __init__(self, cell: Cell, options: argparse.Namespace) -> None:
        super().__init__(cell, options)
        generator = torch.Generator("cuda").manual_seed(7)
        shape = (cell.batch, cell.tokens, cell.hq, cell.dim)
        self.do = torch.randn(
            shape, device="cuda", dtype=torch.bfloat16, generator=generator
        )  # fmt: skip
        op = compile_op(cell.variant)
        self.out, self.lse = op(self.q, self.k, self.v, return_lse=True, **self.tensors)
        self.dlse = torch.zeros_like(self.lse)

    def ours(self, plan: Plan) -> Callable[[], Grads]:
        """The launcher of a plan."""
        run = load_module(store_plan(plan)).backward
        kept = (self.out, self.lse, self.do, self.dlse)
        return partial(run, self.q, self.k, self.v, *self.tensors.values(), *kept)

    def theirs(self, who: str) -> dict[str, Callable[[], Grads]]:
        """A peer's, through autograd; empty where it has none."""
        leaves = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]
        self.q, self.k, self.v = leaves
        found = self._cudnn() if who == "cudnn" else self._flex()
        if not found:
            return {}
        with torch.enable_grad():
            out = found[who]()
        grad = partial(torch.autograd.grad, out, leaves, self.do, retain_graph=True)
        self.q, self.k, self.v = (x.detach() for x in leaves)
        return {who: grad}

    def wanted(self) -> list[tuple[dict[str, torch.Tensor], dict[str, float]]]:
        """Reference gradients at two key/value heads' first query head, and eager's errors."""
        found = []
        for b, h in self.places():
            parts = self.part(b, h)
            arguments = (self.cell.variant, *parts, self.own(h), Incoming(self.do_of(b, h)))
            ref = reference_gradients(*arguments)
            eager = reference_gradients(
                *arguments, dtype=torch.float32, rounding=torch.bfloat16
            )  # fmt: skip
            errors = {n: float((eager[n] - ref[n]).abs().max()) for n in "qkv"}
            found.append((ref, errors))
        return found

    def places(self) -> tuple[tuple[int, int], ...]:
        return (0, 0), (self.cell.batch - 1, self.cell.hkv - 1)

    @property
    def group(self) -> int:
        return self.cell.hq // self.cell.hkv

    def part(self, b: int, h: int) -> list[torch.Tensor]:
        """All query heads of one key/value head, and the head."""
        heads = slice(h * self.group, (h + 1) * self.group)
        return [
            self.q[b : b + 1, :, heads], self.k[b : b + 1, :, h : h + 1],
            self.v[b : b + 1, :, h : h + 1],
        ]  # fmt: skip

    def own(self, h: int) -> dict[str, torch.Tensor]:
        heads = slice(h * self.group, (h + 1) * self.group)
        return {name: x[heads] for name, x in self.tensors.items()}

    def do_of(self, b: int, h: int) -> torch.Tensor:
        return self.do[b : b + 1, :, h * self.group : (h + 1) * self.group]

    def held(
        self, grads: Grads, wanted: list[tuple[dict[str, torch.Tensor], dict[str, float]]]
    ) -> dict[str, object]:
        """Whether gradients pass, and the worst of them."""
        verdicts = []
        for (b, h), (ref, errors) in zip(self.places(), wanted, strict=True):
            heads = slice(h * self.group, (h + 1) * self.group)
            for name, grad in zip("qkv", grads, strict=False):
                mine = grad[b : b + 1, :, heads if name == "q" else slice(h, h + 1)]
                verdict = check_gradient(
                    mine, ref[name], errors[name], torch.bfloat16, reduced=False
                )
                verdicts.append(verdict)
        worst = max(verdicts, key=lambda verdict: verdict.error / verdict.bound)
        passed = all(verdict.passed for verdict in verdicts)
        return {"passed": passed, "error": worst.error, "bound": worst.bound}


def chosen(cell: Cell, options: argparse.Namespace) -> list[tuple[str, Plan]]:
    """Our contenders, by name."""
    who = options.who or _WHO[cell.work]
    found = [("triton", plans_of(cell, "triton")[0])] if "triton" in who else []
    if "gluon" in who:
        for plan in plans_of(cell, "gluon")[: options.tiles]:
            found.append((f"gluon {'; '.join(map(str, plan.passes))}", plan))
    if "fused" in who:
        for plan in plans_of(cell, "gluon", fused=True)[: options.tiles]:
            found.append((f"fused {plan.passes[1]}", plan))
    return found


def warm(found: list[Cell], options: argparse.Namespace) -> None:
    """Compile all that Triton compiles side by side, on small tensors."""
    distinct = {plan.digest: (cell, plan) for cell in found for _, plan in chosen(cell, options)}

    def build(cell: Cell, plan: Plan) -> None:
        make = partial(torch.zeros, device="cuda", dtype=torch.bfloat16)
        q, o, do = (make(1, 64, cell.hq, cell.dim) for _ in range(3))
        k, v = (make(1, 64, cell.hkv, cell.dim) for _ in range(2))
        lse = torch.zeros(1, cell.hq, 64, device="cuda")
        slopes = [torch.zeros(cell.hq, device="cuda")] if cell.name == "alibi" else []
        load_module(store_plan(plan)).backward(q, k, v, *slopes, o, lse, do, lse)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda item: build(*item), distinct.values()))


def measure(cell: Cell, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    contenders = Backwards(cell, options)
    wanted = contenders.wanted()
    found: dict[str, Callable[[], Grads]] = {
        name: contenders.ours(plan) for name, plan in chosen(cell, options)
    }
    for who in ("cudnn", "flex"):
        if who in (options.who or _WHO[cell.work]):
            found |= contenders.theirs(who)
    runs, facts = {}, {}
    for who, run in found.items():
        try:
            facts[who] = contenders.held(run(), wanted)
            if who.startswith(("triton", "gluon", "fused")):
                facts[who]["passes"] = kernel_ms(run)
            runs[who] = run
        except Exception as error:  # a contender that fails is a row, not the end
            facts[who] = {"problem": f"{type(error).__name__}: {error}"[:300]}
    # two products of the forward become five
    yield from timed_rows(cell, facts, runs, 2.5 * cell.flops)


if __name__ == "__main__":
    main(warm, measure)
