from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.matrix.covering import Row, pairs_of, pairwise, spread

FACTORS = {"a": ("0", "1", "2"), "b": ("0", "1"), "c": ("0", "1", "2", "3"), "d": ("0", "1")}


def pairs_in(rows: Iterable[Row]) -> set[frozenset[tuple[str, str]]]:
    return {pair for row in rows for pair in pairs_of(row)}


def whole(factors: dict[str, tuple[str, ...]]) -> list[Row]:
    return [dict(zip(factors, row, strict=True)) for row in itertools.product(*factors.values())]


def test_every_pair_meets_in_few_rows() -> None:
    found = pairwise(FACTORS)
    assert found.impossible == ()
    assert pairs_in(found.rows) == pairs_in(whole(FACTORS))
    assert len(found.rows) <= 14 < len(whole(FACTORS))
    assert all(list(row) and set(row) == set(FACTORS) for row in found.rows)


def test_the_same_set_each_time() -> None:
    assert pairwise(FACTORS) == pairwise(FACTORS)


def test_rows_that_are_given() -> None:
    given = whole(FACTORS)[5:8]
    found = pairwise(FACTORS, given=given)
    assert list(found.rows[:3]) == given
    assert pairs_in(found.rows) == pairs_in(whole(FACTORS))
    assert pairwise(FACTORS, given=whole(FACTORS)).rows == tuple(whole(FACTORS))


def test_a_rule_of_three_factors() -> None:
    """Each of its pairs is possible, and so must be there; all three together are not."""

    def allowed(row: Row) -> bool:
        return not (row.get("a") == "1" and row.get("b") == "1" and row.get("c") == "1")

    found = pairwise(FACTORS, allowed)
    assert found.impossible == ()
    assert all(map(allowed, found.rows))
    assert pairs_in(found.rows) == pairs_in(whole(FACTORS))


def test_an_impossible_pair_is_named() -> None:
    def allowed(row: Row) -> bool:
        return not (row.get("a") == "2" and row.get("d") == "1")

    found = pairwise(FACTORS, allowed)
    assert found.impossible == (frozenset({("a", "2"), ("d", "1")}),)
    assert pairs_in(found.rows) | set(found.impossible) == pairs_in(whole(FACTORS))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=3),
)
def test_all_that_is_allowed_is_covered(sizes: list[int], refused: set[tuple[int, int]]) -> None:
    """``refused``: a value of a factor that goes with no value but the first of the next factor."""
    factors = {f"f{place}": tuple(map(str, range(size))) for place, size in enumerate(sizes)}

    def allowed(row: Row) -> bool:
        return not any(
            row.get(f"f{place}") == str(value) and row.get(f"f{place + 1}", "0") != "0"
            for place, value in refused
        )

    found = pairwise(factors, allowed)
    assert all(map(allowed, found.rows))
    possible = pairs_in(filter(allowed, whole(factors)))
    assert pairs_in(found.rows) == possible
    assert set(found.impossible) == pairs_in(whole(factors)) - possible


@pytest.mark.parametrize("count", [1, 2, 9])
def test_calls_spread_over_kernels(count: int) -> None:
    kernels = [{"kernel": str(place), "kind": str(place % 3)} for place in range(count)]
    found = spread(kernels, FACTORS)
    assert len(found) == count
    assert all(found)
    calls = [row for rows in found for row in rows]
    assert pairs_in(calls) == pairs_in(whole(FACTORS))
    together = zip(kernels, found, strict=True)
    met = pairs_in({**kernel, **row} for kernel, rows in together for row in rows)
    for kernel, (factor, values) in itertools.product(kernels, FACTORS.items()):
        for one, value in itertools.product(kernel.items(), values):
            assert frozenset({one, (factor, value)}) in met, (one, factor, value)
