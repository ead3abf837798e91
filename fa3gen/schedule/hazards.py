"""Happens-before: the monitor that finds races in one run of the machine.

A warpgroup is two threads here: its *elected* thread, which issues TMA and may arrive alone, and
*all* of its threads. Vector clocks have a component for each of the two in every agent (its steps),
and one for every mbarrier stage and named barrier (the phases known to be complete). An agent's
clock is what all its threads know: of its own steps, those up to its last named barrier, where its
warps converged, or what a barrier brought back. What the elected thread alone has waited for is in
a clock of its own, until the warps converge.

An arrival joins a clock into the barrier's phase: with the step at hand for the threads that arrive
(one lane of each warp, or every thread, speak for all; the elected thread speaks for itself). A
wait joins the phase's clock into the agent's.

An access *ends*: a TMA load with the phase it lands on; a product, for all threads, at the wait
that retires it; a TMA store, for the elected thread, at its read wait; a generic access with its
step.

Rules (numbers as in the verifier's formulation):

1. Of two accesses to overlapping bytes, one a write, the first has ended within the second's clock.
2. A generic access before an async-proxy access is fenced by its threads, within that clock.
3. An arrival or a load's bytes in phase k follow the completion of phase k-1.
4. A wait that sees phase k follows the completion of phase k-1 and precedes that of phase k+1.
5. Arrivals at a named barrier follow its generation before.

Completion of a phase is known to whoever has seen it, and to whoever knows of all its arrivals if
no bytes land on it. Under 3-5 every execution matches synchronisation alike, so one run speaks for
all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fa3gen.errors import VerificationError
from fa3gen.schedule.flatten import Event
from fa3gen.schedule.machine import Machine
from fa3gen.schedule.program import Calc, Executor, Gemm, StageOut, instructions
from fa3gen.schedule.state import Agent, MachineBarrier, Proxy, Spans, Touch, describe, overlap

__all__ = ["HappensBefore"]

Clock = list[int]
Moment = tuple[int, int]  # clock component, value


@dataclass
class _Access:
    """One shared-memory access and what ends it."""

    touch: Touch
    agent: Agent
    step: Event
    end: Moment | None = None  # None: in flight
    fence: Moment | None = None  # fence.proxy.async after a generic access

    def __str__(self) -> str:
        return f"{self.agent.name}, {describe(self.step)}"


@dataclass
class _Phase:
    """What makes up one phase of a barrier."""

    clock: Clock  # of its arrivals together
    arrivals: list[Moment] = field(default_factory=list)
    loads: bool = False  # bytes land on it
    waits: list[Moment] = field(default_factory=list)  # that have seen it complete


class HappensBefore:
    """A machine's monitor: attach by ``Machine(program, work, domain, HappensBefore(agents))``."""

    def __init__(self, agents: int) -> None:
        self.agents = agents
        self.clocks: list[Clock] = []  # what all threads of each agent know
        self.private: list[Clock] = []  # what its elected thread knows besides
        self.now = [0] * agents
        self.steps: dict[int, Event] = {}
        self.alone: list[bool] = []  # one thread does all that the agent does
        self.accesses: list[_Access] = []
        self.owned: dict[int, list[_Access]] = {}
        self.phases: dict[tuple[int, int], _Phase] = {}
        self.start: Clock = []

    def attach(self, machine: Machine) -> None:
        """Size the clocks for a machine; call before it runs."""
        barriers = machine.clock_size - self.agents
        self.start = [0] * (2 * self.agents) + [-1] * barriers
        self.clocks = [list(self.start) for _ in range(self.agents)]
        self.private = [list(self.start) for _ in range(self.agents)]
        self.alone = [
            not any(isinstance(i, (Calc, Gemm, StageOut)) for i in instructions(agent.role.body))
            for agent in machine.agents
        ]

    # --- clocks -----------------------------------------------------------------------------------

    def _all(self, agent: Agent) -> int:
        """Component of the steps of all threads of an agent."""
        return agent.index

    def _elected(self, agent: Agent) -> int:
        """Component of the steps of an agent's elected thread."""
        return self.agents + agent.index

    def _barrier(self, barrier: MachineBarrier) -> int:
        """Component of a barrier's phases; the machine counts its barriers from the agents on."""
        return self.agents + barrier.index

    def _clock(self, agent: Agent, by: Executor) -> Clock:
        """What the executing threads know, their own steps up to now included."""
        clock = self._known(agent, by)
        now = self.now[agent.index]
        clock[self._elected(agent)] = now
        if by is not Executor.ELECTED or self.alone[agent.index]:
            clock[self._all(agent)] = now
        return clock

    def _known(self, agent: Agent, by: Executor) -> Clock:
        """What the executing threads have been told."""
        clock = list(self.clocks[agent.index])
        if by is Executor.ELECTED or self.alone[agent.index]:
            _join(clock, self.private[agent.index])
        return clock

    def _moment(self, agent: Agent, by: Executor) -> Moment:
        """The step at hand, as the threads that execute it stamp it."""
        elected = by is Executor.ELECTED and not self.alone[agent.index]
        component = self._elected(agent) if elected else self._all(agent)
        return component, self.now[agent.index]

    def _phase(self, barrier: MachineBarrier, phase: int) -> _Phase:
        key = (barrier.index, phase)
        if key not in self.phases:
            self.phases[key] = _Phase(list(self.start))
        return self.phases[key]

    def _knows(self, clock: Clock, barrier: MachineBarrier, phase: int) -> bool:
        """Whether a clock implies that a phase is complete: seen, or made of arrivals all known."""
        if clock[self._barrier(barrier)] >= phase:
            return True
        made = self._phase(barrier, phase)
        return bool(made.arrivals) and not made.loads and _within(made.arrivals, clock)

    # --- events -----------------------------------------------------------------------------------

    def begin(self, agent: Agent, step: Event) -> None:
        """Time passes: an agent's own component is the index of its step, from 1."""
        self.now[agent.index] = agent.pc + 1
        self.steps[agent.index] = step

    def access(self, agent: Agent, touch: Touch, owner: object) -> None:
        """Check a new access against every earlier one (rules 1 and 2) and remember it."""
        clock = self.clocks[agent.index]
        if touch.by is Executor.ELECTED:
            clock = self._clock(agent, touch.by)
        new = _Access(touch, agent, self.steps[agent.index])
        kept = []
        for old in self.accesses:
            meets = overlap(old.touch.spans, touch.spans)
            if meets and (old.touch.write or touch.write):
                _check_pair(clock, old, new)
            if not (meets and touch.write and _covers(touch.spans, old.touch.spans)):
                kept.append(old)  # else whatever is ordered after the new one is after the old
        kept.append(new)
        self.accesses = kept
        if touch.proxy is Proxy.GENERIC:
            new.end = self._moment(agent, touch.by)
        else:
            self.owned.setdefault(id(owner), []).append(new)

    def retire(self, agent: Agent, owner: object, by: Executor) -> None:
        """Accesses of a product or TMA store are complete for the threads that waited."""
        for access in self.owned.pop(id(owner), []):
            access.end = self._moment(agent, by)

    def proxy_fence(self, agent: Agent) -> None:
        """Each thread fences its own generic accesses so far."""
        for access in self.accesses:
            generic = access.touch.proxy is Proxy.GENERIC
            if access.agent is agent and generic and access.fence is None:
                access.fence = self._moment(agent, Executor.ALL)

    def converge(self, agent: Agent) -> None:
        """The agent's warps wait for each other: each knows what all have done and know."""
        self.clocks[agent.index] = self._clock(agent, Executor.ALL)
        _join(self.clocks[agent.index], self.private[agent.index])

    def arrive(self, agent: Agent, barrier: MachineBarrier, by: Executor) -> None:
        """Rules 3 and 5, then join the agent's clock into the phase."""
        if not self._knows(self._known(agent, by), barrier, barrier.phase - 1):
            raise VerificationError(
                f"phase error: arrives at {barrier} without knowing that the phase before is "
                "complete"
            )
        phase = self._phase(barrier, barrier.phase)
        phase.arrivals.append(self._moment(agent, by))
        _join(phase.clock, self._clock(agent, by))

    def transact(self, agent: Agent, barrier: MachineBarrier) -> None:
        """Rule 3 for the bytes of a load that is being issued."""
        known = self._known(agent, Executor.ELECTED)
        if not self._knows(known, barrier, barrier.phase - 1):
            raise VerificationError(
                f"phase error: its bytes may land on {barrier} before the phase before is complete"
            )
        self._phase(barrier, barrier.phase).loads = True

    def land(self, barrier: MachineBarrier, owner: object) -> None:
        """A load's write ends with the phase it lands on."""
        for access in self.owned.pop(id(owner), []):
            access.end = (self._barrier(barrier), barrier.phase)

    def complete(self, barrier: MachineBarrier) -> None:
        """Rule 4's second half: whoever waits on the phase before has waited."""
        clock = self._phase(barrier, barrier.phase).clock
        if not _within(self._phase(barrier, barrier.phase - 1).waits, clock):
            raise VerificationError(
                f"phase error: {barrier} may complete before a wait has seen the phase before"
            )
        clock[self._barrier(barrier)] = barrier.phase

    def observe(self, agent: Agent, barrier: MachineBarrier, phase: int, by: Executor) -> None:
        """Rule 4's first half, then join the completed phase's clock into the agent's."""
        alone = by is Executor.ELECTED
        if phase >= 0 and not self._knows(self._known(agent, by), barrier, phase - 1):
            raise VerificationError(
                f"phase error: waits for phase {phase} of {barrier.name} without knowing that "
                f"phase {phase - 1} is complete: it may pass a wrap early"
            )
        seen = self._phase(barrier, phase)
        seen.waits.append(self._moment(agent, by))
        _join((self.private if alone else self.clocks)[agent.index], seen.clock)


def _check_pair(clock: Clock, old: _Access, new: _Access) -> None:
    """Rules 1 and 2 for two conflicting accesses, the second within ``clock``."""
    if old.end is None or not _within([old.end], clock):
        raise VerificationError(f"{_conflict(old, new)}: {old}")
    generic_first = old.touch.proxy is Proxy.GENERIC and new.touch.proxy is Proxy.ASYNC
    if generic_first and (old.fence is None or not _within([old.fence], clock)):
        raise VerificationError(f"no fence.proxy.async after the generic access: {old}")


def _conflict(old: _Access, new: _Access) -> str:
    """A pair that breaks rule 1, in words."""
    if not old.touch.write:
        return "overwrites bytes before their last read has ended"
    what = "the load has landed" if old.touch.proxy is Proxy.ASYNC else "the write has ended"
    return f"{'overwrites' if new.touch.write else 'reads'} bytes before {what}"


def _within(moments: list[Moment], clock: Clock) -> bool:
    """Whether a clock holds all of some moments."""
    return all(clock[component] >= at for component, at in moments)


def _join(target: Clock, source: Clock) -> None:
    for index, value in enumerate(source):
        if value > target[index]:
            target[index] = value


def _covers(outer: Spans, inner: Spans) -> bool:
    """Whether every inner interval lies in an outer one."""
    return all(any(a <= c and d <= b for a, b in outer) for c, d in inner)
