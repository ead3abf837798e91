"""Sets of keys of a query tile as intervals, and how ``and`` and ``or`` join them.

What some row keeps is known from outside (no kept key lies beyond it), what every row keeps from
inside (no dropped key lies within it). A set that falls apart, as that of ``k != q``, has several
intervals to choose from inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from fa3gen.schedule.integers import TileValues, compiled, extent, joined, never_above

__all__ = ["ALL", "NONE", "UNKNOWN", "Interval", "KeySet", "both", "either", "most_keys"]

_MOST_INTERVALS = 4


@dataclass(frozen=True)
class Interval:
    """Keys ``begin <= k < end``; None: no bound but the keys themselves."""

    begin: Any | None
    end: Any | None


@dataclass(frozen=True)
class KeySet:
    """Where a condition holds, for the rows of a query tile.

    A key for which it holds in some row lies in ``some`` (None: there is none). For the keys of
    each interval in ``every`` it holds in all rows.
    """

    some: Interval | None
    every: tuple[Interval, ...]


_EVERYTHING = Interval(None, None)
ALL = KeySet(_EVERYTHING, (_EVERYTHING,))
NONE = KeySet(None, ())
UNKNOWN = KeySet(_EVERYTHING, ())


def both(sets: Iterable[KeySet]) -> KeySet:
    """Where all of several conditions hold."""
    result = ALL
    for other in sets:
        if result.some is None or other.some is None:
            return NONE
        pairs = itertools.product(result.every, other.every)
        every = [common for pair in pairs if _may_hold_keys(common := _intersection(*pair))]
        some = _intersection(result.some, other.some)
        if not _may_hold_keys(some):
            return NONE
        result = KeySet(some, _largest(every))
    return result


def either(sets: Iterable[KeySet]) -> KeySet:
    """Where one of several conditions holds."""
    result = NONE
    for other in sets:
        every = _merged([*result.every, *other.every])
        if result.some is None or other.some is None:
            result = KeySet(result.some or other.some, every)
        else:
            result = KeySet(_hull(result.some, other.some), every)
    return result


def most_keys(intervals: Sequence[Interval]) -> Interval | None:
    """The interval with the most keys in common cases, None of none."""
    return max(intervals, key=_keys_in_samples, default=None)


# --- intervals ------------------------------------------------------------------------------------


def _intersection(one: Interval, other: Interval) -> Interval:
    begins = [begin for begin in (one.begin, other.begin) if begin is not None]
    ends = [end for end in (one.end, other.end) if end is not None]
    return Interval(
        joined(sympy.Max, begins) if begins else None, joined(sympy.Min, ends) if ends else None
    )


def _hull(one: Interval, other: Interval) -> Interval:
    begin = end = None
    if one.begin is not None and other.begin is not None:
        begin = joined(sympy.Min, (one.begin, other.begin))
    if one.end is not None and other.end is not None:
        end = joined(sympy.Max, (one.end, other.end))
    return Interval(begin, end)


def _may_hold_keys(interval: Interval) -> bool:
    if interval.begin is None or interval.end is None:
        return True
    return extent(interval.end - interval.begin)[1] > 0


def _merged(intervals: list[Interval]) -> tuple[Interval, ...]:
    """Intervals that have no gap between them in any query tile become one."""
    kept: list[Interval] = []
    for interval in intervals:
        touching = [other for other in kept if _touch(interval, other)]
        kept = [other for other in kept if other not in touching]
        for other in touching:
            interval = _hull(interval, other)
        kept.append(interval)
    return _largest(kept)


def _touch(one: Interval, other: Interval) -> bool:
    """Whether the hull is the union: each begins before the other ends, even if one is empty."""
    return all(
        begin is None or end is None or never_above(begin, end)
        for begin, end in ((one.begin, other.end), (other.begin, one.end))
    )


def _largest(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    distinct = list(dict.fromkeys(intervals))
    if len(distinct) <= _MOST_INTERVALS:
        return tuple(distinct)
    return tuple(sorted(distinct, key=_keys_in_samples, reverse=True)[:_MOST_INTERVALS])


def _samples() -> list[TileValues]:
    """Query tiles of 128 rows at the start, the middle and the end of sequences."""
    return [
        (row + shift, row + shift + 127, seqlen_q, seqlen_q + shift)
        for seqlen_q, shift in ((4096, 0), (1024, 7168), (16384, 0))
        for row in (0, seqlen_q // 2, seqlen_q - 128)
    ]


_SAMPLES = _samples()


def _keys_in_samples(interval: Interval) -> int:
    total = 0
    for tile in _SAMPLES:
        begin = 0 if interval.begin is None else max(compiled(interval.begin)(tile), 0)
        end = tile[3] if interval.end is None else min(compiled(interval.end)(tile), tile[3])
        total += max(end - begin, 0)
    return total
