"""What each role of a Program does when: a model of one CTA with an SM to itself.

An operation occupies the functional unit that bounds it for the cycles that its OpGraph says,
divided among the warpgroups that share the tile; a unit serves one operation at a time, first come
first served. Loads, stores and products are asynchronous, all else holds its warpgroup.
Synchronisation takes no time but the wait. Latencies, the issue of instructions and the memory
system are left out: the model shows what overlaps with what, and which unit bounds the loop.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from fa3gen.errors import GraphError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import Scope, Unit
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.flatten import Event, flatten
from fa3gen.schedule.program import (
    Arrive,
    Calc,
    CalcKind,
    Executor,
    Expect,
    Gemm,
    GemmKind,
    Instruction,
    Load,
    NamedArrive,
    NamedSync,
    Program,
    Role,
    StoreRows,
    SyncCta,
    TmaStore,
    TmaStoreWait,
    Wait,
    WgmmaCommit,
    WgmmaWait,
)
from fa3gen.schedule.ranges import TileRange

__all__ = ["Span", "Timeline", "simulate"]

_CALCS = {
    CalcKind.SCORE: "ScoreMod",
    CalcKind.MASK: "Mask",
    CalcKind.ROW_MAX: "RowMax",
    CalcKind.EXP: "Exp",
    CalcKind.ROW_SUM: "RowSum",
    CalcKind.CONVERT: "ConvertP",
    CalcKind.RESCALE: "Rescale",
    CalcKind.NORMALIZE: "Normalize",
    CalcKind.SPECULATE: "Exp",
    CalcKind.SPECULATE_SCORE: "Exp",
    CalcKind.REDO: "RowSum",
    CalcKind.SHIFT: "RowMax",
    CalcKind.EXP2: "Exp",
    CalcKind.ADD_SUM: "RowSum",
    CalcKind.NORMALIZE_SHIFTED: "Normalize",
}
_GEMMS = {GemmKind.QK: "GemmQK", GemmKind.PV: "GemmPV"}
_ARRIVALS = {
    Executor.ELECTED: 1,
    Executor.EACH_WARP: HOPPER.warpgroup // 32,
    Executor.ALL: HOPPER.warpgroup,
}


@dataclass(frozen=True)
class Span:
    """An operation on its unit, from ``begin`` to ``end`` (cycles); ``tile`` is its KV tile's
    ordinal in visiting order, or None of an operation that runs once."""

    role: str  # numbered where the role has several instances
    op: str
    unit: Unit
    tile: int | None
    begin: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """The spans of one CTA over one work tile of ``tiles`` KV tiles."""

    name: str
    roles: tuple[str, ...]
    spans: tuple[Span, ...]
    tiles: int

    @property
    def cycles(self) -> int:
        """When the last operation ends."""
        return max((span.end for span in self.spans), default=0)

    def busy(self, unit: Unit) -> float:
        """The share of the time in which a unit is occupied."""
        used = sum(span.end - span.begin for span in self.spans if span.unit is unit)
        return used / self.cycles if self.cycles else 0.0

    def __str__(self) -> str:
        lines = [f"one work tile of {self.tiles} KV tiles: {self.cycles} cycles"]
        lines += [f"{unit.value:12s} {100 * self.busy(unit):3.0f} % busy" for unit in Unit]
        return "\n".join(lines)


def simulate(program: Program, graph: OpGraph, tiles: int = 6) -> Timeline:
    """The timeline of one work tile that visits ``tiles`` KV tiles.

    The first of them is masked, as the one with the last key is; GraphError if the roles block one
    another for ever.
    """
    return _Model(program, graph, TileRange(0, 0, max(tiles - 1, 0), tiles)).run()


@dataclass
class _Barrier:
    """An mbarrier or a named barrier: when each of its phases was completed."""

    needs: int  # arrivals of a phase
    arrived: int = 0
    latest: int = 0  # time of the phase's latest arrival so far
    owed: int = 0  # loads announced and not landed
    completed: list[int] = field(default_factory=list)

    def arrive(self, count: int, time: int) -> None:
        self.arrived += count
        self._settle(time)

    def land(self, time: int) -> None:
        self.owed -= 1
        self._settle(time)

    def _settle(self, time: int) -> None:
        self.latest = max(self.latest, time)
        if self.arrived >= self.needs and self.owed <= 0:
            self.completed.append(self.latest)
            self.arrived, self.latest = self.arrived - self.needs, 0


@dataclass
class _Agent:
    """A warpgroup: what is left to do, and its clock."""

    name: str
    role: Role
    instance: int
    steps: Sequence[Event]
    pc: int = 0
    now: int = 0
    opened: int = 0  # when the last product issued since the last commit ends
    groups: list[int] = field(default_factory=list)  # when each committed group ends
    stores: int = 0  # when the last store ends
    passed: dict[str, int] = field(default_factory=dict)  # named barriers: phases waited for
    arrived: bool = False  # at the named barrier or the CTA barrier that it waits for


class _Model:
    """Runs the agents in the order of their clocks."""

    def __init__(self, program: Program, graph: OpGraph, work: TileRange) -> None:
        self.program, self.work = program, work
        self.ops = {op.name: op for op in graph.ops}
        self.free: dict[Unit, int] = defaultdict(int)  # when each unit is next free
        self.barriers: dict[tuple[str, int], _Barrier] = {}
        self.spans: list[Span] = []
        self.agents = [
            _Agent(
                f"{role.name} {instance}" if role.instances > 1 else role.name,
                role,
                instance,
                flatten(program, role, instance, [work]),
            )
            for role in program.roles
            for instance in range(role.instances)
        ]

    def run(self) -> Timeline:
        """The spans of all agents."""
        waiting = [(agent.now, index) for index, agent in enumerate(self.agents)]
        blocked: list[int] = []
        while waiting:
            _, index = heapq.heappop(waiting)
            agent = self.agents[index]
            if agent.pc == len(agent.steps):
                continue
            if self._step(agent, agent.steps[agent.pc]):
                agent.pc += 1
                for other in (index, *blocked):
                    heapq.heappush(waiting, (self.agents[other].now, other))
                blocked.clear()
            else:
                blocked.append(index)
        if blocked:
            stuck = ", ".join(self.agents[index].name for index in blocked)
            raise GraphError(f"{self.program.name}: {stuck} wait for ever; verify the Program")
        names = tuple(agent.name for agent in self.agents)
        ordered = tuple(sorted(self.spans, key=lambda span: (span.begin, span.role)))
        return Timeline(self.program.name, names, ordered, self.work.tiles)

    def _step(self, agent: _Agent, step: Event) -> bool:
        """Executes a step; False if the agent must wait for another first."""
        instruction = step.instruction
        match instruction:
            case Wait():
                return self._wait(agent, self._mbarrier(instruction.barrier, step), step.phase)
            case Expect():
                barrier = self._mbarrier(instruction.barrier, step)
                barrier.owed += 1
                barrier.arrive(1, agent.now)
            case Arrive():
                barrier = self._mbarrier(instruction.barrier, step)
                barrier.arrive(_ARRIVALS[instruction.by], agent.now)
            case NamedArrive() | NamedSync() | SyncCta():
                return self._meet(agent, step)
            case Load():
                end = self._occupy(agent, f"Load{instruction.buffer}", step)
                self._mbarrier(instruction.barrier, step).land(end)
            case Gemm():
                agent.opened = self._occupy(agent, _GEMMS[instruction.kind], step)
            case WgmmaCommit():
                agent.groups.append(max([agent.opened, *agent.groups[-1:]]))
            case WgmmaWait():
                done = len(agent.groups) - instruction.pending
                agent.now = max([agent.now, *agent.groups[:done]])
                del agent.groups[:done]
            case Calc() if instruction.kind in _CALCS:
                agent.now = self._occupy(agent, _CALCS[instruction.kind], step)
            case StoreRows():
                self._occupy(agent, "StoreLSE", step)
            case TmaStore():
                agent.stores = self._occupy(agent, "StoreO", step)
            case TmaStoreWait():
                agent.now = max(agent.now, agent.stores)
            case _:
                pass  # takes no time: fences, barrier set-up, register moves
        return True

    def _occupy(self, agent: _Agent, name: str, step: Event) -> int:
        """Puts an operation on its unit; when it ends. One without a unit's cycles ends at once."""
        op = self.ops.get(name)
        if op is None:
            return agent.now
        shared = not isinstance(step.instruction, Load)  # a load brings the whole CTA's tile
        cycles = -(-op.cycles // (agent.role.instances if shared else 1))
        if isinstance(step.instruction, Calc) and step.instruction.keys is not None:
            begin, end = step.instruction.keys
            cycles = -(-cycles * (end - begin) // self.program.block_n)
        begin = max(agent.now, self.free[op.unit])
        self.free[op.unit] = begin + cycles
        tile = step.tile if op.scope is Scope.LOOP else None
        self.spans.append(Span(agent.name, name, op.unit, tile, begin, begin + cycles))
        return begin + cycles

    # --- barriers ---------------------------------------------------------------------------------

    def _mbarrier(self, name: str, step: Event) -> _Barrier:
        key = (name, step.stage)
        if key not in self.barriers:
            self.barriers[key] = _Barrier(self.program.barrier(name).arrivals)
        return self.barriers[key]

    def _wait(self, agent: _Agent, barrier: _Barrier, phase: int) -> bool:
        """Waits for a phase; those before the first are complete."""
        if phase < 0:
            return True
        if phase >= len(barrier.completed):
            return False
        agent.now = max(agent.now, barrier.completed[phase])
        return True

    def _meet(self, agent: _Agent, step: Event) -> bool:
        """An arrival at a named barrier or the CTA's, and the wait unless it is an arrival only."""
        key, threads = _meeting(step, self.program)
        barrier = self.barriers.setdefault(key, _Barrier(threads))
        name = f"{key[0]} {key[1]}"
        if not agent.arrived:
            agent.passed[name] = len(barrier.completed)
            barrier.arrive(HOPPER.warpgroup, agent.now)
        if isinstance(step.instruction, NamedArrive):
            return True
        agent.arrived = not self._wait(agent, barrier, agent.passed[name])
        return not agent.arrived


def _meeting(step: Event, program: Program) -> tuple[tuple[str, int], int]:
    """The barrier of a meeting, and the threads that complete it."""
    instruction: Instruction = step.instruction
    if isinstance(instruction, (NamedArrive, NamedSync)):
        return (instruction.barrier, step.slot), instruction.threads
    return ("", 0), program.threads
