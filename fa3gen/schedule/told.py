"""What the barriers of other rings tell of a ring's stages.

A thread that loads several rings tells with each announcement of all that it has waited for, and a
warpgroup with each release of all that it has read. So a stage may be safe by another ring's
barriers too. Both questions are put to the events of every trip count.
"""

from __future__ import annotations

from collections.abc import Iterator

from fa3gen.schedule.flatten import Event, flatten
from fa3gen.schedule.program import Arrive, Expect, Program, Wait
from fa3gen.schedule.verify import trip_counts

__all__ = ["announced_by_others", "released_by_others"]

_Key = tuple[str, int, int]  # barrier, stage, phase


def released_by_others(program: Program, release: Arrive) -> bool:
    """Whether the loader waits for a later release by the same warpgroup, of another ring, before
    it waits for this one."""
    for loads, reads in _runs(program):
        waits, releases = _places(loads, Wait), _places(reads, Arrive)
        for at, key in _executions(reads, release):
            wait = waits.get(key)  # None: nothing is loaded into the stage any more
            before = [other for other, place in waits.items() if wait and place < wait]
            if wait and not any(releases.get(other, at) > at for other in before):
                return False
    return True


def announced_by_others(program: Program, expect: Expect) -> bool:
    """Whether an announcement may come before the wait for its stage: waits before that one tell
    that the full barrier's phase before is over, and announcements behind tell of that one, for
    readers wait for them before they release the stage."""
    empty = expect.barrier.replace("_full", "_empty")
    for loads, reads in _runs(program):
        waits, announced = _places(loads, Wait), _places(loads, Expect)
        seen, releases = _places(reads, Wait), _places(reads, Arrive)
        for at, (full, stage, phase) in _executions(loads, expect):
            wait, past = waits.get((empty, stage, phase - 1)), (full, stage, phase - 1)
            if wait is None:  # before any wait its stage is known to be free
                return False
            before = [other for other, place in waits.items() if place < wait]
            told = any(releases.get(other, -1) > seen.get(past, -1) for other in before)
            if phase and not told:
                return False
            released = releases.get((empty, stage, phase), -1)
            behind = [other for other, place in announced.items() if place > at]
            if released >= 0 and not any(seen.get(other, released) < released for other in behind):
                return False
    return True


def _runs(program: Program) -> Iterator[tuple[list[Event], list[Event]]]:
    """The events of the role that loads and of the last consumer, for all trip counts."""
    loader, reader = program.roles[0], program.role("consumer")
    for work in trip_counts(program):
        loads = flatten(program, loader, 0, work)
        yield loads, flatten(program, reader, reader.instances - 1, work)


def _places(events: list[Event], kind: type[Wait | Arrive | Expect]) -> dict[_Key, int]:
    """Where each stage and phase of a barrier is met."""
    return {_key(event): n for n, event in enumerate(events) if isinstance(event.instruction, kind)}


def _executions(events: list[Event], instruction: Arrive | Expect) -> list[tuple[int, _Key]]:
    """Where one instruction of the Program is executed."""
    return [(n, _key(event)) for n, event in enumerate(events) if event.instruction is instruction]


def _key(event: Event) -> _Key:
    assert isinstance(event.instruction, (Wait, Arrive, Expect))
    return event.instruction.barrier, event.stage, event.phase
