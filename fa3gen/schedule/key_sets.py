"""Sets of keys as intervals: how ``and`` and ``or`` join them, and what a query tile makes of them.

What a row keeps is known from outside (no kept key lies beyond it) and from inside (no dropped key
lies within it), with bounds in the row's position q. A set that falls apart, as that of ``k != q``,
has several intervals to choose from inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from fa3gen.schedule.integers import (
    TYPICAL,
    TileValues,
    bound_at_its,
    compiled,
    joined,
    never_above,
)
from fa3gen.spec.symbols import Where
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K

__all__ = [
    "ALL",
    "NONE",
    "UNKNOWN",
    "Interval",
    "KeySet",
    "all_if",
    "both",
    "either",
    "of_every_row",
    "over_tile",
    "solution",
]

_MOST_INTERVALS = 4


@dataclass(frozen=True)
class Interval:
    """Keys ``begin <= k < end``; None: no bound but the keys themselves."""

    begin: Any | None
    end: Any | None


@dataclass(frozen=True)
class KeySet:
    """Where a condition holds in a row.

    It holds for no key outside ``outer`` (None: for none at all) and for every key of each interval
    in ``inner``; of a ``condition`` that a work tile shares, for all keys or none.
    """

    outer: Interval | None
    inner: tuple[Interval, ...]
    condition: Any | None = None


_EVERYTHING = Interval(None, None)
ALL = KeySet(_EVERYTHING, (_EVERYTHING,))
NONE = KeySet(None, ())
UNKNOWN = KeySet(_EVERYTHING, ())


def all_if(condition: Any) -> KeySet:
    """All keys where a work tile's condition holds, else none."""
    return replace(_chosen(condition, ALL, NONE), condition=condition)


def _chosen(condition: Any, yes: KeySet, no: KeySet) -> KeySet:
    """One set or the other, as a work tile's condition says; neither has many intervals inside."""
    outer = _either_interval(condition, yes.outer, no.outer)
    inner = [
        _either_interval(condition, one, other)
        for one in yes.inner or (None,)
        for other in no.inner or (None,)
    ]
    return KeySet(outer, _largest(inner))


def _either_interval(condition: Any, yes: Interval | None, no: Interval | None) -> Interval:
    """An interval of keys whose bounds a condition chooses; None: no keys."""
    if yes == no and yes is not None:
        return yes
    nothing = Interval(SEQLEN_K, sympy.S.Zero)
    one, other = yes or nothing, no or nothing
    begins = (sympy.S.Zero if x.begin is None else x.begin for x in (one, other))
    ends = (SEQLEN_K if x.end is None else x.end for x in (one, other))
    begin, end = Where(condition, *begins), Where(condition, *ends)
    return Interval(begin if begin != 0 else None, end if end != SEQLEN_K else None)


def solution(interval: Interval) -> KeySet:
    """The set that is an interval, as far as a query tile can compute its bounds in int32."""
    outer = over_tile(interval, outward=True)
    inner = over_tile(interval, outward=False)
    return KeySet(_EVERYTHING if outer is None else interval, () if inner is None else (interval,))


def both(sets: Iterable[KeySet]) -> KeySet:
    """Where all of several conditions hold."""
    result = ALL
    for other in sorted(sets, key=_is_conditional):
        if other.outer is None:
            return NONE
        if result == ALL:
            result = other
            continue
        if other.condition is not None:
            result = _chosen(other.condition, result, NONE)
            continue
        assert result.outer is not None  # an empty set has ended the loop
        outer = _intersection(result.outer, other.outer)
        if not _may_hold_keys(outer):
            return NONE
        pairs = itertools.product(result.inner, other.inner)
        inner = [common for pair in pairs if _may_hold_keys(common := _intersection(*pair))]
        result = KeySet(outer, _largest(inner))
    return result


def either(sets: Iterable[KeySet]) -> KeySet:
    """Where one of several conditions holds."""
    result = NONE
    for other in sorted(sets, key=_is_conditional):
        if result == NONE:
            result = other
            continue
        if other.condition is not None:
            result = _chosen(other.condition, ALL, result)
            continue
        inner = _merged([*result.inner, *other.inner])
        if result.outer is None or other.outer is None:
            result = KeySet(result.outer or other.outer, inner)
        else:
            result = KeySet(_hull(result.outer, other.outer), inner)
    return result


def _is_conditional(one: KeySet) -> bool:
    """Whether it holds for all keys or none: such sets are joined last, to what there is then."""
    return one.condition is not None


def over_tile(interval: Interval, outward: bool) -> Interval | None:
    """The keys of some row of a query tile, or (not ``outward``) of every row.

    Its bounds are expressions in q_first and q_last; None if int32 cannot hold them.
    """
    begin = end = None
    if interval.begin is not None:
        begin = bound_at_its(not outward, interval.begin)
    if interval.end is not None:
        end = bound_at_its(outward, interval.end)
    if (begin is None) != (interval.begin is None) or (end is None) != (interval.end is None):
        return None
    return Interval(begin, end)


def of_every_row(kept: KeySet) -> Interval | None:
    """The keys that every row of a query tile keeps: of several intervals, the largest in samples.

    None if there is no interval.
    """
    tiles = [over_tile(interval, outward=False) for interval in kept.inner]
    found = [tile for tile in tiles if tile is not None]
    return max(found, key=_keys_in_samples, default=None)


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
    return not never_above(interval.end, interval.begin)


def _merged(intervals: list[Interval]) -> tuple[Interval, ...]:
    """Intervals that have no gap between them in any row become one."""
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
    return tuple(sorted(distinct, key=_keys_of_every_row, reverse=True)[:_MOST_INTERVALS])


def _samples() -> list[TileValues]:
    """Query tiles of 128 rows at the start, the middle and the end of sequences."""
    return [
        (row + shift, row + shift + 127, seqlen_q, seqlen_q + shift)
        for seqlen_q, shift in ((4096, 0), (1024, 7168), (16384, 0))
        for row in (0, seqlen_q // 2, seqlen_q - 128)
    ]


_SAMPLES = _samples()


def _keys_of_every_row(interval: Interval) -> int:
    tile = over_tile(interval, outward=False)
    return 0 if tile is None else _keys_in_samples(tile)


def _keys_in_samples(interval: Interval) -> int:
    total = 0
    for tile in _SAMPLES:
        begin = 0 if interval.begin is None else max(compiled(interval.begin)(tile, TYPICAL), 0)
        end = (
            tile[3] if interval.end is None else min(compiled(interval.end)(tile, TYPICAL), tile[3])
        )
        total += max(end - begin, 0)
    return total
