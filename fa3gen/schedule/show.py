"""A schedule and its Program as text, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.modulo import ModuloSchedule
from fa3gen.schedule.program import Program
from fa3gen.schedule.schedule import Schedule

__all__ = ["plain", "schedule_json", "show_schedule"]


def show_schedule(schedule: Schedule) -> str:
    """Spec, op graph, choices, pipeline placement, shared-memory and register budgets."""
    sections = {
        "spec": schedule.spec.canonical(),
        "graph of one work tile": str(schedule.graph),
        "tiling": _fields(schedule.tiling),
        "keys of a query tile": _bounds(schedule),
        "steady loop": _steady(schedule),
        "pipeline": _placements(schedule),
        "shared memory": _memory(schedule),
        "registers": _registers(schedule),
    }
    # A record that a later pass adds to the schedule prints itself.
    shown = {"spec", "tiling", "graph", "bounds", "placements", "memory", "registers"}
    shown |= {"modulo", "origin"}
    for field in dataclasses.fields(schedule):
        if field.name not in shown and (value := getattr(schedule, field.name)):
            sections[field.name] = str(value)
    return "\n\n".join(f"== {title}\n{text}" for title, text in sections.items())


def schedule_json(schedule: Schedule, program: Program) -> dict[str, Any]:
    """All that ``fa3gen show`` prints, as values that JSON has."""
    record: dict[str, Any] = {"spec": json.loads(schedule.spec.canonical())}
    record["graph"] = {
        "ops": [
            {"name": op.name, "unit": op.unit.value, "cycles": op.cycles, **plain(op)}
            for op in schedule.graph.ops
        ],
        "dependences": plain(schedule.graph.dependences),
    }
    for field in dataclasses.fields(schedule):
        if field.name not in record:
            record[field.name] = plain(getattr(schedule, field.name))
    if schedule.modulo is not None:
        record["modulo"] |= _figures(schedule.modulo)
    return {**record, "program": plain(program)}


def plain(value: Any) -> Any:
    """Records as mappings, enums as their values, sequences as lists, expressions as text.

    An instruction or loop of a Program also says what it is, under ``kind_of``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        node = type(value).__module__ == Program.__module__
        return {"kind_of": type(value).__name__, **fields} if node else fields
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _fields(record: Any) -> str:
    """A record of plain values, a line each."""
    names = [field.name for field in dataclasses.fields(record)]
    return "\n".join(f"{name:12s} {plain(getattr(record, name))}" for name in names)


def _bounds(schedule: Schedule) -> str:
    bounds = schedule.bounds
    return (
        f"some row keeps  [{bounds.some_begin or 0}, {bounds.some_end or 'seqlen_k'})\n"
        f"every row keeps [{bounds.every_begin or 0}, {bounds.every_end or 'seqlen_k'})"
        + ("\nlisted by a kernel that looks at the elements" if bounds.listed else "")
    )


def _figures(modulo: ModuloSchedule) -> dict[str, Any]:
    """What follows from a solved loop, at the clock and number of SMs of ``arch``."""
    turns = modulo.turns
    return {
        "binding_unit": modulo.binding,
        "tensor_utilisation": modulo.utilisation,
        "clock_ghz": HOPPER.clock_ghz,
        "sms": HOPPER.sms,
        "predicted_tflops": modulo.predicted_tflops(HOPPER.clock_ghz, HOPPER.sms),
        "turns": {"offsets": list(turns.offsets), "binding": turns.binding},
    }


def _steady(schedule: Schedule) -> str:
    """The solved loop, and where overlap and ping-pong come from, if not both from knobs."""
    tiling, modulo = schedule.tiling, schedule.modulo
    pingpong = "ping-pong" if tiling.pingpong else "no ping-pong"
    source = schedule.origin.value if schedule.origin else "no pass yet"
    chosen = f"overlap {tiling.overlap}, {pingpong}: from {source}"
    if modulo is None:
        return f"{chosen}\ninterval unknown"
    tflops = modulo.predicted_tflops(HOPPER.clock_ghz, HOPPER.sms)
    speed = f"predicted {tflops:.0f} TFLOP/s at {HOPPER.clock_ghz} GHz on {HOPPER.sms} SMs"
    return f"{chosen}\n{speed}\n{modulo}"


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
    limit = HOPPER.share(schedule.tiling.ctas_per_sm).shared_bytes
    return "\n".join([*lines, f"total {memory.bytes} of {limit} B"])


def _registers(schedule: Schedule) -> str:
    plan = schedule.registers
    if plan is None:
        return "not planned"
    lines = [f"{use.tile:8s} {use.registers:4d}" for use in plan.uses]
    lines.append(f"needs {plan.needs} of {plan.consumer} a consumer thread")
    lines.append(f"launch {plan.launch}, producer {plan.producer}, consumers {plan.consumer}")
    return "\n".join(lines)
