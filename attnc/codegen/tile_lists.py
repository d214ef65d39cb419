"""Where data decides what is visible: lists of the tiles that a block of rows, or of keys, visits.

A pass writes them on the device: for each block of what a program holds, the blocks of what it
walks over that some pair may be visible in, and among them those that every pair is visible in.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.dsl.mask import MaskForm

# without a table: what a program holds at most, and the longest tile that it streams
_HELD, _STREAMED = 128, 64


@dataclass(frozen=True, slots=True)
class TileLists:
    """The lists of one side: `key_blocks` of held rows, or `row_blocks` of held keys.

    A workspace of that name is [heads, held blocks, streamed blocks + 2]: two counts, then the
    blocks with mask code from the front, those without from the back.
    """

    name: str
    held: int
    streamed: int
    per_head: bool

    @property
    def of_rows(self) -> bool:
        """Whether rows are held and keys walked over."""
        return self.name == "key_blocks"

    @property
    def layout(self) -> str:
        """Its shape as a comment."""
        heads = "B, HQ" if self.per_head else "B"
        held, streamed = ("TQ", "TK") if self.of_rows else ("TK", "TQ")
        return f"[{heads}, {held}/{self.held}, {streamed}/{self.streamed} + 2]: lists of blocks"

    @property
    def shape(self) -> tuple[str, str, str]:
        """Its lengths as a launcher writes them."""
        held, streamed = ("TQ", "TK") if self.of_rows else ("TK", "TQ")
        return (
            "B * HQ" if self.per_head else "B",
            f"triton.cdiv({held}, {self.held})",
            f"triton.cdiv({streamed}, {self.streamed}) + 2",
        )

    def takes(self, held: int, streamed: int) -> bool:
        """Whether tiles of these sizes lie in one block each."""
        return self.held % held == 0 and self.streamed % streamed == 0


def tile_lists(mask: MaskForm, *, of_rows: bool) -> TileLists | None:
    """The lists that a mask needs; None where positions and loaded bounds say all."""
    if not mask.clauses or not (mask.documents or mask.blocks):
        return None
    held, streamed = _HELD, _STREAMED
    if mask.blocks:
        held = streamed = mask.blocks[0].size
    axes = {axis for table in mask.blocks for axis in table.axes}
    axes |= {letter for bound in mask.bounds for letter in bound[1:]}
    name = "key_blocks" if of_rows else "row_blocks"
    return TileLists(name, held, streamed, bool(axes & {"h", "hkv"}))
