"""Warp groups that take turns: one runs at a time, and a seeded draw says which one is next."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attnc.autotune.gluon_interpreter.clock import Clock
from attnc.autotune.gluon_interpreter.faults import GluonFault, kernel_line

if TYPE_CHECKING:
    from attnc.autotune.gluon_interpreter.copies import Load, Store
    from attnc.autotune.gluon_interpreter.products import Product
    from attnc.autotune.gluon_interpreter.shared import Access


class Abandoned(BaseException):
    """Another warp group failed: this one stops where it stands."""


class Agent:
    """One partition of warps: its place in the order of things, and what it has under way."""

    def __init__(self, program: Program, name: str, clock: Clock) -> None:
        self.program = program
        self.name = name
        self.clock = clock
        self.clock[self.name] = 1
        # products and stores in the order in which they were asked for
        self.products: list[Product] = []
        self.stores: list[Store] = []
        # generic writes that the copy engine and the tensor cores cannot see yet
        self.unfenced: list[Access] = []
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] | None = None
        self.waits_for = ""
        self.done = False

    def release(self) -> Clock:
        """What others may learn of from here; what comes after it is of a later time."""
        seen = Clock(self.clock)
        self.clock[self.name] += 1
        return seen


class Program:
    """One program of a grid: its warp groups, and the copies on their way."""

    def __init__(self, place: tuple[int, ...], grid: tuple[int, ...], seed: str) -> None:
        self.place = place
        self.grid = grid
        self.loads: list[Load] = []
        self._draw = random.Random(seed)
        # some programs see copies that land at once, others copies that land as late as can be
        self._haste = self._draw.choice((0.05, 0.5, 0.95))
        self.main = Agent(self, "the kernel", Clock())
        self.agents = [self.main]
        self.failure: BaseException | None = None
        self._over = threading.Semaphore(0)

    def specialize(self, parts: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
        """Run one warp group for each function, side by side, to the end of all."""
        seen = self.main.release()
        self.main.done = True
        names = [f"{function.__name__} {place}" for place, (function, _) in enumerate(parts)]
        started = [Agent(self, name, Clock(seen)) for name in names]
        self.agents += started
        threads = [
            threading.Thread(target=self._run, args=(agent, function, arguments), daemon=True)
            for agent, (function, arguments) in zip(started, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        self._next()
        self._over.acquire()
        for thread in threads:
            thread.join()
        self.main.done = False
        if self.failure is not None:
            raise self.failure
        for agent in started:
            self.main.clock.join(agent.clock)

    def pause(self, ready: Callable[[], bool] | None = None, waits_for: str = "") -> None:
        """Let others go on, and come back once `ready`; at any time, where nothing is waited for.

        Raises: GluonFault where all warp groups wait and no copy is on its way.
        """
        agent = current()
        agent.ready, agent.waits_for = ready, waits_for
        self._next()
        if agent is not self.main:
            agent.turn.acquire()
            if self.failure is not None:
                raise Abandoned
        _CURRENT.agent = agent

    def finish(self) -> None:
        """Nothing may be on its way when a program ends: its shared memory is gone then."""
        for load in self.loads:
            raise GluonFault(f"the copy into {load.what} of line {load.line} outlives the program")
        for agent in self.agents:
            for product in agent.products:
                raise GluonFault(f"the product of line {product.line} is never waited for")
            for store in agent.stores:
                raise GluonFault(f"the copy out of line {store.line} is never waited for")

    def _land(self) -> None:
        load = self.loads.pop(self._draw.randrange(len(self.loads)))
        try:
            load.land()
        except GluonFault as fault:
            # whoever gives way here may have ended: those who go on are told
            self.failure = self.failure or fault

    def _run(self, agent: Agent, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        agent.turn.acquire()
        _CURRENT.agent = agent
        try:
            # a card does not warn of inf - inf either
            with np.errstate(all="ignore"):
                if self.failure is None:
                    function(*arguments)
        except Abandoned:
            pass
        except BaseException as error:
            self.failure = self.failure or error
        agent.done = True
        self._next()

    def _next(self) -> None:
        """Land copies and choose who goes on; the chosen one is woken."""
        while True:
            waiting = [agent for agent in self.agents if not agent.done]
            if not waiting:
                self._over.release()
                return
            if self.failure is not None:
                waiting[0].turn.release()
                return
            able = [agent for agent in waiting if agent.ready is None or agent.ready()]
            if self.loads and (not able or self._draw.random() < self._haste):
                self._land()
                continue
            if not able:
                self.failure = GluonFault(_stuck(waiting))
                if waiting == [self.main]:
                    raise self.failure
                continue
            chosen = self._draw.choice(able)
            if chosen is not self.main:
                chosen.turn.release()
            return


def _stuck(agents: list[Agent]) -> str:
    waits = "; ".join(f"{agent.name} waits for {agent.waits_for}" for agent in agents)
    return f"nothing can go on: {waits}"


class _Current(threading.local):
    agent: Agent | None = None


_CURRENT = _Current()


def current() -> Agent:
    """The warp group that runs.

    Raises: GluonFault outside of a launch.
    """
    if _CURRENT.agent is None:
        raise GluonFault("this is a kernel's: launch it as kernel[grid](...)")
    return _CURRENT.agent


def running() -> bool:
    """Whether a warp group runs, and not what stands around a launch."""
    return _CURRENT.agent is not None


def enter(program: Program | None) -> None:
    """Make a program's first warps those that run; with None, leave it."""
    _CURRENT.agent = program.main if program is not None else None


def waited(what: str) -> str:
    """How a wait is told: what for, and where."""
    return f"{what} at line {kernel_line()}"
