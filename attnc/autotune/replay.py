"""A launcher's call played again: all but the pointers is known, so none of its Python runs.

A launcher allocates, computes grids and numbers from shapes and strides, and launches. For a call
whose shapes and strides are those of an earlier one only addresses differ: a recording keeps which
tensor goes where, and a replay allocates, gathers addresses and launches: in one call of C where
the launcher in C is there. Copied into wheels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnc.autotune.launcher import Prepared

# what every kernel of a replay was promised of its pointers, and how scratch is laid out
_ALIGNED = 16
_SCRATCH_STEP = 256
_ALLOCATIONS = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default}
_ALLOCATE = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]


class Kernel(Protocol):
    """What a recording asks of a launcher's kernels."""

    def launch(
        self, grid: tuple[int, int, int], tensors: Sequence[Any], numbers: tuple[int, ...]
    ) -> None:
        """Queue one run."""

    def remembered(self, device: int, numbers: tuple[int, ...]) -> Prepared | None:
        """This thread's launch with these numbers and aligned pointers, if there was one."""

    def listening(self) -> bool:
        """Whether somebody wants to hear of every launch."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that a replay allocates as the recorded call did."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Launch(NamedTuple):
    """One kernel over its grid: `taken` picks its addresses, `write` and `run` queue it."""

    write: Callable[..., None]
    run: Callable[[], int]
    check: Callable[[int], None]
    taken: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Replay:
    """One call with its pointers open, for the thread and the device that recorded it.

    Addresses come in this order: the arguments, what is `returned`, scratch at its `offsets`, and
    `kept` tensors of the launcher's own; `launches` say which of them each kernel takes.
    """

    device: torch.device
    returned: tuple[Made, ...]
    scratch_bytes: int
    offsets: tuple[int, ...]
    kept: tuple[torch.Tensor, ...]
    launches: tuple[Launch, ...]
    listening: Callable[[], bool]
    allocate: _ALLOCATE
    native: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...] | None] | None = None

    def run(self, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """What the launcher would return; None where this call has to go through it."""
        if self.native is not None:
            return None if self.listening() else self.native(arguments)
        table = [x.data_ptr() for x in arguments]
        together = 0
        for address in table:
            together |= address
        if together % _ALIGNED or self.listening():
            return None
        allocate = self.allocate
        results = tuple([allocate(x.shape, x.stride, x.dtype) for x in self.returned])
        table += [x.data_ptr() for x in results]
        if self.scratch_bytes:
            scratch = allocate((self.scratch_bytes,), (1,), torch.uint8)
            start = scratch.data_ptr()
            table += [start + offset for offset in self.offsets]
        table += [x.data_ptr() for x in self.kept]
        stream = torch._C._cuda_getCurrentRawStream(self.device.index)
        for write, run, check, taken in self.launches:
            write(stream, *taken(table))
            answer = run()
            if answer:
                check(answer)
        return results


def _allocator(device: torch.device) -> _ALLOCATE:
    """What allocates on the current device: without the dispatcher, where this PyTorch can."""
    straight = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)
    if device.type == "cuda" and straight is not None:
        found: _ALLOCATE = straight
        return found
    return lambda shape, stride, dtype: torch.empty_strided(
        shape, stride, dtype=dtype, device=device
    )


@dataclass(slots=True)
class _Recorder:
    """Stands in a launcher for one of its kernels, launches it, and keeps what was launched."""

    kernel: Kernel
    device: int
    tape: list[tuple[Prepared | None, tuple[int, int, int], tuple[torch.Tensor, ...]]]

    def launch(
        self, grid: tuple[int, int, int], tensors: Sequence[torch.Tensor], numbers: tuple[int, ...]
    ) -> None:
        self.kernel.launch(grid, tensors, numbers)
        self.tape.append((self.kernel.remembered(self.device, numbers), grid, tuple(tensors)))


@dataclass
class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The tensors that were allocated, and whether anything else was done to any."""

    made: list[torch.Tensor] = field(default_factory=list)
    only: bool = True

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.made.append(result)
        elif func is not torch.ops.aten.detach.default:  # what hands a result to its caller
            self.only = False
        return result


def record(
    run: Callable[..., Any], arguments: Sequence[torch.Tensor], wanted: int | None = None
) -> tuple[tuple[torch.Tensor, ...], Replay | None]:
    """Run a launcher and keep how: its results, and a replay where it only allocates and launches.

    The device of the arguments is the current one. A replay returns the results up to `wanted`,
    all by default. One tensor given twice has no replay: a later call may give two.
    """
    device = arguments[0].device
    tape: list[Any] = []
    if any(x.data_ptr() % _ALIGNED for x in arguments):
        answer = run(*arguments)
        return tuple(answer) if isinstance(answer, tuple | list) else (answer,), None
    # what stands around a launcher looks at addresses, as a replay does
    run = getattr(run, "__wrapped__", run)
    space = getattr(run, "__globals__", {})
    kernels = {name: x for name, x in space.items() if hasattr(x, "remembered")}
    watched: Callable[..., Any] = run
    if kernels:
        assert isinstance(run, FunctionType), "a launcher is a function of its module"
        recorders = {n: _Recorder(kernel, device.index, tape) for n, kernel in kernels.items()}
        watched = FunctionType(run.__code__, {**space, **recorders}, run.__name__, run.__defaults__)
        watched.__kwdefaults__ = run.__kwdefaults__
    with _Allocations() as allocations:
        answer = watched(*arguments)
    results = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
    once = len({id(x) for x in arguments}) == len(arguments)
    if not (tape and once and allocations.only) or any(prepared is None for prepared, *_ in tape):
        return results, None
    listening = next(iter(kernels.values())).listening
    replay = _replay(device, arguments, allocations.made, results, wanted, tape, listening)
    return results, replay


def _replay(
    device: torch.device,
    arguments: Sequence[torch.Tensor],
    made: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    wanted: int | None,
    tape: Sequence[tuple[Prepared, tuple[int, int, int], tuple[torch.Tensor, ...]]],
    listening: Callable[[], bool],
) -> Replay | None:
    # a mode sees a tensor by another object than the launcher does: addresses tell them
    fresh = {x.data_ptr(): x for x in made}
    if any(x.data_ptr() not in fresh for x in results):
        return None
    # nobody sees the others: they lie with scratch, in one allocation
    results = results[:wanted]
    returned = {x.data_ptr() for x in results}
    scratch = [x for x in made if x.data_ptr() not in returned]
    offsets, size = [], 0
    for x in scratch:
        offsets.append(size)
        size += -(-x.numel() * x.element_size() // _SCRATCH_STEP) * _SCRATCH_STEP
    given = {id(x): place for place, x in enumerate(arguments)}
    places = {x.data_ptr(): n for n, x in enumerate((*results, *scratch), len(arguments))}
    kept: list[torch.Tensor] = []
    for x in (x for _, _, tensors in tape for x in tensors):
        if id(x) not in given and x.data_ptr() not in places:
            places[x.data_ptr()] = len(given) + len(fresh) + len(kept)
            kept.append(x)

    def place(x: torch.Tensor) -> int:
        return given[id(x)] if id(x) in given else places[x.data_ptr()]

    replay = Replay(
        device=device,
        returned=tuple(Made(tuple(x.shape), x.stride(), x.dtype) for x in results),
        scratch_bytes=size,
        offsets=tuple(offsets),
        kept=tuple(kept),
        launches=tuple(
            Launch(*prepared.on(grid), prepared.check, _taker([place(x) for x in tensors]))
            for prepared, grid, tensors in tape
        ),
        listening=listening,
        allocate=_allocator(device),
    )
    steps = [(p, grid, [place(x) for x in tensors]) for p, grid, tensors in tape]
    return replace(replay, native=_in_c(replay, len(arguments), steps))


def _in_c(
    replay: Replay,
    arguments: int,
    steps: Sequence[tuple[Prepared, tuple[int, int, int], list[int]]],
) -> Callable[..., Any] | None:
    """The whole replay as one call of the launcher in C; None where there is none."""
    native = steps[0][0].native
    if native is None:
        return None
    run: Callable[..., Any] = native.Call(
        torch.Tensor.data_ptr,
        replay.allocate,
        tuple((x.shape, x.stride, x.dtype) for x in replay.returned),
        ((replay.scratch_bytes,), (1,), torch.uint8),
        replay.offsets,
        tuple(x.data_ptr() for x in replay.kept),
        torch._C._cuda_getCurrentRawStream,
        (replay.device.index,),
        steps[0][0].check,
        arguments,
        tuple((prepared.kernel, *grid, *places) for prepared, grid, places in steps),
    ).run
    return run


def _taker(places: Sequence[int]) -> Callable[..., Any]:
    if len(places) == 1:
        return lambda table: (table[places[0]],)
    return itemgetter(*places)
