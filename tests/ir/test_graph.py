"""The op graph of one work tile: its data flow, its rules and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
import sympy

from fa3gen.dtypes import DType
from fa3gen.errors import GraphError, UnsupportedError
from fa3gen.ir import Dependence, OpGraph, build_forward
from fa3gen.ir.build import check_supported
from fa3gen.ir.ops import (
    ConvertP,
    Exp,
    GemmPV,
    GemmQK,
    LoadK,
    LoadQ,
    Mask,
    RowMax,
    RowSum,
    Scope,
    Space,
    Tile,
    Unit,
)
from fa3gen.ir.verify import check_graph
from fa3gen.spec import AttentionSpec
from fa3gen.spec.symbols import k, q, seqlen_k


def forward(**spec: Any) -> OpGraph:
    return build_forward(AttentionSpec(**{"head_dim": 128, **spec}), 128, 176)


def test_the_data_flow_of_attention() -> None:
    graph = forward(mask="causal")
    edges = {(e.source, e.target, e.value, e.distance) for e in graph.dependences}
    assert edges >= {
        ("LoadQ", "GemmQK", "Q", 0),
        ("LoadK", "GemmQK", "K", 0),
        ("GemmQK", "Mask", "S", 0),
        ("Mask", "RowMax", "S", 0),
        ("RowMax", "Exp", "row_max", 0),
        ("Exp", "ConvertP", "S", 0),
        ("ConvertP", "GemmPV", "P", 0),
        ("LoadV", "GemmPV", "V", 0),
        ("Rescale", "GemmPV", "O", 0),
        ("GemmPV", "Normalize", "O", 0),
        ("Normalize", "StoreO", "O", 0),
        ("Normalize", "StoreLSE", "lse", 0),
    }
    carried = {(source, target, value) for source, target, value, distance in edges if distance}
    assert carried == {
        ("RowMax", "RowMax", "row_max"),
        ("RowSum", "RowSum", "row_sum"),
        ("GemmPV", "Rescale", "O"),
    }


def test_every_value_read_in_the_kernel_is_made_there() -> None:
    graph = forward()
    made = {tile.name for op in graph.ops for tile in op.writes}
    for op in graph.ops:
        for tile in op.reads:
            assert tile.space is Space.GLOBAL or tile.name in made


@pytest.mark.parametrize(("qk", "v"), [(128, 128), (64, 64), (192, 128), (24, 16)])
def test_shapes(qk: int, v: int) -> None:
    graph = forward(head_dim={"qk": qk, "v": v})
    s, o = graph.op(GemmQK).writes[0], graph.op(GemmPV).writes[0]
    assert (s.rows, s.cols, s.dtype) == (128, 176, DType.FP32)
    assert (o.rows, o.cols, o.dtype) == (128, v, DType.FP32)
    assert graph.op(GemmQK).inner == qk
    assert graph.op(GemmPV).inner == 176
    assert graph.op(LoadQ).writes[0].bytes == 128 * qk * 2
    assert graph.op(ConvertP).writes[0].dtype is DType.BF16


def test_the_mask_also_bounds_the_keys() -> None:
    assert forward(mask="full").op(Mask).keep == sympy.Lt(k, seqlen_k)
    assert forward(mask="causal").op(Mask).keep == sympy.And(sympy.Le(k, q), sympy.Lt(k, seqlen_k))


def test_operations_cost_cycles_of_their_unit() -> None:
    graph = forward()
    assert {op.unit for op in graph.ops} >= {Unit.TMA, Unit.TENSOR, Unit.MUFU, Unit.FMA, Unit.ALU}
    assert graph.op(GemmQK).cycles == 128 * 176 * 128 // 2048
    assert graph.op(Exp).cycles == 128 * 176 // 16
    assert all(op.cycles > 0 for op in graph.ops)
    assert [op.name for op in graph.ops if op.scope is Scope.BEFORE] == ["LoadQ"]


def test_the_networkx_view_is_the_same_graph() -> None:
    graph = forward()
    view = graph.networkx
    assert [view.nodes[name]["op"] for name in view.nodes] == list(graph.ops)
    edges = {(a, b, d["value"], d["distance"]) for a, b, d in view.edges(data=True)}
    assert edges == {(e.source, e.target, e.value, e.distance) for e in graph.dependences}
    inner = nx.DiGraph((a, b) for a, b, _, distance in edges if distance == 0)
    assert nx.is_directed_acyclic_graph(inner)


def test_operations_are_found_by_kind() -> None:
    graph = forward()
    assert graph.has(RowSum)
    assert graph.op(RowMax).name == "RowMax"
    without = replace(graph, ops=tuple(op for op in graph.ops if op.name != "LoadK"))
    assert not without.has(LoadK)
    with pytest.raises(GraphError, match="expected one LoadK in the graph, found 0"):
        without.op(LoadK)


def test_a_graph_prints_itself() -> None:
    text = str(forward())
    for op in forward().ops:
        assert op.name in text
    assert "S 128x176 fp32 register" in text
    assert "GemmPV -> Rescale: O, 1 tile earlier" in text


# --- the rules ------------------------------------------------------------------------------------


def test_a_built_graph_is_legal() -> None:
    graph = forward(mask="window(10, 3)")
    assert check_graph(graph) is graph


@pytest.mark.parametrize(
    ("edge", "rule"),
    [
        (Dependence("LoadK", "Nothing", "K", 0), "outside the graph"),
        (Dependence("LoadK", "GemmQK", "K", -1), "later KV tile"),
        (Dependence("LoadK", "GemmQK", "V", 0), "LoadK does not write V"),
        (Dependence("LoadK", "GemmPV", "K", 0), "GemmPV does not read K"),
        (Dependence("GemmPV", "Rescale", "O", 0), "cycle inside a KV tile"),
    ],
)
def test_an_illegal_dependence_is_refused(edge: Dependence, rule: str) -> None:
    graph = forward()
    with pytest.raises(GraphError, match=rule):
        check_graph(replace(graph, dependences=(*graph.dependences, edge)))


def test_a_value_must_come_from_somewhere() -> None:
    graph = forward()
    kept = tuple(e for e in graph.dependences if e.value != "P")
    with pytest.raises(GraphError, match="GemmPV reads P, which nothing makes"):
        check_graph(replace(graph, dependences=kept))


def test_names_are_unique() -> None:
    graph = forward()
    with pytest.raises(GraphError, match="names repeat"):
        check_graph(replace(graph, ops=(*graph.ops, graph.ops[0])))


@pytest.mark.parametrize(
    ("kind", "operand", "rule"), [(GemmQK, 1, "GemmQK shapes"), (GemmPV, 1, "GemmPV shapes")]
)
def test_products_need_matching_shapes(kind: type[GemmQK], operand: int, rule: str) -> None:
    graph = forward()
    product = graph.op(kind)
    reads = list(product.reads)
    reads[operand] = Tile(reads[operand].name, 48, 72, DType.BF16, Space.SHARED)
    wrong = replace(product, reads=tuple(reads))
    ops = tuple(wrong if op is product else op for op in graph.ops)
    with pytest.raises(GraphError, match=rule):
        check_graph(replace(graph, ops=ops))


# --- what this release refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"dtype": "e4m3"}, "dtype"),
        ({"passes": ["forward", "backward"]}, "passes"),
    ],
)
def test_what_cannot_be_compiled_yet_is_refused_by_key(spec: dict[str, Any], key: str) -> None:
    asked = AttentionSpec(**{"head_dim": 128, **spec})
    for refuse in (check_supported, lambda spec: build_forward(spec, 128, 128)):
        with pytest.raises(UnsupportedError, match=key):
            refuse(asked)
