"""Proof of a Program: free of deadlocks and races, and computing attention, for all trip counts.

One run of the machine under the happens-before monitor speaks for every interleaving of that run's
trip counts. Trip counts are covered up to where the barriers' periods close: all pairs of work
tiles with 0 .. 2 * stages + 2 KV tiles each, and some triples, with every way the segments share
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fa3gen.errors import VerificationError
from fa3gen.schedule.budgets import check_budgets
from fa3gen.schedule.hazards import HappensBefore
from fa3gen.schedule.machine import Machine, Place
from fa3gen.schedule.program import (
    BLOCKS,
    CalcKind,
    ForTiles,
    Gemm,
    GemmKind,
    Node,
    Program,
    Segment,
)
from fa3gen.schedule.ranges import TileRange

__all__ = ["Proof", "Tokens", "trip_counts", "verify", "verify_run"]


@dataclass(frozen=True)
class Proof:
    """What was covered: runs of the machine and steps executed in all."""

    program: str
    runs: int
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.program}: free of deadlocks and races, values exact "
            f"({self.runs} trip-count cases, {self.steps} steps)"
        )


def verify(program: Program) -> Proof:
    """Prove a Program; VerificationError tells the first rule it breaks, and where."""
    check_budgets(program)
    runs = steps = 0
    for work in trip_counts(program):
        steps += verify_run(program, work)
        runs += 1
    return Proof(program.name, runs, steps)


def verify_run(program: Program, work: tuple[TileRange, ...]) -> int:
    """Verify one choice of KV tile ranges for the CTA's work tiles; the number of steps run."""
    tokens = Tokens()
    monitor = HappensBefore(sum(role.instances for role in program.roles))
    try:
        machine = Machine(program, work, tokens, monitor)
        monitor.attach(machine)
        machine.run()
        tokens.check(work, program.role("consumer").instances)
    except VerificationError as error:
        counts = ", ".join(str(tiles.tiles) for tiles in work)
        raise VerificationError(f"{program.name}, KV tiles {counts}: {error}") from None
    return sum(len(agent.steps) for agent in machine.agents)


def trip_counts(program: Program) -> Iterator[tuple[TileRange, ...]]:
    """KV tile ranges to verify: the cases that catch most faults first."""
    stages = max(buffer.stages for buffer in program.buffers)
    least = max(program.peeled, 1)
    most = 2 * stages + least + 1
    counts = (0, *range(least, most + 1))
    segments = _segments(program)

    def ranges(count: int, turn: int) -> TileRange:
        options = list(_ranges(count, program, segments))
        return options[turn % len(options)]

    yield ranges(most, 0), ranges(stages + least, 0)  # a turn of every loop
    yield ranges(0, 0), ranges(0, 0)
    yield ranges(stages + least - 1, 0), ranges(least, 0)
    for first, second in itertools.product(counts, repeat=2):
        yield ranges(first, second), ranges(second, first + 1)
    for count in counts:
        for option in _ranges(count, program, segments):
            yield option, option
    for triple in itertools.product((0, least, stages + least), repeat=3):
        yield tuple(ranges(count, position) for position, count in enumerate(triple))


def _ranges(count: int, program: Program, segments: set[Segment]) -> Iterator[TileRange]:
    """Ways that the segments a Program has can share ``count`` tiles: all one, or one of each."""
    loops = max(count - program.peeled, 0)
    present = [s for s in (Segment.FULL, Segment.RIGHT, Segment.LEFT) if s in segments]
    seen = set()
    for main in present:
        share = dict.fromkeys(present, min(1, loops // len(present)))
        share[main] += loops - sum(share.values())
        for parts in (share, {s: loops if s is main else 0 for s in present}):
            left, full = parts.get(Segment.LEFT, 0), parts.get(Segment.FULL, 0)
            full_end = min(left + full + program.lag, count)
            tiles = TileRange(0, min(left + program.lag, full_end), full_end, count)
            if tiles not in seen:
                seen.add(tiles)
                yield tiles


def _segments(program: Program) -> set[Segment]:
    """The loop segments that a consumer distinguishes."""
    found: set[Segment] = set()

    def walk(nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            if isinstance(node, ForTiles):
                found.add(node.segment)
            if isinstance(node, BLOCKS):
                walk(node.body)

    walk(program.role("consumer").body)
    return found & {Segment.RIGHT, Segment.FULL, Segment.LEFT}


# --- tokens ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    """A symbolic value: ``kind`` of work tile ``work``, KV tile or count ``tile``, ``scaled`` to
    the row maximum over that many KV tiles."""

    kind: str
    work: int
    tile: int = 0
    scaled: int = 0
    masked: bool = False


_POISON = _Token("poison", -1)


class Tokens:
    """The Domain that proves values: each operation demands exactly the tokens it is meant for."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int, int], int] = {}

    def poison(self) -> Any:
        """The token that no operation accepts."""
        return _POISON

    def load(self, buffer: str, place: Place) -> Any:
        """Q of the work tile; K or V of the KV tile."""
        return _Token(buffer, place.work, 0 if buffer == "Q" else place.tile)

    def slab(self, value: Any, instance: int) -> Any:
        """Rows are not told apart: byte ranges are the monitor's."""
        return value

    def gemm(self, gemm: Gemm, operands: tuple[Any, Any], accumulator: Any, place: Place) -> Any:
        """S of a KV tile, or O with one more tile in it."""
        a, b = operands
        if gemm.kind is GemmKind.QK:
            _demand(a, "Q", place)
            _demand(b, "K", place, tile=place.tile)
            return _Token("S", place.work, place.tile)
        _demand(a, "P", place, tile=place.tile)
        _demand(b, "V", place, tile=place.tile)
        _demand(accumulator, "O", place, tile=place.tile)
        if accumulator.tile and accumulator.scaled != a.scaled:
            raise VerificationError(
                f"O is scaled to the maximum of {accumulator.scaled} tiles, P to that of {a.scaled}"
            )
        return _Token("O", place.work, accumulator.tile + 1, a.scaled)

    def calc(self, kind: CalcKind, registers: dict[str, Any], place: Place) -> dict[str, Any]:
        """Symbolic softmax: counts of tiles stand for maxima and sums."""
        work = place.work
        match kind:
            case CalcKind.CLEAR:
                return {
                    "O": _Token("O", work),
                    "row_max": _Token("row_max", work),
                    "row_sum": _Token("row_sum", work),
                }
            case CalcKind.MASK:
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                return {name: _Token("S", work, s.tile, masked=True)}
            case CalcKind.ROW_MAX:
                s = _demand(_score(registers)[1], "S", place, tile=place.tile)
                _check_masked(s, place)
                _demand(registers["row_max"], "row_max", place, tile=s.tile)
                count = s.tile + 1
                return {
                    "row_max": _Token("row_max", work, count),
                    "alpha": _Token("alpha", work, count),
                }
            case CalcKind.EXP:
                (name, s) = _score(registers)
                s = _demand(s, "S", place, tile=place.tile)
                _demand(registers["row_max"], "row_max", place, tile=s.tile + 1)
                return {name: _Token("E", work, s.tile, s.tile + 1)}
            case CalcKind.ROW_SUM:
                e = _demand(_score(registers)[1], "E", place, tile=place.tile)
                _demand(registers["row_sum"], "row_sum", place, tile=e.tile)
                _demand(registers["alpha"], "alpha", place, tile=e.scaled)
                return {"row_sum": _Token("row_sum", work, e.tile + 1)}
            case CalcKind.CONVERT:
                e = _demand(_score(registers)[1], "E", place, tile=place.tile)
                return {"P": _Token("P", work, e.tile, e.scaled)}
            case CalcKind.RESCALE:
                alpha = _demand(registers["alpha"], "alpha", place, tile=place.tile + 1)
                o = _demand(registers["O"], "O", place)
                if o.tile and o.scaled != alpha.tile - 1:
                    raise VerificationError(f"rescales O from {o.scaled} tiles to {alpha.tile}")
                return {"O": _Token("O", work, o.tile, alpha.tile)}
            case CalcKind.NORMALIZE:
                count = place.range.tiles
                o = _demand(registers["O"], "O", place, tile=count)
                _demand(registers["row_sum"], "row_sum", place, tile=count)
                _demand(registers["row_max"], "row_max", place, tile=count)
                if count and o.scaled != count:
                    raise VerificationError(f"O is scaled to {o.scaled} of {count} tiles")
                return {"O": _Token("result", work), "lse": _Token("lse", work)}

    def stage(self, buffer: str, value: Any, place: Place) -> Any:
        """The finished O, or P of the KV tile."""
        if buffer == "P":
            e = _demand(value, "E", place, tile=place.tile)
            return _Token("P", place.work, e.tile, e.scaled)
        return _demand(value, "result", place)

    def store(self, tile: str, value: Any, place: Place) -> None:
        """Count what leaves."""
        _demand(value, "result" if tile == "O" else tile, place)
        key = (tile, place.work, place.instance)
        self.stored[key] = self.stored.get(key, 0) + 1

    def check(self, work: tuple[TileRange, ...], instances: int) -> None:
        """Every consumer stored O and LSE of every work tile once."""
        for tile, index, instance in itertools.product(
            ("O", "lse"), range(len(work)), range(instances)
        ):
            times = self.stored.get((tile, index, instance), 0)
            if times != 1:
                raise VerificationError(
                    f"consumer {instance} stores {tile} of work tile {index} {times} times"
                )


def _score(registers: dict[str, Any]) -> tuple[str, Any]:
    """The register tile of scores among a computation's operands: S, or one of two."""
    return next((name, value) for name, value in registers.items() if name.startswith("S"))


def _demand(token: Any, kind: str, place: Place, tile: int | None = None) -> _Token:
    """The token, if it is the one wanted."""
    if not isinstance(token, _Token) or token == _POISON:
        raise VerificationError(f"uses {kind} that is not there (never written, or in flight)")
    wanted = (kind, place.work, token.tile if tile is None else tile)
    if (token.kind, token.work, token.tile) != wanted:
        raise VerificationError(
            f"wants {kind} of work {place.work}, tile {wanted[2]}; "
            f"finds {token.kind} of work {token.work}, tile {token.tile}"
        )
    return token


def _check_masked(s: _Token, place: Place) -> None:
    """A tile outside the full ones must have been masked."""
    index = place.range.end - 1 - s.tile
    if not s.masked and not place.range.full_begin <= index < place.range.full_end:
        raise VerificationError(f"KV tile {index} needs the mask and has none")
