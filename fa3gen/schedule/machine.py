"""The abstract machine that runs a Program: one ``step`` for the verifier and the interpreter.

Control, synchronisation and resources are here; values go through a ``Domain`` (tokens for the
verifier, CPU tensors for the interpreter). Asynchronous operations take the worst case: a TMA load
lands only when nothing else can run, a product's operands stay in use and its result stays poison
until the wait that retires it.

With a ``Monitor`` the same run also checks happens-before: see ``fa3gen.schedule.hazards``.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fa3gen.errors import VerificationError
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.flatten import Step, flatten
from fa3gen.schedule.program import (
    Arrive,
    Calc,
    CalcKind,
    Executor,
    Expect,
    FenceBarrierInit,
    Gemm,
    InitBarrier,
    Load,
    NamedArrive,
    NamedSync,
    Program,
    ProxyFence,
    Role,
    SetRegisters,
    StageOut,
    StoreRows,
    SyncCta,
    TmaStore,
    TmaStoreCommit,
    TmaStoreWait,
    Wait,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)
from fa3gen.schedule.ranges import TileRange

__all__ = [
    "Agent",
    "Domain",
    "Machine",
    "MachineBarrier",
    "Monitor",
    "Place",
    "Proxy",
    "Spans",
    "Touch",
    "describe",
    "overlap",
]

Spans = tuple[tuple[int, int], ...]  # byte intervals [start, end)


_ARRIVALS = {
    Executor.ELECTED: 1,
    Executor.EACH_WARP: HOPPER.warpgroup // 32,
    Executor.ALL: HOPPER.warpgroup,
}


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

    def calc(self, kind: CalcKind, registers: dict[str, Any], place: Place) -> dict[str, Any]:
        """The register tiles that a computation writes."""

    def stage(self, value: Any, place: Place) -> Any:
        """A register tile as it is written to shared memory."""

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

    def begin(self, agent: Agent, step: Step) -> None:
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

    def observe(self, agent: Agent, barrier: MachineBarrier, phase: int) -> None:
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


@dataclass
class _Product:
    """A wgmma from issue to retirement."""

    gemm: Gemm
    place: Place
    operands: tuple[tuple[str, Any], ...]  # shared-memory key or register name, value at issue
    result: Any


@dataclass
class _Flight:
    """A TMA load in flight."""

    key: tuple[str, int]
    spans: Spans
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
    steps: list[Step]
    pc: int = 0
    limit: int = 0  # registers a thread it owns
    registers: dict[str, Any] = field(default_factory=dict)
    opened: list[_Product] = field(default_factory=list)  # issued, not committed
    groups: deque[list[_Product]] = field(default_factory=deque)
    touched: set[str] = field(default_factory=set)  # register tiles not fenced for wgmma
    stores_open: list[object] = field(default_factory=list)
    stores: deque[list[object]] = field(default_factory=deque)
    waiting: int | None = None  # named-barrier generation it has arrived at and waits for

    @property
    def name(self) -> str:
        """The role's name, numbered if it has several instances."""
        return f"{self.role.name} {self.instance}" if self.role.instances > 1 else self.role.name

    @property
    def done(self) -> bool:
        """Whether every step has been executed."""
        return self.pc >= len(self.steps)


class Machine:
    """One CTA running a Program over some work tiles."""

    def __init__(
        self,
        program: Program,
        work: Sequence[TileRange],
        domain: Domain,
        monitor: Monitor | None = None,
    ) -> None:
        self.program, self.work, self.domain, self.monitor = program, work, domain, monitor
        warpgroups = program.threads // HOPPER.warpgroup
        lanes = HOPPER.registers // HOPPER.warpgroup
        step = HOPPER.register_step
        launch = min(lanes // warpgroups // step * step, HOPPER.max_registers)
        self.spare_registers = 0
        self.agents = [
            Agent(
                -1,
                role,
                instance,
                flatten(program, role, instance, work),
                limit=launch,
                touched={tile.name for tile in program.tiles},
            )
            for role in program.roles
            for instance in range(role.instances)
        ]
        for index, agent in enumerate(self.agents):
            agent.index = index
        self.mbarriers: dict[tuple[str, int], MachineBarrier] = {}
        self.named: dict[int, MachineBarrier] = {}
        self.flights: deque[_Flight] = deque()
        self.shared: dict[tuple[str, int, int], tuple[Spans, Any]] = {}
        self.ready: set[str] = set()  # barrier set-up done so far
        self._setup()

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run every role to its end; VerificationError on deadlock or on any broken rule."""
        while True:
            progress = False
            for agent in self.agents:
                while not agent.done and self.step(agent):
                    progress = True
            if all(agent.done for agent in self.agents) and not self.flights:
                break
            if not progress and not self.land():
                raise VerificationError(self._deadlock())
        self._check_exit()

    def step(self, agent: Agent) -> bool:
        """Execute an agent's next step; False if it must wait."""
        step = agent.steps[agent.pc]
        if self.monitor is not None:
            self.monitor.begin(agent, step)
        try:
            if not self._execute(agent, step):
                return False
        except VerificationError as error:
            raise VerificationError(f"{agent.name}, {describe(step)}: {error}") from None
        agent.pc += 1
        return True

    def land(self, which: int = 0) -> bool:
        """Complete a TMA load in flight, the oldest by default; False if there is none."""
        if not self.flights:
            return False
        flight = self.flights[which]
        del self.flights[which]
        barrier = flight.barrier
        if barrier.phase != flight.phase:
            raise VerificationError(f"phase error: a load for phase {flight.phase} lands {barrier}")
        self._put((*flight.key, -1), flight.spans, flight.value)
        if self.monitor is not None:
            self.monitor.land(barrier, flight)
        barrier.pending_bytes -= flight.bytes
        self._settle(barrier)
        return True

    def _execute(self, agent: Agent, step: Step) -> bool:
        instruction = step.instruction
        match instruction:
            case Wait():
                return self._wait(agent, step, instruction)
            case Expect():
                barrier = self._at_phase(instruction.barrier, step)
                barrier.pending_bytes += instruction.bytes
                self._arrive(agent, barrier, 1, Executor.ELECTED)
            case Arrive():
                barrier = self._at_phase(instruction.barrier, step)
                self._arrive(agent, barrier, _ARRIVALS[instruction.by], instruction.by)
            case NamedSync() | NamedArrive():
                return self._named(agent, step, instruction)
            case Load():
                self._load(agent, step, instruction)
            case Gemm():
                self._gemm(agent, step, instruction)
            case WgmmaFence():
                agent.touched -= set(instruction.registers)
            case WgmmaCommit():
                if not agent.opened:
                    raise VerificationError("commit of an empty wgmma group")
                agent.groups.append(agent.opened)
                agent.opened = []
            case WgmmaWait():
                self._wgmma_wait(agent, instruction)
            case Calc():
                self._calc(agent, step, instruction)
            case StageOut():
                self._stage_out(agent, step, instruction)
            case ProxyFence():
                if self.monitor is not None:
                    self.monitor.proxy_fence(agent)
            case TmaStore():
                self._tma_store(agent, step, instruction)
            case TmaStoreCommit():
                if not agent.stores_open:
                    raise VerificationError("commit of an empty TMA store group")
                agent.stores.append(agent.stores_open)
                agent.stores_open = []
            case TmaStoreWait():
                self._tma_store_wait(agent, instruction)
            case StoreRows():
                value = self._read_register(agent, instruction.source)
                self.domain.store(instruction.source, value, self._place(agent, step))
            case SetRegisters():
                return self._set_registers(agent, instruction)
            case _:
                raise VerificationError("instruction of the set-up inside a role")
        return True

    # --- barriers ---------------------------------------------------------------------------------

    def _setup(self) -> None:
        """Run the set-up by thread 0; what it lacks is found by the first use."""
        index = len(self.agents)
        for instruction in self.program.setup:
            match instruction:
                case InitBarrier(name, arrivals):
                    declared = self.program.barrier(name)
                    if self.ready:
                        raise VerificationError(f"{name} is initialised after the fence or sync")
                    for stage in range(declared.stages):
                        self.mbarriers[name, stage] = MachineBarrier(
                            f"{name}[{stage}]", index, arrivals
                        )
                        index += 1
                case FenceBarrierInit():
                    if "sync" not in self.ready:
                        self.ready.add("fence")
                case SyncCta():
                    self.ready.add("sync")
                case _:
                    raise VerificationError(f"{instruction} in the set-up")
        for barrier in self.program.named:
            for slot in range(barrier.instances):
                key = barrier.first_id + slot
                if not 0 < key < HOPPER.named_barriers:
                    raise VerificationError(
                        f"too many named barriers: {barrier.name}[{slot}] would have id {key}, "
                        f"of 1 .. {HOPPER.named_barriers - 1} (0 is the CTA's)"
                    )
                if key in self.named:
                    raise VerificationError(
                        f"named barrier {key} serves both {self.named[key].name} and "
                        f"{barrier.name}[{slot}]"
                    )
                self.named[key] = MachineBarrier(f"{barrier.name}[{slot}]", index, barrier.threads)
                index += 1
        self.clock_size = index

    def _mbarrier(self, name: str, stage: int) -> MachineBarrier:
        if (name, stage) not in self.mbarriers:
            raise VerificationError(f"{name}[{stage}] is not initialised")
        if "sync" not in self.ready:
            raise VerificationError(f"{name} may be used before its initialisation: no CTA sync")
        if "fence" not in self.ready:
            raise VerificationError(f"{name} is initialised but not fenced for the async proxy")
        return self.mbarriers[name, stage]

    def _at_phase(self, name: str, step: Step) -> MachineBarrier:
        """The mbarrier that a step arrives at, in the phase that the step means."""
        barrier = self._mbarrier(name, step.stage)
        if barrier.phase != step.phase:
            raise VerificationError(f"phase error: arrives at {barrier}, meant phase {step.phase}")
        return barrier

    def _wait(self, agent: Agent, step: Step, wait: Wait) -> bool:
        barrier = self._mbarrier(wait.barrier, step.stage)
        parity = (step.phase & 1) ^ wait.flip
        if (barrier.phase & 1) == parity:  # the phase of this parity is the current one
            if barrier.phase > step.phase:
                raise VerificationError(f"phase error: {barrier} is past phase {step.phase}")
            return False
        if barrier.phase - 1 != step.phase:
            raise VerificationError(
                f"phase error: sees phase {barrier.phase - 1} of {barrier.name} complete, "
                f"waits for {step.phase}"
            )
        if self.monitor is not None:
            self.monitor.observe(agent, barrier, step.phase)
        return True

    def _arrive(self, agent: Agent, barrier: MachineBarrier, count: int, by: Executor) -> None:
        if self.monitor is not None:
            self.monitor.arrive(agent, barrier, by)
        barrier.arrived += count
        barrier.arrivers.append(agent.index)
        if barrier.arrived > barrier.needed:
            raise VerificationError(
                f"unbalanced arrivals: {barrier.arrived} of {barrier.needed} on {barrier}"
            )
        self._settle(barrier)

    def _settle(self, barrier: MachineBarrier) -> None:
        """Complete the current phase once all arrivals and bytes are in."""
        if barrier.arrived != barrier.needed or barrier.pending_bytes:
            return
        if self.monitor is not None:
            self.monitor.complete(barrier)
        barrier.phase += 1
        barrier.arrived = 0
        barrier.arrivers = []

    def _named(self, agent: Agent, step: Step, instruction: NamedSync | NamedArrive) -> bool:
        barrier = self.named[self._named_id(step, instruction)]
        if agent.waiting is None:
            if instruction.threads != barrier.needed:
                raise VerificationError(
                    f"{barrier.name} is for {barrier.needed} threads, not {instruction.threads}"
                )
            if agent.index in barrier.arrivers:
                raise VerificationError(f"arrives twice in one generation of {barrier.name}")
            generation = barrier.phase
            converges = isinstance(instruction, NamedSync)
            if self.monitor is not None and converges:
                self.monitor.converge(agent)
            self._arrive(agent, barrier, HOPPER.warpgroup, Executor.ALL)
            if not converges:
                return True
            agent.waiting = generation
        if barrier.phase <= agent.waiting:
            return False
        if self.monitor is not None:
            self.monitor.observe(agent, barrier, agent.waiting)
        agent.waiting = None
        return True

    # --- shared memory ----------------------------------------------------------------------------

    def _spans(self, name: str, stage: int, instance: int | None) -> Spans:
        """Bytes of a stage: all of it, or the rows of one consumer."""
        buffer = self.program.buffer(name)
        if instance is None:
            return buffer.intervals(stage, 0, buffer.rows)
        return buffer.intervals(stage, instance * HOPPER.wgmma_rows, HOPPER.wgmma_rows)

    def _poison(self, spans: Spans) -> None:
        """Forget every value that overlaps some bytes."""
        for key in [key for key, (held, _) in self.shared.items() if overlap(held, spans)]:
            del self.shared[key]

    def _put(self, key: tuple[str, int, int], spans: Spans, value: Any) -> None:
        """Write a value; whatever it overlaps becomes poison."""
        self._poison(spans)
        self.shared[key] = (spans, value)

    def _get(self, name: str, stage: int, instance: int | None) -> Any:
        """A tile, or one consumer's rows of it."""
        key = (name, stage, -1 if instance is None else instance)
        if key in self.shared:
            return self.shared[key][1]
        if instance is not None and (name, stage, -1) in self.shared:
            return self.domain.slab(self.shared[name, stage, -1][1], instance)
        return self.domain.poison()

    def _access(self, agent: Agent, touch: Touch, owner: object = None) -> None:
        if self.monitor is not None:
            self.monitor.access(agent, touch, owner)

    def _load(self, agent: Agent, step: Step, load: Load) -> None:
        spans = self._spans(load.buffer, step.stage, None)
        barrier = self._at_phase(load.barrier, step)
        value = self.domain.load(load.buffer, self._place(agent, step))
        size = self.program.buffer(load.buffer).stage_bytes
        flight = _Flight((load.buffer, step.stage), spans, value, size, barrier, step.phase)
        self._access(agent, Touch(spans, True, Proxy.ASYNC, Executor.ELECTED), flight)
        if self.monitor is not None:
            self.monitor.transact(agent, barrier)
        self._poison(spans)  # until it lands
        self.flights.append(flight)

    def _stage_out(self, agent: Agent, step: Step, stage_out: StageOut) -> None:
        spans = self._spans(stage_out.buffer, 0, agent.instance)
        value = self._read_register(agent, stage_out.source)
        self._access(agent, Touch(spans, True, Proxy.GENERIC, Executor.ALL))
        staged = self.domain.stage(value, self._place(agent, step))
        self._put((stage_out.buffer, 0, agent.instance), spans, staged)

    def _tma_store(self, agent: Agent, step: Step, store: TmaStore) -> None:
        owner = object()
        spans = self._spans(store.buffer, 0, agent.instance)
        self._access(agent, Touch(spans, False, Proxy.ASYNC, Executor.ELECTED), owner)
        agent.stores_open.append(owner)
        value = self._get(store.buffer, 0, agent.instance)
        self.domain.store(store.buffer, value, self._place(agent, step))

    def _tma_store_wait(self, agent: Agent, wait: TmaStoreWait) -> None:
        if wait.pending < 0:
            raise VerificationError(f"waits for {wait.pending} TMA store groups")
        while len(agent.stores) > wait.pending:
            for owner in agent.stores.popleft():
                if self.monitor is not None:
                    self.monitor.retire(agent, owner, Executor.ELECTED)

    # --- products and registers -------------------------------------------------------------------

    def _gemm(self, agent: Agent, step: Step, gemm: Gemm) -> None:
        in_registers = [gemm.accumulator] + ([gemm.a] if gemm.a_cursor is None else [])
        unfenced = [name for name in in_registers if name in agent.touched]
        if unfenced:
            raise VerificationError(f"no wgmma.fence since {', '.join(unfenced)} was touched")
        self._check_idle(agent, gemm.accumulator, "accumulates into", same=gemm)
        place = self._place(agent, step)
        product = _Product(gemm, place, (), None)
        operands: list[tuple[str, Any]] = []
        if gemm.a_cursor is None:
            self._check_idle(agent, gemm.a, "reads", writes=False)
            operands.append((gemm.a, self._read_register(agent, gemm.a, touch=False)))
        else:
            operands.append(self._operand(agent, gemm.a, step.stage_a, agent.instance, product))
        operands.append(self._operand(agent, gemm.b, step.stage, None, product))
        accumulator = agent.registers.get(gemm.accumulator, self.domain.poison())
        values = (operands[0][1], operands[1][1])
        product.operands = tuple(operands)
        product.result = self.domain.gemm(gemm, values, accumulator, place)
        agent.registers[gemm.accumulator] = self.domain.poison()
        agent.opened.append(product)

    def _operand(
        self, agent: Agent, name: str, stage: int, instance: int | None, product: _Product
    ) -> tuple[str, Any]:
        spans = self._spans(name, stage, instance)
        self._access(agent, Touch(spans, False, Proxy.ASYNC, Executor.ALL), product)
        return f"{name}[{stage}]", self._get(name, stage, instance)

    def _wgmma_wait(self, agent: Agent, wait: WgmmaWait) -> None:
        if wait.pending < 0:
            raise VerificationError(f"waits for {wait.pending} wgmma groups")
        retired: list[_Product] = []
        while len(agent.groups) > wait.pending:
            retired += agent.groups.popleft()
        names = tuple(product.gemm.accumulator for product in retired)
        if names != wait.retires:
            raise VerificationError(
                f"retires {', '.join(names) or 'nothing'}, meant for {', '.join(wait.retires)}"
            )
        for product in retired:
            agent.registers[product.gemm.accumulator] = product.result
            if self.monitor is not None:
                self.monitor.retire(agent, product, Executor.ALL)

    def _in_flight(self, agent: Agent) -> list[_Product]:
        return [*(product for group in agent.groups for product in group), *agent.opened]

    def _check_idle(
        self,
        agent: Agent,
        name: str,
        action: str,
        writes: bool = True,
        same: Gemm | None = None,
    ) -> None:
        """No product in flight may own the register tile ``name``."""
        for product in self._in_flight(agent):
            gemm = product.gemm
            if gemm.accumulator == name and not (same and same.kind is gemm.kind):
                raise VerificationError(f"{action} {name} before the wait for its product")
            if writes and gemm.a_cursor is None and gemm.a == name:
                raise VerificationError(f"{action} {name} while a product in flight reads it")

    def _read_register(self, agent: Agent, name: str, touch: bool = True) -> Any:
        if touch:
            self._check_idle(agent, name, "reads", writes=False)
            agent.touched.add(name)
        return agent.registers.get(name, self.domain.poison())

    def _calc(self, agent: Agent, step: Step, calc: Calc) -> None:
        if agent.role.needs > agent.limit:
            raise VerificationError(
                f"needs {agent.role.needs} registers a thread, owns {agent.limit}"
            )
        values = {name: self._read_register(agent, name) for name in calc.reads}
        for name in calc.writes:
            self._check_idle(agent, name, "overwrites")
        written = self.domain.calc(calc.kind, values, self._place(agent, step))
        if set(written) != set(calc.writes):
            raise VerificationError(f"{calc.kind.name} writes {sorted(written)}")
        agent.registers.update(written)
        agent.touched |= set(calc.writes)

    def _set_registers(self, agent: Agent, instruction: SetRegisters) -> bool:
        count = instruction.count
        low, high = HOPPER.min_registers, HOPPER.max_registers
        if count % HOPPER.register_step or not low <= count <= high:
            raise VerificationError(f"setmaxnreg takes {low}..{high} in steps of 8, not {count}")
        if count != agent.role.registers:
            raise VerificationError(f"asks for {count} registers, planned {agent.role.registers}")
        if instruction.grows != (count > agent.limit):
            raise VerificationError(f"setmaxnreg in the wrong direction, from {agent.limit}")
        if count - agent.limit > self.spare_registers:
            return False
        self.spare_registers -= count - agent.limit
        agent.limit = count
        return True

    def _place(self, agent: Agent, step: Step) -> Place:
        tiles = self.work[step.work] if step.work >= 0 else TileRange(0, 0, 0, 0)
        return Place(agent.instance, step.work, step.tile, tiles)

    # --- the end ----------------------------------------------------------------------------------

    def _check_exit(self) -> None:
        """Nothing in flight, every barrier as it was before the first work tile."""
        for agent in self.agents:
            if self._in_flight(agent):
                raise VerificationError(f"{agent.name} ends with a product in flight")
            if agent.stores or agent.stores_open:
                raise VerificationError(f"{agent.name} ends before its TMA store has read O")
            if agent.limit != agent.role.registers:
                raise VerificationError(
                    f"{agent.name} ends with {agent.limit} registers, planned "
                    f"{agent.role.registers}"
                )
        opening = self._opening()
        for key, barrier in self.named.items():
            if barrier.arrived != opening.get(key, 0):
                raise VerificationError(
                    f"unbalanced arrivals: {barrier} is left with {barrier.arrived} threads, "
                    f"had {opening.get(key, 0)} before the first work tile"
                )
        for barrier in self.mbarriers.values():
            if barrier.arrived or barrier.pending_bytes:
                raise VerificationError(f"unbalanced arrivals: {barrier} is left half full")

    def _opening(self) -> dict[int, int]:
        """Threads that arrive at each named barrier before the first work tile, by id."""
        opening: dict[int, int] = {}
        for agent in self.agents:
            for step in itertools.takewhile(lambda step: step.work < 0, agent.steps):
                if isinstance(step.instruction, NamedArrive):
                    key = self._named_id(step, step.instruction)
                    opening[key] = opening.get(key, 0) + HOPPER.warpgroup
        return opening

    def _named_id(self, step: Step, instruction: NamedSync | NamedArrive) -> int:
        return self.program.named_barrier(instruction.barrier).first_id + step.slot

    def _deadlock(self) -> str:
        waits = [
            f"{agent.name} at {describe(agent.steps[agent.pc])}"
            for agent in self.agents
            if not agent.done
        ]
        return "deadlock: " + "; ".join(waits)


def describe(step: Step) -> str:
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
