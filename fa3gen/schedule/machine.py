"""The abstract machine that runs a Program: one ``step`` for the verifier and the interpreter.

Control, synchronisation and resources are here; values go through a ``Domain`` (tokens for the
verifier, CPU tensors for the interpreter). Asynchronous operations take the worst case: a TMA load
lands only when nothing else can run, a product's operands stay in use and its result stays poison
until the wait that retires it.

With a ``Monitor`` the same run also checks happens-before: see ``fa3gen.schedule.hazards``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fa3gen.errors import VerificationError
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.flatten import Event, flatten
from fa3gen.schedule.needs import launch_registers
from fa3gen.schedule.program import (
    Arrive,
    Calc,
    ClaimAhead,
    ClaimWork,
    EndOfWork,
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
    ReadWork,
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
from fa3gen.schedule.shared import SharedMemory
from fa3gen.schedule.state import (
    Agent,
    Domain,
    Flight,
    MachineBarrier,
    Monitor,
    Operand,
    Place,
    Product,
    Proxy,
    Store,
    Touch,
    describe,
)

__all__ = ["Agent", "Domain", "Machine", "MachineBarrier", "Place"]

_ARRIVALS = {
    Executor.ELECTED: 1,
    Executor.EACH_WARP: HOPPER.warpgroup // 32,
    Executor.ALL: HOPPER.warpgroup,
}


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
        launch = launch_registers(program.threads // HOPPER.warpgroup, program.ctas_per_sm)
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
        self.flights: list[Flight] = []  # oldest first
        self.shared = SharedMemory(program)
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
                raise VerificationError(self.deadlock())
        self.check_exit()

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
        flight = self.flights.pop(which)
        name, stage = flight.key
        barrier = flight.barrier
        if barrier.phase != flight.phase:
            raise VerificationError(f"phase error: a load for phase {flight.phase} lands {barrier}")
        self.shared.put(name, stage, None, flight.value)
        if self.monitor is not None:
            self.monitor.land(barrier, flight)
        barrier.pending_bytes -= flight.bytes
        self._settle(barrier)
        return True

    def _execute(self, agent: Agent, step: Event) -> bool:
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
            case ClaimWork():
                spans = self.shared.spans(instruction.buffer, step.stage, None)
                self._access(agent, Touch(spans, True, Proxy.GENERIC, Executor.ELECTED))
                self.shared.put(instruction.buffer, step.stage, None, step.work)
                if step.work != agent.ahead:
                    raise VerificationError(f"the work tile claimed last is {agent.ahead}")
                agent.claimed = step.work
            case ClaimAhead():
                if agent.ahead != step.work:
                    raise VerificationError(f"has claimed work tile {agent.ahead} already")
                if step.work >= len(self.work):
                    raise VerificationError("claims a work tile after the one past the last")
                agent.ahead = step.work + 1
            case ReadWork():
                self._read_work(agent, step, instruction)
            case EndOfWork():
                if agent.claimed != step.work:
                    raise VerificationError(
                        f"is at work tile {step.work}, has claimed {agent.claimed}"
                    )
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

    def _at_phase(self, name: str, step: Event) -> MachineBarrier:
        """The mbarrier that a step arrives at, in the phase that the step means."""
        barrier = self._mbarrier(name, step.stage)
        if barrier.phase != step.phase:
            raise VerificationError(f"phase error: arrives at {barrier}, meant phase {step.phase}")
        return barrier

    def _wait(self, agent: Agent, step: Event, wait: Wait) -> bool:
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
            self.monitor.observe(agent, barrier, step.phase, wait.by)
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

    def _named(self, agent: Agent, step: Event, instruction: NamedSync | NamedArrive) -> bool:
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
            self.monitor.observe(agent, barrier, agent.waiting, Executor.ALL)
        agent.waiting = None
        return True

    # --- shared memory ----------------------------------------------------------------------------

    def _access(self, agent: Agent, touch: Touch, owner: object = None) -> None:
        if self.monitor is not None:
            self.monitor.access(agent, touch, owner)

    def _value(self, operand: Operand) -> Any:
        """The value of an operand in shared memory."""
        if operand.value is None:
            return self.domain.poison()
        if operand.sliced and operand.instance is not None:
            return self.domain.slab(operand.value, operand.instance)
        return operand.value

    def _check_kept(self, agent: Agent, operand: Operand) -> None:
        """What an asynchronous operation has read is what it was issued for."""
        if operand.stage is None:
            value = agent.registers.get(operand.name)
        else:
            value = self.shared.operand(operand.name, operand.stage, operand.instance).value
        if value is not operand.value:
            raise VerificationError(f"{operand.name} changed while it was being read")

    def _load(self, agent: Agent, step: Event, load: Load) -> None:
        spans = self.shared.spans(load.buffer, step.stage, None)
        barrier = self._at_phase(load.barrier, step)
        value = self.domain.load(load.buffer, self._place(agent, step))
        size = self.program.buffer(load.buffer).stage_bytes
        flight = Flight((load.buffer, step.stage), value, size, barrier, step.phase)
        self._access(agent, Touch(spans, True, Proxy.ASYNC, Executor.ELECTED), flight)
        if self.monitor is not None:
            self.monitor.transact(agent, barrier)
        self.shared.poison(spans)  # until it lands
        self.flights.append(flight)

    def _read_work(self, agent: Agent, step: Event, read: ReadWork) -> None:
        spans = self.shared.spans(read.buffer, step.stage, None)
        self._access(agent, Touch(spans, False, Proxy.GENERIC, Executor.ALL))
        agent.claimed = self.shared.operand(read.buffer, step.stage, None).value

    def _stage_out(self, agent: Agent, step: Event, stage_out: StageOut) -> None:
        spans = self.shared.spans(stage_out.buffer, 0, agent.instance)
        value = self._read_register(agent, stage_out.source)
        self._access(agent, Touch(spans, True, Proxy.GENERIC, Executor.ALL))
        staged = self.domain.stage(stage_out.buffer, value, self._place(agent, step))
        self.shared.put(stage_out.buffer, 0, agent.instance, staged)

    def _tma_store(self, agent: Agent, step: Event, store: TmaStore) -> None:
        spans = self.shared.spans(store.buffer, 0, agent.instance)
        issued = Store(self.shared.operand(store.buffer, 0, agent.instance))
        self._access(agent, Touch(spans, False, Proxy.ASYNC, Executor.ELECTED), issued)
        agent.stores_open.append(issued)
        value = self._value(issued.operand)
        self.domain.store(store.buffer, value, self._place(agent, step))

    def _tma_store_wait(self, agent: Agent, wait: TmaStoreWait) -> None:
        if wait.pending < 0:
            raise VerificationError(f"waits for {wait.pending} TMA store groups")
        while len(agent.stores) > wait.pending:
            for store in agent.stores.popleft():
                self._check_kept(agent, store.operand)
                if self.monitor is not None:
                    self.monitor.retire(agent, store, Executor.ELECTED)

    # --- products and registers -------------------------------------------------------------------

    def _gemm(self, agent: Agent, step: Event, gemm: Gemm) -> None:
        in_registers = [gemm.accumulator] + ([gemm.a] if gemm.a_cursor is None else [])
        unfenced = [name for name in in_registers if name in agent.touched]
        if unfenced:
            raise VerificationError(f"no wgmma.fence since {', '.join(unfenced)} was touched")
        self._check_idle(agent, gemm.accumulator, "accumulates into", same=gemm)
        product = Product(gemm)
        if gemm.a_cursor is None:
            self._check_idle(agent, gemm.a, "reads", writes=False)
            a = Operand(gemm.a, None, None, agent.registers.get(gemm.a))
        else:
            a = self._operand(agent, gemm.a, step.stage_a, agent.instance, product)
        b = self._operand(agent, gemm.b, step.stage, None, product)
        values = (self._value(a), self._value(b))
        accumulator = agent.registers.get(gemm.accumulator, self.domain.poison())
        product.operands = (a, b)
        product.result = self.domain.gemm(gemm, values, accumulator, self._place(agent, step))
        agent.registers[gemm.accumulator] = self.domain.poison()
        agent.opened.append(product)

    def _operand(
        self, agent: Agent, name: str, stage: int, instance: int | None, product: Product
    ) -> Operand:
        """A shared operand of a product that is being issued."""
        spans = self.shared.spans(name, stage, instance)
        self._access(agent, Touch(spans, False, Proxy.ASYNC, Executor.ALL), product)
        return self.shared.operand(name, stage, instance)

    def _wgmma_wait(self, agent: Agent, wait: WgmmaWait) -> None:
        if wait.pending < 0:
            raise VerificationError(f"waits for {wait.pending} wgmma groups")
        retired: list[Product] = []
        while len(agent.groups) > wait.pending:
            retired += agent.groups.popleft()
        names = tuple(product.gemm.accumulator for product in retired)
        if names != wait.retires:
            raise VerificationError(
                f"retires {', '.join(names) or 'nothing'}, meant for {', '.join(wait.retires)}"
            )
        for product in retired:
            for operand in product.operands:
                self._check_kept(agent, operand)
            agent.registers[product.gemm.accumulator] = product.result
            if self.monitor is not None:
                self.monitor.retire(agent, product, Executor.ALL)

    def _in_flight(self, agent: Agent) -> list[Product]:
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

    def _read_register(self, agent: Agent, name: str) -> Any:
        self._check_idle(agent, name, "reads", writes=False)
        agent.touched.add(name)
        return agent.registers.get(name, self.domain.poison())

    def _calc(self, agent: Agent, step: Event, calc: Calc) -> None:
        if agent.role.needs > agent.limit:
            raise VerificationError(
                f"needs {agent.role.needs} registers a thread, owns {agent.limit}"
            )
        values = {name: self._read_register(agent, name) for name in calc.reads}
        if calc.cursor is not None:
            name = self.program.ring(calc.cursor).name
            spans = self.shared.spans(name, step.stage, agent.instance)
            self._access(agent, Touch(spans, False, Proxy.GENERIC, Executor.ALL))
            values[name] = self._value(self.shared.operand(name, step.stage, agent.instance))
        for name in calc.writes:
            self._check_idle(agent, name, "overwrites")
        written = self.domain.calc(calc, values, self._place(agent, step))
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

    def _place(self, agent: Agent, step: Event) -> Place:
        known = 0 <= step.work < len(self.work)  # not before the first nor past the last
        tiles = self.work[step.work] if known else TileRange(0, 0, 0, 0)
        return Place(agent.instance, step.work, step.tile, tiles)

    # --- the end ----------------------------------------------------------------------------------

    def check_exit(self) -> None:
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

    def _named_id(self, step: Event, instruction: NamedSync | NamedArrive) -> int:
        return self.program.named_barrier(instruction.barrier).first_id + step.slot

    def deadlock(self) -> str:
        """Where each role stands that has not come to its end."""
        waits = [
            f"{agent.name} at {describe(agent.steps[agent.pc])}"
            for agent in self.agents
            if not agent.done
        ]
        return "deadlock: " + "; ".join(waits)
