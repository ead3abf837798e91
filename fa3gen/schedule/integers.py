"""Integer expressions of a query tile: what values they can take, whether int32 holds them.

They are integer combinations of positions, lengths, values that a work tile shares (heads, inputs)
and floor divisions by constants, joined by Min, Max and Where. Shared values are taken as at most
2^29 in size, which lengths do not reach. Every statement here is about sequences of up to 2^30
positions: for any expression that ``bound_at_its`` returns, C++ in ``int`` computes what Python
does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.ir.integral import is_integral
from fa3gen.spec.sums import expanded
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where
from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import q as Q
from fa3gen.spec.symbols import row as ROW
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K
from fa3gen.spec.symbols import seqlen_q as SEQLEN_Q

__all__ = [
    "Q_FIRST",
    "Q_LAST",
    "SHARED_MOST",
    "TYPICAL",
    "Shared",
    "TileValues",
    "bound_at_its",
    "compiled",
    "extent",
    "floor_div",
    "is_integer_form",
    "is_shared",
    "joined",
    "never_above",
    "summands",
    "terms",
]

Q_FIRST = sympy.Symbol("q_first", integer=True)
Q_LAST = sympy.Symbol("q_last", integer=True)

TileValues = tuple[int, int, int, int]  # q_first, q_last, seqlen_q, seqlen_k

Shared = Callable[[Any], int]  # a work tile's value of an expression that it shares

_LONGEST = 2**30  # positions of a sequence
SHARED_MOST = 2**29  # of a value that a work tile shares, in size
_LEAST, _MOST = -(2**31), 2**31 - 1  # of int32
_ROOM = 2**10  # a bound is rounded up to whole tiles in int32


# --- form -----------------------------------------------------------------------------------------


def terms(expr: Any) -> dict[Any, int] | None:
    """Coefficients by term of an expanded sum (the constant's is 1); None if one is no integer."""
    found = expanded(expr).as_coefficients_dict()
    if not all(coefficient.is_Integer for coefficient in found.values()):
        return None
    return {term: int(coefficient) for term, coefficient in found.items() if coefficient}


_POSITIONS = frozenset({Q, Q_FIRST, Q_LAST, K, ROW, SEQLEN_Q, SEQLEN_K})


@functools.lru_cache(maxsize=4096)
def is_shared(term: Any) -> bool:
    """Whether a term is an integer that a work tile shares: a head, an input, what is chosen or
    looked up among them. Products of such may leave int32, and are none."""
    if not is_integral(term) or term.is_Mul or term.is_Add:
        return False
    if not (term.free_symbols or term.atoms(AppliedUndef)):
        return False
    parts = list(sympy.preorder_traversal(term))
    products = [p for p in parts if p.is_Pow or (p.is_Mul and not p.args[0].is_Integer)]
    return not (term.free_symbols & _POSITIONS or products)


def is_integer_form(expr: Any) -> bool:
    """Whether it combines q, k, the lengths, what a work tile shares and their floor divisions with
    integer coefficients."""
    found = terms(expr)
    return found is not None and all(
        term in (1, Q, K, SEQLEN_Q, SEQLEN_K)
        or is_shared(term)
        or (
            isinstance(term, FloorDiv) and term.args[1].is_Integer and is_integer_form(term.args[0])
        )
        for term in found
    )


def floor_div(dividend: Any, divisor: int) -> Any:
    """``dividend // divisor`` with whole multiples of a positive divisor taken out."""
    outside, inside = [], {}
    for term, coefficient in (terms(dividend) or {}).items():
        whole = coefficient // divisor
        if coefficient < 0 and term != 1:
            whole = -(-coefficient // divisor)  # -q stays -q
        outside.append(whole * term)
        inside[term] = coefficient - whole * divisor
    constant = inside.pop(sympy.S.One, 0)
    common = math.gcd(divisor, *inside.values())
    rest = sum(
        (c // common * term for term, c in inside.items()), sympy.Integer(constant // common)
    )
    return sympy.Add(*outside, FloorDiv(rest, sympy.Integer(divisor // common)))


# --- range ----------------------------------------------------------------------------------------


def _corners(has_k: bool) -> list[dict[Any, int]]:
    """The corners of all positions, 0 <= k < seqlen_k (without k there may be no keys) and
    0 <= first row <= row <= last row < seqlen_q.
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


@functools.lru_cache(maxsize=4096)
def extent(expr: Any) -> tuple[int, int]:
    """Bounds on the least and the greatest value, exact for sums of positions and lengths."""
    corners = _CORNERS[expr.has(K)]
    ends = []
    for upper in (False, True):
        linear = _linear(expr, upper)
        scale = math.lcm(*(weight.denominator for weight in linear.values()))
        weights = [(term, int(weight * scale)) for term, weight in linear.items()]
        away = sum(abs(w) * SHARED_MOST for term, w in weights if term not in corners[0])
        weights = [(term, weight) for term, weight in weights if term in corners[0]]
        values = [sum([weight * at[term] for term, weight in weights]) for at in corners]
        ends.append((max(values) + away) // scale if upper else -(-(min(values) - away) // scale))
    return ends[0], ends[1]


@functools.lru_cache(maxsize=4096)
def never_above(low: Any, high: Any) -> bool:
    """Whether ``low <= high`` can be shown to hold always."""
    if isinstance(low, sympy.Max):
        return all(never_above(part, high) for part in low.args)
    if isinstance(high, sympy.Min):
        return all(never_above(low, part) for part in high.args)
    if isinstance(high, sympy.Max):
        return any(never_above(low, part) for part in high.args)
    if isinstance(low, sympy.Min):
        return any(never_above(part, high) for part in low.args)
    return extent(high - low)[0] >= 0


def _linear(expr: Any, upper: bool) -> dict[Any, Fraction]:
    """A sum of positions and lengths that is nowhere below (``upper``) or above ``expr``."""
    total: dict[Any, Fraction] = {}
    for term, coefficient in (terms(expr) or {}).items():
        for part, weight in _linear_term(term, upper == (coefficient > 0)).items():
            total[part] = total.get(part, Fraction()) + coefficient * weight
    return total


def _linear_term(term: Any, upper: bool) -> dict[Any, Fraction]:
    if is_shared(term):
        return {term: Fraction(1)}
    if isinstance(term, FloorDiv):
        divisor = int(term.args[1])
        bound = _linear(term.args[0], upper)
        if not upper:
            bound[sympy.S.One] = bound.get(sympy.S.One, Fraction()) - (divisor - 1)
        return {part: weight / divisor for part, weight in bound.items()}
    if isinstance(term, FloorMod):
        return {sympy.S.One: Fraction(int(term.args[1]) - 1) if upper else Fraction()}
    if isinstance(term, (sympy.Min, sympy.Max, Where)):
        branches = term.args[1:] if isinstance(term, Where) else term.args
        ends = [extent(branch)[upper] for branch in branches]
        least = isinstance(term, sympy.Min) or (isinstance(term, Where) and not upper)
        return {sympy.S.One: Fraction(min(ends) if least else max(ends))}
    return {term: Fraction(1)}


# --- int32 ----------------------------------------------------------------------------------------


def _saturated(expr: Any) -> Any | None:
    """The same key bound computed within int32, None if that takes more than clamping one part.

    Key bounds matter between 0 and the number of keys alone, so whatever would take them far
    beyond is clamped before it is multiplied or added.
    """
    expr = _narrowed(expr)
    if _fits(expr) and _is_moderate(expr):
        return expr
    factor, inner, constant = _in_factors(expr)
    if not _fits(inner):
        return None
    low, high = extent(inner)
    if factor * high + max(constant, 0) > _MOST - _ROOM:
        inner = sympy.Min(inner, -((constant - _LONGEST) // factor))
    if factor * low + min(constant, 0) < _LEAST:
        inner = sympy.Max(inner, -constant // factor)
    clamped = factor * inner + constant
    return clamped if _fits(clamped) and _is_moderate(clamped) else None


def _narrowed(expr: Any) -> Any:
    """Floors of long dividends as ``(a*u + c)//n = a*(u//n) + (a*(u%n) + c)//n``."""
    parts = []
    for term, coefficient in (terms(expr) or {}).items():
        if isinstance(term, FloorDiv) and not _fits(term.args[0]):
            factor, inner, constant = _in_factors(term.args[0])
            divisor = term.args[1]
            rest = FloorDiv(factor * FloorMod(inner, divisor) + constant, divisor)
            term = factor * FloorDiv(inner, divisor) + rest
        parts.append(coefficient * term)
    return sympy.Add(*parts)


def _in_factors(expr: Any) -> tuple[int, Any, int]:
    """An expression as ``factor * inner + constant``, the factor as large as it can be."""
    found = terms(expr) or {}
    constant = found.pop(sympy.S.One, 0)
    factor = math.gcd(*found.values()) or 1
    return factor, sympy.Add(*(c // factor * term for term, c in found.items())), constant


def _is_moderate(expr: Any) -> bool:
    return bool(extent(expr)[1] <= _MOST - _ROOM)


def _fits(expr: Any) -> bool:
    """Whether every intermediate value of the C++ text of ``expr`` fits in int32."""
    if is_shared(expr):
        return True
    parts = [part for part in expr.args if isinstance(part, sympy.Expr)]
    if isinstance(expr, sympy.Add):
        parts = summands(expr)
        parts += [sympy.Add(*parts[:count], evaluate=False) for count in range(2, len(parts))]
    low, high = extent(expr)
    least = -_MOST if _is_negative(expr) else _LEAST  # -2 x may be written a - 2 x
    return least <= low and high <= _MOST and all(_fits(part) for part in parts)


def summands(total: Any) -> list[Any]:
    """The terms of a sum in the order in which C++ text adds them, the constant last.

    Positive terms come first, so that no text begins with a minus sign where one can be avoided.
    """

    def place(term: Any) -> tuple[bool, bool, str]:
        return term.is_Number, _is_negative(term), str(term)

    found = sorted(total.args, key=place)
    if _is_negative(found[0]) and found[-1].is_Number and not _is_negative(found[-1]):
        found = [found[-1], *found[:-1]]
    return found


def _is_negative(term: Any) -> bool:
    return bool(term.as_coeff_Mul()[0] < 0)


# --- over a query tile ----------------------------------------------------------------------------


def _at_its(most: bool, expr: Any) -> Any:
    """An upper (``most``) or lower bound of an expression in q over ``q_first .. q_last``.

    It is attained if the expression is monotone in q.
    """
    if not expr.has(Q):
        return expr
    if expr == Q:
        return Q_LAST if most else Q_FIRST
    if isinstance(expr, FloorDiv):
        return floor_div(_at_its(most, expr.args[0]), int(expr.args[1]))
    found = terms(expr) or {}
    return sympy.Add(*(c * _at_its(most == (c > 0), term) for term, c in found.items()))


def bound_at_its(most: bool, bound: Any) -> Any | None:
    """A row's key bound at its most or least in a query tile, within int32; None if it cannot be.

    A Where of a bound is ``Where(condition, larger, smaller)``.
    """
    if isinstance(bound, (sympy.Min, sympy.Max)):
        parts = [bound_at_its(most, part) for part in bound.args]
        return None if None in parts else joined(type(bound), parts)
    if not isinstance(bound, Where):
        return _saturated(_at_its(most, bound))
    condition, larger, smaller = bound.args
    if Q not in condition.free_symbols:  # of the whole work tile
        branches = [bound_at_its(most, branch) for branch in (larger, smaller)]
        return None if None in branches else Where(condition, *branches)
    holds_more = most == isinstance(condition, sympy.Ge)  # for a larger left side
    left = _at_its(holds_more, condition.lhs)
    if not (_fits(left) and _fits(condition.rhs)):
        return None
    return Where(condition.func(left, condition.rhs), larger, smaller)


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


def TYPICAL(expr: Any) -> int:  # noqa: N802  (a constant, where a Shared is wanted)
    """A value for whatever a work tile shares, to choose schedules by."""
    return 1024


@functools.lru_cache(maxsize=1024)
def compiled(expr: Any) -> Callable[[TileValues, Shared], int]:
    """A function of (q_first, q_last, seqlen_q, seqlen_k) and the values that a work tile shares,
    which gives the expression's value.

    Raises TypeError for an expression of other parts. (sympy's own substitution takes a
    millisecond, and there is one call a query tile.)
    """
    if expr in _INPUTS:
        index = _INPUTS[expr]
        return lambda tile, at: tile[index]
    if isinstance(expr, sympy.Integer):
        constant = int(expr)
        return lambda tile, at: constant
    if is_shared(expr):
        return lambda tile, at: max(min(at(expr), SHARED_MOST), -SHARED_MOST)
    if not expr.args:
        raise TypeError(f"not a part of a key bound: {expr}")
    parts = [compiled(part) for part in expr.args]
    first, rest = parts[0], parts[1:]
    match expr:
        case sympy.Add():
            return lambda tile, at: sum([part(tile, at) for part in parts])
        case sympy.Mul():
            return lambda tile, at: math.prod([part(tile, at) for part in parts])
        case sympy.Min():
            return lambda tile, at: min([part(tile, at) for part in parts])
        case sympy.Max():
            return lambda tile, at: max([part(tile, at) for part in parts])
        case FloorDiv():
            return lambda tile, at: first(tile, at) // rest[0](tile, at)
        case FloorMod():
            return lambda tile, at: first(tile, at) % rest[0](tile, at)
        case Where():
            return lambda tile, at: rest[0](tile, at) if first(tile, at) else rest[1](tile, at)
        case sympy.Le():
            return lambda tile, at: first(tile, at) <= rest[0](tile, at)
        case sympy.Ge():
            return lambda tile, at: first(tile, at) >= rest[0](tile, at)
    raise TypeError(f"not a part of a key bound: {expr}")
