"""Key bounds and tile ranges against the mask evaluated element by element."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.dtypes import DType
from fa3gen.schedule.ranges import KeyBounds, TileRange, key_bounds, tile_range
from fa3gen.spec.formula import parse_mask
from fa3gen.spec.model import InputSpec

BLOCK_M = 8
LENGTHS = [(1, 1), (5, 13), (16, 16), (8, 0), (21, 6), (19, 30), (3, 40), (33, 33)]

# Masks of which tiles of any size are visited, and run unmasked, as few and as many as can be.
TIGHT = [
    "full",
    "causal",
    "window(4, 0)",
    "window(0, 0)",
    "window(7, 3)",
    "window(-1, 2)",
    "window(-1, 0)",
    "window(3, -1)",
    "causal and k >= 5",
    "k < q + 3",
    "k > q - 6 and k < 20",
    "k <= q - 9",
    "k == q",
    "k == 7",
    "k <= row",
    "k >= row - 2 and k <= row + seqlen_k - seqlen_q",
    "k <= 17 - q",
    "k + q >= 12",
    "causal and k < 11 and k >= 3",
    "k < seqlen_k - 2",
    "prefix(9)",
    "prefix(0)",
    "not causal",
    "not (causal or prefix(7))",
    "causal or prefix(5)",
    "causal or k < 4 or window(2, 6)",
    "chunk(4)",
    "chunk(5)",
    "chunk(64)",
    "causal and chunk(8)",
    "window(6, 0) and chunk(16)",
    "chunk(4) or window(-1, -3 + 5)",
    "2 * k <= q",
    "3 * k >= q - 4 and 2 * k < q + 9",
    "5 * k <= 3 * q + 7",
    "k <= 2 * q and 2 * k > 3 * q - 11",
    "4 * k == 4 * q - 8",
    "k // 4 <= q // 3",
    "k // 4 < q // 4 or causal",
    "k // 3 >= q - 6",
    "2 * (k // 3) < q - 1",
    "(q - k) // 4 <= 1 and causal",
    "(2 * k + 1) // 5 <= q // 2",
    "k // 4 // 2 >= q // 8 - 1 and k // -4 >= q // -4",
    "k <= q - q % 8 + 7",
    "k - k % 8 <= q",
    "abs(q - k) <= 3",
    "max(q - 3, k) <= q and min(k, 17) >= min(q, 12) - 6",
    "q >= 9 and causal",
    "k <= where(q < 8, 5, q)",
    "k <= where(q < 8, inf, 2)",
    "k < 5 or 3 <= k <= q",
    "k <= q + 2147483647 and q - 2147483647 <= k",
]
# Masks that a single interval cannot follow, or that rows join to more than their comparisons say.
SOUND = [
    "k != q",
    "causal or q < 0 and k < 3",
    "causal and k != 7",
    "not chunk(4)",
    "not window(3, 2)",
    "window(3, 0) or prefix(2)",
    "window(3, 0) or k == 11 or k >= q + 9",
    "chunk(4) or k == 11",
    "k < 5 or k > 7 or k == q",
    "(k < 4 or k > 20) and (k < q or k > q + 4)",
    "q < 9 or k < 6 or window(5, 5)",
    "causal and q != 11",
    "k % 4 < 4 and causal",
    "k % 4 <= 1 or causal",
    "k <= q + q % 5",
    "k // 4 + k // 3 <= q or causal",
    "where(k < 9, k <= q, k <= q - 5)",
    "abs(q - k) >= 4",
    "max(k, q) >= 9",
    "k <= q and q // 4 != 2",
]
# Masks that keep no interval in every row that could be told.
NEVER_EXACT = [
    "causal and k % 2 == q % 2",
    "causal and k % 2 == 0",
    "causal and k * k <= 50",
    "k >= 6 and (q - k) % 3 == 0",
    "k <= q * q",
    "k <= q / 2",
    "2 * k == q and k % 2 == 1",
    "k <= q // row",
    "false",
    "k < 3 and k > 4",
    "prefix(0)",
]


class _Positions:
    """The names of a mask at one query and key, for Python's own evaluation of its text."""

    def __init__(self, q: int, k: int, lengths: tuple[int, int]) -> None:
        seqlen_q, seqlen_k = lengths

        def window(left: int, right: int) -> bool:
            return (left < 0 or k >= q - left) and (right < 0 or k <= q + right)

        self.names: dict[str, Any] = {
            "q": q,
            "k": k,
            "row": q + seqlen_q - seqlen_k,
            "seqlen_q": seqlen_q,
            "seqlen_k": seqlen_k,
            "full": True,
            "causal": k <= q,
            "true": True,
            "false": False,
            "inf": float("inf"),
            "window": window,
            "chunk": lambda size: q // size == k // size,
            "prefix": lambda length: k < length,
            "where": lambda condition, yes, no: yes if condition else no,
            "abs": abs,
            "max": max,
            "min": min,
        }


def kept(mask: str, q: int, k: int, lengths: tuple[int, int]) -> bool:
    """One element of a mask."""
    try:
        return bool(eval(_code(mask), {"__builtins__": {}}, _Positions(q, k, lengths).names))
    except ZeroDivisionError:
        return False


@functools.cache
def _code(mask: str) -> Any:
    return compile(mask, mask, "eval")


def query_tiles(lengths: tuple[int, int]) -> Iterator[range]:
    """The query positions of each query tile."""
    seqlen_q, seqlen_k = lengths
    for first in range(0, seqlen_q, BLOCK_M):
        rows = range(first, min(first + BLOCK_M, seqlen_q))
        yield range(rows.start + seqlen_k - seqlen_q, rows.stop + seqlen_k - seqlen_q)


@functools.lru_cache(maxsize=64)
def kept_keys(mask: str, rows: range, lengths: tuple[int, int]) -> tuple[list[bool], list[bool]]:
    """By key, whether some row keeps it and whether every row does."""
    columns = [[kept(mask, q, k, lengths) for q in rows] for k in range(lengths[1])]
    return [any(column) for column in columns], [all(column) for column in columns]


def check(mask: str, bounds: KeyBounds, rows: range, lengths: tuple[int, int], n: int) -> TileRange:
    """No kept element outside the visited tiles, none left out inside the full ones."""
    seqlen_k = lengths[1]
    tiles = tile_range(bounds, rows[0], rows[-1], lengths, n)
    where = f"{mask}, q {rows[0]}..{rows[-1]}, lengths {lengths}, tiles of {n}: {tiles}, {bounds}"
    assert 0 <= tiles.begin <= tiles.full_begin <= tiles.full_end <= tiles.end, where
    assert tiles.end <= -(-seqlen_k // n), where
    some, every = kept_keys(mask, rows, lengths)
    for k in range(seqlen_k):
        assert not some[k] or tiles.begin <= k // n < tiles.end, f"skips k {k}: {where}"
        full = tiles.full_begin <= k // n < tiles.full_end
        assert every[k] or not full, f"would not mask k {k}: {where}"
    assert tiles.full_end * n <= max(seqlen_k, tiles.begin * n), f"reads past the keys: {where}"
    if bounds.exact and not bounds.masks_left:
        assert tiles.full_begin == tiles.begin, where
    if bounds.exact and not bounds.masks_right:
        assert tiles.full_end >= tiles.end - 1, where
    assert bounds.exact or tiles.full_begin == tiles.full_end, where
    return tiles


@pytest.mark.parametrize("mask", [*TIGHT, *SOUND, *NEVER_EXACT])
@pytest.mark.parametrize("block_n", [1, 4, 12])
def test_tiles_hold_what_the_mask_keeps(mask: str, block_n: int) -> None:
    bounds = key_bounds(parse_mask(mask, {}))
    assert bounds.exact == (mask not in NEVER_EXACT)
    for lengths in LENGTHS:
        for rows in query_tiles(lengths):
            check(mask, bounds, rows, lengths, block_n)


@pytest.mark.parametrize("mask", TIGHT)
@pytest.mark.parametrize("block_n", [1, 4])
def test_ranges_are_as_tight_as_tiles_allow(mask: str, block_n: int) -> None:
    bounds = key_bounds(parse_mask(mask, {}))
    for lengths in LENGTHS:
        for rows in query_tiles(lengths):
            tiles = tile_range(bounds, rows[0], rows[-1], lengths, block_n)
            some, every = kept_keys(mask, rows, lengths)
            visited = {k // block_n for k in range(lengths[1]) if some[k]}
            full = {
                tile
                for tile in visited
                if (tile + 1) * block_n <= lengths[1]
                and all(every[tile * block_n : (tile + 1) * block_n])
            }
            where = f"{mask}, {rows}, {lengths}: {bounds}"
            if visited:
                assert (tiles.begin, tiles.end) == (min(visited), max(visited) + 1), where
            else:
                assert tiles.tiles <= 1, where
            assert set(range(tiles.full_begin, tiles.full_end)) == full, where
