"""Programs taken apart and put together: where each instruction stands, and edits at a place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fa3gen.schedule.program import (
    BLOCKS,
    EachWork,
    ForTiles,
    Instruction,
    Node,
    Program,
    Segment,
)

__all__ = [
    "SETUP",
    "Path",
    "Site",
    "blocks",
    "move",
    "name_of",
    "nearest",
    "sites",
    "splice",
    "word",
]

Path = tuple[int, ...]  # role (or SETUP), then the position in each nested body
Predicate = Callable[[Instruction], bool]

SETUP = -1
_ONCE = (Segment.FIRST, Segment.REST, Segment.DRAIN)


@dataclass(frozen=True)
class Site:
    """An instruction and where it stands."""

    path: Path
    instruction: Instruction
    loops: tuple[Path, ...]  # of the loops around it, innermost first
    tiled: bool  # inside a loop over KV tiles

    def words(self, program: Program) -> str:
        """The instruction and its place."""
        place = "set-up" if self.path[0] == SETUP else program.roles[self.path[0]].name
        return f"{place} {'.'.join(map(str, self.path[1:]))} {name_of(self.instruction)}"


def blocks(program: Program) -> Iterator[tuple[Path, tuple[Node, ...]]]:
    """Every list of nodes and where it stands."""

    def walk(path: Path, body: tuple[Node, ...]) -> Iterator[tuple[Path, tuple[Node, ...]]]:
        yield path, body
        for at, node in enumerate(body):
            if isinstance(node, BLOCKS):
                yield from walk((*path, at), node.body)

    yield (SETUP,), program.setup
    for index, role in enumerate(program.roles):
        yield from walk((index,), role.body)


def sites(program: Program) -> Iterator[Site]:
    """Every instruction in text order."""

    def walk(
        path: Path, body: tuple[Node, ...], loops: tuple[Path, ...], tiled: bool
    ) -> Iterator[Site]:
        for at, node in enumerate(body):
            here = (*path, at)
            if isinstance(node, BLOCKS):
                repeats = isinstance(node, EachWork) or (
                    isinstance(node, ForTiles) and node.segment not in _ONCE
                )
                inner = (here, *loops) if repeats else loops
                yield from walk(here, node.body, inner, tiled or isinstance(node, ForTiles))
            else:
                yield Site(here, node, loops, tiled)

    yield from walk((SETUP,), program.setup, (), False)
    for index, role in enumerate(program.roles):
        yield from walk((index,), role.body, (), False)


def nearest(program: Program, site: Site, wanted: Predicate, forwards: bool) -> Site | None:
    """The nearest wanted instruction after (or before) a site, around its loops."""
    turn = 1 if forwards else -1
    role = [other for other in sites(program) if other.path[0] == site.path[0]][::turn]
    for scope in (*site.loops, site.path[:1]):
        inside = [other for other in role if other.path[: len(scope)] == scope]
        at = next(i for i, other in enumerate(inside) if other.path == site.path)
        around = inside[:at] if scope in site.loops else []
        for other in (*inside[at + 1 :], *around):
            if wanted(other.instruction):
                return other
    return None


def move(program: Program, source: Path, target: Path, behind: bool) -> Program:
    """An instruction moved before or behind another, or the block around that."""
    shared = next(i for i, (a, b) in enumerate(zip(source, target, strict=False)) if a != b)
    place = (*target[:shared], target[shared] + behind)
    node = node_at(program, source)
    if place[-1] > source[shared]:  # the later edit first, so that both paths stay true
        return splice(splice(program, place, 0, (node,)), source, 1, ())
    return splice(splice(program, source, 1, ()), place, 0, (node,))


def node_at(program: Program, path: Path) -> Node:
    body: tuple[Node, ...] = program.setup if path[0] == SETUP else program.roles[path[0]].body
    for at in path[1:-1]:
        node = body[at]
        assert isinstance(node, BLOCKS)
        body = node.body
    return body[path[-1]]


def splice(program: Program, path: Path, removed: int, nodes: tuple[Node, ...]) -> Program:
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

    if path[0] == SETUP:
        return replace(program, setup=edit(program.setup, path[1:]))
    roles = list(program.roles)
    role = roles[path[0]]
    roles[path[0]] = replace(role, body=edit(role.body, path[1:]))
    return replace(program, roles=tuple(roles))


def name_of(node: Node) -> str:
    """A node in a few words."""
    parts = [type(node).__name__]
    for field in ("segment", "barrier", "buffer", "kind", "retires", "cursor"):
        value = getattr(node, field, None)
        if value is not None:
            parts.append(word(value))
    return " ".join(dict.fromkeys(parts))


def word(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(getattr(value, "name", value))
