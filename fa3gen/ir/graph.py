"""OpGraph: the tile operations of one work tile and what each waits for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import networkx as nx

from fa3gen.errors import GraphError
from fa3gen.ir.ops import ScoreMod, TileOp
from fa3gen.ir.score import ScoreForm

__all__ = ["Dependence", "OpGraph"]

Op = TypeVar("Op", bound=TileOp)


@dataclass(frozen=True)
class Dependence:
    """``target`` uses ``value`` made by ``source``, ``distance`` KV tiles earlier."""

    source: str
    target: str
    value: str
    distance: int


@dataclass(frozen=True)
class OpGraph:
    """Operations in the order of one KV tile's data flow, and their dependences."""

    ops: tuple[TileOp, ...]
    dependences: tuple[Dependence, ...]

    def op(self, kind: type[Op]) -> Op:
        """The one operation of a kind."""
        found = [op for op in self.ops if isinstance(op, kind)]
        if len(found) != 1:
            raise GraphError(f"expected one {kind.__name__} in the graph, found {len(found)}")
        return found[0]

    def has(self, kind: type[TileOp]) -> bool:
        """Whether the graph holds an operation of a kind."""
        return any(isinstance(op, kind) for op in self.ops)

    @property
    def score(self) -> ScoreForm | None:
        """The formula that scores go through; None where they are the product alone."""
        return self.op(ScoreMod).form if self.has(ScoreMod) else None

    @cached_property
    def networkx(self) -> nx.MultiDiGraph[str]:
        """The same as a networkx graph: nodes carry ``op``, edges ``value`` and ``distance``."""
        graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        for op in self.ops:
            graph.add_node(op.name, op=op)
        for edge in self.dependences:
            graph.add_edge(edge.source, edge.target, value=edge.value, distance=edge.distance)
        return graph

    def __str__(self) -> str:
        lines = []
        for op in self.ops:
            reads = ", ".join(tile.name for tile in op.reads)
            writes = ", ".join(
                f"{tile.name} {tile.rows}x{tile.cols} {tile.dtype.value} {tile.space.value}"
                for tile in op.writes
            )
            lines.append(
                f"{op.name:10s} {op.unit.value:12s} {op.cycles:6d} clk  {reads} -> {writes}"
            )
        for edge in self.dependences:
            if edge.distance:
                lines.append(
                    f"  {edge.source} -> {edge.target}: {edge.value}, {edge.distance} tile earlier"
                )
        return "\n".join(lines)
