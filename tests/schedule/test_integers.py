"""Ranges and values of integer expressions, against their values at drawn positions."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.schedule.integers import (
    Q_FIRST,
    Q_LAST,
    SHARED_MOST,
    TYPICAL,
    bound_at_its,
    compiled,
    extent,
    floor_div,
    is_shared,
    joined,
    never_above,
)
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where, b, h, hk, k, q, row, seqlen_k, seqlen_q

LONGEST = 2**30
REACH, SPAN = sympy.Symbol("reach", integer=True), sympy.Function("span", integer=True)

EXPRESSIONS = [
    Q_LAST - Q_FIRST,
    Q_LAST + seqlen_q - seqlen_k,
    3 * Q_FIRST - 2 * Q_LAST + seqlen_k,
    FloorDiv(Q_LAST - 2, 7) - FloorDiv(-Q_FIRST, 3),
    5 * FloorMod(Q_FIRST, 9) - FloorMod(Q_LAST + 4, 5),
    sympy.Max(Q_FIRST, 3 - Q_LAST) - sympy.Min(Q_LAST, seqlen_k),
    2 * Where(sympy.Le(Q_FIRST, 4), seqlen_k, Q_LAST) - Where(sympy.Ge(Q_LAST, 9), 3, Q_FIRST),
    Q_LAST - REACH,
    seqlen_k - 2 * SPAN(h) + b,
    FloorDiv(Q_FIRST + SPAN(h), 3) - sympy.Min(Q_LAST, REACH),
]


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_value_leaves_the_extent(expr: Any, data: st.DataObject) -> None:
    seqlen_q = data.draw(st.integers(1, LONGEST))
    seqlen_k = data.draw(st.integers(0, LONGEST))
    first = data.draw(st.integers(0, seqlen_q - 1)) + seqlen_k - seqlen_q
    last = data.draw(st.integers(first, seqlen_k - 1))
    low, high = extent(expr)
    shared = data.draw(st.integers(-(2**31), 2**31 - 1))  # an input's values may be any
    assert low <= compiled(expr)((first, last, seqlen_q, seqlen_k), lambda part: shared) <= high


def test_what_a_work_tile_shares() -> None:
    """Heads and integers that inputs hold of them; no sums and products, which may leave int32."""
    shared = (
        b,
        h,
        hk,
        REACH,
        SPAN(h),
        SPAN(SPAN(b) + 1),
        Where(sympy.Lt(h, 2), REACH, 3),
        abs(REACH),
    )
    for expr in shared:
        assert is_shared(expr), expr
        assert extent(expr) == (-SHARED_MOST, SHARED_MOST)
        for value in (-(2**31), -5, 2**31 - 1):
            clamped = max(min(value, SHARED_MOST), -SHARED_MOST)
            assert compiled(expr)((0, 0, 1, 1), lambda part, value=value: value) == clamped
    others = (
        q,
        k,
        row,
        seqlen_k,
        SPAN(q),
        REACH + 1,
        2 * REACH,
        REACH * h,
        SPAN(h * REACH),
        REACH**2,
    )
    for expr in (*others, sympy.Integer(3), sympy.Symbol("alpha", real=True)):
        assert not is_shared(expr), expr


def test_extents_of_positions_are_exact() -> None:
    assert extent(Q_LAST + seqlen_q - seqlen_k) == (0, LONGEST - 1)  # the last row
    assert extent(Q_FIRST) == (-LONGEST, LONGEST - 1)
    assert extent(Q_LAST - Q_FIRST) == (0, LONGEST - 1)
    assert extent(k - seqlen_k) == (-LONGEST, -1)
    assert extent(k - q)[0] == 1 - LONGEST
    assert extent(FloorDiv(seqlen_k + 1, 3)) == (0, (LONGEST + 1) // 3)
    assert extent(FloorMod(q, 7)) == (0, 6)
    assert never_above(8 * FloorDiv(q, 8), q)
    assert never_above(q, 8 * FloorDiv(q, 8) + 7)
    assert not never_above(q, 8 * FloorDiv(q, 8) + 6)


@given(
    weights=st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(-50, 50)),
    divisor=st.integers(1, 12),
    at=st.tuples(st.integers(-40, 40), st.integers(0, 40)),
)
@settings(max_examples=100, deadline=None)
def test_floor_division(weights: tuple[int, int, int], divisor: int, at: tuple[int, int]) -> None:
    a, b, c = weights
    quotient = floor_div(a * Q_FIRST + b * seqlen_k + c, divisor)
    expected = (a * at[0] + b * at[1] + c) // divisor
    assert compiled(quotient)((at[0], 0, 0, at[1]), TYPICAL) == expected, quotient


def test_floor_divisions_are_as_simple_as_can_be() -> None:
    assert floor_div(6 * q + 9, 3) == 2 * q + 3
    assert floor_div(4 * q + 6, 8) == FloorDiv(q + 1, 2)
    assert floor_div(6 * q + 7, 8) == FloorDiv(3 * q + 3, 4)
    assert floor_div(-q - 1, 3) == FloorDiv(2 - q, 3) - 1
    assert floor_div(7 * q + 64 * FloorDiv(k, 2), 64) == FloorDiv(k, 2) + FloorDiv(7 * q, 64)


def test_joined_keeps_what_decides() -> None:
    chunk = 8 * FloorDiv(q, 8)
    assert joined(sympy.Min, [q + 1, chunk + 8]) == q + 1
    assert joined(sympy.Max, [q - 8, sympy.Max(chunk, 3)]) == sympy.Max(chunk, 3)
    assert joined(sympy.Min, [seqlen_k - 1, q, seqlen_k]) == q  # q < seqlen_k
    assert joined(sympy.Max, [q, 7]) == sympy.Max(q, 7)


def test_bounds_over_a_query_tile() -> None:
    assert bound_at_its(True, q + 1) == Q_LAST + 1
    assert bound_at_its(False, 5 - FloorDiv(q, 3)) == 5 - FloorDiv(Q_LAST, 3)
    early = Where(sympy.Le(q, 9), seqlen_k, sympy.Integer(0))
    assert bound_at_its(True, early) == Where(sympy.Le(Q_FIRST, 9), seqlen_k, sympy.Integer(0))
    late = Where(sympy.Ge(2 * q, 9), seqlen_k, sympy.Integer(0))
    assert bound_at_its(False, late) == Where(sympy.Ge(2 * Q_FIRST, 9), seqlen_k, sympy.Integer(0))
    assert bound_at_its(True, Where(sympy.Le(3 * q, 9), seqlen_k, sympy.Integer(0))) is None


def test_bounds_that_would_overflow_are_clamped_first() -> None:
    tripled = bound_at_its(True, 3 * q + 6)
    assert tripled == 3 * sympy.Max(-2, sympy.Min(357913940, Q_LAST)) + 6
    for first, exact in ((-LONGEST, False), (-3, False), (-2, True), (12345, True)):
        value = compiled(tripled)((0, first, 1, 1), TYPICAL)
        assert (value == 3 * first + 6) == exact
        assert exact or value <= 0  # all the same to the keys
    assert compiled(tripled)((0, LONGEST - 1, 1, 1), TYPICAL) >= LONGEST
    assert bound_at_its(True, q + 2 * seqlen_k) is None
