"""`@gluon.jit`: a kernel that is launched over a grid, or a function that kernels call."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from itertools import count
from itertools import product as each_place
from typing import Any

import numpy as np
import torch

from attnc.autotune.gluon_interpreter.agents import Program, enter, running
from attnc.autotune.gluon_interpreter.barriers import forget_barriers
from attnc.autotune.gluon_interpreter.copies import Described, TensorDescriptor
from attnc.autotune.gluon_interpreter.language import constexpr
from attnc.autotune.gluon_interpreter.memory import Pointer, Storages
from attnc.autotune.gluon_interpreter.tiles import counted, scalar

_OPTIONS = {"num_warps", "num_ctas", "num_stages", "maxnreg"}
_LAUNCHES = count()


class Seed:
    """What the order of a launch is drawn from; each launch draws another."""

    value = 0


class Kernel:
    """A function of Gluon's; `kernel[grid](...)` launches it, a call within a kernel calls it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = function.__name__
        self._signature = inspect.signature(function)
        function.__globals__["range"] = _range

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **named: self._launch(grid, arguments, named)

    def _launch(
        self, grid: tuple[int, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        own = {name: value for name, value in named.items() if name not in _OPTIONS}
        bound = self._signature.bind(*arguments, **own)
        storages = Storages()
        known = self._signature.parameters
        values = {
            name: value if _constant(known[name]) else _argument(value, storages)
            for name, value in bound.arguments.items()
        }
        whole = tuple(map(int, (*grid, 1, 1, 1)[:3]))
        launch = next(_LAUNCHES)
        for place in each_place(*map(range, whole)):
            program = Program(place, whole, f"{Seed.value} {launch} {place}")
            enter(program)
            try:
                with np.errstate(all="ignore"):
                    self.function(**values)
                program.finish()
            finally:
                enter(None)
                forget_barriers()


def jit(function: Callable[..., Any] | None = None, **options: object) -> Any:
    """Make a function a kernel; options are the compiler's."""
    return Kernel if function is None else Kernel(function)


def _range(*bounds: Any) -> Iterator[Any]:
    """What a kernel counts has the methods of a scalar; a module may hold Triton's kernels too."""
    return counted(*bounds) if running() else iter(range(*map(operator.index, bounds)))


def _constant(parameter: inspect.Parameter) -> bool:
    # emitted modules may postpone their annotations
    return parameter.annotation is constexpr or str(parameter.annotation).endswith("constexpr")


def _argument(value: Any, storages: Storages) -> Any:
    if isinstance(value, torch.Tensor):
        offset = np.asarray(value.storage_offset(), dtype=np.int64)
        return Pointer(storages.of(value), offset)
    if isinstance(value, TensorDescriptor):
        return Described(value, storages)
    return scalar(value) if isinstance(value, int) else value
