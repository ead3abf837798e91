"""The scheduler: AttentionSpec to Schedule to Program, as one list of passes.

=================  =====================================================================
``key_bounds``     which keys some row, and every row, of a query tile keeps
``choose_tiling``  tile sizes and pipeline knobs from the budgets
``build_forward``  the op graph of one work tile
``plan_loop``      overlap and ping-pong from the solved steady loop
``place``          role, pipeline stage and slot of each operation
``plan_memory``    shared memory, mbarriers
``plan_registers`` setmaxnreg of each role
``lower``          instructions with explicit synchronisation
=================  =====================================================================
"""

from __future__ import annotations

import logging

from fa3gen import debug
from fa3gen.ir import build_forward
from fa3gen.ir.build import check_supported
from fa3gen.schedule.loop import plan_loop
from fa3gen.schedule.lower import lower
from fa3gen.schedule.memory import plan_memory, plan_registers
from fa3gen.schedule.place import place
from fa3gen.schedule.program import Program
from fa3gen.schedule.ranges import key_bounds
from fa3gen.schedule.schedule import Schedule
from fa3gen.schedule.tiles import choose_tiling
from fa3gen.spec import AttentionSpec

__all__ = ["PASSES", "make_program", "make_schedule", "start_schedule"]

_log = logging.getLogger(__name__)

PASSES = (plan_loop, place, plan_memory, plan_registers)


def make_schedule(spec: AttentionSpec) -> Schedule:
    """The Schedule of a spec; ScheduleError or UnsupportedError if there is none."""
    schedule = start_schedule(spec)
    _log.log(debug.PASSES, "graph:\n%s", schedule.graph)
    for run_pass in PASSES:
        schedule = run_pass(schedule)
        _log.log(debug.PASSES, "after %s:\n%s", run_pass.__name__, schedule)
    return schedule


def start_schedule(spec: AttentionSpec) -> Schedule:
    """What the passes start from: tile, knobs and graph."""
    check_supported(spec)
    bounds = key_bounds(spec.mask_expr)
    tiling, choice = choose_tiling(spec, bounds)
    graph = build_forward(spec, tiling.block_m, tiling.block_n)
    return Schedule(spec, tiling, graph, bounds, choice=choice)


def make_program(spec: AttentionSpec) -> Program:
    """The Program of a spec."""
    return lower(make_schedule(spec))
