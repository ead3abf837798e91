"""From a mask to the keys that a row keeps: each comparison is solved for ``k`` by floor division.

A comparison is read as ``d <= 0``. Of ``a*k + g(q) <= 0`` the solution is exact; so is that of
``a*(k//n) + g(q) <= 0``, because ``k//n <= m`` is ``k <= n*m + n - 1``. Where k stands in several
such terms, ``u - n + 1 <= n*(u//n) <= u`` gives a set outside and another inside. Max, Min, abs and
where are split into cases. Heads and inputs that a work tile shares are constants; whatever has
other parts, such as an input of a key, is unknown.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
from sympy.core.relational import Relational

from fa3gen.schedule.integers import extent, floor_div, is_integer_form, is_shared, terms
from fa3gen.schedule.key_sets import (
    ALL,
    NONE,
    UNKNOWN,
    Interval,
    KeySet,
    all_if,
    both,
    either,
    solution,
)
from fa3gen.spec.sums import expanded
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where, negate
from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import q as Q
from fa3gen.spec.symbols import row as ROW
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K
from fa3gen.spec.symbols import seqlen_q as SEQLEN_Q

__all__ = ["kept_keys"]

_CASES = (sympy.Max, sympy.Min, sympy.Abs, Where)
_MOST_CASES = 32  # of a mask


def kept_keys(mask: Any) -> KeySet:
    """The keys that a mask in q, k, row and the lengths keeps in a row."""
    if sum(map(_cases, mask.atoms(Relational))) > _MOST_CASES:
        return UNKNOWN
    return _kept(mask.xreplace({ROW: Q + SEQLEN_Q - SEQLEN_K}))


def _cases(comparison: Any) -> int:
    """How many comparisons a comparison may be split into."""
    nodes = [node for node in comparison.atoms(*_CASES) if not is_shared(node)]
    return math.prod(
        2 if isinstance(node, (sympy.Abs, Where)) else len(node.args) for node in nodes
    )


def _kept(mask: Any) -> KeySet:
    if mask in (sympy.true, sympy.false):
        return ALL if mask == sympy.true else NONE
    if isinstance(mask, (sympy.And, sympy.Or)):
        join = both if isinstance(mask, sympy.And) else either
        return join([_kept(part) for part in mask.args])
    if not isinstance(mask, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt, sympy.Eq, sympy.Ne)):
        return UNKNOWN
    difference = _normal(mask.lhs - mask.rhs)
    match mask:
        case sympy.Le():
            return _at_most_0(difference)
        case sympy.Lt():
            return _at_most_0(difference + 1)
        case sympy.Ge():
            return _at_most_0(-difference)
        case sympy.Gt():
            return _at_most_0(-difference + 1)
        case sympy.Eq():
            return both([_at_most_0(difference), _at_most_0(-difference)])
    return either([_at_most_0(difference + 1), _at_most_0(-difference + 1)])


def _normal(expr: Any) -> Any:
    """Remainders as floor divisions; constant divisors made positive."""
    if not expr.has(FloorDiv, FloorMod):
        return expr
    args = [_normal(part) for part in expr.args]
    if not isinstance(expr, (FloorDiv, FloorMod)):
        return expr.func(*args)
    dividend, divisor = args
    if not divisor.is_Integer or not is_integer_form(dividend):
        return expr.func(*args)
    positive = floor_div(dividend if divisor > 0 else -dividend, abs(int(divisor)))
    return positive if isinstance(expr, FloorDiv) else dividend - divisor * positive


def _at_most_0(difference: Any) -> KeySet:
    """The keys for which ``difference <= 0``."""
    difference = expanded(difference)
    if difference in (sympy.oo, -sympy.oo):
        return NONE if difference == sympy.oo else ALL
    for term, coefficient in difference.as_coefficients_dict().items():
        if isinstance(term, _CASES) and not is_shared(term):
            return _by_cases(difference - coefficient * term, coefficient, term)
    if not is_integer_form(difference):
        return UNKNOWN
    low, high = extent(difference)
    if high <= 0 or low > 0:
        return ALL if high <= 0 else NONE
    coefficients = terms(difference) or {}
    floors = [term for term in coefficients if isinstance(term, FloorDiv) and term.has(K)]
    if not floors:
        return _solved(difference, coefficients.get(K, 0))
    if len(floors) == 1 and K not in coefficients:
        (floor,) = floors
        rest = difference - coefficients[floor] * floor
        return _at_most_0(_without_floor(floor, coefficients[floor], rest))
    outside, inside = (_relaxed(difference, floors, upper) for upper in (False, True))
    return KeySet(_at_most_0(outside).outer, _at_most_0(inside).inner)


def _by_cases(rest: Any, coefficient: Any, node: Any) -> KeySet:
    """The keys for which ``rest + coefficient * node <= 0``."""
    if isinstance(node, Where):
        condition, yes, no = node.args
        cases = ((condition, yes), (negate(condition), no))
        return either(
            both([_kept(case), _at_most_0(rest + coefficient * value)]) for case, value in cases
        )
    is_abs = isinstance(node, sympy.Abs)
    values = (node.args[0], -node.args[0]) if is_abs else node.args
    largest_decides = (is_abs or isinstance(node, sympy.Max)) == bool(coefficient > 0)
    join = both if largest_decides else either
    return join([_at_most_0(rest + coefficient * value) for value in values])


def _without_floor(floor: Any, coefficient: int, rest: Any) -> Any:
    """An expression that is at most 0 where ``coefficient * floor + rest`` is; no k in ``rest``."""
    dividend, divisor = floor.args[0], int(floor.args[1])
    if coefficient > 0:  # u//n <= m: u <= n*m + n - 1
        return dividend - divisor * floor_div(-rest, coefficient) - divisor + 1
    return divisor * floor_div(rest - coefficient - 1, -coefficient) - dividend  # u//n >= m


def _relaxed(difference: Any, floors: list[Any], upper: bool) -> Any:
    """A multiple of ``difference`` with its floors replaced by what they never pass."""
    coefficients = terms(difference) or {}
    scale = math.lcm(*(int(floor.args[1]) for floor in floors))
    relaxed = difference
    for floor in floors:
        dividend, divisor = floor.args[0], int(floor.args[1])
        at_most = upper == (coefficients[floor] > 0)
        bound = dividend if at_most else dividend - divisor + 1
        relaxed += coefficients[floor] * (bound / divisor - floor)
    return scale * relaxed


def _solved(difference: Any, slope: int) -> KeySet:
    """The keys for which ``slope * k + g(q) <= 0``."""
    rest = difference - slope * K
    if slope > 0:
        return solution(Interval(None, floor_div(-rest, slope) + 1))
    if slope < 0:
        return solution(Interval(floor_div(rest - slope - 1, -slope), None))
    if Q not in rest.free_symbols:  # a work tile's condition: then both ends follow from it
        return all_if(sympy.Le(rest, 0))
    coefficients = terms(rest) or {}  # all keys where g(q) <= 0, none elsewhere
    constant = coefficients.pop(sympy.S.One, 0)
    condition = sympy.Le(rest - constant, -constant)
    if all(coefficient < 0 for coefficient in coefficients.values()):
        condition = sympy.Ge(constant - rest, constant)
    return solution(Interval(None, Where(condition, SEQLEN_K, sympy.Integer(0))))
