"""Pass 2: overlap and ping-pong from the solved steady loop, where no knob gives them.

The tile is that of pass 1. The problem's answer is taken from the stored solutions, or found now
(``store``); if neither is possible, pass 1's rule stands: overlap 2, and ping-pong where there are
two or more warpgroups.
"""

from __future__ import annotations

from dataclasses import replace

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.modulo import ModuloSchedule, Origin
from fa3gen.schedule.needs import (
    TWO_SCORES_REGISTERS,
    Setting,
    consumer_limit,
    over_budget,
    register_needs,
)
from fa3gen.schedule.rates import loop_rates
from fa3gen.schedule.schedule import Schedule
from fa3gen.schedule.step import Budget, Step, make_step
from fa3gen.schedule.store import answer
from fa3gen.spec.model import Maxima

__all__ = ["emitted", "plan_loop", "steady_step"]

_LONGEST = 2048  # units of the grid: a longer step is its formula's, and no order makes it shorter


def plan_loop(schedule: Schedule) -> Schedule:
    """Solve the steady loop, and take from it what the knobs leave open."""
    step = steady_step(schedule)
    if step is None:
        return replace(schedule, origin=Origin.UNSEEN)
    modulo, origin = answer(step)
    if modulo is None:
        return replace(schedule, origin=origin)
    overlap, pingpong = emitted(modulo)
    asked = schedule.spec.schedule
    if asked.overlap is not None and asked.pingpong is not None:
        origin = Origin.GIVEN
    tiling = replace(
        schedule.tiling,
        overlap=overlap if asked.overlap is None else asked.overlap,
        pingpong=pingpong if asked.pingpong is None else asked.pingpong,
    )
    return replace(schedule, tiling=tiling, modulo=modulo, origin=origin)


def emitted(modulo: ModuloSchedule) -> tuple[int, bool]:
    """The overlap and ping-pong that come nearest to a solved loop.

    Programs have three forms: everything of a KV tile in one iteration, P V one iteration late,
    the softmax one and P V two iterations late. Overlap is 3 where the maxima are late, else 2
    where P V is, by however much; else 1. Several warpgroups take turns, for the interval holds
    only as long as they stay as far behind one another as solved, and nothing in the data keeps
    them there; but not with overlap 1, whose two products lie apart and have no turn in common.
    """
    stages = modulo.stages()
    overlap = 3 if stages["RowMax"] else 2 if stages["GemmPV"] else 1
    return overlap, overlap > 1 and any(modulo.turns.offsets)


def steady_step(schedule: Schedule) -> Step | None:
    """The solver's problem of a tile that is chosen; None if the model does not know its like."""
    spec, tiling = schedule.spec, schedule.tiling
    if tiling.p_shared or not tiling.specialized or tiling.ctas_per_sm > 1:
        return None
    setting = Setting.of(tiling, 2)
    needs = register_needs(spec, tiling.block_n, setting)
    budget = Budget(
        registers=min(consumer_limit(tiling.warpgroups, setting), HOPPER.compiled_registers),
        working=needs["working"] + needs["mask"],
        stages_k=tiling.stages,
        stages_v=tiling.stages,
        second=TWO_SCORES_REGISTERS,
    )
    step = make_step(
        schedule.graph,
        budget,
        loop_rates(tiling.maxima),
        patterns=_patterns(schedule),
    )
    return step if step.least_interval() <= _LONGEST else None


def _patterns(schedule: Schedule) -> tuple[int, ...]:
    """The overlaps that have a Program under the knobs."""
    spec, tiling = schedule.spec, schedule.tiling
    if spec.schedule.overlap is not None:
        return (spec.schedule.overlap,)
    late = Setting.of(tiling, 3)
    two_tiles = tiling.stages > 1 and tiling.o_over != "V"
    two_tiles &= tiling.maxima is not Maxima.SPECULATIVE
    two_tiles &= not over_budget(spec, (tiling.block_m, tiling.block_n), late)
    return (1,) * (spec.schedule.pingpong is not True) + (2,) + (3,) * two_tiles
