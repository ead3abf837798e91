"""Random schedules of a Program: a cross-check of the happens-before argument.

``verify`` runs one execution and lets its clocks speak for all. Here the same machine runs with its
roles and landings in random order, each role at a speed of its own. With the monitor, each schedule
must give the verdict that ``verify_run`` gives. Without it a schedule fails only if something goes
wrong in it: a deadlock, a phase missed, a value overwritten or not there yet.
"""

from __future__ import annotations

import random

from fa3gen.errors import VerificationError
from fa3gen.schedule.hazards import HappensBefore
from fa3gen.schedule.machine import Machine
from fa3gen.schedule.program import Program
from fa3gen.schedule.ranges import TileRange
from fa3gen.schedule.tokens import Tokens

__all__ = ["explore"]


def explore(
    program: Program, work: tuple[TileRange, ...], seed: int, monitored: bool
) -> str | None:
    """What goes wrong in one random schedule over the CTA's work tiles; None if nothing does."""
    tokens = Tokens(program)
    monitor = HappensBefore(sum(role.instances for role in program.roles)) if monitored else None
    try:
        machine = Machine(program, work, tokens, monitor)
        if monitor is not None:
            monitor.attach(machine)
        _run(machine, random.Random(seed))
        tokens.check(work, program.role("consumer").instances)
    except VerificationError as error:
        return str(error)
    return None


def _run(machine: Machine, chance: random.Random) -> None:
    """Run a machine to its end, one random step or landing after another."""
    speeds = [10 ** chance.uniform(-2, 2) for _ in machine.agents]
    landing = 10 ** chance.uniform(-2, 2)
    blocked: set[int] = set()
    while True:
        ready = [a for a in machine.agents if not a.done and a.index not in blocked]
        if not ready and not machine.flights:
            break
        weights = [*(speeds[agent.index] for agent in ready), landing * bool(machine.flights)]
        (agent,) = chance.choices([*ready, None], weights)
        if agent is None:
            machine.land(chance.randrange(len(machine.flights)))
        elif not machine.step(agent):
            blocked.add(agent.index)
            continue
        blocked.clear()
    if not all(agent.done for agent in machine.agents):
        raise VerificationError(machine.deadlock())
    machine.check_exit()
