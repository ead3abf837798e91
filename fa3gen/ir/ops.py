"""Tile operations: the nodes of an OpGraph.

An operation reads and writes *tile values*: a matrix of one element type in one memory space. Each
knows the functional unit that bounds it and how many cycles of that unit one CTA's tile costs
(rates measured on an H200: a warpgroup MMA of m64nNk16 takes N/2 cycles, the special-function unit
handles 16 lanes a cycle, FMA 128, ALU 64).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import sympy

from fa3gen.dtypes import DType
from fa3gen.ir.score import PLAIN, ScoreForm

__all__ = [
    "AddBias",
    "ConvertP",
    "Exp",
    "GemmPV",
    "GemmQK",
    "LoadBias",
    "LoadK",
    "LoadQ",
    "LoadV",
    "Mask",
    "Normalize",
    "Rescale",
    "RowMax",
    "RowSum",
    "Scope",
    "ScoreMod",
    "Space",
    "StoreLSE",
    "StoreO",
    "Tile",
    "TileOp",
    "Unit",
]


class Unit(enum.Enum):
    """The functional unit that bounds an operation."""

    TMA = "TMA"
    TENSOR = "tensor core"
    MUFU = "MUFU"
    FMA = "FMA"
    ALU = "ALU"


class Space(enum.Enum):
    """Where a tile value lives."""

    GLOBAL = "global"
    SHARED = "shared"
    REGISTER = "register"


class Scope(enum.Enum):
    """How often an operation runs in a work tile (one block of query rows of one head)."""

    BEFORE = "once, before the KV tiles"
    LOOP = "per KV tile"
    AFTER = "once, after the KV tiles"


@dataclass(frozen=True)
class Tile:
    """A tile value: ``rows`` x ``cols`` elements of ``dtype`` in ``space``."""

    name: str
    rows: int
    cols: int
    dtype: DType
    space: Space

    @property
    def bytes(self) -> int:
        """Size of the whole tile in bytes."""
        return self.rows * self.cols * self.dtype.bytes

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.rows * self.cols


@dataclass(frozen=True)
class TileOp:
    """One operation on the tiles of a CTA."""

    reads: tuple[Tile, ...]
    writes: tuple[Tile, ...]

    unit = Unit.ALU
    scope = Scope.LOOP

    @property
    def name(self) -> str:
        """The operation's name, unique in a graph."""
        return type(self).__name__

    @property
    def cycles(self) -> int:
        """Cycles of ``unit`` that the operation needs, on one SM."""
        return -(-max(tile.elements for tile in self.writes) // 64)


class _Load(TileOp):
    """A TMA load of one tile into shared memory."""

    unit = Unit.TMA

    @property
    def cycles(self) -> int:
        return -(-self.writes[0].bytes // 32)  # about 32 B a cycle and SM from L2


class LoadQ(_Load):
    """Q tile: (m, head_dim_qk)."""

    scope = Scope.BEFORE


class LoadK(_Load):
    """K tile: (n, head_dim_qk)."""


class LoadV(_Load):
    """V tile: (n, head_dim_v)."""


class LoadBias(_Load):
    """Tile of an input that is added to the scores: (m, n)."""


class _Gemm(TileOp):
    """A warpgroup MMA, asynchronous from issue to wait."""

    unit = Unit.TENSOR

    @property
    def inner(self) -> int:
        """Length of the contracted dimension."""
        return self.reads[0].cols

    @property
    def cycles(self) -> int:
        rate = 4096 // 2 * (2 // self.reads[0].dtype.bytes)  # multiply-adds a cycle and SM
        return -(-self.writes[0].elements * self.inner // rate)


class GemmQK(_Gemm):
    """S = Q K^T: (m, n) fp32."""


class GemmPV(_Gemm):
    """O += P V: (m, head_dim_v) fp32."""


class AddBias(TileOp):
    """S = S + the bias over the softmax scale."""

    unit = Unit.FMA

    @property
    def cycles(self) -> int:
        return -(-2 * self.writes[0].elements // 128)  # conversion, multiply-add


@dataclass(frozen=True)
class Mask(TileOp):
    """S = S where ``keep`` holds, -inf elsewhere; ``keep`` also bounds keys by seqlen_k."""

    keep: sympy.Basic = sympy.true


@dataclass(frozen=True)
class ScoreMod(TileOp):
    """S = what a formula makes of S times the softmax scale, over the formula's factor."""

    form: ScoreForm = PLAIN

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        return Unit.MUFU if self.form.special else Unit.FMA

    @property
    def cycles(self) -> int:
        elements = self.writes[0].elements
        if self.form.special:
            return -(-elements * self.form.special // 16)
        return -(-elements * max(self.form.arithmetic, 1) // 128)


class RowMax(TileOp):
    """m' = max(m, rowmax S); alpha = 2^((m - m') * scale_log2)."""

    @property
    def cycles(self) -> int:
        return -(-self.reads[0].elements // 64)


class Exp(TileOp):
    """S = 2^((S - m') * scale_log2), in place."""

    unit = Unit.MUFU

    @property
    def cycles(self) -> int:
        return -(-self.writes[0].elements // 16)


class RowSum(TileOp):
    """l' = l * alpha + rowsum S."""

    unit = Unit.FMA

    @property
    def cycles(self) -> int:
        return -(-self.reads[0].elements // 128)


class ConvertP(TileOp):
    """P = S in the operand's type."""


class Rescale(TileOp):
    """O = O * alpha."""

    unit = Unit.FMA

    @property
    def cycles(self) -> int:
        return -(-self.writes[0].elements // 128)


@dataclass(frozen=True)
class Normalize(TileOp):
    """O = O / l; lse = m * scale + ln l. ``sink``: the input whose exponential joins l."""

    sink: str | None = None

    unit = Unit.FMA
    scope = Scope.AFTER


class StoreLSE(TileOp):
    """LSE rows to global memory."""

    scope = Scope.AFTER


class StoreO(TileOp):
    """O through shared memory to global memory, by TMA."""

    unit = Unit.TMA
    scope = Scope.AFTER
