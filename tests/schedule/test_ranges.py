"""Key bounds and tile ranges against the mask evaluated element by element."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.schedule.ranges import KeyBounds, TileRange, key_bounds, tile_range
from fa3gen.spec.formula import parse_mask

BLOCK_M = 8
LENGTHS = [(1, 1), (5, 13), (16, 16), (8, 0), (21, 6), (19, 30), (3, 40), (33, 33)]

AFFINE = [
    "full",
    "causal",
    "window(4, 0)",
    "window(0, 0)",
    "window(7, 3)",
    "window(-1, 2)",
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
]
PARTLY = [
    "k != q",
    "chunk(4)",
    "2 * k <= q",
    "causal or k < 4",
    "causal and k % 2 == q % 2",
    "causal and k * k <= 50",
    "k >= 6 and (q - k) % 3 == 0",
    "k <= q * q",
]


def kept(mask: str, q: int, k: int, lengths: tuple[int, int]) -> bool:
    """One element of a mask, by Python's own evaluation of its text."""
    seqlen_q, seqlen_k = lengths

    def window(left: int, right: int) -> bool:
        return (left < 0 or k >= q - left) and (right < 0 or k <= q + right)

    names = {
        "q": q,
        "k": k,
        "row": q + seqlen_q - seqlen_k,
        "seqlen_q": seqlen_q,
        "seqlen_k": seqlen_k,
        "full": True,
        "causal": k <= q,
        "window": window,
        "chunk": lambda size: q // size == k // size,
        "prefix": lambda length: k < length,
    }
    return bool(eval(mask, {"__builtins__": {}}, names))


def query_tiles(lengths: tuple[int, int]) -> Iterator[range]:
    """The query positions of each query tile."""
    seqlen_q, seqlen_k = lengths
    for first in range(0, seqlen_q, BLOCK_M):
        rows = range(first, min(first + BLOCK_M, seqlen_q))
        yield range(rows.start + seqlen_k - seqlen_q, rows.stop + seqlen_k - seqlen_q)


def check(mask: str, bounds: KeyBounds, rows: range, lengths: tuple[int, int], n: int) -> TileRange:
    """No kept element outside the visited tiles, none left out inside the full ones."""
    seqlen_k = lengths[1]
    tiles = tile_range(bounds, rows[0], rows[-1], lengths, n)
    where = f"{mask}, q {rows[0]}..{rows[-1]}, lengths {lengths}, tiles of {n}: {tiles}"
    assert 0 <= tiles.begin <= tiles.full_begin <= tiles.full_end <= tiles.end, where
    assert tiles.end <= -(-seqlen_k // n), where
    for q, k in itertools.product(rows, range(seqlen_k)):
        keeps = kept(mask, q, k, lengths)
        assert not keeps or tiles.begin <= k // n < tiles.end, f"skips k {k} of q {q}: {where}"
        full = tiles.full_begin <= k // n < tiles.full_end
        assert keeps or not full, f"would not mask k {k} of q {q}: {where}"
    assert tiles.full_end * n <= max(seqlen_k, tiles.begin * n), f"reads past the keys: {where}"
    if bounds.exact and not bounds.masks_left:
        assert tiles.full_begin == tiles.begin, where
    if bounds.exact and not bounds.masks_right:
        assert tiles.full_end >= tiles.end - 1, where
    return tiles


@pytest.mark.parametrize("mask", [*AFFINE, *PARTLY])
@pytest.mark.parametrize("block_n", [4, 8, 12])
def test_tiles_hold_what_the_mask_keeps(mask: str, block_n: int) -> None:
    bounds = key_bounds(parse_mask(mask, {}))
    assert bounds.exact == (mask in AFFINE)
    for lengths in LENGTHS:
        for rows in query_tiles(lengths):
            tiles = check(mask, bounds, rows, lengths, block_n)
            assert bounds.exact or tiles.full_begin == tiles.full_end


@pytest.mark.parametrize(
    "mask", ["full", "causal", "window(7, 3)", "k < q + 3", "causal and k >= 5"]
)
def test_ranges_are_as_tight_as_tiles_allow(mask: str) -> None:
    block_n = 4
    bounds = key_bounds(parse_mask(mask, {}))
    for lengths in LENGTHS:
        for rows in query_tiles(lengths):
            tiles = tile_range(bounds, rows[0], rows[-1], lengths, block_n)
            keys = range(lengths[1])
            some = {k // block_n for q in rows for k in keys if kept(mask, q, k, lengths)}
            every = {
                tile
                for tile in some
                if (tile + 1) * block_n <= len(keys)
                and all(
                    kept(mask, q, k, lengths)
                    for q in rows
                    for k in range(tile * block_n, (tile + 1) * block_n)
                )
            }
            assert some <= set(range(tiles.begin, tiles.end))
            if some:
                assert (tiles.begin, tiles.end) == (min(some), max(some) + 1), (mask, rows, lengths)
            assert set(range(tiles.full_begin, tiles.full_end)) == every, (mask, rows, lengths)


_offsets = st.integers(-9, 40)
_sides = st.sampled_from(["{} <= {}", "{} < {}", "{} >= {}", "{} > {}", "{} == {}"])
_edges = st.tuples(_sides, st.sampled_from(["q", "-q", "row", "0", "seqlen_k"]), _offsets)


@settings(max_examples=150, deadline=None)
@given(
    edges=st.lists(_edges, min_size=1, max_size=3),
    lengths=st.tuples(st.integers(1, 20), st.integers(0, 30)),
    block_n=st.integers(1, 9),
)
def test_any_affine_mask(edges: list[Any], lengths: tuple[int, int], block_n: int) -> None:
    mask = " and ".join(side.format("k", f"{edge} + ({offset})") for side, edge, offset in edges)
    bounds = key_bounds(parse_mask(mask, {}))
    for rows in query_tiles(lengths):
        check(mask, bounds, rows, lengths, block_n)


def test_unmasked_sides() -> None:
    full = key_bounds(parse_mask("full", {}))
    assert (full.some_begin, full.every_begin, full.every_end, full.some_end) == (None,) * 4
    assert not full.masks_left
    assert not full.masks_right
    causal = key_bounds(parse_mask("causal", {}))
    assert causal.masks_right
    assert not causal.masks_left
    assert key_bounds(parse_mask("window(5, -1)", {})).masks_left
    assert key_bounds(parse_mask("k != q", {})).masks_right  # every tile is masked


def test_tiles_are_counted_from_begin_to_end() -> None:
    assert TileRange(2, 3, 4, 7).tiles == 5
    bounds = key_bounds(parse_mask("causal", {}))
    assert tile_range(bounds, 128, 255, (512, 512), 128) == TileRange(0, 0, 1, 2)
    assert tile_range(bounds, -128, -1, (512, 384), 128) == TileRange(0, 0, 0, 0)
