"""Tile operations and the graph of one work tile."""

from fa3gen.ir.build import build_forward
from fa3gen.ir.graph import Dependence, OpGraph

__all__ = ["Dependence", "OpGraph", "build_forward"]
