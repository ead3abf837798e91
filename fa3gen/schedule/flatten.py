"""A role's tree to straight-line steps, for given KV tile ranges of the CTA's work tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fa3gen.errors import VerificationError
from fa3gen.schedule.program import (
    Advance,
    Arrive,
    Calc,
    ClaimWork,
    EachWork,
    EndOfWork,
    Expect,
    ForTiles,
    Gemm,
    IfAhead,
    IfTiles,
    Instruction,
    Leftover,
    Leftovers,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    OnInstance,
    Phase,
    Program,
    ReadWork,
    Role,
    Segment,
    Step,
    Wait,
)
from fa3gen.schedule.ranges import TileRange

__all__ = ["Event", "flatten", "visits"]


@dataclass(frozen=True)
class Event:
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


def visits(program: Program, tiles: TileRange, segment: Segment) -> range:
    """The iterations t of a segment; iteration t starts KV tile ``end - 1 - t``, and its softmax is
    that of the tile ``lag`` before."""
    peeled, lag, turn = program.peeled, program.lag, program.unroll
    count = max(tiles.tiles, peeled)
    whole = count - (count - peeled) % turn
    right_end = min(max(tiles.end - tiles.full_end + lag, peeled, program.followed), whole)
    right_end += (peeled - right_end) % turn
    full_end = min(max(tiles.end - tiles.full_begin + lag, right_end), whole)
    full_end -= (full_end - peeled) % turn
    return {
        Segment.FIRST: range(0, peeled),
        Segment.ALL: range(peeled, count),
        Segment.RIGHT: range(peeled, right_end),
        Segment.FULL: range(right_end, full_end),
        Segment.LEFT: range(full_end, whole),
        Segment.REST: range(whole, count),
        Segment.DRAIN: range(count, count + peeled),
    }[segment]


def flatten(program: Program, role: Role, instance: int, work: Sequence[TileRange]) -> list[Event]:
    """The steps of one instance of a role over the CTA's work tiles."""
    return list(_Flattener(program, role, instance, work).run())


@dataclass
class _Flattener:
    program: Program
    role: Role
    instance: int
    work: Sequence[TileRange]
    cursors: dict[str, int] = field(default_factory=dict)

    def run(self) -> Iterator[Event]:
        """Walk the role's body."""
        yield from self._walk(self.role.body, -1, 0)

    def _walk(self, nodes: tuple[Node, ...], work: int, tile: int) -> Iterator[Event]:
        for node in nodes:
            match node:
                case EachWork(body):
                    yield from self._each_work(body)
                case IfTiles(body):
                    if self._tiles(work).tiles > 0:
                        yield from self._walk(body, work, tile)
                case ForTiles(segment, body):
                    span = visits(self.program, self._tiles(work), segment)
                    for t in span:
                        yield from self._walk(_of_step(body, t - span.start), work, t)
                case Phase(index, count, body):
                    if tile % count == index:
                        yield from self._walk(body, work, tile)
                case Leftovers(body):
                    yield from self._walk(body, work, tile)
                case Leftover(left, body):
                    if left == len(visits(self.program, self._tiles(work), Segment.REST)):
                        yield from self._walk(body, work, tile)
                case IfAhead(ahead, body):
                    if tile + ahead < self._tiles(work).tiles:
                        yield from self._walk(body, work, tile)
                case OnInstance(instance, body):
                    if instance == self.instance:
                        yield from self._walk(body, work, tile)
                case Step():
                    raise VerificationError("a step outside a segment")
                case Advance(cursor):
                    self.cursors[cursor] = self.cursors.get(cursor, 0) + 1
                case _:
                    yield self._resolve(node, work, tile)

    def _tiles(self, work: int) -> TileRange:
        if not 0 <= work < len(self.work):
            raise VerificationError(f"{self.role.name} works on a work tile that is not there")
        return self.work[work]

    def _each_work(self, body: tuple[Node, ...]) -> Iterator[Event]:
        """Each work tile; where they are claimed, also the claim that finds none."""
        for index in range(len(self.work)):
            yield from self._walk(body, index, 0)
        ends = [at for at, node in enumerate(body) if isinstance(node, EndOfWork)]
        if ends:
            yield from self._walk(body[: ends[0] + 1], len(self.work), 0)
        elif any(isinstance(node, (ClaimWork, ReadWork)) for node in body):
            raise VerificationError(f"{self.role.name} claims work tiles in a loop without end")

    def _resolve(self, instruction: Instruction, work: int, tile: int) -> Event:
        match instruction:
            case Wait() | Arrive() | Expect():
                stage, phase = self._position(instruction.cursor, instruction.shift)
                if isinstance(instruction, Wait) and instruction.empty:
                    phase -= 1
                return Event(instruction, work, tile, stage, phase)
            case Calc(cursor=str(cursor)):
                stage, phase = self._position(cursor, instruction.shift)
                return Event(instruction, work, tile - instruction.skew, stage, phase)
            case Load() | ClaimWork() | ReadWork():
                stage, phase = self._position(instruction.cursor, instruction.shift)
                skew = instruction.skew if isinstance(instruction, Load) else 0
                return Event(instruction, work, tile - skew, stage, phase)
            case Gemm():
                stage, phase = self._position(instruction.b_cursor, instruction.shift)
                stage_a = 0
                if instruction.a_cursor is not None:
                    stage_a, _ = self._position(instruction.a_cursor, 0)
                return Event(instruction, work, tile - instruction.skew, stage, phase, stage_a)
            case NamedSync() | NamedArrive():
                instances = self.program.named_barrier(instruction.barrier).instances
                slot = (self.instance + instruction.shift) % instances
                return Event(instruction, work, tile, slot=slot)
            case _:
                return Event(instruction, work, tile - getattr(instruction, "skew", 0))

    def _position(self, cursor: str, shift: int) -> tuple[int, int]:
        """Stage and phase of a cursor."""
        try:
            stages = self.program.ring(cursor).stages
        except StopIteration:
            raise VerificationError(f"cursor {cursor} walks no buffer") from None
        fill = self.cursors.get(cursor, 0)
        return (fill + shift) % stages, fill // stages


def _of_step(body: tuple[Node, ...], index: int) -> tuple[Node, ...]:
    """The body of one step of a segment, where steps differ."""
    return tuple(
        child
        for node in body
        if not isinstance(node, Step) or node.index == index
        for child in (node.body if isinstance(node, Step) else (node,))
    )
