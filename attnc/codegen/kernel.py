"""What one pass is before it has tiles: its arguments, its graph, its loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.codegen.graph import KernelGraph
from attnc.codegen.tile_range import KeyLoop, KeyRange, Runs


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """A tensor a kernel reads or writes.

    `axes` are the letters of its strides in order (none for a workspace, whose layout is fixed);
    `dtype` is `io`, `acc`, or a fixed type; `layout` is the comment beside it in the signature;
    `given` is the name that the launcher's caller gives it, where that differs. With a `box`, tile
    letters of rows and columns, it comes as a descriptor that the copy engine moves boxes by.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    layout: str
    written: bool = False
    given: str = ""
    box: tuple[str, str] | None = None

    @property
    def strides(self) -> tuple[str, ...]:
        """The names of the stride arguments."""
        return tuple(f"stride_{self.name}_{axis}" for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Walk:
    """The loops of one term over its own tiles, after the `lines` that bound them."""

    note: str
    lines: tuple[str, ...]
    loops: tuple[KeyLoop, ...]
    runs: Runs | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One pass: what the planner measures and `render` prints with the template of its name.

    `outer` is the header of a loop around `loops`, over the heads of a group; `runs` go around
    them inside it. `head_lines` are setup lines that know the head of `outer`, `sequence_lines`
    those that find the sequence of a program where several are packed. The divisibility of
    `specialized` scalars is compiled in, so that guards which compare with them keep loads wide.
    A sum of terms has `walks`, one a term, in place of `loops` and `runs`. `whole_rows` are the
    strides that are multiples of the constant RU.
    """

    name: str
    title: str
    tensors: tuple[TensorArgument, ...]
    scalars: tuple[str, ...]
    constants: tuple[str, ...]
    graph: KernelGraph
    setup_lines: tuple[str, ...] = ()
    loops: tuple[KeyLoop, ...] = ()
    outer: str = ""
    runs: Runs | None = None
    head_lines: tuple[str, ...] = ()
    sequence_lines: tuple[str, ...] = ()
    specialized: tuple[str, ...] = ()
    walks: tuple[Walk, ...] = ()
    whole_rows: tuple[str, ...] = ()

    @property
    def every_loop(self) -> tuple[KeyLoop, ...]:
        """The loops in order, those of all walks."""
        return self.loops or tuple(loop for walk in self.walks for loop in walk.loops)

    def over(self, ranges: KeyRange, declared: tuple[TensorArgument, ...]) -> Kernel:
        """The kernel with the loops of a mask; `declared` are the tensors that bound them."""
        by_head = ranges.per_head and bool(self.outer)
        return replace(
            self,
            tensors=(*self.tensors, *self._unlike(declared)),
            setup_lines=() if by_head else ranges.lines,
            head_lines=ranges.lines if by_head else (),
            loops=ranges.loops,
            runs=ranges.runs,
        )

    def over_terms(
        self, ranges: Sequence[tuple[str, KeyRange]], declared: tuple[TensorArgument, ...]
    ) -> Kernel:
        """The kernel with a walk a term, each noted by what the term is."""
        walks = tuple(Walk(note, r.lines, r.loops, r.runs) for note, r in ranges)
        return replace(self, tensors=(*self.tensors, *self._unlike(declared)), walks=walks)

    def _unlike(self, tensors: tuple[TensorArgument, ...]) -> list[TensorArgument]:
        known = {tensor.name for tensor in self.tensors}
        return [tensor for tensor in dict.fromkeys(tensors) if tensor.name not in known]

    def tensor(self, name: str) -> TensorArgument | None:
        """The argument of that name, if the kernel has it."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)
