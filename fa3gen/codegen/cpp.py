"""The expression printer: sympy integer expressions and masks as C++.

Everything is parenthesised by C++'s precedence alone, but for ``and`` in ``or`` and conditionals in
one another. Integer division and remainder floor, as in Python, through ``fa3gen::floor_div`` and
``fa3gen::floor_mod``.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy

from fa3gen.errors import RenderError
from fa3gen.schedule.integers import summands
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where

__all__ = ["print_cpp"]

# C++ precedence, loosest first.
_CONDITIONAL, _OR, _AND, _EQUAL, _COMPARE, _SUM, _PRODUCT, _UNARY, _ATOM = range(9)

_RELATIONS: dict[type[sympy.Basic], tuple[str, int]] = {
    sympy.Le: ("<=", _COMPARE),
    sympy.Lt: ("<", _COMPARE),
    sympy.Ge: (">=", _COMPARE),
    sympy.Gt: (">", _COMPARE),
    sympy.Eq: ("==", _EQUAL),
    sympy.Ne: ("!=", _EQUAL),
}

_CALLS: dict[type[sympy.Basic], str] = {
    FloorDiv: "fa3gen::floor_div",
    FloorMod: "fa3gen::floor_mod",
    sympy.Mod: "fa3gen::floor_mod",
    sympy.Min: "min",
    sympy.Max: "max",
    sympy.Abs: "abs",
}


def print_cpp(expr: sympy.Basic, name: Callable[[str], str] = lambda symbol: symbol) -> str:
    """C++ text of an integer or boolean expression; ``name`` maps symbols to C++ names.

    Raises RenderError for what has no integer form in C++, and for constants beyond int32.
    """
    return _print(expr, name)[0]


def _print(expr: sympy.Basic, name: Callable[[str], str]) -> tuple[str, int]:
    """Text and precedence of an expression."""

    def at(part: sympy.Basic, least: int) -> str:
        text, precedence = _print(part, name)
        return text if precedence >= least else f"({text})"

    if expr is sympy.true or expr is sympy.false:
        return str(expr is sympy.true).lower(), _ATOM
    if isinstance(expr, sympy.Symbol):
        return name(expr.name), _ATOM
    if isinstance(expr, sympy.Integer):
        return _integer(int(expr))
    if isinstance(expr, (sympy.And, sympy.Or)):
        joiner, level = (" && ", _AND) if isinstance(expr, sympy.And) else (" || ", _OR)
        parts = sorted(at(part, _AND + 1) for part in expr.args)
        return joiner.join(parts), level
    if isinstance(expr, sympy.Not):
        return "!" + at(expr.args[0], _UNARY), _UNARY
    if type(expr) in _RELATIONS:
        symbol, level = _RELATIONS[type(expr)]
        left, right = (at(part, level + 1) for part in expr.args)
        return f"{left} {symbol} {right}", level
    if type(expr) in _CALLS:
        return f"{_CALLS[type(expr)]}({_arguments(expr, name)})", _ATOM
    if isinstance(expr, sympy.Add):
        return _sum(expr, name), _SUM
    if isinstance(expr, sympy.Mul):
        return _product(expr, name)
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
        return " * ".join([at(expr.base, _PRODUCT + 1)] * int(expr.exp)), _PRODUCT
    if isinstance(expr, Where):
        condition, yes, no = (at(part, _OR) for part in expr.args)
        return f"{condition} ? {yes} : {no}", _CONDITIONAL
    raise RenderError(f"no C++ form of {type(expr).__name__}: {expr}")


def _integer(value: int) -> tuple[str, int]:
    if not -(2**31) <= value < 2**31:
        raise RenderError(f"no C++ form of {value}: integers are int32 in kernels")
    if value == -(2**31):  # C++ reads the digits without the sign, as a long
        return f"{value + 1} - 1", _SUM
    return str(value), _ATOM if value >= 0 else _UNARY


def _arguments(expr: sympy.Basic, name: Callable[[str], str]) -> str:
    """Call arguments; min and max are nested, as C++'s take two."""
    parts = [_print(part, name)[0] for part in expr.args]
    if len(parts) > 2:
        call = _CALLS[type(expr)]
        while len(parts) > 2:
            parts = [f"{call}({parts[0]}, {parts[1]})", *parts[2:]]
    return ", ".join(parts)


def _sum(expr: sympy.Add, name: Callable[[str], str]) -> str:
    """Terms with their signs."""
    text = ""
    for term in summands(expr):
        negative = term.as_coeff_Mul()[0] < 0 and term != -(2**31)
        part, precedence = _print(-term if negative else term, name)
        part = part if precedence > _SUM else f"({part})"
        if not text:
            text = f"-{part}" if negative else part
        else:
            text += f" - {part}" if negative else f" + {part}"
    return text


def _product(expr: sympy.Mul, name: Callable[[str], str]) -> tuple[str, int]:
    """Factors; a leading -1 is a sign."""
    factors = list(expr.args)
    if factors[0] == -1:
        rest, precedence = _print(sympy.Mul(*factors[1:]), name)
        return "-" + (rest if precedence >= _UNARY else f"({rest})"), _UNARY
    parts = []
    for factor in factors:
        text, precedence = _print(factor, name)
        parts.append(text if precedence > _PRODUCT else f"({text})")
    return " * ".join(parts), _PRODUCT
