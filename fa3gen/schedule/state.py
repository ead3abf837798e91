"""What a running machine is made of: values, observers, barriers, agents and what is in flight."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from fa3gen.schedule.flatten import Event
from fa3gen.schedule.program import Calc, Executor, Gemm, Role
from fa3gen.schedule.ranges import TileRange

__all__ = [
    "Agent",
    "Domain",
    "Flight",
    "MachineBarrier",
    "Monitor",
    "Operand",
    "Place",
    "Product",
    "Proxy",
    "Spans",
    "Store",
    "Touch",
    "describe",
    "overlap",
]

Spans = tuple[tuple[int, int], ...]  # byte intervals [start, end)


@dataclass(frozen=True)
class Place:
    """Where in the CTA's work an operation stands; what a Domain needs to make its value."""

    instance: int
    work: int
    tile: int
    range: TileRange


class Domain(Protocol):
    """The values a Program computes with."""

    def poison(self) -> Any:
        """A value that nothing may use."""

    def load(self, buffer: str, place: Place) -> Any:
        """The tile that TMA loads into a buffer."""

    def slab(self, value: Any, instance: int) -> Any:
        """The rows of one consumer in a tile of all query rows."""

    def gemm(self, gemm: Gemm, operands: tuple[Any, Any], accumulator: Any, place: Place) -> Any:
        """The accumulator after a product."""

    def calc(self, calc: Calc, registers: dict[str, Any], place: Place) -> dict[str, Any]:
        """The register tiles that a computation writes."""

    def stage(self, buffer: str, value: Any, place: Place) -> Any:
        """A register tile as it is written to a shared buffer."""

    def store(self, tile: str, value: Any, place: Place) -> None:
        """A tile that leaves for global memory."""


class Proxy(enum.Enum):
    """How an access reaches shared memory: by the thread itself, or by TMA and wgmma."""

    GENERIC = "generic proxy"
    ASYNC = "async proxy"


@dataclass(frozen=True)
class Touch:
    """One access to shared memory."""

    spans: Spans
    write: bool
    proxy: Proxy
    by: Executor


class Monitor(Protocol):
    """Observer of a run; raises VerificationError on a hazard."""

    def begin(self, agent: Agent, step: Event) -> None:
        """Before a step executes."""

    def access(self, agent: Agent, touch: Touch, owner: object) -> None:
        """A shared-memory access begins; ``owner`` ties it to what will end it."""

    def retire(self, agent: Agent, owner: object, by: Executor) -> None:
        """The accesses of an owner are complete for the executing threads."""

    def proxy_fence(self, agent: Agent) -> None:
        """fence.proxy.async by every thread."""

    def converge(self, agent: Agent) -> None:
        """Every thread of the warpgroup has come here."""

    def arrive(self, agent: Agent, barrier: MachineBarrier, by: Executor) -> None:
        """An arrival on a barrier in its current phase."""

    def transact(self, agent: Agent, barrier: MachineBarrier) -> None:
        """A load whose bytes will land on a barrier's current phase is issued."""

    def land(self, barrier: MachineBarrier, owner: object) -> None:
        """A TMA load has landed on a barrier's current phase."""

    def complete(self, barrier: MachineBarrier) -> None:
        """A barrier's current phase completes."""

    def observe(self, agent: Agent, barrier: MachineBarrier, phase: int, by: Executor) -> None:
        """A wait returns, having seen a phase complete."""


@dataclass
class MachineBarrier:
    """An mbarrier stage, or a named barrier: counts of its current phase."""

    name: str
    index: int  # component of the vector clock
    needed: int  # arrivals (threads, for a named barrier) that complete a phase
    phase: int = 0  # phases completed so far = index of the current one
    arrived: int = 0
    pending_bytes: int = 0
    arrivers: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} phase {self.phase}"


@dataclass(frozen=True)
class Operand:
    """What an asynchronous operation reads: a shared stage, or a register tile."""

    name: str
    stage: int | None  # None: in registers
    instance: int | None  # of the consumer whose rows are read; None: all rows
    value: Any  # that lay there at issue; None: nothing valid
    sliced: bool = False  # the value is that of all rows, of which one consumer's are read


@dataclass
class Product:
    """A wgmma from issue to retirement."""

    gemm: Gemm
    operands: tuple[Operand, ...] = ()
    result: Any = None


@dataclass
class Store:
    """A TMA store from issue to the wait that retires it."""

    operand: Operand


@dataclass
class Flight:
    """A TMA load in flight."""

    key: tuple[str, int]
    value: Any
    bytes: int
    barrier: MachineBarrier
    phase: int  # of the barrier


@dataclass
class Agent:
    """One warpgroup: an instance of a role, with its position and private state."""

    index: int
    role: Role
    instance: int
    steps: list[Event]
    pc: int = 0
    limit: int = 0  # registers a thread it owns
    registers: dict[str, Any] = field(default_factory=dict)
    opened: list[Product] = field(default_factory=list)  # issued, not committed
    groups: deque[list[Product]] = field(default_factory=deque)
    touched: set[str] = field(default_factory=set)  # register tiles not fenced for wgmma
    stores_open: list[Store] = field(default_factory=list)  # issued, not committed
    stores: deque[list[Store]] = field(default_factory=deque)
    claimed: int | None = None  # work tile it knows the CTA to be at
    ahead: int = 0  # work tile it claimed last; a CTA starts with its first one claimed
    waiting: int | None = None  # named-barrier generation it has arrived at and waits for

    @property
    def name(self) -> str:
        """The role's name, numbered if it has several instances."""
        return f"{self.role.name} {self.instance}" if self.role.instances > 1 else self.role.name

    @property
    def done(self) -> bool:
        """Whether every step has been executed."""
        return self.pc >= len(self.steps)


def describe(step: Event) -> str:
    """A step in words."""
    name = type(step.instruction).__name__
    about = [
        str(getattr(step.instruction, field_name))
        for field_name in ("barrier", "buffer", "accumulator", "cursor")
        if hasattr(step.instruction, field_name)
    ]
    kind = getattr(step.instruction, "kind", None)
    words = [name, kind.name if kind is not None else "", " ".join(dict.fromkeys(about))]
    return " ".join(word for word in words if word) + f" (work {step.work}, tile {step.tile})"


def overlap(first: Spans, second: Spans) -> bool:
    """Whether two sets of byte intervals meet."""
    return any(a < d and c < b for a, b in first for c, d in second)
