"""Calls like one seen before: what was checked and chosen for that one holds for them too.

All that the checks, the choice of a plan and the launcher look at is in a key of shapes, strides,
dtypes, devices and options. A second call with the same key is recorded, later ones are replayed.
The latest call is held against PyTorch's own guard first, which looks at all of that in one call.
Copied as it is into wheels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import local
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from attnc.autotune.replay import Replay, record
from attnc.ops.gradients import PLAIN, forward_mode, needs_gradient

# keys kept a variant: lengths that never repeat would fill memory
_MOST = 1024
# guards kept a call
_MOST_GUARDS = 8


# without the lazy start of CUDA, which has been where a tensor lies on it
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def call_key(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Hashable,
    tensors: Mapping[str, torch.Tensor | float],
) -> Hashable | None:  # fmt: skip
    """The key of a call; None where one has to look again.

    That is: numbers for tensors, autocast, a CPU, tensors with a dispatch of their own, and whoever
    traces, transforms or listens to what PyTorch dispatches.
    """
    try:
        if (
            not q.is_cuda
            or not PLAIN.issuperset(map(type, (q, k, v, *tensors.values())))
            or torch.is_autocast_enabled("cuda")
            or torch._C._len_torch_dispatch_stack()
            or torch._C._functorch.maybe_current_level() is not None
            or forward_mode()
        ):
            return None
        key = (
            q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(),
            q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, options,
        )  # fmt: skip
        if not tensors:
            return key
        facts = ((name, x.shape, x.stride(), x.dtype, x.device) for name, x in tensors.items())  # type: ignore[union-attr]
        return (*key, *facts)
    except AttributeError:
        return None


@dataclass(frozen=True, slots=True)
class SeenCall:
    """A launcher, the declared tensors that it takes by name, and which answers chose it.

    `wanted` is how many of its results the caller takes. A thread's `replay` is None where the
    launcher does more than a replay can. `guards` are those that held: one for each way in which
    its tensors may want gradients.
    """

    run: Callable[..., Any]
    names: tuple[str, ...]
    generation: int
    wanted: int
    threads: local = field(default_factory=local)
    guards: list[_Guarded] = field(default_factory=list)

    def answer(self, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What the launcher gives, on the current device: replayed where that can be."""
        try:
            replay: Replay | None = self.threads.replay
        except AttributeError:
            results, self.threads.replay = record(self.run, arguments, self.wanted)
            return results
        if replay is not None and (answer := replay.run(arguments)) is not None:
            return answer
        found = self.run(*arguments)
        return tuple(found) if isinstance(found, tuple | list) else (found,)


class _Guarded(NamedTuple):
    """The latest call: `holds` says of tensors whether all that a key has of them is the same.

    `given` names the declared tensors in the order in which they came, `straight` where that is the
    launcher's. Where one of all is a leaf, a call that wants gradients is another.
    """

    options: Hashable
    given: tuple[str, ...]
    holds: Callable[..., bool]
    leaves: bool
    straight: bool
    device: int | None
    seen: SeenCall


@dataclass(slots=True)
class SeenCalls:
    """The calls of one op, by key."""

    _by_key: dict[Hashable, SeenCall] = field(default_factory=dict)
    _latest: _Guarded | None = None

    def find(self, key: Hashable, generation: int = 0) -> SeenCall | None:
        """The call of a key, None where there was none or tuning has answered since."""
        seen = self._by_key.get(key)
        return seen if seen is not None and seen.generation == generation else None

    def answer(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Hashable,
        tensors: Mapping[str, torch.Tensor | float], generation: int = 0,
    ) -> tuple[torch.Tensor, ...] | None:  # fmt: skip
        """What the launcher of an earlier call gives for this one; None where it may not answer."""
        latest = self._latest
        given: tuple[Any, ...] = (q, k, v, *tensors.values()) if tensors else (q, k, v)
        if (
            latest is not None
            and latest.seen.generation == generation
            and latest.options == options
            and latest.given == (tuple(tensors) if tensors else ())
            and latest.holds(*given)
            and not (latest.leaves and torch.is_grad_enabled())
            and forward_ad._current_level < 0
        ):
            if latest.straight and latest.device == current_device():
                return latest.seen.answer(given)
            seen = latest.seen
        else:
            if needs_gradient(*given):
                return None
            key = call_key(q, k, v, options, tensors)
            found = self.find(key, generation)
            if found is None:
                return None
            seen = found
            self._latest = _guarded(given, options, tuple(tensors), seen)
        arguments = (q, k, v, *map(tensors.get, seen.names))
        return run_on(q.device, seen.answer, (arguments,))  # type: ignore[no-any-return]

    def add(
        self, key: Hashable, run: Callable[..., Any], names: Sequence[str], generation: int = 0,
        wanted: int = 1,
    ) -> None:  # fmt: skip
        """Keep a call that went well."""
        if len(self._by_key) >= _MOST:
            self._by_key.clear()
        self._by_key[key] = SeenCall(run, tuple(names), generation, wanted)


def _guarded(
    given: tuple[torch.Tensor, ...], options: Hashable, names: tuple[str, ...], seen: SeenCall
) -> _Guarded | None:
    """A guard of a call that has a key, where this PyTorch makes guards of that kind.

    One that was made before is taken again: calls of two shapes in turn make none.

    Source: TensorGuards of torch/csrc/dynamo/guards.cpp. It compares types, dispatch keys with
    what modes and autocast make of them, dtypes, devices, whether gradients are required, shapes
    and strides; one tensor given twice never holds.
    """
    for known in seen.guards:
        if known.given == names and known.holds(*given):
            return known
    make = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    if make is None or len({id(x) for x in given}) < len(given):
        return None
    guard = make(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    leaves = any(x.requires_grad for x in given)
    device = given[0].device.index
    found = _Guarded(options, names, guard.check, leaves, names == seen.names, device, seen)
    del seen.guards[_MOST_GUARDS:]
    seen.guards.insert(0, found)
    return found


def run_on(device: torch.device, run: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call a launcher with a device current; switching takes a microsecond that most calls save."""
    if device.index == current_device():
        return run(*arguments)
    with torch.cuda.device(device):
        return run(*arguments)
