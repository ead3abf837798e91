"""Which parts of a formula kernels compute as integers: those made of integers that int32 holds.

sympy's ``is_integer`` says more: ``2 ** h`` is an integer, and 1e17 is, that kernels hold in fp32.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.spec.symbols import FloorDiv, FloorMod, Where

__all__ = ["is_exact", "is_integral"]

_PARTS = (
    *(sympy.Symbol, sympy.Integer, sympy.Add, sympy.Mul, sympy.Min, sympy.Max, sympy.Abs),
    *(FloorDiv, FloorMod),
)


def is_integral(expr: Any) -> bool:
    """Whether it is an integer, made of integers."""
    if not expr.is_integer:
        return False
    if isinstance(expr, AppliedUndef):  # an index may be what a real number is rounded to
        return True
    if isinstance(expr, Where):
        return is_exact(expr.args[0]) and all(map(is_integral, expr.args[1:]))
    if expr.is_Pow:
        return bool(expr.exp.is_Integer and expr.exp > 0) and is_integral(expr.base)
    if expr.is_Integer:
        return -(2**31) <= int(expr) < 2**31
    return isinstance(expr, _PARTS) and all(map(is_integral, expr.args))


def is_exact(condition: Any) -> bool:
    """Whether a condition compares integers alone."""
    if isinstance(condition, (sympy.And, sympy.Or)):
        return all(map(is_exact, condition.args))
    return not condition.args or all(map(is_integral, condition.args))
