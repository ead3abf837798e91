"""The calls of a kernel, by the sizes of its tiles."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fa3gen.cases import Case, Layout
from fa3gen.errors import InputError
from fa3gen.matrix.covering import Row, pairwise, spread
from fa3gen.matrix.factors import CALL, DEGENERATE, QUICK_CALL

__all__ = ["Tile", "all_calls", "few_calls", "parse_case", "tiles_of"]

_MANY_TILES = 400  # work tiles, so that each SM of a GPU has several
_LENGTH = re.compile(r"(?:(\d*)([mn]))?([+-]?\d+)?")
_CASE = re.compile(
    r"b(\d+)-h(\d+)/(\d+)-q(\d+)-k(\d+)"
    rf"(?:-({'|'.join(layout.value for layout in Layout)}))?"
    r"(?:-rising([\d.e+]+))?(?:-scale([\d.e+-]+))?(-numbers)?"
)


@dataclass(frozen=True)
class Tile:
    """A kernel of a launch plan: its query rows and keys a tile, and the fewest keys of a call
    that takes it."""

    block_m: int
    block_n: int
    least_keys: int = 0


def tiles_of(kernels: Iterable[tuple[int, int, int | None]]) -> tuple[Tile, ...]:
    """The tiles of a launch plan's kernels, each given by its query rows and keys a tile and the
    most keys of a call that takes it."""
    tiles: list[Tile] = []
    least = 0
    for block_m, block_n, max_keys in kernels:
        tiles.append(Tile(block_m, block_n, least))
        least = (max_keys or 0) + 1
    return tuple(tiles)


def all_calls(tiles: Sequence[Tile]) -> tuple[Case, ...]:
    """Calls with every pair of choices, for each kernel of a plan; those that are empty in some
    way; and the lengths at which the next kernel is taken."""
    calls = [_case(row, tile) for tile in tiles for row in pairwise(CALL).rows]
    calls += [_empty(row, tiles[0]) for row in _product(DEGENERATE["empty"], DEGENERATE["layout"])]
    for tile in tiles[1:]:
        calls += [_seeded(Case(1, 2, 1, 300, tile.least_keys - 1 + more)) for more in (0, 1)]
    return tuple(dict.fromkeys(calls))


def few_calls(kernels: Sequence[tuple[Row, Sequence[Tile]]]) -> list[tuple[Case, ...]]:
    """A few small calls for each of some kernels, given as their choices and tiles.

    Together they have every pair of the calls' choices, and each of these with each choice of the
    kernels; and every way to be empty in every layout. A kernel that is left over has one call.
    """
    empty = list(_product(DEGENERATE["empty"], DEGENERATE["layout"]))
    usual = {factor: values[0] for factor, values in QUICK_CALL.items()}
    calls = []
    for place, rows in enumerate(spread([row for row, _ in kernels], QUICK_CALL)):
        tile = kernels[place][1][0]
        more = empty[place :: len(kernels)]
        found = [_case(row, tile) for row in rows or [usual]]
        found += [_empty(row, tile) for row in more]
        calls.append(tuple(dict.fromkeys(found)))
    return calls


def parse_case(name: str) -> Case:
    """The case of a name, with its seed. Raises InputError where it is none."""
    found = _CASE.fullmatch(name)
    if found is None:
        raise InputError(f"{name!r}: a call is named like b2-h4/2-q129-k337-packed-scale1")
    batch, heads, kv_heads, seqlen_q, seqlen_k = map(int, found.groups()[:5])
    layout, rising, scale, numbers = found.groups()[5:]
    case = Case(
        batch,
        heads,
        kv_heads,
        seqlen_q,
        seqlen_k,
        layout=Layout(layout or "contiguous"),
        scale=None if scale is None else float(scale),
        rising=float(rising or 0),
        numbers=numbers is not None,
    )
    return _seeded(case)


def _case(row: Row, tile: Tile) -> Case:
    heads, kv_heads = map(int, row["heads"].split("/"))
    seqlen_q = _length(row["seqlen_q"], tile)
    more = max(0, tile.least_keys - 1)
    seqlen_k = _length(row["seqlen_k"], tile) + more
    per_batch = heads * -(-seqlen_q // tile.block_m)
    batch = -(-_MANY_TILES // per_batch) if row["batch"] == "many" else int(row["batch"])
    return _seeded(
        Case(
            min(batch, 2) if more else batch,  # a long call takes long to judge
            heads,
            kv_heads,
            seqlen_q,
            seqlen_k,
            layout=Layout(row["layout"]),
            scale=None if row["scale"] == "default" else float(row["scale"]),
            rising=float(row["rising"]),
            numbers=row["numbers"] == "yes",
        )
    )


def _empty(row: Row, tile: Tile) -> Case:
    """A call without batches, queries, keys or heads."""
    case = Case(2, 4, 2, tile.block_m + 1, tile.block_n + 1, layout=Layout(row["layout"]))
    emptied = {
        "batch": replace(case, batch=0),
        "seqlen_q": replace(case, seqlen_q=0),
        "seqlen_k": replace(case, seqlen_k=0),
        "heads": replace(case, heads=0, kv_heads=0),
    }
    return _seeded(emptied[row["empty"]])


def _product(empty: Sequence[str], layouts: Sequence[str]) -> Iterator[Row]:
    return ({"empty": one, "layout": layout} for one in empty for layout in layouts)


def _length(text: str, tile: Tile) -> int:
    """A length as the factors write it: ``m-1``, ``3n+7``, ``1``."""
    found = _LENGTH.fullmatch(text)
    assert found is not None, text
    times, block, more = found.groups()
    size = {"m": tile.block_m, "n": tile.block_n, None: 0}[block]
    return int(times or 1) * size + int(more or 0)


def _seeded(case: Case) -> Case:
    """The case with a seed that follows from its name, so that the name alone repeats it."""
    return replace(case, seed=zlib.crc32(case.name.encode()) >> 1)
