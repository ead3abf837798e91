"""The scheduler: AttentionSpec to Schedule to Program, as one list of passes.

=================  =====================================================================
``tuned.find``     knobs that were measured, one set for each kernel
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

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fa3gen import debug
from fa3gen.errors import ScheduleError, UnsupportedError
from fa3gen.ir import build_forward
from fa3gen.ir.build import check_supported
from fa3gen.ir.int32 import check_int32
from fa3gen.schedule import tuned
from fa3gen.schedule.loop import plan_loop
from fa3gen.schedule.lower import lower
from fa3gen.schedule.memory import plan_memory, plan_registers
from fa3gen.schedule.place import place
from fa3gen.schedule.program import Program
from fa3gen.schedule.ranges import key_bounds, row_keys
from fa3gen.schedule.schedule import Schedule
from fa3gen.schedule.tiles import choose_tiling
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import ScheduleKnobs

__all__ = ["PASSES", "make_plan", "make_program", "make_schedule", "start_plan"]

_log = logging.getLogger(__name__)

PASSES = (plan_loop, place, plan_memory, plan_registers)
_TABLES = (tuned.SHIPPED,)


def make_plan(
    spec: AttentionSpec,
    *,
    gpu: str | None = None,
    tables: Sequence[Path] = _TABLES,
    spare: int = 0,
) -> tuple[Schedule, ...]:
    """The schedules of a spec's kernels, in the order in which a call tries them.

    A spec without knobs gets those that were measured for its problem class, if a table has it, for
    the GPU of that name; else there is one kernel, with so many ``spare`` registers a consumer
    thread. ScheduleError or UnsupportedError if there is none.
    """
    started = start_plan(spec, gpu=gpu, tables=tables, spare=spare)
    return tuple(replace(_finished(schedule), spec=spec) for schedule in started)


def make_schedule(spec: AttentionSpec) -> Schedule:
    """The Schedule of a spec's last kernel, which takes any number of keys."""
    return make_plan(spec)[-1]


def make_program(spec: AttentionSpec) -> Program:
    """The Program of that Schedule."""
    return lower(make_schedule(spec))


def start_plan(
    spec: AttentionSpec,
    *,
    gpu: str | None = None,
    tables: Sequence[Path] = _TABLES,
    spare: int = 0,
) -> tuple[Schedule, ...]:
    """What the passes of ``make_plan`` start from; the spec of each has its kernel's knobs."""
    check_supported(spec)
    if row_keys(spec.mask_expr) is None:  # told element by element
        check_int32(spec.mask_expr, "mask")
    check_int32(spec.score_expr, "score")
    if spec.schedule == ScheduleKnobs() and (kernels := tuned.find(spec, gpu, tables)):
        # What fits one head dim of a class need not fit all: then nothing was measured.
        with contextlib.suppress(ScheduleError, UnsupportedError):
            return tuple(
                _started(spec.model_copy(update={"schedule": kernel.knobs}), kernel.max_keys)
                for kernel in kernels
            )
    return (_started(spec, None, spare),)


def _started(spec: AttentionSpec, max_keys: int | None, spare: int = 0) -> Schedule:
    """Tile, knobs and graph of a kernel."""
    bounds = key_bounds(spec.mask_expr)
    bounds = replace(bounds, listed=not bounds.exact)
    tiling, choice = choose_tiling(spec, bounds, spare)
    graph = build_forward(spec, tiling.block_m, tiling.block_n)
    _log.log(debug.PASSES, "graph:\n%s", graph)
    return Schedule(spec, tiling, graph, bounds, choice=choice, max_keys=max_keys)


def _finished(schedule: Schedule) -> Schedule:
    """All passes run."""
    for run_pass in PASSES:
        schedule = run_pass(schedule)
        _log.log(debug.PASSES, "after %s:\n%s", run_pass.__name__, schedule)
    return schedule
