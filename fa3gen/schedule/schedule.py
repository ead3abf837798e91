"""Schedule: for each operation its role, pipeline stage and slot; tiles, memory and registers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fa3gen.dtypes import DType
from fa3gen.ir.graph import OpGraph
from fa3gen.schedule.cost import Cost
from fa3gen.schedule.modulo import ModuloSchedule, Origin
from fa3gen.schedule.ranges import KeyBounds
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import Maxima

__all__ = [
    "BarrierPlan",
    "BufferPlan",
    "Candidate",
    "Choice",
    "MemoryPlan",
    "Persistence",
    "Placement",
    "RegisterPlan",
    "RegisterUse",
    "RoleName",
    "Schedule",
    "Tiling",
]


class RoleName(enum.Enum):
    """Warp-specialised roles."""

    PRODUCER = "producer"
    CONSUMER = "consumer"


class Persistence(enum.Enum):
    """How work tiles reach CTAs."""

    NONE = "one work tile a CTA"
    STATIC = "CTA i takes work tiles i, i + grid, ..."
    DYNAMIC = "a CTA claims its next work tile from a counter"


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and pipeline knobs, chosen or asked for.

    ``block_m`` query rows of a work tile over ``warpgroups`` consumers; ``block_n`` keys of a KV
    tile; ``stages`` buffers of K and, separately, of V; ``overlap`` 1 runs QK, softmax and PV of a
    tile in sequence, 2 leaves PV of the tile before in flight during the softmax, 3 also QK of the
    tile after; ``p_shared``: P reaches its product through shared memory; ``specialized``: a
    producer warpgroup loads, else a thread of the first consumer.
    """

    block_m: int
    block_n: int
    warpgroups: int
    stages: int
    overlap: int
    pingpong: bool
    persistence: Persistence
    producer_registers: int  # that the producer's work takes, of each thread
    p_shared: bool = False
    specialized: bool = True
    o_over: str | None = None  # the buffer that O is staged over
    ctas_per_sm: int = 1
    maxima: Maxima = Maxima.EXACT


@dataclass(frozen=True)
class Candidate:
    """A tile of (query rows, keys) and what the model says of it."""

    tile: tuple[int, int]
    cost: Cost


@dataclass(frozen=True)
class Choice:
    """Why a tile: the candidates, the chosen one first, and how many more did not fit."""

    candidates: tuple[Candidate, ...]
    unfit: int

    def __str__(self) -> str:
        lines = [
            f"{'':9s} {'clk a row':>9s} {'interval':>9s} {'tensor':>7s}  bound by",
            *(_line(candidate) for candidate in self.candidates[:_SHOWN]),
        ]
        more = max(len(self.candidates) - _SHOWN, 0)
        return "\n".join([*lines, f"{more} more fit, {self.unfit} do not"])


_SHOWN = 6  # candidates printed


def _line(candidate: Candidate) -> str:
    cost, (rows, keys) = candidate.cost, candidate.tile
    return (
        f"{rows:4d}x{keys:<4d} {cost.cycles_per_row:9.1f} {cost.interval:9.0f} "
        f"{100 * cost.utilisation:5.0f} %  {cost.bound}"
    )


@dataclass(frozen=True)
class Placement:
    """Where an operation runs: for KV tile j in iteration j + ``stage``, in ``slot`` order."""

    op: str
    role: RoleName
    stage: int
    slot: int


@dataclass(frozen=True)
class BufferPlan:
    """One shared-memory buffer; ``over`` names the buffer whose bytes it shares, if any."""

    tile: str
    offset: int
    rows: int
    cols: int
    dtype: DType
    stages: int
    over: str | None

    @property
    def bytes(self) -> int:
        """Bytes of all stages."""
        return self.rows * self.cols * self.dtype.bytes * self.stages


@dataclass(frozen=True)
class BarrierPlan:
    """One array of mbarriers."""

    name: str
    offset: int
    stages: int
    arrivals: int


@dataclass(frozen=True)
class MemoryPlan:
    """Shared memory of a CTA."""

    buffers: tuple[BufferPlan, ...]
    barriers: tuple[BarrierPlan, ...]
    bytes: int

    def buffer(self, tile: str) -> BufferPlan:
        """The buffer of a tile value."""
        return next(buffer for buffer in self.buffers if buffer.tile == tile)


@dataclass(frozen=True)
class RegisterUse:
    """Registers of a consumer thread taken by one tile value."""

    tile: str
    registers: int


@dataclass(frozen=True)
class RegisterPlan:
    """Registers a thread: granted at launch, then moved between the roles by setmaxnreg."""

    uses: tuple[RegisterUse, ...]
    launch: int
    producer: int
    consumer: int

    @property
    def needs(self) -> int:
        """Registers that a consumer thread's tiles and addresses take."""
        return sum(use.registers for use in self.uses)


@dataclass(frozen=True)
class Schedule:
    """Everything the lowering needs; passes fill it in the order of the fields."""

    spec: AttentionSpec
    tiling: Tiling
    graph: OpGraph
    bounds: KeyBounds
    placements: tuple[Placement, ...] = ()
    memory: MemoryPlan | None = None
    registers: RegisterPlan | None = None
    choice: Choice | None = None
    modulo: ModuloSchedule | None = None  # the steady loop as solved
    origin: Origin | None = None
    max_keys: int | None = None  # the most keys of a call that takes it; None: any number

    @property
    def depth(self) -> int:
        """Iterations between the first and the last operation of a KV tile."""
        return max(placement.stage for placement in self.placements)

    @property
    def threads(self) -> int:
        """Threads of a CTA: the producer warpgroup, if there is one, and the consumers."""
        return 128 * (self.tiling.specialized + self.tiling.warpgroups)

    @property
    def lag(self) -> int:
        """Iterations between the product Q K^T of a KV tile and its softmax."""
        return next(place.stage for place in self.placements if place.op == "RowMax")

    @property
    def score_tiles(self) -> int:
        """KV tiles whose scores a warpgroup holds at a time."""
        return self.lag + 1

    @property
    def longest_first(self) -> bool:
        """Whether work tiles differ in length, so that the long ones should start first."""
        return self.bounds.masks_right or self.bounds.masks_left

    def of_role(self, role: RoleName) -> tuple[Placement, ...]:
        """A role's loop operations in slot order."""
        return tuple(
            sorted((p for p in self.placements if p.role is role), key=lambda place: place.slot)
        )
