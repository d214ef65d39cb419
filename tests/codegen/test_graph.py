"""The graph is what is planned and printed: a node less, or of another type, changes both."""

from __future__ import annotations

import re
from dataclasses import replace

import networkx as nx
import pytest

from attnc.codegen.graph import SETUP, STEP, GraphBuilder, KernelGraph, Node, elements
from attnc.codegen.plan import PassPlan, Plan, Request
from attnc.codegen.planning.candidate import pass_plan
from attnc.codegen.text.render import render, render_kernel
from tests.codegen.emitted import plan_of, requests

LABELS = [label for label in requests() if "_bf16" in label]
TYPED = {("load", "io"), ("map", "io"), ("map", "acc"), ("dot", "io"), ("dot", "acc")}


def printed(plan: Plan, step: PassPlan, graph: KernelGraph) -> str:
    """The kernel of a pass, had it another graph."""
    return render_kernel(plan, replace(step, kernel=replace(step.kernel, graph=graph)))


def measured(plan: Plan, step: PassPlan, graph: KernelGraph) -> PassPlan:
    """A pass with another graph, measured again."""
    kernel = replace(step.kernel, graph=graph)
    request = Request(plan.variant, plan.device, plan.dims, plan.dtype, plan.form, plan.stateful)
    return pass_plan(request, kernel, dict(step.tiles), step.num_warps, step.num_stages)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("label", LABELS)
def test_every_node_is_a_statement_of_the_text(label):
    """A node that the templates drop, or a statement that no node stands for, would pass here."""
    plan = plan_of(label)
    for step in plan.passes:
        graph = step.kernel.graph
        text = printed(plan, step, graph)
        for node in graph.nodes():
            less = printed(plan, step, graph.without(node.name))
            assert less != text, f"{step.kernel.name}: {node.name} is not printed"


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("label", LABELS)
def test_every_buffer_of_the_text_comes_from_the_graph(label):
    plan = plan_of(label)
    body = re.sub(r"#.*", "", render(plan))
    assigned = set(re.findall(r"^ +(b_\w+) = ", body, flags=re.M))
    nodes = [n for step in plan.passes for n in step.kernel.graph.nodes()]
    lines = " ".join(text for n in nodes for text in n.lines)
    made = {n.buffer for n in nodes} | set(re.findall(r"(b_\w+) = ", lines)) | {"b_i"}
    assert assigned
    assert assigned <= made, sorted(assigned - made)


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("label", LABELS)
def test_a_value_of_another_type_changes_the_sram_or_the_text(label):
    plan = plan_of(label)
    for step in plan.passes:
        graph = step.kernel.graph
        text = printed(plan, step, graph)
        for node in graph.nodes():
            if not node.shape or (node.op, node.dtype) not in TYPED:
                continue  # a load of fp32 or of indices is in that type already
            if node.op == "load" and not node.address:
                continue  # the 0-1 matrices of monomials are made in the tensors' type alone
            other = "acc" if node.dtype == "io" else "io"
            changed = graph.retyped(node.name, other)
            if printed(plan, step, changed) == text:
                again = measured(plan, step, changed).cost.sram_bytes
                assert again != step.cost.sram_bytes, f"{step.kernel.name}: {node.name}"


@pytest.mark.parametrize("name", ["flash_online_64_64_bf16", "linear_chunked_64_64_bf16"])
def test_a_load_less_takes_less_sram(name):
    plan = plan_of(name)
    step = plan.passes[-1]
    less = measured(plan, step, step.kernel.graph.without("load b_v"))
    assert less.cost.sram_bytes < step.cost.sram_bytes


@pytest.mark.rest(keep=5)
@pytest.mark.parametrize("label", LABELS)
def test_every_graph_is_acyclic_and_prints_each_node_once(label):
    for step in plan_of(label).passes:
        graph = step.kernel.graph
        assert nx.is_directed_acyclic_graph(graph.flow)
        shown = str(graph).splitlines()
        assert shown[0] == f"{step.kernel.name}: {graph.flow.number_of_nodes()} operations"
        assert len(shown) == 1 + graph.flow.number_of_nodes()


def test_a_graph_prints_region_operation_shape_and_readers():
    builder = GraphBuilder("small")
    builder.load("b_k", STEP, ("BS", "BK"), dtype="io", address="p_k", tensor="k")
    builder.map("b_x", STEP, ("BS", "BK"), "b_x = b_k * 2.0", reads=("b_k",))
    builder.store(STEP, ("BS", "BK"), "b_x", address="p_o", reads=("b_x",), tensor="o")
    assert str(builder.build()).splitlines() == [
        "small: 3 operations",
        "  step   load   load b_k       [BS, BK] io            -> map b_x",
        "  step   map    map b_x        [BS, BK] acc           -> store o",
        "  step   store  store o        [BS, BK] acc           -> -",
    ]


def test_a_graph_refuses_two_statements_of_one_name():
    builder = GraphBuilder("small")
    builder.map("b_x", STEP, (), "b_x = 1.0")
    with pytest.raises(AssertionError, match="two statements are called 'map b_x'"):
        builder.map("b_x", STEP, (), "b_x = 2.0")
    with pytest.raises(AssertionError, match="unknown operation 'jump'"):
        builder.add(Node("jump b_y", "jump", "b_y", STEP))


def test_elements_multiply_tile_letters_and_numbers():
    assert elements(("BT", "64"), {"BT": 32}) == 2048


def test_what_nothing_reads_is_not_in_the_graph():
    builder = GraphBuilder("kernel")
    builder.load("b_x", SETUP, ("BT",), address="p_x + o_t", tensor="x")
    builder.load("b_y", SETUP, ("BT",), address="p_y + b_m", lines=("b_m = o_t + 1",), tensor="y")
    builder.map("b_z", SETUP, ("BT",), "b_w = b_y + 1.0", "b_z = b_w * b_y", reads=("b_y",))
    builder.fold("b_a", SETUP, ("BT",), "b_n = 2.0", "b_a = tl.zeros([BT], ACC)")
    builder.map("b_e", STEP, ("BT",), "b_f = b_x + b_x", "b_e = b_x * 2.0", reads=("b_x",))
    builder.store(STEP, ("BT",), "b_e", address="p_o + o_t", reads=("b_e",), tensor="o")
    graph = builder.build()
    # b_z is read by nothing, then neither are b_y and what its address is made of
    assert [node.buffer for node in graph.nodes()] == ["b_x", "b_a", "b_e", ""]
    assert graph.node("map b_e").lines == ("b_e = b_x * 2.0",)
    # what a loop carries stays: its readers come around again
    assert graph.node("start b_a").lines == ("b_a = tl.zeros([BT], ACC)",)
