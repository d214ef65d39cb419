"""From which side a pass walks the pairs: rows hold queries (`dq`), or rows hold keys (`dkv`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.codegen.graph import HEAD, SETUP, STEP, Operand
from attnc.codegen.index import Axis
from attnc.codegen.kernels.terms import Part


@dataclass(frozen=True, slots=True)
class Side:
    """One orientation of the tile of pairs.

    `i` and `j` spread a vector of queries or of keys over the tile; `query` and `key` are the
    regions where a program loads them; `head` is where its query head is known.
    """

    kernel: str
    tile: tuple[str, str]
    i: str
    j: str
    query: str
    key: str
    head: str
    axes: Mapping[str, Axis]

    def pairs(self, part: Part) -> tuple[Operand, Operand]:
        """The operands of the score product of one weight."""
        if self.kernel == "dq":
            left = Operand(part.query, part.query, ("BT", "BK"))
            return left, Operand("b_k", "tl.trans(b_k)", ("BK", "BS"), transposed=True)
        left = Operand(part.key, part.key, ("BS", "BK"))
        return left, Operand("b_q", "tl.trans(b_q)", ("BK", "BT"), transposed=True)

    @property
    def outputs(self) -> tuple[Operand, Operand]:
        """The operands of do . v."""
        if self.kernel == "dq":
            left = Operand("b_do", "b_do", ("BT", "BV"))
            return left, Operand("b_v", "tl.trans(b_v)", ("BV", "BS"), transposed=True)
        left = Operand("b_v", "b_v", ("BS", "BV"))
        return left, Operand("b_do", "tl.trans(b_do)", ("BV", "BT"), transposed=True)


ROWS = Side(
    "dq", ("BT", "BS"), "[:, None]", "[None, :]", query=SETUP, key=STEP, head=SETUP,
    axes={
        "b": Axis("i_b", ""),
        "h": Axis("i_h", ""),
        "hkv": Axis("i_hkv", ""),
        "row": Axis("o_t", "row", guard="m_t", tile="BT"),
        "i": Axis("b_i", "row", guard="m_t & (b_i >= 0)", tile="BT"),
        "j": Axis("o_s", "column", edge_guard="m_s", tile="BS", region=STEP),
    },
)  # fmt: skip
COLUMNS = Side(
    "dkv", ("BS", "BT"), "[None, :]", "[:, None]", query=STEP, key=SETUP, head=HEAD,
    axes={
        "b": Axis("i_b", ""),
        "h": Axis("i_h", "", region=HEAD),
        "hkv": Axis("i_hkv", ""),
        "row": Axis("o_t", "column", edge_guard="m_t", tile="BT", region=STEP),
        "i": Axis("b_i", "column", guard="b_i >= 0", edge_guard="m_t", tile="BT", region=STEP),
        "j": Axis("o_s", "row", guard="m_s", tile="BS"),
    },
)  # fmt: skip
