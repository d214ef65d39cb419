"""Where positions stand in a cache of keys and values: in a row of it, of a ring, or of a page."""

from __future__ import annotations

from attnc.codegen.graph import FINISH, STEP, GraphBuilder, Node

# `folded` is a ring too: the keys that leave it are in a state
CACHES = ("contiguous", "ring", "paged", "folded")


def slot_lines(cache: str, position: str) -> list[str]:
    """`o_c` = where a position stands in its cache or page; `b_page` = which page."""
    wide = "tl.cast({}, tl.int64)"
    if cache == "contiguous":
        return [f"o_c = {wide.format(position)}"]
    if cache in {"ring", "folded"}:
        return [f"o_c = {wide.format(f'{position} % C')}"]
    page = f"p_table + {position} // P * stride_block_table_n"
    load = f"tl.load({page}, mask={position} < TK, other=0)"
    return [f"b_page = {load}.to(tl.int64)", f"o_c = {wide.format(f'{position} % P')}"]


def _place(cache: str, tensor: str) -> str:
    place = f"p_{tensor} + o_c * stride_{tensor}_t"
    if cache == "paged":
        place = f"p_{tensor} + b_page * stride_{tensor}_p + o_c * stride_{tensor}_t"
    return place


def load_slots(cache: str, name: str, tensor: str, shape: tuple[str, str], guard: str) -> Node:
    """The keys or the values of a tile of positions, which `o_c` says the places of."""
    pointer = f"p_{name}t"
    rows = f"{pointer} = {_place(cache, tensor)}"
    return Node(
        f"load b_{name}", "load", f"b_{name}", STEP, shape, "io", reads=("o_c",), lines=(rows,),
        address=f"{pointer}[:, None] + o_{name}[None, :] * stride_{tensor}_{name}", guard=guard,
        edge_guard="m_s[:, None]", tensor=tensor, note=f"[{', '.join(shape)}]",
    )  # fmt: skip


def append_token(builder: GraphBuilder, cache: str, *, split: bool) -> None:
    """The first split keeps the token: no program reads its slot."""
    alone = "(TK > 0) & (i_n == 0)" if split else "TK > 0"
    lines = [*slot_lines(cache, "i_p"), f"n_k = tl.where({alone}, K, 0)"]
    builder.map("n_k", FINISH, (), *lines, f"n_v = tl.where({alone}, V, 0)", note="into the cache")
    for name, tensor, columns in (("k", "key_cache", "BK"), ("v", "value_cache", "BV")):
        place = _place(cache, tensor)
        builder.store(
            FINISH, (columns,), f"p_{name}n = {place}", f"b_{name}n", name=f"store b_{name}n",
            reads=(f"b_{name}n", "n_k"), tensor=tensor,
            address=f"p_{name}n + o_{name} * stride_{tensor}_{name}", guard=f"o_{name} < n_{name}",
        )  # fmt: skip
