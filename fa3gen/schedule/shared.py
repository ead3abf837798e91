"""The values in a CTA's shared memory while a machine runs: tiles, and rows of tiles, by bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.program import Program
from fa3gen.schedule.state import Operand, Spans, overlap

__all__ = ["SharedMemory"]


@dataclass(frozen=True)
class _Held:
    """What lies in some bytes."""

    spans: Spans
    value: Any
    whole: bool  # the value is that of all rows of the tile


class SharedMemory:
    """Values by (buffer, stage, consumer whose rows they are); None for a tile of all rows.

    Bytes without a value are poison: never written, overwritten, or with a load in flight.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.held: dict[tuple[str, int, int | None], _Held] = {}

    def spans(self, name: str, stage: int, instance: int | None) -> Spans:
        """Bytes of a stage: all of it, or the rows of one consumer."""
        buffer = self.program.buffer(name)
        if instance is None:
            return buffer.intervals(stage, 0, buffer.rows)
        return buffer.intervals(stage, instance * HOPPER.wgmma_rows, HOPPER.wgmma_rows)

    def poison(self, spans: Spans) -> None:
        """Forget the values in some bytes; of a whole tile the other consumers' rows stay."""
        for key in [key for key, held in self.held.items() if overlap(held.spans, spans)]:
            held = self.held.pop(key)
            name, stage, instance = key
            slabs = self.program.buffer(name).rows // HOPPER.wgmma_rows
            for slab in range(slabs if instance is None else 0):
                rows = self.spans(name, stage, slab)
                if not overlap(rows, spans):
                    self.held[name, stage, slab] = _Held(rows, held.value, held.whole)

    def put(self, name: str, stage: int, instance: int | None, value: Any) -> None:
        """Write a tile or one consumer's rows; whatever else lay in those bytes is gone."""
        spans = self.spans(name, stage, instance)
        self.poison(spans)
        self.held[name, stage, instance] = _Held(spans, value, whole=instance is None)

    def operand(self, name: str, stage: int, instance: int | None) -> Operand:
        """What an operation reads; its value is None where there is poison."""
        held = self.held.get((name, stage, instance)) or self.held.get((name, stage, None))
        if held is None:
            return Operand(name, stage, instance, None, sliced=False)
        return Operand(name, stage, instance, held.value, held.whole and instance is not None)
