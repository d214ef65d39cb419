"""Ranked plans -> the first that the compiler says fits, with the kernels it made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnc.autotune.compiler import CompileJob, CompilePool
from attnc.autotune.module_cache import store_module
from attnc.autotune.target import Target
from attnc.autotune.verdict import Compiled, CompileFailure, Verdict
from attnc.codegen.kernel_spec import KernelSpec
from attnc.codegen.plan import Plan, Rejected
from attnc.codegen.signature import kernel_specs
from attnc.codegen.text.render import render
from attnc.errors import PlanError

# a kernel that fails in so many tiles is not made better by another tile
_MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Fitted:
    """A plan that fits, its source and its kernels; `refused` are the plans ranked before it."""

    plan: Plan
    source: str
    kernels: tuple[tuple[KernelSpec, Compiled], ...]
    refused: tuple[Rejected, ...]

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """What the compiler says of each pass."""
        return tuple(compiled for _, compiled in self.kernels)


def candidate(plan: Plan) -> str:
    """A plan's tiles on one line, as lists of candidates name it."""
    return "; ".join(map(str, plan.passes))


def fit_plans(
    ranked: Sequence[Sequence[Plan]],
    *,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fitted]:
    """The first plan of each ranking whose kernels fit its device by the compiler's own figures.

    Raises:
        PlanError: the compiler says that no plan of a ranking fits.
        CompileError: the compiler fails on the kernels themselves.
    """
    searches = [_Search(tuple(plans)) for plans in ranked]
    with CompilePool(jobs) as pool:
        while pending := [search for search in searches if search.fitted is None]:
            batches = [search.jobs() for search in pending]
            verdicts = iter(pool.map([job for batch in batches for job in batch], progress))
            for search, batch in zip(pending, batches, strict=True):
                search.judge([next(verdicts) for _ in batch])
    return [search.fitted for search in searches if search.fitted is not None]


class _Search:
    """One ranking, and how far down it the compiler has sent us."""

    def __init__(self, plans: tuple[Plan, ...]) -> None:
        self._plans = plans
        self._source = ""
        self._specs: tuple[KernelSpec, ...] = ()
        self._refused: list[Rejected] = []
        self._failures = 0
        self.fitted: Fitted | None = None

    @property
    def _plan(self) -> Plan:
        return self._plans[len(self._refused)]

    def jobs(self) -> list[CompileJob]:
        """The kernels of the plan whose turn it is."""
        plan = self._plan
        self._source = render(plan)
        self._specs = kernel_specs(plan)
        path = store_module(self._source, f"{plan.variant.name}_{plan.form}")
        target = Target.parse(plan.device.target)
        return [CompileJob(path, spec, target) for spec in self._specs]

    def judge(self, verdicts: Sequence[Verdict]) -> None:
        """Take the plan, or go to the next."""
        plan = self._plan
        failures = [verdict for verdict in verdicts if isinstance(verdict, CompileFailure)]
        compiled = [verdict for verdict in verdicts if isinstance(verdict, Compiled)]
        if failures:
            self._failures += 1
            if self._failures == _MOST_FAILURES or len(self._refused) + 1 == len(self._plans):
                raise failures[0].error()
            self._refuse(plan, f"does not compile: {failures[0].message}")
            return
        largest = max(compiled, key=lambda verdict: verdict.shared_bytes)
        if largest.shared_bytes > plan.device.sram_bytes:
            self._refuse(
                plan,
                f"{largest.kernel} takes {largest.shared_bytes:,} B of SRAM by the compiler, "
                f"the budget is {plan.device.sram_bytes:,} B",
            )
            return
        kernels = tuple(zip(self._specs, compiled, strict=True))
        self.fitted = Fitted(plan, self._source, kernels, tuple(self._refused))

    def _refuse(self, plan: Plan, reason: str) -> None:
        self._refused.append(Rejected(candidate(plan), reason))
        if len(self._refused) == len(self._plans):
            raise PlanError(
                f"the compiler refuses all {len(self._plans)} plans of {plan.variant.name!r} "
                f"for {plan.device.name}",
                notes=(f"the last one: {reason}",),
                hints=("raise the budget, use a smaller head dim, or a 16-bit dtype",),
            )
