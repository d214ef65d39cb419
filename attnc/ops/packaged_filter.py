"""The convolutions of a package of binaries: no compiler, no Triton, no attnc. Copied into wheels.

Each module was planned for some number of tokens; a call takes the one that is nearest above it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnc.dsl.offsets import tap_offsets
from attnc.errors import InputError
from attnc.ops.convolution_autograd import register
from attnc.ops.convolution_inputs import factor_sizes
from attnc.ops.dft_factors import dft_factors
from attnc.ops.filter_call import filter_inputs, run_filter
from attnc.ops.inputs import DTYPE_NAMES
from attnc.ops.package_folder import Package, capability_of, runs_on, shown_module
from attnc.ops.packaged_op import DeclaredTensor, DeclaredVariant, LoadedModule
from attnc.ops.seen_calls import run_on


@dataclass(frozen=True, slots=True)
class DeclaredName:
    """A declared tensor where a field of the filter reads it."""

    name: str


@dataclass(frozen=True, slots=True)
class DeclaredTransform:
    """One transform of the taps and its number."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class DeclaredFilter:
    """What the checks of a call read of a filter; the bounds on i - j are inclusive."""

    weight: DeclaredName
    outer: DeclaredName | None
    inner: DeclaredName | None
    lowest: int | None
    highest: int | None
    transforms: tuple[DeclaredTransform, ...]

    def offsets(self, taps: int) -> tuple[int, int]:
        """The first and the last offset that a filter of so many taps weighs."""
        return tap_offsets(self.lowest, self.highest, taps)


@dataclass(frozen=True, slots=True)
class DeclaredConvolution(DeclaredVariant):
    """What the checks of a call read of a convolution."""

    filter: DeclaredFilter


class PackagedFilter:
    """A convolution of a package, for the dtypes, lengths and devices it was built for.

    Shapes: v `[B, T, C]`, taps `[C, taps]`, skip `[C]`, gates `[B, T, C]`, any strides; the output
    is [B, T, C], its tokens adjacent in memory.
    """

    def __init__(self, package: Package, name: str) -> None:
        self._package = package
        self._facts = package.manifest["variants"][name]
        tensors = [
            DeclaredTensor(t["name"], tuple(t["shape"]), t["grad"], t["kind"])
            for t in self._facts["tensors"]
        ]
        self.variant = DeclaredConvolution(
            name,
            tuple(t for t in tensors if t.kind == "param"),
            tuple(t for t in tensors if t.kind == "input"),
            (),
            _filter(self._facts["filter"]),
        )
        self.tensor_names = tuple(tensor.name for tensor in tensors)
        self._gates = {tensor.name for tensor in tensors if "t" in tensor.shape}
        self._modules = [m for m in package.manifest["modules"] if m["variant"] == name]
        self._picked: dict[Hashable, Mapping[str, Any]] = {}
        self._loaded: dict[Hashable, LoadedModule] = {}
        self.key = register(f"{name}-{self._facts['digest']}", self)

    def __repr__(self) -> str:
        built = "; ".join(sorted({shown_module(module) for module in self._modules}))
        return (
            f"<{self.variant.name}: {self._facts['summary']}; built for {built}; "
            f"launched by {self._package.launches}>"
        )

    def __call__(
        self,
        v: torch.Tensor,
        *others: torch.Tensor,
        training: bool = False,
        **tensors: torch.Tensor | float,
    ) -> torch.Tensor:
        """o [B, T, C] of v [B, T, C] and the declared tensors by name.

        `training` drops taps where a dropout is declared.

        Raises:
            InputError: inputs that do not fit, or what the package was not built for.
            CacheError: a file of the package was altered.
        """
        v, given = filter_inputs(self.variant, v, others, tensors, training=training)  # type: ignore[arg-type]
        # the binaries read gates as they read v, and fp32
        values = [x.to(v.dtype) if name in self._gates else x.float() for name, x in given.items()]
        return run_filter(self, v, values, None, "fp32")

    def init_factors(
        self, tokens: int, *, device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """The declared factors as those of a DFT that sequences of so many tokens fit, by name.

        Raises:
            InputError: no factors are declared.
            PlanError: there are more tokens than any block has.
        """
        return dft_factors(self.variant, tokens, device)  # type: ignore[arg-type]

    def filtered(
        self, v: torch.Tensor, tensors: Sequence[torch.Tensor], form: str | None, precision: str
    ) -> torch.Tensor:
        """What the kernels return of checked inputs."""
        named = dict(zip(self.tensor_names, tensors, strict=True))
        module = self._module(v, named, "forward", ())
        taken = [named[name] for name in module.facts["tensors"]]
        out: torch.Tensor = run_on(v.device, module.run, [v, *taken])
        return out

    def gradients(
        self,
        v: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        incoming: torch.Tensor,
        wanted: tuple[str, ...],
        form: str | None,
        precision: str,
    ) -> list[torch.Tensor]:
        """Gradients of v and of the declared tensors in `wanted`, in declared order."""
        named = dict(zip(self.tensor_names, tensors, strict=True))
        module = self._module(v, named, "backward", wanted)
        taken = [named[name] for name in module.facts["tensors"]]
        results = run_on(v.device, module.run, [v, *taken, incoming.to(v.dtype)])
        dv, *others = results if isinstance(results, tuple | list) else (results,)
        found = dict(zip(module.facts["wanted"], others, strict=True))
        return [dv, *(found[n] if n in found else torch.zeros_like(named[n]) for n in wanted)]

    def _module(
        self,
        v: torch.Tensor,
        tensors: Mapping[str, torch.Tensor],
        phase: str,
        wanted: tuple[str, ...],
    ) -> LoadedModule:
        # what a module takes ends at a power of two
        tokens = 1 << max(0, v.shape[1] - 1).bit_length()
        factors = factor_sizes(self.variant, tensors)  # type: ignore[arg-type]
        key = (v.device, v.dtype, tokens, factors, phase, wanted)
        facts = self._picked.get(key)
        if facts is None:
            facts = self._picked[key] = self._pick(v, tokens, factors, phase, wanted)
        place = (v.device, facts["name"])
        found = self._loaded.get(place)
        if found is None:
            found = LoadedModule(facts["facts"], self._package.launcher_on(facts, v.device))
            self._loaded[place] = found
        return found

    def _pick(
        self,
        v: torch.Tensor,
        tokens: int,
        factors: tuple[int, int] | None,
        phase: str,
        wanted: tuple[str, ...],
    ) -> Mapping[str, Any]:
        """The module for a call: planned for as few tokens as hold it, else for the most."""
        capability = capability_of("v", v)
        dtype = DTYPE_NAMES[v.dtype]

        def takes(facts: Mapping[str, Any]) -> bool:
            most = facts["most_tokens"]
            return (
                (facts["phase"], facts["dtype"]) == (phase, dtype)
                and (most is None or tokens <= most)
                and (factors is None or tuple(facts["factors"]) == factors)
                and set(wanted) <= {*facts.get("gradients", ())}
                and runs_on(facts["target"], capability)
            )

        fitting = [module for module in self._modules if takes(module["facts"])]
        if fitting:
            return min(fitting, key=lambda module: _distance(module["facts"], tokens))
        sizes = "" if factors is None else f", factors of {factors[0]} and {factors[1]} points"
        raise InputError(
            f"{self.variant.name!r} was not built for phase {phase}, dtype {dtype}, "
            f"{v.shape[1]:,} tokens{sizes} on "
            f"{torch.cuda.get_device_name(v.device)} (cuda:{capability[0]}{capability[1]})",
            notes=tuple(
                f"built: {text}" for text in sorted({shown_module(m) for m in self._modules})
            ),
            hints=("attnc build NAME --target cuda:.. --tokens N --wheel makes another package",),
        )


def _distance(facts: Mapping[str, Any], tokens: int) -> tuple[int, bool, int, int]:
    """Newer binaries first, then lengths from above, and what computes least beside."""
    planned = facts["tokens"]
    short = planned < tokens
    arch = int(facts["target"].partition(":")[2])
    return -arch, short, -planned if short else planned, len(facts.get("gradients", ()))


def _filter(facts: Mapping[str, Any]) -> DeclaredFilter:
    named = {
        field: DeclaredName(facts[field]) if facts[field] else None
        for field in ("weight", "outer", "inner")
    }
    weight = named["weight"]
    assert weight is not None, "a filter has a weight"
    return DeclaredFilter(
        weight,
        named["outer"],
        named["inner"],
        facts["lowest"],
        facts["highest"],
        tuple(DeclaredTransform(name, value) for name, value in facts["transforms"]),
    )
