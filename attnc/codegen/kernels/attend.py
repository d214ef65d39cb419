"""The kernels that walk over key tiles: `online` (softmax) and `parallel` (state family).

Both hold BT query rows and fold key tiles one by one, so memory never grows with TQ * TK.
Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1; the parallel form is its sum without exp.
"""

from __future__ import annotations

import sympy

from attnc.codegen.algebra import Algebra
from attnc.codegen.graph import FINISH, SETUP, STEP, GraphBuilder, Node, Operand
from attnc.codegen.index import Axis, Loaded, load_refs
from attnc.codegen.kernel import Kernel, TensorArgument
from attnc.codegen.kernels.decay import constant_decay
from attnc.codegen.kernels.operand import join_guards, load_tile, map_features, ragged_columns
from attnc.codegen.kernels.weight import horner
from attnc.codegen.printer import Printer, number
from attnc.codegen.tile_range import condition, key_range
from attnc.dsl.variant import Variant

LOG2E = 1.4426950408889634
_AXES = {
    "b": Axis("i_b", ""),
    "h": Axis("i_h", ""),
    "hkv": Axis("i_hkv", ""),
    "row": Axis("o_t", "row", guard="m_t", tile="BT"),
    "i": Axis("b_i", "row", guard="m_t & (b_i >= 0)", tile="BT"),
    "j": Axis("o_s", "column", edge_guard="m_s", tile="BS", region=STEP),
}


def attend_kernel(
    variant: Variant,
    algebra: Algebra,
    dims: tuple[int, int],
    printer: Printer,
    *,
    min_columns: int = 16,
) -> Kernel:
    """The online or the parallel kernel of a variant at head dims (K, V)."""
    head_dim, value_dim = dims
    online = algebra.family == "softmax"
    scale = variant.scale.value(head_dim)
    ranges = key_range(algebra.mask)
    builder = GraphBuilder("online" if online else "parallel")
    loaded = _load_expression(variant, algebra)
    builder.extend(node for node in loaded.nodes if node.region == SETUP)

    k_mask = ragged_columns("m_k", head_dim)
    v_mask = ragged_columns("m_v", value_dim, min_columns)
    rows = join_guards("m_t[:, None]", k_mask)
    builder.add(
        load_tile(
            "b_q",
            "p_q",
            ("stride_q_t", "stride_q_k"),
            ("r_t", "o_k"),
            ("BT", "BK"),
            SETUP,
            guard=rows,
        )
    )
    builder.extend(map_features("b_q", algebra.phi, ("BT", "BK"), SETUP, printer, guard=rows))
    _initial(builder, algebra)

    builder.add(
        load_tile(
            "b_k",
            "p_k",
            ("stride_k_t", "stride_k_k"),
            ("r_s", "o_k"),
            ("BS", "BK"),
            STEP,
            guard=k_mask,
            edge_guard="m_s[:, None]",
            start="i_s",
        )
    )
    builder.extend(map_features("b_k", algebra.phi, ("BS", "BK"), STEP, printer, guard=k_mask))
    builder.add(
        Node(
            name="scores",
            op="dot",
            buffer="b_s",
            region=STEP,
            shape=("BT", "BS"),
            left=Operand("b_q", "b_q", ("BT", "BK")),
            right=Operand("b_k", "tl.trans(b_k)", ("BK", "BS"), transposed=True),
            note="[BT, BK] @ [BK, BS]",
        )
    )
    builder.extend(node for node in loaded.nodes if node.region == STEP)
    if online:
        _softmax_step(builder, algebra, scale, loaded, printer, v_mask)
    else:
        _weight_step(builder, variant, algebra, scale, loaded, printer, v_mask)
    _finish(builder, algebra, scale)

    tensors = [
        TensorArgument("q", ("b", "t", "h", "k"), "io", "[B, TQ, HQ, K]"),
        TensorArgument("k", ("b", "t", "h", "k"), "io", "[B, TK, HKV, K]"),
        TensorArgument("v", ("b", "t", "h", "v"), "io", "[B, TK, HKV, V]"),
    ]
    if algebra.decay == "gated":
        tensors.append(TensorArgument("gates", (), "fp64", "[B, HS, TK]: summed log2 decay"))
    tensors.extend(loaded.tensors)
    tensors.append(TensorArgument("o", (), "io", "[B, TQ, HQ, V]", written=True))
    if online:
        tensors.append(TensorArgument("lse", (), "acc", "[B, HQ, TQ]: natural log", written=True))
    scalars = ["TQ", "TK", "HQ", "HKV"]
    if algebra.decay == "gated":
        scalars.append("HS")
    return Kernel(
        name=builder.kernel,
        title="",
        tensors=tuple(tensors),
        scalars=tuple(scalars),
        constants=("K", "V", "BT", "BS", "BK", "BV"),
        graph=builder.build(),
        setup_lines=ranges.lines,
        loops=ranges.loops,
    )


def _load_expression(variant: Variant, algebra: Algebra) -> Loaded:
    expression = algebra.score if algebra.family == "softmax" else None
    refs = algebra.score_refs
    if expression is None and algebra.decay == "constant":
        expression, refs = algebra.log_decay, algebra.decay_refs
    declared = (*variant.params, *variant.inputs)
    scalars = {d.name for d in declared if not d.shape}
    used = (
        frozenset()
        if expression is None
        else frozenset(s.name for s in expression.free_symbols if s.name in scalars)
    )
    return load_refs(refs, declared, _AXES, two_lanes=True, names=used)


def _index_bindings(expression: sympy.Expr, lines: list[str], step: list[str]) -> dict[str, str]:
    """Index symbols as floats: exact to 2**24, and one type for all arithmetic."""
    names = {s.name for s in expression.free_symbols}
    bindings: dict[str, str] = {}
    scalars = {"h": "i_h", "b": "i_b", "hkv": "i_hkv", "H": "HQ", "d": "K"}
    for name, text in scalars.items():
        if name in names:
            lines.append(f"f_{name} = tl.cast({text}, ACC)")
            bindings[name] = f"f_{name}"
    if "i" in names:
        lines.append("f_i = b_i.to(ACC)")
        bindings["i"] = "f_i[:, None]"
    if "j" in names:
        step.append("f_j = o_s.to(ACC)")
        bindings["j"] = "f_j[None, :]"
    return bindings


def _initial(builder: GraphBuilder, algebra: Algebra) -> None:
    if algebra.family == "softmax":
        for name, text, note in (
            ("b_m", 'tl.full([BT], float("-inf"), ACC)', "running maximum, in log2"),
            ("b_l", "tl.zeros([BT], ACC)", "running sum"),
        ):
            builder.add(
                Node(
                    f"start {name}",
                    "fold",
                    name,
                    SETUP,
                    ("BT",),
                    note=note,
                    lines=(f"{name} = {text}",),
                    carried=True,
                )
            )
    elif algebra.normalize == "sum":
        builder.add(
            Node(
                "start b_n",
                "fold",
                "b_n",
                SETUP,
                ("BT",),
                note="running normaliser",
                lines=("b_n = tl.zeros([BT], ACC)",),
                carried=True,
            )
        )
    builder.add(
        Node(
            "start b_o",
            "fold",
            "b_o",
            SETUP,
            ("BT", "BV"),
            note="accumulator",
            lines=("b_o = tl.zeros([BT, BV], ACC)",),
            carried=True,
        )
    )


def _visible(algebra: Algebra) -> tuple[str, ...]:
    mask = algebra.mask
    lines: list[str] = []
    if mask.clauses == ((),):
        return ("m_st = m_s[None, :]",)
    text = condition(mask, "b_i[:, None]", "o_s[None, :]")
    lines.append(f"m_st = {text}")
    if not algebra.within_causal:
        # a key past TK is in reach of such a mask: padding never becomes visible
        lines.append("m_st = m_st & m_s[None, :]")
    return tuple(lines)


def _softmax_step(
    builder: GraphBuilder,
    algebra: Algebra,
    scale: float,
    loaded: Loaded,
    printer: Printer,
    v_mask: str,
) -> None:
    assert algebra.score is not None
    # with a plain score and a positive scale, scaling folds into the exponent's one multiply-add
    folded = algebra.plain_score and scale > 0
    if not folded:
        setup: list[str] = []
        step: list[str] = []
        bindings = {
            **_index_bindings(algebra.score, setup, step),
            **loaded.bindings,
            "s": "b_s",
        }
        if setup:
            builder.add(
                Node(
                    "indices",
                    "map",
                    "f_index",
                    SETUP,
                    note="indices as numbers",
                    lines=tuple(setup),
                )
            )
        lines = [*step, f"b_s = b_s * {number(scale)}"]
        if not algebra.plain_score:
            bound = Printer(bindings, printer.helpers)
            lines.extend(bound.statements("b_s", algebra.score))
        lines.append(f"b_s = b_s * {number(LOG2E)}")
        reads = ("b_s", "f_index", *(node.buffer for node in loaded.nodes))
        builder.add(
            Node(
                "score",
                "map",
                "b_s",
                STEP,
                ("BT", "BS"),
                reads=reads,
                note="the declared score, in log2",
                lines=tuple(lines),
            )
        )
    builder.add(
        Node(
            "visible",
            "map",
            "b_s",
            STEP,
            ("BT", "BS"),
            reads=("b_s",),
            masked_only=True,
            note="what the mask hides weighs exp(-inf) = 0",
            lines=(*_visible(algebra), 'b_s = tl.where(m_st, b_s, float("-inf"))'),
        )
    )
    row_max = "tl.max(b_s, 1)" + (f" * {number(scale * LOG2E)}" if folded else "")
    builder.add(
        Node(
            "maximum",
            "reduce",
            "b_mn",
            STEP,
            ("BT",),
            reads=("b_s", "b_m"),
            note="online softmax: the new maximum rescales what was summed so far",
            lines=(f"b_mn = tl.maximum(b_m, {row_max})",),
        )
    )
    builder.add(
        Node(
            "safe maximum",
            "map",
            "b_ms",
            STEP,
            ("BT",),
            reads=("b_mn",),
            lines=('b_ms = tl.where(b_mn == float("-inf"), 0.0, b_mn)',),
        )
    )
    exponent = f"b_s * {number(scale * LOG2E)}" if folded else "b_s"
    builder.add(
        Node(
            "rescale",
            "map",
            "b_a",
            STEP,
            ("BT",),
            reads=("b_m", "b_ms"),
            lines=("b_a = tl.exp2(b_m - b_ms)",),
        )
    )
    builder.add(
        Node(
            "weights",
            "map",
            "b_p",
            STEP,
            ("BT", "BS"),
            reads=("b_s", "b_ms"),
            lines=(f"b_p = tl.exp2({exponent} - b_ms[:, None])",),
        )
    )
    builder.add(
        Node(
            "fold b_l",
            "fold",
            "b_l",
            STEP,
            ("BT",),
            reads=("b_l", "b_a", "b_p"),
            lines=("b_l = b_l * b_a + tl.sum(b_p, 1)",),
            carried=True,
        )
    )
    builder.add(
        Node(
            "fold b_m",
            "fold",
            "b_m",
            STEP,
            ("BT",),
            reads=("b_mn",),
            lines=("b_m = b_mn",),
            carried=True,
        )
    )
    builder.add(
        Node(
            "rescale b_o",
            "fold",
            "b_o",
            STEP,
            ("BT", "BV"),
            reads=("b_o", "b_a"),
            lines=("b_o = b_o * b_a[:, None]",),
            carried=True,
        )
    )
    _values(builder, "b_p", v_mask)


def _weight_step(
    builder: GraphBuilder,
    variant: Variant,
    algebra: Algebra,
    scale: float,
    loaded: Loaded,
    printer: Printer,
    v_mask: str,
) -> None:
    lines = horner("b_w", "b_s", algebra.coefficients, scale, direct=algebra.direct)
    builder.add(
        Node(
            "weight",
            "map",
            "b_w",
            STEP,
            ("BT", "BS"),
            reads=("b_s",),
            note="the weight, a polynomial of s",
            lines=lines,
        )
    )
    if algebra.decay == "constant":
        assert algebra.log_decay is not None
        setup: list[str] = []
        bindings = {**_index_bindings(algebra.log_decay, setup, []), **loaded.bindings}
        setup.extend(constant_decay(algebra.log_decay, bindings, printer))
        builder.add(
            Node(
                "decay rate",
                "map",
                "b_c",
                SETUP,
                note="log2 decay a token",
                lines=tuple(setup),
                reads=tuple(n.buffer for n in loaded.nodes),
            )
        )
        builder.add(
            Node(
                "decay",
                "map",
                "b_w",
                STEP,
                ("BT", "BS"),
                reads=("b_w", "b_c"),
                note="decay from key to query: differences only, never exp of a sum alone",
                lines=(
                    "b_d = (b_i[:, None] - o_s[None, :]).to(ACC) * b_c",
                    "b_w = b_w * tl.exp2(b_d)",
                ),
            )
        )
    elif algebra.decay == "gated":
        builder.add(
            Node(
                "load b_gi",
                "load",
                "b_gi",
                SETUP,
                ("BT",),
                "fp64",
                tensor="gates",
                note="summed log2 decay of the rows",
                address="p_gates + b_i",
                guard="m_t & (b_i >= 0)",
            )
        )
        builder.add(
            Node(
                "load b_gj",
                "load",
                "b_gj",
                STEP,
                ("BS",),
                "fp64",
                tensor="gates",
                note="summed log2 decay of the keys",
                address="p_gates + o_s",
                edge_guard="m_s",
            )
        )
        builder.add(
            Node(
                "decay",
                "map",
                "b_w",
                STEP,
                ("BT", "BS"),
                reads=("b_w", "b_gi", "b_gj"),
                note="fp64 sums: their difference keeps the digits that fp32 would lose",
                lines=("b_d = (b_gi[:, None] - b_gj[None, :]).to(ACC)", "b_w = b_w * tl.exp2(b_d)"),
            )
        )
    builder.add(
        Node(
            "visible",
            "map",
            "b_w",
            STEP,
            ("BT", "BS"),
            reads=("b_w",),
            masked_only=True,
            note="what the mask hides weighs 0",
            lines=(*_visible(algebra), "b_w = tl.where(m_st, b_w, 0.0)"),
        )
    )
    if algebra.normalize == "sum":
        builder.add(
            Node(
                "fold b_n",
                "fold",
                "b_n",
                STEP,
                ("BT",),
                reads=("b_n", "b_w"),
                lines=("b_n = b_n + tl.sum(b_w.to(IO).to(ACC), 1)",),
                carried=True,
            )
        )
    _values(builder, "b_w", v_mask)


def _values(builder: GraphBuilder, weights: str, v_mask: str) -> None:
    builder.add(
        load_tile(
            "b_v",
            "p_v",
            ("stride_v_t", "stride_v_v"),
            ("r_s", "o_v"),
            ("BS", "BV"),
            STEP,
            guard=v_mask,
            edge_guard="m_s[:, None]",
            start="i_s",
        )
    )
    builder.add(
        Node(
            "values",
            "dot",
            "b_o",
            STEP,
            ("BT", "BV"),
            reads=("b_o",),
            left=Operand(weights, f"{weights}.to(b_v.dtype)", ("BT", "BS")),
            right=Operand("b_v", "b_v", ("BS", "BV")),
            into="b_o",
            note="[BT, BS] @ [BS, BV]",
            carried=True,
        )
    )


def _finish(builder: GraphBuilder, algebra: Algebra, scale: float) -> None:
    if algebra.family == "softmax":
        builder.add(
            Node(
                "normalise",
                "map",
                "b_o",
                FINISH,
                ("BT", "BV"),
                reads=("b_o", "b_l"),
                note="a row that saw nothing gives 0, and a log-sum-exp of -inf",
                lines=("b_o = b_o / tl.where(b_l > 0.0, b_l, 1.0)[:, None]",),
            )
        )
        builder.add(
            Node(
                "lse",
                "map",
                "b_lse",
                FINISH,
                ("BT",),
                reads=("b_m", "b_l"),
                lines=(f"b_lse = b_m * {number(1 / LOG2E)} + tl.log(b_l)",),
            )
        )
        builder.add(
            Node(
                "store lse",
                "store",
                "",
                FINISH,
                ("BT",),
                reads=("b_lse",),
                tensor="lse",
                address="p_lse + r_t",
                guard="m_t",
                lines=("b_lse",),
            )
        )
    elif algebra.normalize == "sum":
        builder.add(
            Node(
                "normalise",
                "map",
                "b_o",
                FINISH,
                ("BT", "BV"),
                reads=("b_o", "b_n"),
                note="a row that saw nothing gives 0",
                lines=("b_o = b_o / tl.where(b_n != 0.0, b_n, 1.0)[:, None]",),
            )
        )
    elif algebra.direct and float(algebra.coefficients[1]) * scale != 1.0:
        factor = number(float(algebra.coefficients[1]) * scale)
        builder.add(
            Node(
                "scale",
                "map",
                "b_o",
                FINISH,
                ("BT", "BV"),
                reads=("b_o",),
                note="the scale of a linear weight, once a row",
                lines=(f"b_o = b_o * {factor}",),
            )
        )
    builder.add(
        Node(
            "store o",
            "store",
            "",
            FINISH,
            ("BT", "BV"),
            reads=("b_o",),
            tensor="o",
            note="[BT, BV]",
            address="p_o + r_t[:, None] * HQ * V + o_v[None, :]",
            guard="m_t[:, None] & m_v[None, :]",
            lines=("b_o.to(o.dtype.element_ty)",),
        )
    )
