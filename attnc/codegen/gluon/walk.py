"""How both kinds of warps go through the tiles that a mask shows, so that they visit the same.

One run of tiles is counted from where it starts. The runs of a union come one after the other from
a function of the kernel, which producer and consumers call alike with what they have visited; the
places of listed tiles come from another, which they call with a tile's number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from attnc.codegen.gluon.arguments import listed
from attnc.codegen.kernel import Kernel
from attnc.codegen.tile_lists import TileLists, tile_lists
from attnc.codegen.tile_range import KeyLoop, Runs
from attnc.dsl.mask import MaskForm

_WORD = re.compile(r"\w+")
# what a range's function need not return
_KNOWN = {"0", "TK", "TQ"}
# what bounds a run, in the order of its tiles
_BOUNDS = ("lo", "full_lo", "full_hi", "hi")


@dataclass(frozen=True, slots=True)
class TileWalk:
    """The walk of the kernel `symbol` over tiles of `tile`, which stand at `counter`.

    `data` is what the walk loads from, pointers and strides; `lines` compute what is `found` of a
    program's tiles, `by_head` anew for each query head of a group. A single run goes from `start`
    to `stop`. With `runs`, `start` is the first tile of all, and the kernel has a function that
    finds the run after what was visited: it unpacks the bounds of `clauses` and computes
    `next_lines`. With `lists`, it has one that finds the n-th tile; the first `n_masked` of them
    need mask code.
    """

    symbol: str
    counter: str
    tile: str
    data: tuple[str, ...]
    lines: tuple[str, ...]
    found: tuple[str, ...]
    start: str
    stop: str
    by_head: bool = False
    runs: bool = False
    clauses: tuple[str, ...] = ()
    next_lines: tuple[str, ...] = ()
    lists: TileLists | None = None
    opened: bool = False

    @property
    def counted(self) -> bool:
        """Whether tiles are counted one by one, for no formula of its place numbers one."""
        return self.runs or self.by_head

    @property
    def all_tiles(self) -> tuple[str, ...]:
        """What it takes of what is `found` to visit all tiles, whatever is done at them."""
        if self.lists is not None:
            return ("n_tiles", "listed")
        return ("start", "reach", "clauses") if self.runs else (self.start, self.stop)

    @property
    def count(self) -> str:
        """How many tiles a run or a list has; an opened one has its first in any case."""
        if self.lists is not None:
            return "n_tiles"
        between = self.stop if self.start == "0" else f"{self.stop} - {self.start}"
        if self.opened:
            return f"gl.maximum(gl.cdiv({between}, {self.tile}), 1)"
        if self.start == "0":
            return f"gl.cdiv({self.stop}, {self.tile})"
        return f"gl.cdiv(gl.maximum({between}, 0), {self.tile})"

    def at(self, number: str) -> str:
        """Where the tile of a number stands, in a run or in a list."""
        if self.lists is not None:
            return f"{self.symbol}_listed({number}, listed)"
        if number == "0" or self.runs:
            return self.start
        return f"{'' if self.start == '0' else self.start + ' + '}{number} * {self.tile}"

    @property
    def unpacked_data(self) -> str:
        """The statement with which the range's function begins."""
        return listed("    (", list(self.data), ") = data")

    @property
    def packed_data(self) -> str:
        """What the kernel that is launched makes of its arguments for all partitions."""
        return listed("    data = (", list(self.data), ")")

    @property
    def unpacked_clauses(self) -> str:
        """The bounds of each clause, in the function that finds a run."""
        return listed("    (", list(self.clauses), ") = clauses")

    def header(self, loop: KeyLoop, *, first: bool) -> str:
        """A loop over the tiles of a run, but for the one that was opened before all loops."""
        if self.lists is not None:
            if first:
                return f"for i_n in range({'1, ' if self.opened else ''}n_masked):"
            after = "gl.maximum(n_masked, 1)" if self.opened else "n_masked"
            return f"for i_n in range({after}, n_tiles):"
        start = loop.start
        if self.opened and not self.runs:
            after = self.tile if self.start == "0" else f"{self.start} + {self.tile}"
            start = after if first else f"gl.maximum({start}, {after})"
        return f"for {self.counter} in range({start}, {loop.stop}, {self.tile}):"

    def number(self, before: str) -> str:
        """The statement that counts a tile of a run, `before` it those of earlier runs."""
        if self.runs:
            return "n += 1"
        if self.lists is not None:
            return f"n = {before}i_n"
        inside = self.counter if self.start == "0" else f"({self.counter} - {self.start})"
        return f"n = {before}{inside} // {self.tile}"

    def place(self, texts: Iterable[str]) -> str:
        """The statement that says where a listed tile stands, if some of the `texts` read it."""
        read = self.counter in _WORD.findall(" ".join(texts))
        return f"{self.counter} = {self.at('i_n')}" if self.lists is not None and read else ""


def tile_walk(
    kernel: Kernel,
    mask: MaskForm,
    symbol: str,
    counter: str,
    read: Collection[str],
    *,
    opened: bool,
) -> TileWalk:
    """The walk of a kernel whose consumers `read` some names; `opened` if a tile comes first."""
    tile = {"i_s": "BS", "i_t": "BT"}[counter]
    own = kernel.setup_lines or kernel.head_lines
    words = set(_WORD.findall(" ".join(own)))
    tensors = [t for t in kernel.tensors if t.name in words]
    data = [name for t in tensors for name in (t.name, *t.strides)]
    # batch entries and heads are counted in 32 bits here, and elements pass 2**31
    lines = [re.sub(r"\b(i_(?:b|h|hkv)) \*", r"\1.to(gl.int64) *", line) for line in own]
    numbers = [f"n_{t.name}" for t in tensors if f"n_{t.name}" in read]
    walk = TileWalk(
        symbol, counter, tile, tuple(data), tuple(lines), tuple(numbers), "", "",
        by_head=bool(kernel.head_lines), opened=opened,
    )  # fmt: skip
    lists = tile_lists(mask, of_rows=counter == "i_s")
    if lists is not None:
        return _listed(walk, kernel, lists)
    if kernel.runs is not None:
        return _union(walk, kernel.runs, len(mask.clauses))
    ends = (bound for loop in kernel.loops for bound in (loop.start, loop.stop))
    found = dict.fromkeys(bound for bound in ends if bound not in _KNOWN)
    start, stop = kernel.loops[0].start, kernel.loops[-1].stop
    return replace(walk, found=(*found, *numbers), start=start, stop=stop)


def _union(walk: TileWalk, runs: Runs, count: int) -> TileWalk:
    clauses = [f"{name}_{n}" for n in range(count) for name in _BOUNDS]
    lines = [*walk.lines, *runs.start, *listed("clauses = (", clauses, ")").split("\n")]
    if walk.opened:
        lines.append(f"start, _, _, _, _ = {walk.symbol}_run(0, clauses)")
    found = (*(["start"] if walk.opened else []), "reach", "clauses", *walk.found)
    return replace(
        walk, lines=tuple(lines), found=found, start="start", stop="reach", runs=True,
        clauses=tuple(clauses), next_lines=runs.lines,
    )  # fmt: skip


def _listed(walk: TileWalk, kernel: Kernel, lists: TileLists) -> TileWalk:
    masked, full = (loop.stop for loop in kernel.loops)
    count = f"n_masked + {full}"
    lines = (
        *walk.lines,
        f"n_masked = {masked}",
        f"n_tiles = gl.maximum({count}, 1)" if walk.opened else f"n_tiles = {count}",
        "listed = (p_list, NB, n_part, n_full)",
    )
    found = ("n_masked", "n_tiles", "listed", *walk.found)
    return replace(walk, lines=lines, found=found, lists=lists)
