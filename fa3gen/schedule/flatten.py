"""A role's tree to straight-line steps, for given KV tile ranges of the CTA's work tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fa3gen.errors import VerificationError
from fa3gen.schedule.program import (
    Advance,
    Arrive,
    ClaimWork,
    EachWork,
    EndOfWork,
    Expect,
    ForTiles,
    Gemm,
    IfTiles,
    Instruction,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    OnInstance,
    Program,
    ReadWork,
    Role,
    Segment,
    Wait,
)
from fa3gen.schedule.ranges import TileRange

__all__ = ["Step", "flatten", "visits"]


@dataclass(frozen=True)
class Step:
    """One instruction with its loop position and ring position resolved.

    ``work``: ordinal of the work tile in the CTA; ``tile``: ordinal of the KV tile in visiting
    order; ``stage`` and ``phase``: of the ring (of operand b for a product, ``stage_a`` of a);
    ``slot``: the named barrier's instance.
    """

    instruction: Instruction
    work: int
    tile: int
    stage: int = 0
    phase: int = 0
    stage_a: int = 0
    slot: int = 0


def visits(tiles: TileRange, peeled: int, segment: Segment) -> range:
    """The iterations t of a segment; iteration t starts KV tile ``end - 1 - t``."""
    count = tiles.tiles
    right_end = min(max(tiles.end - tiles.full_end, peeled), max(count, peeled))
    full_end = min(max(tiles.end - tiles.full_begin, right_end), max(count, peeled))
    return {
        Segment.FIRST: range(0, peeled),
        Segment.ALL: range(peeled, count),
        Segment.RIGHT: range(peeled, right_end),
        Segment.FULL: range(right_end, full_end),
        Segment.LEFT: range(full_end, count),
        Segment.DRAIN: range(max(count, peeled), max(count, peeled) + peeled),
    }[segment]


def flatten(program: Program, role: Role, instance: int, work: Sequence[TileRange]) -> list[Step]:
    """The steps of one instance of a role over the CTA's work tiles."""
    return list(_Flattener(program, role, instance, work).run())


@dataclass
class _Flattener:
    program: Program
    role: Role
    instance: int
    work: Sequence[TileRange]
    cursors: dict[str, int] = field(default_factory=dict)

    def run(self) -> Iterator[Step]:
        """Walk the role's body."""
        yield from self._walk(self.role.body, -1, 0)

    def _walk(self, nodes: tuple[Node, ...], work: int, tile: int) -> Iterator[Step]:
        for node in nodes:
            match node:
                case EachWork(body):
                    yield from self._each_work(body)
                case IfTiles(body):
                    if self._tiles(work).tiles > 0:
                        yield from self._walk(body, work, tile)
                case ForTiles(segment, body):
                    for t in visits(self._tiles(work), self.program.peeled, segment):
                        yield from self._walk(body, work, t)
                case OnInstance(instance, body):
                    if instance == self.instance:
                        yield from self._walk(body, work, tile)
                case Advance(cursor):
                    self.cursors[cursor] = self.cursors.get(cursor, 0) + 1
                case _:
                    yield self._resolve(node, work, tile)

    def _tiles(self, work: int) -> TileRange:
        if not 0 <= work < len(self.work):
            raise VerificationError(f"{self.role.name} works on a work tile that is not there")
        return self.work[work]

    def _each_work(self, body: tuple[Node, ...]) -> Iterator[Step]:
        """Each work tile; where they are claimed, also the claim that finds none."""
        for index in range(len(self.work)):
            yield from self._walk(body, index, 0)
        ends = [at for at, node in enumerate(body) if isinstance(node, EndOfWork)]
        if ends:
            yield from self._walk(body[: ends[0] + 1], len(self.work), 0)
        elif any(isinstance(node, (ClaimWork, ReadWork)) for node in body):
            raise VerificationError(f"{self.role.name} claims work tiles in a loop without end")

    def _resolve(self, instruction: Instruction, work: int, tile: int) -> Step:
        match instruction:
            case Wait() | Arrive() | Expect():
                stage, phase = self._position(instruction.cursor, instruction.shift)
                if isinstance(instruction, Wait) and instruction.empty:
                    phase -= 1
                return Step(instruction, work, tile, stage, phase)
            case Load() | ClaimWork() | ReadWork():
                stage, phase = self._position(instruction.cursor, instruction.shift)
                skew = instruction.skew if isinstance(instruction, Load) else 0
                return Step(instruction, work, tile - skew, stage, phase)
            case Gemm():
                stage, phase = self._position(instruction.b_cursor, instruction.shift)
                stage_a = 0
                if instruction.a_cursor is not None:
                    stage_a, _ = self._position(instruction.a_cursor, 0)
                return Step(instruction, work, tile - instruction.skew, stage, phase, stage_a)
            case NamedSync() | NamedArrive():
                slot = (self.instance + instruction.shift) % self.role.instances
                return Step(instruction, work, tile, slot=slot)
            case _:
                return Step(instruction, work, tile - getattr(instruction, "skew", 0))

    def _position(self, cursor: str, shift: int) -> tuple[int, int]:
        """Stage and phase of a cursor."""
        try:
            stages = self.program.buffer(cursor).stages
        except StopIteration:
            raise VerificationError(f"cursor {cursor} walks no buffer") from None
        fill = self.cursors.get(cursor, 0)
        return (fill + shift) % stages, fill // stages
