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

from fa3gen.errors import VerificationError
from fa3gen.schedule.budgets import check_budgets
from fa3gen.schedule.hazards import HappensBefore
from fa3gen.schedule.machine import Machine
from fa3gen.schedule.program import (
    BLOCKS,
    ForTiles,
    Node,
    Program,
    Segment,
)
from fa3gen.schedule.ranges import TileRange
from fa3gen.schedule.tokens import Tokens

__all__ = ["Proof", "trip_counts", "verify", "verify_run"]


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
    tokens = Tokens(program)
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
    none = least if program.always else 0
    counts = (*({none} - {least}), *range(least, most + 1))
    segments = _segments(program)

    def ranges(count: int, turn: int) -> TileRange:
        options = list(_ranges(count, program, segments))
        return options[turn % len(options)]

    yield ranges(most, 0), ranges(stages + least, 0)  # a turn of every loop
    yield ranges(none, 0), ranges(none, 0)
    yield ranges(stages + least - 1, 0), ranges(least, 0)
    for first, second in itertools.product(counts, repeat=2):
        yield ranges(first, second), ranges(second, first + 1)
    for count in counts:
        for option in _ranges(count, program, segments):
            yield option, option
    for triple in itertools.product((none, least, stages + least), repeat=3):
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
