"""Rows in which every pair of values of two factors meets: a pairwise covering set.

Nearly all faults of configurable programs need one value or a pair of them (Kuhn, Wallace, Gallo,
"Software fault interactions", IEEE TSE 30(6), 2004). What rows are allowed only a function can tell
here (the scheduler), which may refuse a row for three knobs that are fine in pairs; so the set is
grown greedily, as AETG does it (Cohen et al., IEEE TSE 23(7), 1997): row by row, from a pair that
no row has yet, factor by factor with the value that brings most such pairs.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fa3gen.matrix.factors import Factors

__all__ = ["Allowed", "Covering", "Row", "pairs_of", "pairwise", "spread"]

Row = Mapping[str, str]  # a value by factor; factors may be missing from a row that is being made
Pair = frozenset[tuple[str, str]]  # two factors with their values
Allowed = Callable[[Row], bool]

_TRIES = 12  # rows that are made for a pair, of which the one with most new pairs is taken
_DRAWS = 60  # rows drawn at random before a pair counts as impossible


@dataclass(frozen=True)
class Covering:
    """``rows``, and the pairs that no allowed row was found for."""

    rows: tuple[Row, ...]
    impossible: tuple[Pair, ...]


def pairwise(
    factors: Factors, allowed: Allowed = lambda row: True, given: Sequence[Row] = ()
) -> Covering:
    """A small set of allowed rows, those ``given`` among them, that has every pair which an allowed
    row can have.

    ``allowed`` is asked about whole rows, and about rows of which some factors are missing, to end
    a try sooner. The first value of a factor should be one that restricts the others little. The
    same arguments give the same set.
    """
    pick = random.Random(0)
    made = _Made(factors, _pairs(factors), pick)
    rows = [made.taken([row]) for row in given]
    impossible: list[Pair] = []
    while made.open:
        pair = made.hardest()
        tries = (made.grown(dict(sorted(pair)), allowed) for _ in range(_TRIES))
        found = [row for row in tries if row is not None]
        if not found:
            drawn = (_drawn(factors, pair, pick) for _ in range(_DRAWS))
            found = [row for row in drawn if allowed(row)][:1]
        if found:
            rows.append(made.taken(found))
        else:
            impossible.append(pair)
            made.strike([pair])
    return Covering(tuple(rows), tuple(impossible))


def spread(rows: Sequence[Row], factors: Factors) -> list[list[Row]]:
    """For each of ``rows``, no two of them equal, rows of other ``factors`` to go with it, or none:
    together they have every pair of these, and every value of these with every value of the factors
    of ``rows``."""
    if not rows:
        return []
    pick = random.Random(0)
    given = sorted({item for row in rows for item in row.items()})
    new = [(factor, value) for factor, values in factors.items() for value in values]
    pairs = [*_pairs(factors), *(frozenset(pair) for pair in itertools.product(given, new))]
    made = _Made(factors, pairs, pick)
    spread_rows: list[list[Row]] = [[] for _ in rows]
    places = {frozenset(row.items()): place for place, row in enumerate(rows)}
    while made.open:
        pair = made.hardest()
        more = {factor: value for factor, value in pair if factor in factors}
        fits = [row for row in rows if pair <= {*row.items(), *more.items()}]
        fits.sort(key=lambda row: len(spread_rows[places[frozenset(row.items())]]))
        tries = (made.grown({**row, **more}, _any_row) for row in fits[:_TRIES])
        best = made.taken([row for row in tries if row is not None])
        base = frozenset(item for item in best.items() if item[0] not in factors)
        spread_rows[places[base]].append({factor: best[factor] for factor in factors})
    return spread_rows


def pairs_of(row: Row) -> Iterator[Pair]:
    """The pairs that a row has."""
    return (frozenset(pair) for pair in itertools.combinations(row.items(), 2))


def _pairs(factors: Factors) -> Iterator[Pair]:
    for one, other in itertools.combinations(factors, 2):
        for values in itertools.product(factors[one], factors[other]):
            yield frozenset(zip((one, other), values, strict=True))


def _any_row(row: Row) -> bool:
    return True


def _drawn(factors: Factors, pair: Pair, pick: random.Random) -> Row:
    """A row with the pair, most of its other factors at their first values."""
    row = dict(pair)

    def value(factor: str, values: Sequence[str]) -> str:
        usual = values[0] if pick.random() < 0.6 else pick.choice(values)
        return row.get(factor, usual)

    return {factor: value(factor, values) for factor, values in factors.items()}


class _Made:
    """The pairs that no row has yet (a dict, for its order), and how a row with many is made."""

    def __init__(self, factors: Factors, pairs: Iterable[Pair], pick: random.Random) -> None:
        self.factors, self.pick = factors, pick
        self.open = dict.fromkeys(pairs)

    def hardest(self) -> Pair:
        """A pair whose values have the most pairs open."""
        counts = collections.Counter(value for pair in self.open for value in pair)
        return max(self.open, key=lambda pair: sum(counts[value] for value in pair))

    def grown(self, row: Row, allowed: Allowed) -> Row | None:
        """The row with the factors that it lacks, chosen one by one in any order."""
        if not allowed(row):
            return None
        rest = [factor for factor in self.factors if factor not in row]
        self.pick.shuffle(rest)
        for factor in rest:
            taken = next((one for one in self._ranked(row, factor) if allowed(one)), None)
            if taken is None:
                return None
            row = taken
        return row

    def taken(self, rows: Sequence[Row]) -> Row:
        """Of these rows the one that has most open pairs; they are open no longer."""
        best = max(rows, key=lambda row: sum(pair in self.open for pair in pairs_of(row)))
        self.strike(pairs_of(best))
        return best

    def strike(self, pairs: Iterable[Pair]) -> None:
        """Takes pairs off the open ones."""
        for pair in pairs:
            self.open.pop(pair, None)

    def _ranked(self, row: Row, factor: str) -> list[Row]:
        """The row with each value of a factor, first those with most open pairs."""
        values = list(self.factors[factor])
        self.pick.shuffle(values)

        def gain(value: str) -> int:
            item = (factor, value)
            return sum(frozenset((item, one)) in self.open for one in row.items())

        values.sort(key=gain, reverse=True)
        return [{**row, factor: value} for value in values]
