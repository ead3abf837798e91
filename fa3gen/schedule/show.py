"""A schedule as text: spec, graph, placements, budgets."""

from __future__ import annotations

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.schedule import Schedule

__all__ = ["show_schedule"]


def show_schedule(schedule: Schedule) -> str:
    """Spec, op graph, pipeline placement, shared-memory and register budgets."""
    sections = [
        ("spec", schedule.spec.canonical()),
        ("graph of one work tile", str(schedule.graph)),
        ("tiling", str(schedule.tiling)),
        ("keys of a query tile", _bounds(schedule)),
        ("pipeline", _placements(schedule)),
        ("shared memory", _memory(schedule)),
        ("registers", _registers(schedule)),
    ]
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections)


def _bounds(schedule: Schedule) -> str:
    bounds = schedule.bounds
    return (
        f"some row keeps  [{bounds.some_begin or 0}, {bounds.some_end or 'seqlen_k'})\n"
        f"every row keeps [{bounds.every_begin or 0}, {bounds.every_end or 'seqlen_k'})"
        + ("" if bounds.exact else "\nevery tile is masked: a conjunct bounds nothing")
    )


def _placements(schedule: Schedule) -> str:
    return "\n".join(
        f"{p.role.value:9s} slot {p.slot}  stage {p.stage}  {p.op}" for p in schedule.placements
    )


def _memory(schedule: Schedule) -> str:
    memory = schedule.memory
    if memory is None:
        return "not planned"
    lines = [
        f"{b.tile:8s} at {b.offset:6d}  {b.stages} x {b.rows} x {b.cols} {b.dtype.value}"
        f" = {b.bytes:6d} B" + (f", over {b.over}" if b.over else "")
        for b in memory.buffers
    ]
    lines += [
        f"{b.name:8s} at {b.offset:6d}  {b.stages} mbarriers of {b.arrivals} arrivals"
        for b in memory.barriers
    ]
    return "\n".join([*lines, f"total {memory.bytes} of {HOPPER.shared_bytes} B"])


def _registers(schedule: Schedule) -> str:
    plan = schedule.registers
    if plan is None:
        return "not planned"
    lines = [f"{use.tile:8s} {use.registers:4d}" for use in plan.uses]
    lines.append(f"needs {plan.needs} of {plan.consumer} a consumer thread")
    lines.append(f"launch {plan.launch}, producer {plan.producer}, consumers {plan.consumer}")
    return "\n".join(lines)
