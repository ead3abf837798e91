"""Faulty Programs, for the verifier's own test.

A *mutant* is a Program with one fault: an instruction deleted, one field altered, or one
instruction moved to where it no longer does what it is there for. None of them may pass ``verify``.
What could be deleted without harm would be redundant, so this also tests that the scheduler emits
nothing in vain.

Left out are alterations that make an equal program, or another right one:

* ``shift`` in a ring of one stage; ``skew`` of a load outside the KV loop (Q has no KV tile);
* passing the turn to another than the next warpgroup, for which of them goes first matters for
  speed alone, and a round may change its direction: the fault is passing the turn to oneself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fa3gen.schedule.program import (
    Arrive,
    Calc,
    EachWork,
    Executor,
    Expect,
    ForTiles,
    Gemm,
    IfTiles,
    InitBarrier,
    Instruction,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    OnInstance,
    Program,
    ProxyFence,
    Segment,
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
)

__all__ = ["Mutant", "Swap", "alterations", "deletions", "misplacements", "swaps"]

Path = tuple[int, ...]  # role (or _SETUP), then the position in each nested body
Predicate = Callable[[Instruction], bool]

_SETUP = -1
_ONCE = (Segment.FIRST, Segment.DRAIN)


@dataclass(frozen=True)
class Mutant:
    """A faulty Program and its fault in words."""

    description: str
    program: Program


@dataclass(frozen=True)
class Swap(Mutant):
    """Two neighbours exchanged: ``second`` now stands before ``first``."""

    first: Node
    second: Node


@dataclass(frozen=True)
class _Site:
    """An instruction and where it stands."""

    path: Path
    instruction: Instruction
    loops: tuple[Path, ...]  # of the loops around it, innermost first
    tiled: bool  # inside a loop over KV tiles

    def words(self, program: Program) -> str:
        """The instruction and its place."""
        place = "set-up" if self.path[0] == _SETUP else program.roles[self.path[0]].name
        return f"{place} {'.'.join(map(str, self.path[1:]))} {_name(self.instruction)}"


# --- the mutants ----------------------------------------------------------------------------------


def deletions(program: Program) -> Iterator[Mutant]:
    """Each instruction of the set-up and of each role left out."""
    for site in _sites(program):
        words = f"{site.words(program)} deleted"
        yield Mutant(words, _splice(program, site.path, 1, ()))


def alterations(program: Program) -> Iterator[Mutant]:
    """Each parity, stage, count, id, byte value, lag and executor altered."""
    for site in _sites(program):
        for change in _changes(program, site):
            fields = ", ".join(f"{name}={_word(value)}" for name, value in change.items())
            altered = replace(site.instruction, **change)
            words = f"{site.words(program)} with {fields}"
            yield Mutant(words, _splice(program, site.path, 1, (altered,)))
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
    for site in _sites(program):
        guarded = _guarded(program, site)
        target = _nearest(program, site, guarded, forwards=True) if guarded else None
        if target is not None:
            words = f"{site.words(program)} moved behind {target.words(program)}"
            yield Mutant(words, _move(program, site.path, target.path, behind=True))
        covered = _covered(program, site)
        target = _nearest(program, site, covered, forwards=False) if covered else None
        if target is not None:
            words = f"{site.words(program)} moved before {target.words(program)}"
            yield Mutant(words, _move(program, site.path, target.path, behind=False))


def swaps(program: Program) -> Iterator[Swap]:
    """Every two neighbours of a block exchanged: all displacements by one position."""
    for path, body in _blocks(program):
        for at, (first, second) in enumerate(itertools.pairwise(body)):
            if first == second:
                continue
            role = "set-up" if path[0] == _SETUP else program.roles[path[0]].name
            place = ".".join(map(str, (*path[1:], at)))
            words = f"{role} {place} {_name(first)} exchanged with {_name(second)}"
            mutant = _splice(program, (*path, at), 2, (second, first))
            yield Swap(words, mutant, first, second)


# --- altered fields -------------------------------------------------------------------------------


def _changes(program: Program, site: _Site) -> Iterator[dict[str, Any]]:
    """Changes of an instruction's fields, one fault each."""
    instruction = site.instruction
    if isinstance(instruction, (Wait, Expect, Arrive, Load, Gemm)):
        cursor = instruction.b_cursor if isinstance(instruction, Gemm) else instruction.cursor
        if program.buffer(cursor).stages > 1:
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


def _named_changes(
    program: Program, instruction: NamedSync | NamedArrive
) -> Iterator[dict[str, Any]]:
    """Other counts, another instance's barrier, and another barrier, with its count too."""
    yield from ({"threads": instruction.threads + step} for step in (-128, -32, 32, 128))
    if program.named_barrier(instruction.barrier).instances > 1:
        own = isinstance(instruction, NamedSync)
        yield {"shift": instruction.shift + 1 if own else 0}
    for other in program.named:
        if other.name != instruction.barrier:
            yield {"barrier": other.name}
            yield {"barrier": other.name, "threads": other.threads}


# --- what an instruction is there for -------------------------------------------------------------


def _guarded(program: Program, site: _Site) -> Predicate | None:
    """Which later instructions only this wait makes safe.

    * a wait on a full barrier: the products that read the stage;
    * a wait on an empty barrier: the announcement of the next bytes, for it starts the next phase;
    * a wgmma wait: computations with the accumulator, and the release of the stage that was read,
      unless a later release covers that too (``_released_later``);
    * a named barrier that others arrive at: passing the turn on (the order of products that it
      makes is for speed alone), for an arrival must know that the generation before is over;
    * a named barrier within a warpgroup: the staging of O, or the store of what was staged;
    * a TMA store's wait: the barrier or arrival that tells the other threads.
    """
    match site.instruction:
        case Wait(cursor=cursor, empty=empty):
            if empty:
                return lambda i: isinstance(i, Expect) and i.cursor == cursor
            return lambda i: isinstance(i, Gemm) and cursor in (i.a_cursor, i.b_cursor)
        case WgmmaWait(retires=retires):
            rings = {
                gemm.b_cursor
                for gemm in _gemms(program)
                if gemm.accumulator in retires and not _released_later(program, site, gemm.b_cursor)
            }
            return lambda i: (
                bool(_touched(i) & set(retires)) or (isinstance(i, Arrive) and i.cursor in rings)
            )
        case NamedSync(barrier=barrier):
            if _is_turn(program, barrier):
                return lambda i: isinstance(i, NamedArrive) and i.barrier == barrier
            return lambda i: isinstance(i, (StageOut, TmaStore))
        case TmaStoreWait():
            return lambda i: (
                isinstance(i, Arrive)
                or (isinstance(i, NamedSync) and not _is_turn(program, i.barrier))
            )
    return None


def _covered(program: Program, site: _Site) -> Predicate | None:
    """Which earlier instructions only this arrival, commit or fence publishes, groups or orders.

    * an arrival on an empty barrier: the retirement of the products that read the stage, or of the
      store of what lies over it; where a later release covers these too, the wait for the stage,
      for an arrival must know that the phase before is over;
    * the announcement of bytes: the wait for the stage, which it tells of;
    * passing the turn on: taking it;
    * a commit: what it groups;
    * wgmma.fence: computations with operands of the products from here to the next fence;
    * fence.proxy.async: the generic writes.
    """
    match site.instruction:
        case Arrive(cursor=cursor):
            if _released_later(program, site, cursor):
                return lambda i: isinstance(i, Wait) and i.cursor == cursor
            over = _lies_under_o(program, cursor)
            reads = {g.accumulator for g in _gemms(program) if cursor in (g.a_cursor, g.b_cursor)}
            return lambda i: (
                isinstance(i, TmaStoreWait)
                if over
                else isinstance(i, WgmmaWait) and bool(reads & set(i.retires))
            )
        case Expect(cursor=cursor):
            return lambda i: isinstance(i, Wait) and i.cursor == cursor
        case NamedArrive(barrier=barrier):
            return lambda i: isinstance(i, NamedSync) and i.barrier == barrier
        case WgmmaCommit():
            return lambda i: isinstance(i, Gemm)
        case TmaStoreCommit():
            return lambda i: isinstance(i, TmaStore)
        case ProxyFence():
            return lambda i: isinstance(i, StageOut)
        case WgmmaFence():
            operands = _fenced_operands(program, site)
            return lambda i: bool(_touched(i) & operands)
    return None


def _released_later(program: Program, site: _Site, cursor: str) -> bool:
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
        for other in _sites(program)
        if other.path[0] == site.path[0] and other.path > site.path
        if isinstance(other.instruction, Arrive) and len(other.loops) == 1
    } - {cursor}
    for other in _sites(program):
        match other.instruction:
            case Wait(cursor=waited, empty=True) if waited in later:
                return True
            case Load(cursor=loaded) if loaded == cursor:
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


def _fenced_operands(program: Program, fence: _Site) -> set[str]:
    """Register operands of the products between a wgmma.fence and the next."""
    operands: set[str] = set()
    for site in _sites(program):
        if site.path[0] != fence.path[0] or site.path <= fence.path:
            continue
        if isinstance(site.instruction, WgmmaFence):
            break
        if isinstance(site.instruction, Gemm):
            gemm = site.instruction
            operands |= {gemm.accumulator} | ({gemm.a} if gemm.a_cursor is None else set())
    return operands


def _gemms(program: Program) -> list[Gemm]:
    return [site.instruction for site in _sites(program) if isinstance(site.instruction, Gemm)]


def _is_turn(program: Program, barrier: str) -> bool:
    """Whether some warpgroup arrives at a named barrier that another waits at."""
    arrivals = (site.instruction for site in _sites(program))
    return any(isinstance(i, NamedArrive) and i.barrier == barrier for i in arrivals)


def _lies_under_o(program: Program, name: str) -> bool:
    """Whether the store's staging buffer shares bytes with a ring."""
    ring = program.buffer(name)
    stores = (site.instruction for site in _sites(program))
    return any(
        isinstance(i, TmaStore)
        and ring.offset < program.buffer(i.buffer).offset + program.buffer(i.buffer).bytes
        and program.buffer(i.buffer).offset < ring.offset + ring.bytes
        for i in stores
    )


# --- editing --------------------------------------------------------------------------------------


def _blocks(program: Program) -> Iterator[tuple[Path, tuple[Node, ...]]]:
    """Every list of nodes and where it stands."""

    def walk(path: Path, body: tuple[Node, ...]) -> Iterator[tuple[Path, tuple[Node, ...]]]:
        yield path, body
        for at, node in enumerate(body):
            if isinstance(node, (EachWork, IfTiles, ForTiles, OnInstance)):
                yield from walk((*path, at), node.body)

    yield (_SETUP,), program.setup
    for index, role in enumerate(program.roles):
        yield from walk((index,), role.body)


def _sites(program: Program) -> Iterator[_Site]:
    """Every instruction in text order."""

    def walk(
        path: Path, body: tuple[Node, ...], loops: tuple[Path, ...], tiled: bool
    ) -> Iterator[_Site]:
        for at, node in enumerate(body):
            here = (*path, at)
            if isinstance(node, (EachWork, IfTiles, ForTiles, OnInstance)):
                repeats = isinstance(node, EachWork) or (
                    isinstance(node, ForTiles) and node.segment not in _ONCE
                )
                inner = (here, *loops) if repeats else loops
                yield from walk(here, node.body, inner, tiled or isinstance(node, ForTiles))
            else:
                yield _Site(here, node, loops, tiled)

    yield from walk((_SETUP,), program.setup, (), False)
    for index, role in enumerate(program.roles):
        yield from walk((index,), role.body, (), False)


def _nearest(program: Program, site: _Site, wanted: Predicate, forwards: bool) -> _Site | None:
    """The nearest wanted instruction after (or before) a site, around its loops."""
    turn = 1 if forwards else -1
    sites = [other for other in _sites(program) if other.path[0] == site.path[0]][::turn]
    for scope in (*site.loops, site.path[:1]):
        inside = [other for other in sites if other.path[: len(scope)] == scope]
        at = next(i for i, other in enumerate(inside) if other.path == site.path)
        around = inside[:at] if scope in site.loops else []
        for other in (*inside[at + 1 :], *around):
            if wanted(other.instruction):
                return other
    return None


def _move(program: Program, source: Path, target: Path, behind: bool) -> Program:
    """An instruction moved before or behind another, or the block around that."""
    shared = next(i for i, (a, b) in enumerate(zip(source, target, strict=False)) if a != b)
    place = (*target[:shared], target[shared] + behind)
    node = _node(program, source)
    if place[-1] > source[shared]:  # the later edit first, so that both paths stay true
        return _splice(_splice(program, place, 0, (node,)), source, 1, ())
    return _splice(_splice(program, source, 1, ()), place, 0, (node,))


def _node(program: Program, path: Path) -> Node:
    body: tuple[Node, ...] = program.setup if path[0] == _SETUP else program.roles[path[0]].body
    for at in path[1:-1]:
        node = body[at]
        assert isinstance(node, (EachWork, IfTiles, ForTiles, OnInstance))
        body = node.body
    return body[path[-1]]


def _splice(program: Program, path: Path, removed: int, nodes: tuple[Node, ...]) -> Program:
    """``removed`` nodes at a path replaced by others."""

    def edit(body: tuple[Any, ...], rest: Path) -> tuple[Any, ...]:
        at = rest[0]
        if len(rest) == 1:
            return (*body[:at], *nodes, *body[at + removed :])
        return (
            *body[:at],
            replace(body[at], body=edit(body[at].body, rest[1:])),
            *body[at + 1 :],
        )

    if path[0] == _SETUP:
        return replace(program, setup=edit(program.setup, path[1:]))
    roles = list(program.roles)
    role = roles[path[0]]
    roles[path[0]] = replace(role, body=edit(role.body, path[1:]))
    return replace(program, roles=tuple(roles))


def _name(node: Node) -> str:
    """A node in a few words."""
    parts = [type(node).__name__]
    for field in ("segment", "barrier", "buffer", "kind", "retires", "cursor"):
        value = getattr(node, field, None)
        if value is not None:
            parts.append(_word(value))
    return " ".join(dict.fromkeys(parts))


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(getattr(value, "name", value))
