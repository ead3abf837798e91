"""Happens-before: the monitor that finds races in one run of the machine.

Each agent carries a vector clock with a component for every agent (its steps), every mbarrier stage
and every named barrier (the phases it has seen complete). An arrival joins the agent's clock into
the barrier's phase; a wait joins the phase's clock into the agent's.

An access *ends*: a TMA load with the phase it lands on; a product at the wait that retires it, a TMA
store at its read wait, a generic access at once - and the last three become known to others only
through a release that speaks for the threads that made them: the warpgroup converging (a named
barrier, or one arrival of each warp), or the elected thread for its own TMA stores.

Rules (numbers as in the verifier's formulation):

1. Of two accesses to overlapping bytes, one a write, the first has ended within the second's clock.
2. A generic access before an async-proxy access is fenced by its threads, before they converge.
3. An arrival in phase k follows the completion of phase k-1.
4. A wait that sees phase k follows the completion of phase k-1 and precedes that of phase k+1.
5. Arrivals at a named barrier follow its generation before.

Under 3-5 every execution matches synchronisation alike, so one run speaks for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fa3gen.errors import VerificationError
from fa3gen.schedule.flatten import Step
from fa3gen.schedule.machine import AccessKey, Agent, Machine, MachineBarrier, describe

__all__ = ["HappensBefore"]

Clock = list[int]


@dataclass
class _Access:
    """One shared-memory access and what ended it."""

    spans: tuple[tuple[int, int], ...]
    write: bool
    generic: bool
    agent: int
    what: str
    retired: bool = False
    elected: bool = False  # retired by the elected thread alone
    end: int | None = None  # the agent's time from which a release publishes the end
    fenced: bool = False  # fence.proxy.async issued
    fence_end: int | None = None
    landing: tuple[int, int] | None = None  # (barrier component, phase) that a TMA load ends with


@dataclass
class _History:
    """What happened on one barrier in the phases that still matter."""

    arrivals: list[tuple[int, int]] = field(default_factory=list)  # of the current phase
    previous: list[tuple[int, int]] = field(default_factory=list)  # of the phase before
    clock: Clock = field(default_factory=list)  # of the current phase
    completed: Clock = field(default_factory=list)  # of the last completed phase
    waits: list[tuple[int, int]] = field(default_factory=list)  # on the last completed phase


class HappensBefore:
    """A machine's monitor: attach by ``Machine(program, work, domain, HappensBefore)``."""

    def __init__(self, agents: int) -> None:
        self.clocks: list[Clock] = []
        self.agents = agents
        self.size = 0
        self.accesses: list[_Access] = []
        self.owned: dict[int, list[_Access]] = {}
        self.pending: list[list[_Access]] = [[] for _ in range(agents)]
        self.history: dict[int, _History] = {}
        self.step: Step | None = None

    def attach(self, machine: Machine) -> None:
        """Size the clocks for a machine; call before it runs."""
        self.size = machine.clock_size
        barriers = [*machine.mbarriers.values(), *machine.named.values()]
        start = [0] * self.agents + [-1] * (self.size - self.agents)
        self.clocks = [list(start) for _ in range(self.agents)]
        self.history = {
            barrier.index: _History(clock=list(start), completed=list(start))
            for barrier in barriers
        }

    # --- events -----------------------------------------------------------------------------------

    def begin(self, agent: Agent, step: Step) -> None:
        """Time passes: an agent's own component is the index of its step, from 1."""
        self.clocks[agent.index][agent.index] = agent.pc + 1
        self.step = step

    def access(self, agent: Agent, key: AccessKey, write: bool, proxy: str, owner: object) -> None:
        """Check a new access against every earlier one (rules 1 and 2) and remember it."""
        _, _, spans = key
        generic = proxy == "generic"
        what = f"{agent.name}, {describe(self.step)}" if self.step is not None else agent.name
        new = _Access(spans, write, generic, agent.index, what, retired=generic)
        kept = []
        for old in self.accesses:
            if not _meet(old.spans, spans):
                kept.append(old)
                continue
            if old.write or write:
                self._check_pair(agent, old, new)
            if not (write and _covers(spans, old.spans)):
                kept.append(old)
        kept.append(new)
        self.accesses = kept
        if generic:
            self.pending[agent.index].append(new)
        else:
            self.owned.setdefault(id(owner), []).append(new)

    def _check_pair(self, agent: Agent, old: _Access, new: _Access) -> None:
        clock = self.clocks[agent.index]
        if old.landing is not None:
            component, phase = old.landing
            if clock[component] < phase:
                raise VerificationError(f"touches bytes before the load has landed: {old.what}")
            return
        kind = "overwrites what is still read" if new.write and not old.write else "races with"
        if not old.retired or old.end is None or clock[old.agent] < old.end:
            raise VerificationError(f"{kind}: {old.what}")
        if old.generic and not new.generic:
            if old.fence_end is None or clock[old.agent] < old.fence_end:
                raise VerificationError(
                    f"no fence.proxy.async after the generic access: {old.what}"
                )

    def retire(self, agent: Agent, owner: object, everyone: bool) -> None:
        """Accesses of a product or TMA store are complete for the threads that waited."""
        for access in self.owned.pop(id(owner), []):
            access.retired = True
            access.elected = not everyone
            self.pending[agent.index].append(access)

    def proxy_fence(self, agent: Agent) -> None:
        """Each thread fences its own generic accesses so far."""
        for access in self.pending[agent.index]:
            access.fenced = access.fenced or access.generic
        for access in self.accesses:
            if access.agent == agent.index and access.generic:
                access.fenced = True
                if access.end is not None and access.fence_end is None:
                    self.pending[agent.index].append(access)

    def converge(self, agent: Agent) -> None:
        """From here a release of this agent speaks for all its threads."""
        self._publish(agent, elected_only=False)

    def _publish(self, agent: Agent, elected_only: bool) -> None:
        now = self.clocks[agent.index][agent.index]
        left = []
        for access in self.pending[agent.index]:
            if elected_only and not access.elected:
                left.append(access)
                continue
            if access.end is None:
                access.end = now
            if access.fenced and access.fence_end is None:
                access.fence_end = now
        self.pending[agent.index] = left

    def arrive(self, agent: Agent, barrier: MachineBarrier, converged: bool) -> None:
        """Rules 3 and 5, then join the agent's clock into the phase."""
        self._publish(agent, elected_only=not converged)
        clock, history = self.clocks[agent.index], self.history[barrier.index]
        if not self._follows(clock, barrier, history, barrier.phase - 1):
            raise VerificationError(
                f"arrives at {barrier} without knowing that the phase before is complete"
            )
        history.arrivals.append((agent.index, clock[agent.index]))
        _join(history.clock, clock)

    def _follows(
        self, clock: Clock, barrier: MachineBarrier, history: _History, phase: int
    ) -> bool:
        """Whether a clock knows that ``phase`` is complete: seen, or every arrival of it."""
        if clock[barrier.index] >= phase:
            return True
        if phase != barrier.phase - 1:
            return False
        return bool(history.previous) and all(clock[a] >= at for a, at in history.previous)

    def land(self, barrier: MachineBarrier, owner: object) -> None:
        """A load's write ends with the phase it lands on."""
        for access in self.owned.pop(id(owner), []):
            access.landing = (barrier.index, barrier.phase)

    def complete(self, barrier: MachineBarrier) -> None:
        """Rule 4's second half: whoever waits on the phase before has waited."""
        history = self.history[barrier.index]
        for agent, at in history.waits:
            if history.clock[agent] < at:
                raise VerificationError(
                    f"{barrier} may complete before a wait has seen the phase before"
                )
        history.completed = list(history.clock)
        history.completed[barrier.index] = barrier.phase
        history.previous, history.arrivals, history.waits = history.arrivals, [], []

    def observe(self, agent: Agent, barrier: MachineBarrier, phase: int) -> None:
        """Rule 4's first half, then join the completed phase's clock into the agent's."""
        clock, history = self.clocks[agent.index], self.history[barrier.index]
        if phase < 0:
            return
        if clock[barrier.index] < phase - 1 and not self._knows_previous(clock, history):
            raise VerificationError(
                f"waits for phase {phase} of {barrier.name} without knowing that phase "
                f"{phase - 1} is complete: it may pass a wrap early"
            )
        history.waits.append((agent.index, clock[agent.index]))
        _join(clock, history.completed)

    def _knows_previous(self, clock: Clock, history: _History) -> bool:
        """Whether a clock holds every arrival of the phase that just completed."""
        return bool(history.previous) and all(clock[a] >= at for a, at in history.previous)


def _join(target: Clock, source: Clock) -> None:
    for index, value in enumerate(source):
        if value > target[index]:
            target[index] = value


def _meet(first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]) -> bool:
    """Whether byte intervals overlap."""
    return any(a < d and c < b for a, b in first for c, d in second)


def _covers(outer: tuple[tuple[int, int], ...], inner: tuple[tuple[int, int], ...]) -> bool:
    """Whether every inner interval lies in an outer one."""
    return all(any(a <= c and d <= b for a, b in outer) for c, d in inner)
