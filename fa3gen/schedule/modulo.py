"""ModuloSchedule: the steady loop as the solver answers, ``fa3gen.schedule.solve``.

Every ``interval`` (II) cycles each of the W consumer warpgroups handles one KV tile of its 64 rows.
An operation of KV tile j starts at ``s + j * II``; ``s = k * II + r`` has stage k and offset r. All
warpgroups run the same code at the same times, but each later than the first by its ``turn``.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ModuloSchedule", "Origin", "Timing", "Turns"]


class Origin(enum.Enum):
    """Where the overlap and ping-pong of a schedule come from, as far as no knob gives them."""

    GIVEN = "knobs"
    STORED = "a stored solution"
    SOLVED = "a solution found now"
    UNSOLVED = (
        "the rule (overlap 2, ping-pong of two and more warpgroups), for the problem is not among "
        "the stored ones and ortools is not installed"
    )
    UNSEEN = (
        "the rule (overlap 2, ping-pong of two and more warpgroups), for the solver knows neither "
        "P in shared memory nor consumers that load nor CTAs that share an SM"
    )


@dataclass(frozen=True)
class Timing:
    """When an operation, or a part of one, runs for KV tile 0; cycles.

    A warpgroup's instruction stream reaches it at ``issue`` = ``stage`` * II + ``offset``; its unit
    works from ``start`` to ``end``. ``warpgroup`` is None for loads.
    """

    op: str
    part: int
    warpgroup: int | None
    issue: int
    start: int
    end: int
    stage: int
    offset: int


@dataclass(frozen=True)
class Turns:
    """How warpgroups share the tensor core: cycles behind the first, and the order of the products
    (warpgroup, operation) within an interval. No order of warpgroups follows from data; it is
    ``binding``, and needs a barrier, where a product follows another warpgroup's so closely that
    one which comes at the wrong time, between them, would put it off."""

    offsets: tuple[int, ...]
    order: tuple[tuple[int, str], ...]
    binding: bool


@dataclass(frozen=True)
class ModuloSchedule:
    """The steady loop: ``interval`` cycles for one KV tile of every warpgroup.

    ``flops`` of an interval; ``loads``: the least cycles of it that each unit allows;
    ``score_tiles`` and ``p_tiles`` live at a time in a warpgroup; ``proved``: the model has no
    shorter interval and live ranges. A warpgroup's timings are in the order of its code.
    """

    warpgroups: int
    interval: int
    flops: int
    loads: tuple[tuple[str, int], ...]
    score_tiles: int
    p_tiles: int
    proved: bool
    timings: tuple[Timing, ...]

    @property
    def binding(self) -> str:
        """The unit with the highest load."""
        return max(self.loads, key=lambda load: load[1])[0]

    @property
    def utilisation(self) -> float:
        """Share of the interval in which the tensor core is busy."""
        return dict(self.loads)["tensor core"] / self.interval

    def predicted_tflops(self, clock_ghz: float, sms: int = 132) -> float:
        """TFLOP/s of the steady loop."""
        return self.flops / self.interval * clock_ghz * sms / 1000

    def of(self, warpgroup: int | None) -> tuple[Timing, ...]:
        """A warpgroup's timings, or the loads'."""
        return tuple(timing for timing in self.timings if timing.warpgroup == warpgroup)

    def stages(self) -> dict[str, int]:
        """Iterations from Q K^T of a KV tile to each operation; of its last part, if in parts."""
        timings = sorted(self.of(None) + self.of(0), key=lambda timing: timing.part)
        return {timing.op: timing.stage for timing in timings}

    def slots(self) -> tuple[str, ...]:
        """A consumer's operations in the order of its code; Exp twice if others part it."""
        return tuple(op for op, _ in itertools.groupby(timing.op for timing in self.of(0)))

    @property
    def turns(self) -> Turns:
        """The order of the warpgroups on the tensor core."""
        products = [t for t in self.timings if t.op.startswith("Gemm")]
        products.sort(key=lambda t: t.start % self.interval)
        longest = max(t.end - t.start for t in products)
        handed = any(
            one.warpgroup != other.warpgroup and (other.start - one.end) % self.interval < longest
            for one, other in zip(products, products[1:] + products[:1], strict=True)
        )
        issues = {t.warpgroup: t.issue for t in products if t.op == "GemmQK"}
        return Turns(
            tuple(issues[w] for w in range(self.warpgroups)),
            tuple((t.warpgroup or 0, t.op) for t in products),
            handed,
        )

    def to_json(self) -> str:
        """Canonical JSON: equal schedules have equal text. A timing is a list without its stage and
        offset, which follow from its issue."""
        fields = asdict(self)
        fields["timings"] = [
            [t.op, t.part, t.warpgroup, t.issue, t.start, t.end] for t in self.timings
        ]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModuloSchedule:
        """The schedule that ``to_json`` wrote."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ModuloSchedule:
        """The same from the JSON as it is parsed."""
        timings = tuple(
            Timing(op, part, warpgroup, issue, start, end, *divmod(issue, fields["interval"]))
            for op, part, warpgroup, issue, start, end in fields["timings"]
        )
        loads = tuple((unit, cycles) for unit, cycles in fields["loads"])
        return cls(**{**fields, "loads": loads, "timings": timings})

    def __str__(self) -> str:
        turns = self.turns
        lines = [
            f"interval {self.interval} clk, {self.warpgroups} warpgroups, bound by {self.binding}; "
            f"tensor core {100 * self.utilisation:.0f} % busy",
            "at least: " + ", ".join(f"{unit} {cycles}" for unit, cycles in self.loads),
            f"live: {self.score_tiles} tiles of scores, {self.p_tiles} of P",
            f"turns: {turns.offsets}, order {'binds' if turns.binding else 'is free'}",
            f"{'':10s} {'stage':>5s} {'offset':>6s} {'issue':>6s} {'start':>6s} {'end':>6s}",
        ]
        for t in self.of(None) + self.of(0):
            name = t.op + "'" * t.part
            times = f"{t.issue:6d} {t.start:6d} {t.end:6d}"
            lines.append(f"{name:10s} {t.stage:5d} {t.offset:6d} {times}")
        return "\n".join(lines)
