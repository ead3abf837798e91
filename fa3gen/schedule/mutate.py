"""Faulty Programs, for the verifier's own test.

A *mutant* is a Program with one fault: an instruction deleted, one field altered, or one
instruction moved to where it no longer does what it is there for. None of them may pass ``verify``.
What could be deleted without harm would be redundant, so this also tests that the scheduler emits
nothing in vain.

Left out are alterations that make an equal program, or another right one:

* ``shift`` in a ring of one stage; ``skew`` of a load outside the KV loop (Q has no KV tile);
* passing the turn to another than the next warpgroup, for which of them goes first matters for
  speed alone, and a round may change its direction: the fault is passing it to oneself;
* another warpgroup's barrier at the only meeting that there is at it, for they only change places;
  a meeting of all warpgroups in place of one's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fa3gen.schedule.edit import (
    SETUP,
    Path,
    Site,
    blocks,
    move,
    name_of,
    nearest,
    sites,
    splice,
    word,
)
from fa3gen.schedule.program import (
    Advance,
    Arrive,
    Calc,
    ClaimAhead,
    ClaimWork,
    EndOfWork,
    Executor,
    Expect,
    Gemm,
    InitBarrier,
    Instruction,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    Program,
    ProxyFence,
    SetRegisters,
    StageOut,
    StoreRows,
    TmaStore,
    TmaStoreCommit,
    TmaStoreWait,
    Wait,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
    instructions,
)
from fa3gen.schedule.told import announced_by_others, released_by_others

__all__ = ["Mutant", "Swap", "alterations", "deletions", "harmless", "misplacements", "swaps"]

Predicate = Callable[[Instruction], bool]


@dataclass(frozen=True)
class Mutant:
    """A faulty Program and its fault in words."""

    description: str
    program: Program


@dataclass(frozen=True)
class Swap(Mutant):
    """Two neighbours of the block at ``path`` exchanged: ``second`` now stands before ``first``."""

    path: Path
    first: Node
    second: Node


# --- the mutants ----------------------------------------------------------------------------------


def deletions(program: Program) -> Iterator[Mutant]:
    """Each instruction of the set-up and of each role left out."""
    for site in sites(program):
        words = f"{site.words(program)} deleted"
        yield Mutant(words, splice(program, site.path, 1, ()))


def alterations(program: Program) -> Iterator[Mutant]:
    """Each parity, stage, count, id, byte value, lag and executor altered."""
    for site in sites(program):
        for change in _changes(program, site):
            fields = ", ".join(f"{name}={word(value)}" for name, value in change.items())
            altered = replace(site.instruction, **change)
            words = f"{site.words(program)} with {fields}"
            yield Mutant(words, splice(program, site.path, 1, (altered,)))
    for barrier in program.named:
        others = [other.first_id for other in program.named if other is not barrier]
        for first_id in (0, barrier.first_id + 16, *others):
            named = tuple(
                replace(other, first_id=first_id) if other is barrier else other
                for other in program.named
            )
            words = f"named barrier {barrier.name} from id {first_id}"
            yield Mutant(words, replace(program, named=named))


def misplacements(program: Program) -> Iterator[Mutant]:
    """Each wait behind the first thing that only it guards, and each arrival, commit and fence
    before the last thing that only it covers.

    What an instruction guards or covers is decided in ``_guarded`` and ``_covered``; the nearest
    such instruction in text order counts, around the loops from the innermost outwards. If it
    stands in another block, the instruction moves past the whole of that block.
    """
    for site in sites(program):
        guarded = _guarded(program, site)
        target = nearest(program, site, guarded, forwards=True) if guarded else None
        if target is not None and not (_is_sync(site) and _is_sync(target)):
            words = f"{site.words(program)} moved behind {target.words(program)}"
            yield Mutant(words, move(program, site.path, target.path, behind=True))
        covered = _covered(program, site)
        target = nearest(program, site, covered, forwards=False) if covered else None
        if target is not None:
            words = f"{site.words(program)} moved before {target.words(program)}"
            yield Mutant(words, move(program, site.path, target.path, behind=False))


def swaps(program: Program) -> Iterator[Swap]:
    """Every two neighbours of a block exchanged: all displacements by one position."""
    for path, body in blocks(program):
        for at, (first, second) in enumerate(itertools.pairwise(body)):
            if first == second:
                continue
            role = "set-up" if path[0] == SETUP else program.roles[path[0]].name
            place = ".".join(map(str, (*path[1:], at)))
            words = f"{role} {place} {name_of(first)} exchanged with {name_of(second)}"
            mutant = splice(program, (*path, at), 2, (second, first))
            yield Swap(words, mutant, (*path, at), first, second)


# --- altered fields -------------------------------------------------------------------------------


def _changes(program: Program, site: Site) -> Iterator[dict[str, Any]]:
    """Changes of an instruction's fields, one fault each."""
    instruction = site.instruction
    if isinstance(instruction, (Wait, Expect, Arrive, Load, Gemm)):
        cursor = instruction.b_cursor if isinstance(instruction, Gemm) else instruction.cursor
        if program.ring(cursor).stages > 1:
            yield {"shift": instruction.shift + 1}
    if isinstance(instruction, (Load, Gemm)) and site.tiled:
        yield from ({"skew": instruction.skew + step} for step in (-1, 1))
    match instruction:
        case Wait(flip=flip, empty=empty):
            yield from ({"flip": not flip}, {"empty": not empty})
        case Expect(bytes=size):
            yield from ({"bytes": size + step} for step in (-16, 16))
        case Arrive(by=by):
            yield from ({"by": other} for other in Executor if other is not by)
        case InitBarrier(arrivals=arrivals):
            yield from ({"arrivals": arrivals + step} for step in (-1, 1))
        case SetRegisters(count=count, grows=grows):
            yield from ({"count": count + step} for step in (-8, 8))
            yield {"grows": not grows}
        case NamedSync() | NamedArrive():
            yield from _named_changes(program, instruction)
        case WgmmaWait(pending=pending):
            yield from ({"pending": pending + step} for step in (-1, 1))
        case TmaStoreWait(pending=pending):
            yield {"pending": pending + 1}
        case Calc(cursor=str(cursor)) if program.ring(cursor).stages > 1:
            yield {"shift": instruction.shift + 1}
        case Calc(keys=(begin, end)):
            yield from ({"keys": (begin, end + step)} for step in (-8, 8))


def _named_changes(
    program: Program, instruction: NamedSync | NamedArrive
) -> Iterator[dict[str, Any]]:
    """Other counts, another instance's barrier, and another barrier, with its count too."""
    yield from ({"threads": instruction.threads + step} for step in (-128, -32, 32, 128))
    own = isinstance(instruction, NamedSync)
    meetings = [
        site
        for site in sites(program)
        if isinstance(site.instruction, (NamedSync, NamedArrive))
        and site.instruction.barrier == instruction.barrier
    ]
    if program.named_barrier(instruction.barrier).instances > 1 and len(meetings) > 1:
        yield {"shift": instruction.shift + 1 if own else 0}
    for other in program.named:
        if other.name != instruction.barrier:
            yield {"barrier": other.name}
            if not own or other.instances > 1:
                yield {"barrier": other.name, "threads": other.threads}


# --- harmless exchanges ---------------------------------------------------------------------------


def harmless(program: Program, swap: Swap) -> str | None:
    """Why an exchange of neighbours keeps a Program right, if one of these reasons holds.

    An instruction is *private* if it touches nothing but its warpgroup's registers, products and
    cursors, and shared tiles that the other does not guard. None but the last three reasons let two
    instructions pass that share a private resource.
    """
    first = tuple(instructions((swap.first,)))
    second = tuple(instructions((swap.second,)))
    if not any(_conflict(program, i, other) for i in first for other in second):
        if all(isinstance(i, (Wait, WgmmaWait, TmaStoreWait)) for i in second):
            return "acquires earlier"
        waits = {
            i.barrier for i in second if isinstance(i, Wait)
        }  # of a role that loads for itself
        arrives = all(isinstance(i, (Arrive, NamedArrive, Expect)) for i in first)
        if arrives and not any(i.barrier in waits for i in first if isinstance(i, Arrive)):
            return "releases later"
        if all(isinstance(i, (Expect, Load, Advance)) for i in (*first, *second)):
            return "loads into stages that are free in another order"
        if any(_is_private(program, *sides) for sides in ((first, second), (second, first))):
            return "passes private work that shares nothing with it"
        ends = any(isinstance(i, EndOfWork) for i in first)
        if not ends and all(isinstance(i, Expect) and _is_free_before(program, i) for i in second):
            return "announces a tile whose stage was free before"
        own = [i for i in second if isinstance(i, Expect) and _is_told_otherwise(program, i)]
        if own and all(isinstance(i, Wait) and i.cursor == own[0].cursor for i in first):
            return "announces a tile whose wait the announcements of other rings tell of"
        turn = [i for i in second if isinstance(i, NamedSync) and _is_turn(program, i.barrier)]
        if len(turn) == len(second) and all(isinstance(i, Wait) for i in first):
            return "takes the turn before waiting for a stage: the order of products is for speed"
    if all(isinstance(i, InitBarrier) for i in (*first, *second)):
        return "initialises barriers in another order"
    if (
        isinstance(swap.first, ProxyFence)
        and isinstance(swap.second, Arrive)
        and released_by_others(program, swap.second)
    ):
        return "the release of another ring, behind the fence, covers it"
    if isinstance(swap.first, WgmmaWait) and isinstance(swap.second, Arrive):
        site = next(site for site in sites(program) if site.path == swap.path)
        ring = program.ring(swap.second.cursor).name
        refills = any(  # as a role without a producer does, at once
            isinstance(other.instruction, Load)
            and other.instruction.buffer == ring
            and other.path[0] == site.path[0]
            and other.path > site.path
            for other in sites(program)
        )
        if not refills and _released_later(program, site, swap.second.cursor):
            return "a later release of the work tile covers it"
    return None


def _is_free_before(program: Program, expect: Expect) -> bool:
    """Whether the stage of a load without an empty barrier is free before the waits beside it: once
    its work tile is claimed, or with more stages than K has."""
    ring = program.ring(expect.cursor)
    if any(barrier.name == f"{ring.name}_empty" for barrier in program.barriers):
        return False
    claims = any(buffer.name == "Work" for buffer in program.buffers)
    return claims or ring.stages > program.buffer("K").stages


def _is_told_otherwise(program: Program, expect: Expect) -> bool:
    """Whether other announcements tell of the wait before this one; of two tiles a step none has
    others both before and behind it."""
    return program.bias is not None and announced_by_others(program, expect)


_PRIVATE = (Advance, Calc, ClaimAhead, SetRegisters, StoreRows, WgmmaCommit, WgmmaFence)


def _is_private(
    program: Program, side: tuple[Instruction, ...], other: tuple[Instruction, ...]
) -> bool:
    """Whether one side of an exchange is private; what a computation reads of a ring is guarded by
    the ring's barriers, loads and fences."""
    read = {program.ring(i.cursor).name for i in side if isinstance(i, Calc) and i.cursor}
    guards = any(
        isinstance(i, ProxyFence)
        or (isinstance(i, (Wait, Arrive, Expect, Load)) and program.ring(i.cursor).name in read)
        for i in other
    )
    return all(isinstance(i, _PRIVATE) for i in side) and not (read and guards)


def _conflict(program: Program, first: Instruction, second: Instruction) -> bool:
    """Whether two instructions of a warpgroup share a private resource, and one changes it."""
    reads, writes = _resources(program, first)
    other_reads, other_writes = _resources(program, second)
    return bool(writes & (other_reads | other_writes) or reads & other_writes)


def _resources(program: Program, instruction: Instruction) -> tuple[set[str], set[str]]:
    """Register tiles, cursors and queues of groups: what is read, and what is changed."""
    match instruction:
        case Calc(reads=reads, writes=writes, cursor=cursor):
            return {"grant", *reads, *([f"cursor {cursor}"] if cursor else [])}, set(writes)
        case SetRegisters():
            return set(), {"grant"}
        case TmaStore() | TmaStoreCommit() | TmaStoreWait():
            return set(), {"stores"}
        case StageOut(source=source) | StoreRows(source=source):
            return {source}, set()
        case WgmmaFence(registers=registers):
            return set(), set(registers)
        case WgmmaCommit():
            return set(), {"products"}
        case WgmmaWait(retires=retires):
            operands = {
                gemm.a
                for gemm in _gemms(program)
                if gemm.a_cursor is None and gemm.accumulator in retires
            }
            return operands, {"products", *retires}
        case Gemm(a=a, accumulator=accumulator, a_cursor=a_cursor, b_cursor=b_cursor):
            return {a, f"cursor {a_cursor}", f"cursor {b_cursor}"}, {accumulator, "products"}
        case Advance(cursor=cursor):
            return set(), {f"cursor {cursor}"}
        case ClaimWork() | EndOfWork():
            return {"claim"}, set()
        case ClaimAhead():
            return set(), {"claim"}
        case (
            Wait(cursor=cursor)
            | Arrive(cursor=cursor)
            | Expect(cursor=cursor)
            | Load(cursor=cursor)
        ):
            return {f"cursor {cursor}"}, set()
    return set(), set()


# --- what an instruction is there for -------------------------------------------------------------


def _guarded(program: Program, site: Site) -> Predicate | None:
    """Which later instructions only this wait makes safe.

    * a wait on a full barrier: the products or computations that read the stage;
    * a wait on an empty barrier: the load into the stage;
    * a wgmma wait: computations with the accumulator, and the release of the stage that was read,
      unless a later release covers that too (``_released_later``);
    * a named barrier that others arrive at: passing the turn on (the order of products that it
      makes is for speed alone), for an arrival must know that the generation before is over;
    * a named barrier within a warpgroup: the staging of O or P, or the store of what was staged, or
      the product that reads it;
    * a TMA store's wait: the barrier or arrival that tells the other threads.
    """
    staged = {i.buffer for i in _all(program) if isinstance(i, StageOut)}
    match site.instruction:
        case Wait(cursor=cursor, empty=empty):
            if empty:
                return lambda i: isinstance(i, Load) and i.cursor == cursor
            return lambda i: (
                (isinstance(i, Gemm) and cursor in (i.a_cursor, i.b_cursor))
                or (isinstance(i, Calc) and cursor == i.cursor)
            )
        case WgmmaWait(retires=retires):
            rings = {
                gemm.b_cursor
                for gemm in _gemms(program)
                if gemm.accumulator in retires and not _released_later(program, site, gemm.b_cursor)
            }
            return lambda i: (
                bool(_touched(i) & set(retires))
                or (isinstance(i, Arrive) and program.ring(i.cursor).name in rings)
            )
        case NamedSync(barrier=barrier):
            if _is_turn(program, barrier):
                return lambda i: isinstance(i, NamedArrive) and i.barrier == barrier
            return lambda i: (
                isinstance(i, (StageOut, TmaStore))
                or (isinstance(i, Gemm) and i.a in staged)
                or (isinstance(i, NamedSync) and _is_turn(program, i.barrier))  # serves as well
            )
        case TmaStoreWait():
            return lambda i: (
                isinstance(i, Arrive)
                or (isinstance(i, NamedSync) and not _is_turn(program, i.barrier))
            )
    return None


def _covered(program: Program, site: Site) -> Predicate | None:
    """Which earlier instructions only this arrival, commit or fence publishes, groups or orders.

    * an arrival on an empty barrier: the retirement of the products that read the stage, or of the
      store of what lies over it, or the computation that reads it last; where a later release
      covers these too, the wait for the stage, for an arrival must know that the phase before is
      over;
    * the announcement of bytes: the wait for the stage, for it starts the stage's next phase; where
      announcements of other rings tell of that wait too, the one before it;
    * passing the turn on: taking it;
    * a commit: what it groups;
    * wgmma.fence: computations with operands of the products from here to the next fence;
    * fence.proxy.async: the generic accesses.
    """
    match site.instruction:
        case Arrive(cursor=cursor):
            ring = program.ring(cursor).name
            if _released_later(program, site, cursor):
                if any(isinstance(i, Load) and i.cursor != i.buffer for i in _all(program)):
                    return None  # one thread's loads tell of its waits for other stages too
                return lambda i: isinstance(i, Wait) and i.cursor == ring
            if any(isinstance(i, Calc) and i.cursor == ring for i in _all(program)):
                covers = Wait if released_by_others(program, site.instruction) else Calc
                return lambda i: isinstance(i, covers) and i.cursor == ring
            over = _lies_under_o(program, ring)
            reads = {g.accumulator for g in _gemms(program) if ring in (g.a_cursor, g.b_cursor)}
            return lambda i: (
                isinstance(i, TmaStoreWait)
                if over
                else isinstance(i, WgmmaWait) and bool(reads & set(i.retires))
            )
        case Expect(cursor=cursor):
            if _is_told_otherwise(program, site.instruction):
                return lambda i: isinstance(i, Wait) and i.cursor != cursor
            return lambda i: isinstance(i, Wait) and i.cursor == cursor
        case NamedArrive(barrier=barrier):
            return lambda i: isinstance(i, NamedSync) and i.barrier == barrier
        case WgmmaCommit():
            return lambda i: isinstance(i, Gemm)
        case TmaStoreCommit():
            return lambda i: isinstance(i, TmaStore)
        case ProxyFence():
            return lambda i: isinstance(i, StageOut) or bool(isinstance(i, Calc) and i.cursor)
        case WgmmaFence():
            operands = _fenced_operands(program, site)
            return lambda i: bool(_touched(i) & operands)
    return None


def _released_later(program: Program, site: Site, cursor: str) -> bool:
    """Whether a release after ``site`` in the same work tile also keeps a ring's stage.

    So it is with V, read by the last product of a work tile: the producer loads V only after it has
    waited for Q's release, which comes after that product has retired.
    """
    if (
        len(site.loops) != 1
    ):  # in a KV loop the next load of the ring may come before any other wait
        return False
    later = {
        other.instruction.cursor
        for other in sites(program)
        if other.path[0] == site.path[0] and other.path > site.path
        if isinstance(other.instruction, Arrive) and len(other.loops) == 1
    } - {cursor, program.ring(cursor).name}
    for other in sites(program):
        match other.instruction:
            case Wait(cursor=waited, empty=True) if program.ring(waited).name in later:
                return True
            case Load(buffer=loaded) if loaded == program.ring(cursor).name:
                return False
    return False


def _touched(instruction: Instruction) -> set[str]:
    """Register tiles that an instruction's threads read or write."""
    match instruction:
        case Calc(reads=reads, writes=writes):
            return {*reads, *writes}
        case StageOut(source=source) | StoreRows(source=source):
            return {source}
    return set()


def _fenced_operands(program: Program, fence: Site) -> set[str]:
    """Register operands of the products between a wgmma.fence and the next."""
    operands: set[str] = set()
    for site in sites(program):
        if site.path[0] != fence.path[0] or site.path <= fence.path:
            continue
        if isinstance(site.instruction, WgmmaFence):
            break
        if isinstance(site.instruction, Gemm):
            gemm = site.instruction
            operands |= {gemm.accumulator} | ({gemm.a} if gemm.a_cursor is None else set())
    return operands


def _all(program: Program) -> list[Instruction]:
    return [site.instruction for site in sites(program)]


def _gemms(program: Program) -> list[Gemm]:
    return [instruction for instruction in _all(program) if isinstance(instruction, Gemm)]


def _is_turn(program: Program, barrier: str) -> bool:
    """Whether some warpgroup arrives at a named barrier that another waits at."""
    arrivals = (site.instruction for site in sites(program))
    return any(isinstance(i, NamedArrive) and i.barrier == barrier for i in arrivals)


def _lies_under_o(program: Program, name: str) -> bool:
    """Whether the store's staging buffer shares bytes with a ring."""
    ring = program.buffer(name)
    stores = (site.instruction for site in sites(program))
    return any(
        isinstance(i, TmaStore)
        and ring.offset < program.buffer(i.buffer).offset + program.buffer(i.buffer).bytes
        and program.buffer(i.buffer).offset < ring.offset + ring.bytes
        for i in stores
    )


def _is_sync(site: Site) -> bool:
    return isinstance(site.instruction, NamedSync)
