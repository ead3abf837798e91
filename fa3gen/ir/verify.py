"""What a legal OpGraph is, as code: run before and after every pass."""

from __future__ import annotations

import networkx as nx

from fa3gen.errors import GraphError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import GemmPV, GemmQK, Space

__all__ = ["check_graph"]


def check_graph(graph: OpGraph) -> OpGraph:
    """Return the graph; raise GraphError for the first rule it breaks."""
    names = [op.name for op in graph.ops]
    if len(names) != len(set(names)):
        raise GraphError(f"operation names repeat: {names}")
    _check_dependences(graph, set(names))
    _check_shapes(graph)
    return graph


def _check_dependences(graph: OpGraph, names: set[str]) -> None:
    by_name = {op.name: op for op in graph.ops}
    for edge in graph.dependences:
        if not {edge.source, edge.target} <= names:
            raise GraphError(f"dependence on an operation outside the graph: {edge}")
        if edge.distance < 0:
            raise GraphError(f"dependence on a later KV tile: {edge}")
        if edge.value not in {tile.name for tile in by_name[edge.source].writes}:
            raise GraphError(f"{edge.source} does not write {edge.value}")
        if edge.value not in {tile.name for tile in by_name[edge.target].reads}:
            raise GraphError(f"{edge.target} does not read {edge.value}")
    same_tile = nx.DiGraph((e.source, e.target) for e in graph.dependences if e.distance == 0)
    if not nx.is_directed_acyclic_graph(same_tile):
        raise GraphError(f"cycle inside a KV tile: {nx.find_cycle(same_tile)}")
    for op in graph.ops:
        for tile in op.reads:
            made = any(e.target == op.name and e.value == tile.name for e in graph.dependences)
            if tile.space is not Space.GLOBAL and not made:
                raise GraphError(f"{op.name} reads {tile.name}, which nothing makes")


def _check_shapes(graph: OpGraph) -> None:
    qk, pv = graph.op(GemmQK), graph.op(GemmPV)
    q, k = qk.reads
    if (q.rows, k.rows, q.cols) != (qk.writes[0].rows, qk.writes[0].cols, k.cols):
        raise GraphError(f"GemmQK shapes do not match: {q} x {k} -> {qk.writes[0]}")
    p, v = pv.reads[:2]
    if (p.rows, v.cols, p.cols) != (pv.writes[0].rows, pv.writes[0].cols, v.rows):
        raise GraphError(f"GemmPV shapes do not match: {p} x {v} -> {pv.writes[0]}")
