"""Sums multiplied out, as far as that stays small: a text has no say in how far it goes."""

from __future__ import annotations

import math
from typing import Any

import sympy

__all__ = ["expanded"]

_MOST_TERMS = 512  # of a sum


def expanded(expr: Any) -> Any:
    """The expression multiplied out; as it is where one of its sums would have very many terms."""
    return sympy.expand(expr) if all(map(_is_small, sympy.preorder_traversal(expr))) else expr


def _is_small(expr: Any) -> bool:
    return _terms(expr) <= _MOST_TERMS


def _terms(expr: Any) -> int:
    """About how many terms an expression has once it is multiplied out, or more than the most."""
    if expr.is_Add or expr.is_Mul:
        counts = [_terms(arg) for arg in expr.args]
        total = sum(counts) if expr.is_Add else math.prod(counts)
        return min(total, _MOST_TERMS + 1)
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        count, power = _terms(expr.base), min(int(expr.exp), _MOST_TERMS)
        return min(math.comb(count + power - 1, power), _MOST_TERMS + 1)
    return 1
