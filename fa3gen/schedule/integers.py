"""Integer expressions of a query tile: the values they can take, what fits in int32, and their value.

They are integer combinations of positions, lengths and floor divisions by constants, joined by Min,
Max and Where. Every statement here is about sequences of up to 2^30 positions: for any expression
that ``saturated`` returns, C++ in ``int`` computes what Python does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import sympy

from fa3gen.spec.symbols import FloorDiv, Where
from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import q as Q
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K
from fa3gen.spec.symbols import seqlen_q as SEQLEN_Q

__all__ = [
    "Q_FIRST",
    "Q_LAST",
    "TileValues",
    "at_its",
    "compiled",
    "extent",
    "floor_div",
    "is_integer_form",
    "joined",
    "never_above",
    "saturated",
    "terms",
]

Q_FIRST = sympy.Symbol("q_first", integer=True)
Q_LAST = sympy.Symbol("q_last", integer=True)

TileValues = tuple[int, int, int, int]  # q_first, q_last, seqlen_q, seqlen_k

_LONGEST = 2**30  # positions of a sequence
_LEAST, _MOST = -(2**31), 2**31 - 1  # of int32
_ROOM = 2**10  # a bound is rounded up to whole tiles in int32


# --- form -----------------------------------------------------------------------------------------


def terms(expr: Any) -> dict[Any, int] | None:
    """Coefficients by term (the constant under 1), of an expanded sum; None if one is no integer."""
    found = sympy.expand(expr).as_coefficients_dict()
    if not all(coefficient.is_Integer for coefficient in found.values()):
        return None
    return {term: int(coefficient) for term, coefficient in found.items() if coefficient}


def is_integer_form(expr: Any) -> bool:
    """Whether it combines q, k, the lengths and their floor divisions with integer coefficients."""
    found = terms(expr)
    return found is not None and all(
        term in (1, Q, K, SEQLEN_Q, SEQLEN_K)
        or (isinstance(term, FloorDiv) and term.args[1].is_Integer and is_integer_form(term.args[0]))
        for term in found
    )


def floor_div(dividend: Any, divisor: int) -> Any:
    """``dividend // divisor`` with whole multiples of a positive divisor taken out."""
    outside, inside = [], {}
    for term, coefficient in (terms(dividend) or {}).items():
        whole = coefficient // divisor if term == 1 else int(coefficient / divisor)
        outside.append(whole * term)
        inside[term] = coefficient - whole * divisor
    constant = inside.pop(sympy.S.One, 0)
    common = math.gcd(divisor, *inside.values())
    rest = sum((c // common * term for term, c in inside.items()), sympy.Integer(constant // common))
    return sympy.Add(*outside, FloorDiv(rest, sympy.Integer(divisor // common)))


# --- range ----------------------------------------------------------------------------------------


def _corners(has_k: bool) -> list[dict[Any, int]]:
    """The corners of all positions: 0 <= first row <= row <= last row < seqlen_q, 0 <= k < seqlen_k.

    Without k there may be no keys.
    """
    last = _LONGEST - 1
    rows = [(0, 0, 0, 1), *((a, b, c, _LONGEST) for a, b, c in _chains(last))]
    keys = [(0, 1), (0, _LONGEST), (last, _LONGEST), *([] if has_k else [(0, 0)])]
    found = []
    for (first, row, end, seqlen_q), (k, seqlen_k) in itertools.product(rows, keys):
        values = {Q_FIRST: first, Q: row, Q_LAST: end}
        values = {symbol: value + seqlen_k - seqlen_q for symbol, value in values.items()}
        found.append({**values, K: k, SEQLEN_Q: seqlen_q, SEQLEN_K: seqlen_k, sympy.S.One: 1})
    return found


def _chains(last: int) -> list[tuple[int, int, int]]:
    return [(0, 0, 0), (0, 0, last), (0, last, last), (last, last, last)]


_CORNERS = {has_k: _corners(has_k) for has_k in (False, True)}


def extent(expr: Any) -> tuple[int, int]:
    """Bounds on the least and the greatest value, exact for sums of positions and lengths."""
    corners = _CORNERS[expr.has(K)]

    def values(upper: bool) -> Iterable[Fraction]:
        linear = _linear(expr, upper)
        return (sum((c * at[term] for term, c in linear.items()), Fraction()) for at in corners)

    return math.ceil(min(values(False))), math.floor(max(values(True)))


def never_above(low: Any, high: Any) -> bool:
    """Whether ``low <= high`` can be shown to hold always."""
    return extent(high - low)[0] >= 0


def _linear(expr: Any, upper: bool) -> dict[Any, Fraction]:
    """A combination of positions and lengths that is nowhere below (``upper``) or above ``expr``."""
    total: dict[Any, Fraction] = {}
    for term, coefficient in (terms(expr) or {}).items():
        for part, weight in _linear_term(term, upper == (coefficient > 0)).items():
            total[part] = total.get(part, Fraction()) + coefficient * weight
    return total


def _linear_term(term: Any, upper: bool) -> dict[Any, Fraction]:
    if isinstance(term, FloorDiv):
        divisor = int(term.args[1])
        bound = _linear(term.args[0], upper)
        if not upper:
            bound[sympy.S.One] = bound.get(sympy.S.One, Fraction()) - (divisor - 1)
        return {part: weight / divisor for part, weight in bound.items()}
    if isinstance(term, (sympy.Min, sympy.Max, Where)):
        branches = term.args[1:] if isinstance(term, Where) else term.args
        ends = [extent(branch)[upper] for branch in branches]
        least = isinstance(term, sympy.Min) or (isinstance(term, Where) and not upper)
        return {sympy.S.One: Fraction(min(ends) if least else max(ends))}
    return {term: Fraction(1)}


# --- int32 ----------------------------------------------------------------------------------------


def saturated(expr: Any) -> Any | None:
    """The same key bound computed within int32, None if that takes more than clamping one part.

    Key bounds matter between 0 and the number of keys alone, so whatever would take them far
    beyond is clamped before it is multiplied or added.
    """
    if _fits(expr) and _is_moderate(expr):
        return expr
    found = terms(expr) or {}
    constant = found.pop(sympy.S.One, 0)
    if not found:
        return None
    factor = math.gcd(*found.values())
    inner = sympy.Add(*(c // factor * term for term, c in found.items()))
    if not _fits(inner):
        return None
    low, high = extent(inner)
    if factor * high + constant > _LONGEST:
        inner = sympy.Min(inner, -((constant - _LONGEST) // factor))
    if factor * low + constant < 0:
        inner = sympy.Max(inner, -constant // factor)
    clamped = factor * inner + constant
    return clamped if _fits(clamped) and _is_moderate(clamped) else None


def _is_moderate(expr: Any) -> bool:
    low, high = extent(expr)
    return _LEAST + _ROOM <= low and high <= _MOST - _ROOM


def _fits(expr: Any) -> bool:
    """Whether every intermediate value of the C++ text fits in int32.

    The text sums what is added, then what is subtracted, then the constant.
    """
    low, high = extent(expr)
    if not (_LEAST <= low and high <= _MOST):
        return False
    if isinstance(expr, sympy.Add):
        found = terms(expr) or {}
        order = sorted(found, key=lambda term: (term == 1, found[term] < 0))
        parts = [found[term] * term for term in order]
        sums = [sympy.Add(*parts[: count + 1]) for count in range(1, len(parts) - 1)]
        return all(_fits(part) for part in parts) and all(_extent_fits(part) for part in sums)
    return all(_fits(part) for part in expr.args if isinstance(part, sympy.Expr))


def _extent_fits(expr: Any) -> bool:
    low, high = extent(expr)
    return _LEAST <= low and high <= _MOST


# --- over a query tile ----------------------------------------------------------------------------


def at_its(most: bool, expr: Any) -> Any:
    """What is nowhere in ``q_first .. q_last`` exceeded (``most``) or undercut by an expression in q.

    Attained where the expression is monotone in q.
    """
    if isinstance(expr, FloorDiv):
        return floor_div(at_its(most, expr.args[0]), int(expr.args[1]))
    if expr == Q:
        return Q_LAST if most else Q_FIRST
    if not expr.has(Q):
        return expr
    found = terms(expr) or {}
    return sympy.Add(*(c * at_its(most == (c > 0), term) for term, c in found.items()))


def joined(kind: type[Any], exprs: Iterable[Any]) -> Any:
    """The Min or Max (``kind``) of expressions, without those that never decide it."""
    flat = [part for expr in exprs for part in (expr.args if isinstance(expr, kind) else (expr,))]
    kept: list[Any] = []
    for candidate in flat:
        if any(_decides(kind, other, candidate) for other in kept):
            continue
        kept = [other for other in kept if not _decides(kind, candidate, other)] + [candidate]
    return kept[0] if len(kept) == 1 else kind(*kept, evaluate=False)


def _decides(kind: type[Any], one: Any, other: Any) -> bool:
    return never_above(one, other) if kind is sympy.Min else never_above(other, one)


# --- value ----------------------------------------------------------------------------------------

_INPUTS = {Q_FIRST: 0, Q_LAST: 1, SEQLEN_Q: 2, SEQLEN_K: 3}


@functools.lru_cache(maxsize=4096)
def compiled(expr: Any) -> Callable[[TileValues], int]:
    """A function of (q_first, q_last, seqlen_q, seqlen_k) that gives the expression's value.

    Raises TypeError for an expression of other parts. (sympy's own substitution takes a
    millisecond, and there is one call a query tile.)
    """
    if expr in _INPUTS:
        index = _INPUTS[expr]
        return lambda tile: tile[index]
    if isinstance(expr, sympy.Integer):
        constant = int(expr)
        return lambda tile: constant
    parts = [compiled(part) for part in expr.args]
    first, rest = parts[0], parts[1:]
    match expr:
        case sympy.Add():
            return lambda tile: sum([part(tile) for part in parts])
        case sympy.Mul():
            return lambda tile: math.prod([part(tile) for part in parts])
        case sympy.Min():
            return lambda tile: min([part(tile) for part in parts])
        case sympy.Max():
            return lambda tile: max([part(tile) for part in parts])
        case FloorDiv():
            return lambda tile: first(tile) // rest[0](tile)
        case Where():
            return lambda tile: rest[0](tile) if first(tile) else rest[1](tile)
        case sympy.Le():
            return lambda tile: first(tile) <= rest[0](tile)
        case sympy.Ge():
            return lambda tile: first(tile) >= rest[0](tile)
    raise TypeError(f"not a key bound: {expr}")
