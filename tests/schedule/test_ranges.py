"""Key bounds and tile ranges against the mask evaluated element by element."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.dtypes import DType
from fa3gen.schedule.interpret import evaluate
from fa3gen.schedule.ranges import KeyBounds, TileRange, key_bounds, row_keys, tile_range
from fa3gen.spec import symbols
from fa3gen.spec.formula import parse_mask
from fa3gen.spec.model import InputSpec
from fa3gen.spec.symbols import INDICES, scalar_input

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
    "causal or k < 17 and k > 18",
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
def test_the_keys_of_a_row_are_an_interval_or_none_is_given(mask: str) -> None:
    keys = row_keys(parse_mask(mask, {}))
    for lengths in LENGTHS if keys is not None else ():
        seqlen_q, seqlen_k = lengths
        for q in range(seqlen_k - seqlen_q, seqlen_k):
            sizes = zip((symbols.seqlen_q, symbols.seqlen_k), lengths, strict=True)
            values = {symbol: torch.tensor(size) for symbol, size in sizes}
            values |= {
                symbols.q: torch.tensor(q),
                symbols.row: torch.tensor(q - seqlen_k + seqlen_q),
            }
            begin = 0 if keys.begin is None else int(evaluate(keys.begin, values))
            end = seqlen_k if keys.end is None else int(evaluate(keys.end, values))
            row = [kept(mask, q, k, lengths) for k in range(seqlen_k)]
            assert row == [begin <= k < end for k in range(seqlen_k)], (keys, q, lengths)


def test_the_usual_masks_are_intervals() -> None:
    usual = ("full", "causal", "window(7, 3)", "causal or prefix(5)", "chunk(5)", "k <= q // 2 + 3")
    assert [mask for mask in usual if row_keys(parse_mask(mask, {})) is None] == []
    parted = ("k != q", "window(3, 0) or prefix(2)", "k % 4 <= 1 or causal", "not chunk(4)")
    assert [mask for mask in parted if row_keys(parse_mask(mask, {})) is not None] == []


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


# --- any mask -------------------------------------------------------------------------------------

_small = st.integers(-9, 25)
_factors = st.sampled_from([-3, -2, -1, 1, 2, 3, 5])
_divisors = st.integers(2, 7)
_signs = st.sampled_from(["<=", "<", ">=", ">", "==", "!="])
_ends = st.sampled_from(["q", "-q", "row", "0", "seqlen_k", "2 * q", "q // 3", "q % 4 - q"])


def _texts(form: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda values: form.format(*values))


_comparisons = st.one_of(
    _texts("{} * k {} {} + ({})", _factors, _signs, _ends, _small),
    _texts("k // {} {} q // {} + ({})", _divisors, _signs, _divisors, _small),
    _texts("({} * k + q) // {} {} {} + ({})", _factors, _divisors, _signs, _ends, _small),
    _texts("k % {} {} {}", _divisors, _signs, _small),
    _texts("k - k % {} {} {} + ({})", _divisors, _signs, _ends, _small),
    _texts("k // {} - k // {} {} {}", _divisors, _divisors, _signs, _small),
    _texts("abs(k - q + ({})) {} {}", _small, _signs, _small),
    _texts("max(k, {}) {} min({}, {})", _ends, _signs, _small, _ends),
    _texts("k {} where(q {} {}, {}, {})", _signs, _signs, _small, _ends, _ends),
    _texts("{} {} {}", _ends, _signs, _small),
    _texts("k * k {} {}", _signs, _small),
    _texts("chunk({})", _divisors),
    _texts("window({}, {})", st.integers(-1, 9), st.integers(-1, 9)),
    _texts("prefix({})", st.integers(0, 20)),
)
_masks = st.recursive(
    _comparisons,
    lambda inner: st.one_of(
        _texts("({} and {})", inner, inner),
        _texts("({} or {})", inner, inner),
        _texts("not ({})", inner),
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(
    mask=_masks,
    lengths=st.tuples(st.integers(1, 18), st.integers(0, 26)),
    block_n=st.integers(1, 9),
)
def test_any_mask(mask: str, lengths: tuple[int, int], block_n: int) -> None:
    bounds = key_bounds(parse_mask(mask, {}))
    for rows in query_tiles(lengths):
        check(mask, bounds, rows, lengths, block_n)


INPUTS = {
    "doc": InputSpec(shape=("b", "k"), dtype=DType.INT32),
    "reach": InputSpec(dtype=DType.INT32),
    "far": InputSpec(shape=("h",), dtype=DType.INT32),
    "prefix": InputSpec(shape=("b",), dtype=DType.INT32),
    "slope": InputSpec(shape=("h",), dtype=DType.FP32),
}


def test_what_depends_on_inputs_of_positions_bounds_nothing() -> None:
    def bounds(mask: str) -> KeyBounds:
        return key_bounds(parse_mask(mask, INPUTS))

    causal = bounds("causal")
    for mask in ("document(doc)", "doc[b, k] < 3", "slope[h] * k < 9", "k <= q + h * reach"):
        unknown = bounds(mask)
        assert (unknown.some_begin, unknown.some_end, unknown.exact) == (None, None, False), mask
        restricted = bounds(f"causal and ({mask})")
        assert (restricted.some_end, restricted.exact) == (causal.some_end, False), mask
        widened = bounds(f"causal or ({mask})")
        assert (widened.some_end, widened.every_end) == (None, causal.every_end), mask
        assert widened.exact, mask


SHARED_MASKS = {
    "window(reach, -1)": lambda q, k, at: (at["reach"] == -1) | (k >= q - at["reach"]),
    "window(reach, 0)": lambda q, k, at: (k <= q) & ((at["reach"] == -1) | (k >= q - at["reach"])),
    "causal & (k >= q - far[h])": lambda q, k, at: (k <= q) & (k >= q - at["far"]),
    "causal | (k < prefix[b])": lambda q, k, at: (k <= q) | (k < at["prefix"]),
    "k <= q + 2 * hk": lambda q, k, at: k <= q + 2 * at["hk"],
    "causal & (h < 3)": lambda q, k, at: (k <= q) & (at["h"] < 3),
    "causal | (b != 1)": lambda q, k, at: (k <= q) | (at["b"] != 1),
    "k // 8 <= q // 8 + far[h]": lambda q, k, at: k // 8 <= q // 8 + at["far"],
}


@pytest.mark.parametrize("mask", SHARED_MASKS)
@pytest.mark.parametrize("value", [-(2**31), -70, -1, 0, 1, 5, 33, 2**31 - 1])
def test_bounds_of_what_a_work_tile_shares(mask: str, value: int) -> None:
    """Tiles left out keep nothing, tiles taken for whole keep all, for any value of the input."""
    bounds = key_bounds(parse_mask(mask, INPUTS))
    assert bounds.exact
    heads = {"b": 1, "h": 2, "hk": 2}
    at = {**heads, "reach": value, "far": value, "prefix": value}

    def shared(expr: Any) -> int:
        tables = {name: torch.tensor([value] * 4) for name in ("far", "prefix")}
        named = {INDICES[name]: torch.tensor(number) for name, number in heads.items()}
        scalar = {scalar_input("reach", DType.INT32): torch.tensor(value)}
        return int(evaluate(expr, {**named, **tables, **scalar}))

    block_n = 16
    for first, seqlen_q, seqlen_k in ((0, 96, 96), (32, 96, 96), (64, 96, 50), (0, 20, 96)):
        shift, last = seqlen_k - seqlen_q, min(first + 32, seqlen_q) - 1
        lengths = (seqlen_q, seqlen_k)
        tiles = tile_range(bounds, first + shift, last + shift, lengths, block_n, shared)
        for tile in range(-(-seqlen_k // block_n)):
            keys = range(tile * block_n, min((tile + 1) * block_n, seqlen_k))
            kept = [
                bool(SHARED_MASKS[mask](q + shift, k, at))
                for q in range(first, last + 1)
                for k in keys
            ]
            if not tiles.begin <= tile < tiles.end:
                assert not any(kept), (first, lengths, tile, tiles)
            if tiles.full_begin <= tile < tiles.full_end:
                assert all(kept), (first, lengths, tile, tiles)
                assert len(keys) == block_n, (first, lengths, tile, tiles)


# --- what a person would have written -------------------------------------------------------------

_BY_HAND: dict[str, Callable[[range, int, int], tuple[int, int, int, int]]] = {
    "causal": lambda q, n, keys: (0, 0, (q[0] + 1) // n, -(-(q[-1] + 1) // n)),
    "chunk(256)": lambda q, n, keys: (
        q[0] // 256 * 256 // n,
        q[0] // 256 * 256 // n,
        (q[0] // 256 + 1) * 256 // n,
        (q[0] // 256 + 1) * 256 // n,
    ),
    "causal and chunk(256)": lambda q, n, keys: (
        q[0] // 256 * 256 // n,
        q[0] // 256 * 256 // n,
        (q[0] + 1) // n,
        -(-(q[-1] + 1) // n),
    ),
    "causal or prefix(200)": lambda q, n, keys: (
        0,
        0,
        max(q[0] + 1, 200) // n,
        -(-max(q[-1] + 1, 200) // n),
    ),
    "window(255, 0)": lambda q, n, keys: (
        max(q[0] - 255, 0) // n,
        -(-max(q[-1] - 255, 0) // n),
        (q[0] + 1) // n,
        -(-(q[-1] + 1) // n),
    ),
    "window(511, 0) or prefix(64)": lambda q, n, keys: (
        0,
        -(-max(q[-1] - 511, 0) // n),
        (q[0] + 1) // n,
        -(-(q[-1] + 1) // n),
    ),
    "(q < 64) or window(255, 255)": lambda q, n, keys: (
        max(q[0] - 255, 0) // n if q[0] >= 64 else 0,
        -(-max(q[-1] - 255, 0) // n),
        min(q[0] + 256, keys) // n,
        -(-(min(q[-1] + 256, keys) if q[0] >= 64 else keys) // n),
    ),
}


@pytest.mark.parametrize("mask", _BY_HAND)
@pytest.mark.parametrize("block_n", [64, 128])
def test_ranges_by_hand(mask: str, block_n: int) -> None:
    bounds = key_bounds(parse_mask(mask, {}))
    keys = 2048
    for first in range(0, keys, 128):
        rows = range(first, first + 128)
        tiles = tile_range(bounds, rows[0], rows[-1], (keys, keys), block_n)
        expected = TileRange(*_BY_HAND[mask](rows, block_n, keys))
        if mask == "(q < 64) or window(255, 255)" and first >= 128:
            # One interval: a begin that only some query tiles have is left to the mask.
            expected = TileRange(0, expected.full_begin, expected.full_end, expected.end)
        assert tiles == expected, (rows, bounds)


def test_texts_of_bounds() -> None:
    def texts(mask: str) -> tuple[str, ...]:
        bounds = key_bounds(parse_mask(mask, {}))
        ends = (bounds.some_begin, bounds.every_begin, bounds.every_end, bounds.some_end)
        return tuple(str(end) for end in ends)

    assert texts("causal") == ("None", "None", "q_first + 1", "q_last + 1")
    assert texts("causal and chunk(64)") == (
        "64*FloorDiv(q_first, 64)",
        "64*FloorDiv(q_last, 64)",
        "q_first + 1",
        "q_last + 1",
    )
    assert texts("causal or window(9, 4) or k < 4") == (
        "None",
        "None",
        "Max(4, q_first + 5)",
        "Max(4, q_last + 5)",
    )
    assert texts("2 * k + 1 <= 4 * (q // 2)") == (
        "None",
        "None",
        "2*FloorDiv(q_first, 2)",
        "2*FloorDiv(q_last, 2)",
    )


# --- long sequences -------------------------------------------------------------------------------

LONG = [
    "causal",
    "window(1073741824, 0)",
    "window(4095, 1073741823)",
    "chunk(1000003)",
    "causal and chunk(2147483647)",
    "causal or prefix(1073741824)",
    "2 * k <= q",
    "k <= 2 * q + 5",
    "k >= 2 * q",
    "k < 4 * row + 4",
    "3 * k >= 7 * q - 1000000000",
    "5 * k <= 3 * q",
    "3 * k < 2 * q + 2147483647",
    "k // 7 <= 2 * (q // 5)",
    "k <= q + 2147483647",
    "k <= row + 1073741823",
    "k >= row - 1073741823 and k + q >= 1073741824",
    "q >= 1000000000 and causal",
    "k <= q + seqlen_q",
    "k <= q + 5 * seqlen_k",
    "1000000 * k <= 1000001 * q + 12345",
]


@pytest.mark.parametrize("mask", LONG)
def test_long_sequences(mask: str) -> None:
    """Keys next to each bound, and some at random, in sequences of up to 2^30 positions."""
    bounds = key_bounds(parse_mask(mask, {}))
    draw = random.Random(mask)
    longest = 2**30
    for lengths in ((longest, longest), (1, longest), (longest, 1), (longest - 5, longest - 10**6)):
        seqlen_q, seqlen_k = lengths
        starts = [0, max(seqlen_q - 128, 0), *(draw.randrange(seqlen_q) for _ in range(5))]
        for first in starts:
            shift = seqlen_k - seqlen_q
            rows = range(first + shift, min(first + 128, seqlen_q) + shift)
            tiles = tile_range(bounds, rows[0], rows[-1], lengths, 128)
            edges = {edge for tile in vars(tiles).values() for edge in (tile * 128 - 1, tile * 128)}
            for k in (*edges, 0, seqlen_k - 1, *(draw.randrange(seqlen_k) for _ in range(9))):
                if not 0 <= k < seqlen_k:
                    continue
                keeps = [
                    kept(mask, q, k, lengths) for q in (rows[0], rows[-1], rows[len(rows) // 2])
                ]
                where = f"{mask}, k {k}, {rows}, {lengths}: {tiles} {bounds}"
                assert not any(keeps) or tiles.begin <= k // 128 < tiles.end, where
                assert all(keeps) or not tiles.full_begin <= k // 128 < tiles.full_end, where


def test_what_int32_cannot_hold_leaves_the_other_bounds() -> None:
    """``row - seqlen_k`` is ``q + seqlen_q - 2 * seqlen_k``, and twice a length may not fit."""
    bounds = key_bounds(parse_mask("causal and k >= row - seqlen_k", {}))
    assert str(bounds.some_end) == "q_last + 1"
    assert (bounds.some_begin, bounds.exact) == (None, False)
    widened = key_bounds(parse_mask("causal or k >= row - seqlen_k", {}))
    assert (widened.some_end, str(widened.every_end)) == (None, "q_first + 1")


# --- records --------------------------------------------------------------------------------------


def test_unmasked_sides() -> None:
    full = key_bounds(parse_mask("full", {}))
    assert (full.some_begin, full.every_begin, full.every_end, full.some_end) == (None,) * 4
    assert not full.masks_left
    assert not full.masks_right
    causal = key_bounds(parse_mask("causal", {}))
    assert causal.masks_right
    assert not causal.masks_left
    assert key_bounds(parse_mask("window(5, -1)", {})).masks_left
    assert key_bounds(parse_mask("k % 2 == 0", {})).masks_right  # every tile is masked
    widened = key_bounds(parse_mask("causal or k % 2 == 0", {}))  # all are visited, some are full
    assert (widened.some_end, widened.masks_right, widened.masks_left) == (None, True, False)
    nothing = key_bounds(parse_mask("false", {}))
    assert (nothing.some_end, nothing.every_end, nothing.exact) == (0, 0, False)


def test_tiles_are_counted_from_begin_to_end() -> None:
    assert TileRange(2, 3, 4, 7).tiles == 5
    bounds = key_bounds(parse_mask("causal", {}))
    assert tile_range(bounds, 128, 255, (512, 512), 128) == TileRange(0, 0, 1, 2)
    assert tile_range(bounds, -128, -1, (512, 384), 128) == TileRange(0, 0, 0, 0)


def test_bounds_of_other_symbols_have_no_value() -> None:
    bounds = KeyBounds(None, None, None, sympy.Symbol("other") + 1, True)
    with pytest.raises(TypeError, match="other"):
        tile_range(bounds, 0, 7, (8, 8), 4)


def test_a_long_mask_is_left_to_the_mask() -> None:
    mask = " or ".join(f"{index} * k < q" for index in range(1, 40))
    bounds = key_bounds(parse_mask(mask, {}))
    assert (bounds.some_end, bounds.exact) == (None, False)
