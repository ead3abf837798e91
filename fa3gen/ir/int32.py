"""Whether the numbers of a formula take its integers out of int32, in which kernels count.

``k * 6000000 < q or ...`` is wrong from key 358 on. Such a formula is refused, if it is so within
2^20 positions; products of positions, which leave int32 with their sequences' length, are not.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from fa3gen.errors import UnsupportedError
from fa3gen.ir.integral import is_integral
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where, b, h, hk

__all__ = ["check_int32"]

_MOST = 2**31 - 1
_POSITIONS = 2**20  # and what inputs hold
_HEADS = 2**10
_COUNTED = (Relational, AppliedUndef, FloorDiv, FloorMod)  # what has integers computed as such


def check_int32(expr: Any, key: str) -> None:
    """Raise UnsupportedError for a comparison, an index or a quotient in a formula (or mask) whose
    numbers take it out of int32."""
    for counted in expr.atoms(*_COUNTED):
        for side in counted.args:
            if is_integral(side) and any(map(_leaves, sympy.preorder_traversal(side))):
                raise UnsupportedError(
                    f"{key}: kernels count in int32, which {str(side)[:60]} leaves within "
                    f"{_POSITIONS} positions; write it with smaller numbers"
                )


def _leaves(expr: Any) -> bool:
    return isinstance(expr, sympy.Expr) and _most(expr) > _MOST


def _most(expr: Any) -> int:
    """About the largest size of an integer's values; of a product, of its largest factor's times
    its number."""
    if expr.is_Integer:
        return abs(int(expr))
    if isinstance(expr, (sympy.Symbol, AppliedUndef)):
        return _HEADS if expr in (b, h, hk) else _POSITIONS
    if isinstance(expr, (FloorDiv, FloorMod)):
        dividend, divisor = expr.args
        if isinstance(expr, FloorMod):
            return _most(divisor)
        return (
            _most(dividend) // max(abs(int(divisor)), 1) if divisor.is_Integer else _most(dividend)
        )
    parts = [_most(arg) for arg in (expr.args[1:] if isinstance(expr, Where) else expr.args)]
    if expr.is_Add:
        return sum(parts)
    if expr.is_Mul:
        numbers = [abs(int(arg)) for arg in expr.args if arg.is_Integer]
        return math.prod(numbers) * max(_most(arg) for arg in expr.args if not arg.is_Integer)
    return max(parts[:1] if expr.is_Pow else parts, default=0)
