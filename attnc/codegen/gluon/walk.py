"""How both kinds of warps go through the tiles that a mask shows, so that they visit the same.

One run of tiles is counted from where it starts. The runs of a union come one after the other from
a function of the kernel, which producer and consumers call alike with what they have visited.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from attnc.codegen.gluon.arguments import listed
from attnc.codegen.kernel import Kernel
from attnc.codegen.tile_range import KeyLoop
from attnc.dsl.mask import MaskForm

_WORD = re.compile(r"\w+")
# what a range's function need not return
_KNOWN = {"0", "TK", "TQ"}
# what bounds a run, in the order of its tiles
_BOUNDS = ("lo", "full_lo", "full_hi", "hi")


@dataclass(frozen=True, slots=True)
class TileWalk:
    """The walk of one kernel over tiles of `tile`, which its loops count by `counter`.

    `data` is what the walk loads from, pointers and strides; `lines` compute what is `found` of a
    program's tiles, `by_head` anew for each query head of a group. A single run goes from `start`
    to `stop`. With `runs`, `start` is the first tile of all, and the kernel has a function that
    finds the run after what was visited: it unpacks the bounds of `clauses` and computes
    `next_lines`.
    """

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

    @property
    def counted(self) -> bool:
        """Whether tiles are counted one by one, for no formula of its place numbers one."""
        return self.runs or self.by_head

    @property
    def all_tiles(self) -> tuple[str, ...]:
        """What it takes of what is `found` to visit all tiles, whatever is done at them."""
        return ("start", "reach", "clauses") if self.runs else (self.start, self.stop)

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

    def header(self, loop: KeyLoop, *, opened: bool, first: bool) -> str:
        """A loop over the tiles of a run, but for the `opened` one, which stands before all."""
        start = loop.start
        if opened and not self.runs:
            after = self.tile if self.start == "0" else f"{self.start} + {self.tile}"
            start = after if first else f"gl.maximum({start}, {after})"
        return f"for {self.counter} in range({start}, {loop.stop}, {self.tile}):"

    def number(self, before: str) -> str:
        """The statement that counts a tile of a run, `before` it those of earlier runs."""
        if self.runs:
            return "n += 1"
        inside = self.counter if self.start == "0" else f"({self.counter} - {self.start})"
        return f"n = {before}{inside} // {self.tile}"


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
    by_head = bool(kernel.head_lines)
    numbers = [f"n_{t.name}" for t in tensors if f"n_{t.name}" in read]
    if kernel.runs is None:
        ends = (bound for loop in kernel.loops for bound in (loop.start, loop.stop))
        found = dict.fromkeys(bound for bound in ends if bound not in _KNOWN)
        start, stop = kernel.loops[0].start, kernel.loops[-1].stop
        return TileWalk(
            counter, tile, tuple(data), tuple(lines), (*found, *numbers), start, stop, by_head
        )
    clauses = [f"{name}_{n}" for n in range(len(mask.clauses)) for name in _BOUNDS]
    lines += [*kernel.runs.start, *listed("clauses = (", clauses, ")").split("\n")]
    of_union = ["reach", "clauses"]
    if opened:
        of_union.insert(0, "start")
        lines.append(f"start, _, _, _, _ = {symbol}_run(0, clauses)")
    return TileWalk(
        counter, tile, tuple(data), tuple(lines), (*of_union, *numbers), "start", "reach",
        by_head, True, tuple(clauses), kernel.runs.lines,
    )  # fmt: skip
