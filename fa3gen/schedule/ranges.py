"""Which KV tiles a query tile visits, and which of them need the mask.

Derived from the mask expression alone. For the positions ``q_first .. q_last`` of a query tile::

    k <= q + 3          some row keeps keys up to q_last + 3, every row keeps keys up to q_first + 3
    k >= q - 100        some row keeps keys from q_first - 100, every row from q_last - 100
    q // 64 == k // 64  some row keeps keys from 64 * (q_first // 64), every row from
                        64 * (q_last // 64); ...

``comparisons`` solves each comparison of a row for k, ``key_sets`` joins the solutions. What cannot
be solved bounds nothing; a mask that leaves no tile known to be kept whole has its tiles *listed*
by a kernel that looks at the elements.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import sympy

from fa3gen.schedule.comparisons import kept_keys
from fa3gen.schedule.integers import Q_FIRST, Q_LAST, TYPICAL, Shared, compiled
from fa3gen.schedule.key_sets import Interval, of_every_row, over_tile
from fa3gen.spec import symbols

__all__ = [
    "Q_FIRST",
    "Q_LAST",
    "KeyBounds",
    "TileRange",
    "key_bounds",
    "list_axes",
    "row_keys",
    "tile_range",
]

_NO_KEYS = sympy.Integer(0)


@dataclass(frozen=True)
class KeyBounds:
    """Half-open key bounds of a query tile, as expressions in q_first, q_last and the lengths.

    Keys that some row keeps are in [some_begin, some_end); keys in [every_begin, every_end) are
    kept by every row. None: no bound on that side but the keys themselves. ``exact`` is False if
    there is no interval that every row keeps, so that no tile may skip the mask; the interval is
    then [None, 0). ``listed``: the tiles between some_begin and some_end are looked at, and those
    that are visited listed, the whole ones apart. Values may lie outside the keys, and an end
    before its begin; with lengths up to 2^30 no intermediate value leaves int32.
    """

    some_begin: sympy.Expr | None
    every_begin: sympy.Expr | None
    every_end: sympy.Expr | None
    some_end: sympy.Expr | None
    exact: bool
    listed: bool = False

    @property
    def masks_right(self) -> bool:
        """Whether tiles other than the one that holds the last key may need the mask, which are
        then visited before those that need none."""
        return self.listed or self.some_end is not None or self.every_end is not None

    @property
    def masks_left(self) -> bool:
        """Whether tiles that need the mask are visited after those that need none."""
        return not self.listed and (self.some_begin is not None or self.every_begin is not None)


@dataclass(frozen=True)
class TileRange:
    """KV tiles: begin <= full_begin <= full_end <= end; those in [full_begin, full_end) are full.

    Tiles are visited from ``end - 1`` down to ``begin``.
    """

    begin: int
    full_begin: int
    full_end: int
    end: int

    @property
    def tiles(self) -> int:
        """Number of tiles visited."""
        return self.end - self.begin

    def at_least(self, tiles: int) -> TileRange:
        """The range with masked tiles above it, if it is not empty and has fewer tiles."""
        if not self.tiles:
            return self
        return replace(self, end=max(self.end, self.begin + tiles))

    def or_beyond(self, tile: int) -> TileRange:
        """The range, or of an empty one ``tile``, which lies past the last key."""
        return self if self.tiles else TileRange(tile, tile, tile, tile + 1)


@functools.cache
def key_bounds(keep: sympy.Basic) -> KeyBounds:
    """The key bounds that follow from a mask expression in q, k, row and the lengths."""
    kept = kept_keys(keep)
    if kept.outer is None:
        return KeyBounds(None, None, _NO_KEYS, _NO_KEYS, False)
    some = over_tile(kept.outer, outward=True) or Interval(None, None)
    every = of_every_row(kept)
    if every is None:
        return KeyBounds(some.begin, None, _NO_KEYS, some.end, False)
    return KeyBounds(some.begin, every.begin, every.end, some.end, True)


def list_axes(keep: sympy.Basic) -> tuple[bool, bool]:
    """Whether batches, and query heads, have lists of KV tiles of their own."""
    free = keep.free_symbols
    return symbols.b in free, bool(free & {symbols.h, symbols.hk})


def row_keys(keep: sympy.Basic) -> Interval | None:
    """The keys that a row keeps, of those there are, if they are an interval: its bounds are
    expressions in q and the lengths."""
    kept = kept_keys(keep)
    return kept.outer if kept.outer in kept.inner else None


def tile_range(
    bounds: KeyBounds,
    q_first: int,
    q_last: int,
    lengths: tuple[int, int],
    block_n: int,
    shared: Shared = TYPICAL,
) -> TileRange:
    """The KV tiles of the query positions ``q_first .. q_last``; ``lengths``: seqlen_q, seqlen_k;
    ``shared``: values of heads and inputs.

    The kernel evaluates the same expressions; its text is made from the same record.
    """
    seqlen_k = lengths[1]
    tile = (q_first, q_last, *lengths)

    def value(bound: sympy.Expr | None, default: int) -> int:
        return default if bound is None else compiled(bound)(tile, shared)

    def clamp(number: int, low: int, high: int) -> int:
        return max(low, min(number, high))

    end = -(-clamp(value(bounds.some_end, seqlen_k), 0, seqlen_k) // block_n)
    begin = min(clamp(value(bounds.some_begin, 0), 0, seqlen_k) // block_n, end)
    full_end = clamp(value(bounds.every_end, seqlen_k), 0, seqlen_k) // block_n
    full_begin = -(-max(value(bounds.every_begin, 0), 0) // block_n)
    if bounds.listed:  # to choose schedules by: most are whole
        full_begin, full_end = begin, max(end - 2, begin)
        return TileRange(begin, full_begin, full_end, end)
    full_end = clamp(full_end, begin, end) if bounds.exact else begin
    full_begin = clamp(full_begin, begin, full_end)
    return TileRange(begin, full_begin, full_end, end)
