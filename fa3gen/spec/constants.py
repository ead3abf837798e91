"""Arithmetic on constants: exact rationals that stay small.

Decimal literals are read exactly (0.1 is 1/10), so that the algebra is exact and a formula's text
does not depend on a machine's libm. What is irrational, or exact but longer than 256 bits, is
rounded to 17 significant digits: 30 bits more than the kernel's fp32 holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from fa3gen.spec.symbols import FormulaError

__all__ = ["MAX_EXPONENT", "apply_function", "check_numbers", "is_constant", "power", "settle"]

MAX_EXPONENT = 64
_FP32_MAX = sympy.Integer(2**128 - 2**104)
_FP32_TINY = sympy.Rational(1, 2**126)
_MAX_BITS = 256
_DIGITS = 17

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "exp": sympy.exp,
    "log": sympy.log,
    "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
    "sqrt": sympy.sqrt,
    "tanh": sympy.tanh,
}


def is_constant(expr: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(expr, sympy.Rational)


def settle(number: Any) -> Any:
    """A Rational of at most 256 bits a side, checked to be an fp32 number's size (or zero)."""
    size = abs(number)
    if size > _FP32_MAX or 0 < size < _FP32_TINY:
        raise FormulaError(
            "a constant is zero or between fp32's smallest normal number (1.2e-38) and its "
            "largest (3.4e38) in size",
            "write inf where you mean infinity",
        )
    if max(number.p.bit_length(), number.q.bit_length()) > _MAX_BITS:
        return _rounded(number)
    return number


def _rounded(number: Any) -> Any:
    return sympy.Rational(str(sympy.Float(number, _DIGITS)))


def apply_function(name: str, argument: Any) -> Any:
    """``tanh exp log sqrt sigmoid`` of a constant, to 17 significant digits."""
    if name == "log" and argument <= 0:
        raise FormulaError("log of a number that is not positive")
    if name == "sqrt" and argument < 0:
        raise FormulaError("sqrt of a negative number")
    if name == "tanh":  # 1 to 17 digits beyond 20
        argument = max(min(argument, sympy.Integer(64)), sympy.Integer(-64))
    elif name in ("exp", "sigmoid"):  # beyond fp32's range well before 256
        argument = max(min(argument, sympy.Integer(256)), sympy.Integer(-256))
    return settle(_rounded(_FUNCTIONS[name](sympy.Float(argument, 2 * _DIGITS))))


def power(base: Any, exponent: Any) -> Any:
    """``base ** exponent`` of a constant exponent; a constant or a sympy power."""
    if abs(exponent) > MAX_EXPONENT:
        raise FormulaError(
            f"exponents are at most {MAX_EXPONENT} in size", "use exp for a steeper growth"
        )
    if not is_constant(base):
        return base**exponent
    if base == 0 and exponent < 0:
        raise FormulaError("division by zero")
    if exponent.is_Integer:
        return settle(base**exponent)
    if base < 0:
        raise FormulaError("a negative number to a fractional power is not real")
    if base == 0:
        return base
    return settle(_rounded(sympy.Float(base, 2 * _DIGITS) ** sympy.Float(exponent, 2 * _DIGITS)))


def check_numbers(expr: Any) -> None:
    """Refuse what algebra has collected: constants beyond fp32, exponents beyond 64, no number."""
    if expr.has(sympy.nan, sympy.zoo, sympy.I):
        raise FormulaError("the formula is undefined or not real here")
    for number in expr.atoms(sympy.Rational):
        settle(number)
    for node in expr.atoms(sympy.Pow):
        if is_constant(node.exp) and abs(node.exp) > MAX_EXPONENT:
            raise FormulaError(
                f"exponents add up to {node.exp}; they are at most {MAX_EXPONENT} in size"
            )
