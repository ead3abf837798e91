"""The expression printer: sympy expressions and masks as C++.

``Names`` says what symbols are called, and how tables are looked up.

Everything is parenthesised by C++'s precedence alone, but for ``and`` in ``or`` and conditionals in
one another. Integer division and remainder floor, as in Python, through ``fa3gen::floor_div`` and
``fa3gen::floor_mod``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.errors import RenderError
from fa3gen.ir.integral import is_exact, is_integral
from fa3gen.schedule.integers import summands
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where

__all__ = ["Names", "print_cpp", "print_cpp_condition", "print_cpp_real"]

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


class Names:
    """C++ names: of symbols the same, unless ``rename`` says otherwise; of no table at all."""

    def __init__(self, rename: Callable[[str], str] = lambda symbol: symbol) -> None:
        self.rename = rename

    def symbol(self, name: str) -> str:
        """A symbol."""
        return self.rename(name)

    def lookup(self, table: AppliedUndef, indices: list[str]) -> str:
        """An element of a table, whose indices are C++ texts."""
        raise RenderError(f"no C++ form of {table}: there is no table here")


_SAME = Names()


def print_cpp(expr: sympy.Basic, names: Names = _SAME) -> str:
    """C++ text of an integer or boolean expression.

    Raises RenderError for what has no integer form in C++, and for constants beyond int32.
    """
    return _print(expr, names)[0]


def _print(expr: sympy.Basic, name: Names) -> tuple[str, int]:
    """Text and precedence of an expression."""

    def at(part: sympy.Basic, least: int) -> str:
        text, precedence = _print(part, name)
        return text if precedence >= least else f"({text})"

    if expr is sympy.true or expr is sympy.false:
        return str(expr is sympy.true).lower(), _ATOM
    if isinstance(expr, sympy.Symbol):
        return name.symbol(expr.name), _ATOM
    if isinstance(expr, AppliedUndef):
        return _lookup(expr, name)
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
        yes, no = (at(part, _OR) for part in expr.args[1:])
        exact = is_exact(expr.args[0])
        condition = at(expr.args[0], _OR) if exact else _condition(expr.args[0], name)
        return f"{condition} ? {yes} : {no}", _CONDITIONAL
    raise RenderError(f"no C++ form of {type(expr).__name__}: {expr}")


def _lookup(expr: AppliedUndef, name: Names) -> tuple[str, int]:
    return name.lookup(expr, [_index(index, name) for index in expr.args]), _ATOM


def _index(expr: sympy.Basic, name: Names) -> str:
    return _print(expr, name)[0] if is_integral(expr) else f"int({_real(expr, name)[0]})"


def _integer(value: int) -> tuple[str, int]:
    if not -(2**31) <= value < 2**31:
        raise RenderError(f"no C++ form of {value}: integers are int32 in kernels")
    if value == -(2**31):  # C++ reads the digits without the sign, as a long
        return f"{value + 1} - 1", _SUM
    return str(value), _ATOM if value >= 0 else _UNARY


def _arguments(expr: sympy.Basic, name: Names) -> str:
    """Call arguments; min and max are nested, as C++'s take two."""
    parts = [_print(part, name)[0] for part in expr.args]
    if len(parts) > 2:
        call = _CALLS[type(expr)]
        while len(parts) > 2:
            parts = [f"{call}({parts[0]}, {parts[1]})", *parts[2:]]
    return ", ".join(parts)


def _sum(expr: sympy.Add, name: Names) -> str:
    """Terms with their signs."""
    terms = []
    for term in summands(expr):
        negative = term.as_coeff_Mul()[0] < 0 and term != -(2**31)
        part, precedence = _print(-term if negative else term, name)
        terms.append((negative, part if precedence > _SUM else f"({part})"))
    return _signed(terms)


def _signed(terms: Iterable[tuple[bool, str]]) -> str:
    """A sum of texts, each negative or not."""
    text = ""
    for negative, part in terms:
        if text:
            text += f" - {part}" if negative else f" + {part}"
        else:
            text = f"-{part}" if negative else part
    return text


def _product(expr: sympy.Mul, name: Names) -> tuple[str, int]:
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


# --- real expressions -----------------------------------------------------------------------------

_UNARY_CALLS: dict[type[sympy.Basic], str] = {
    sympy.tanh: "fa3gen::tanh_approx",
    sympy.exp: "fa3gen::exp_approx",
    sympy.log: "fa3gen::log_approx",
    sympy.Abs: "fabsf",
    sympy.floor: "floorf",
    sympy.ceiling: "ceilf",
}


def print_cpp_real(expr: sympy.Basic, names: Names = _SAME) -> str:
    """C++ text of a formula in fp32. Integer parts stay integers as long as they can be, so that
    differences of positions are exact; RenderError for what has no form."""
    return _real(expr, names)[0]


def print_cpp_condition(expr: sympy.Basic, names: Names = _SAME) -> str:
    """C++ text of a condition: exact between integers, else in fp32."""
    return _condition(expr, names)


def _real(expr: sympy.Basic, name: Names) -> tuple[str, int]:
    def at(part: sympy.Basic, least: int) -> str:
        text, precedence = _real(part, name)
        return text if precedence >= least else f"({text})"

    if expr.is_Number:
        return _literal(expr)
    if is_integral(expr) and _is_small(expr):
        return f"float({_print(expr, name)[0]})", _ATOM
    if isinstance(expr, sympy.Symbol):
        return name.symbol(expr.name), _ATOM
    if isinstance(expr, AppliedUndef):
        return _lookup(expr, name)
    if isinstance(expr, sympy.Add):
        return _real_sum(expr, at), _SUM
    if isinstance(expr, sympy.Mul):
        return _real_product(expr, at)
    if isinstance(expr, sympy.Pow):
        return _real_power(expr, at)
    if type(expr) in _UNARY_CALLS:
        return f"{_UNARY_CALLS[type(expr)]}({at(expr.args[0], _CONDITIONAL)})", _ATOM
    if isinstance(expr, (sympy.Min, sympy.Max)):
        call = "fminf" if isinstance(expr, sympy.Min) else "fmaxf"
        text, *others = sorted(at(part, _CONDITIONAL) for part in expr.args)
        for other in others:
            text = f"{call}({text}, {other})"
        return text, _ATOM
    if isinstance(expr, FloorMod):
        dividend, divisor = (at(part, _CONDITIONAL) for part in expr.args)
        return f"fa3gen::floor_mod({dividend}, {divisor})", _ATOM
    if isinstance(expr, FloorDiv):
        return f"floorf({at(expr.args[0], _PRODUCT)} / {at(expr.args[1], _PRODUCT + 1)})", _ATOM
    if isinstance(expr, Where):
        condition, yes, no = expr.args
        return f"{_condition(condition, name)} ? {at(yes, _OR)} : {at(no, _OR)}", _CONDITIONAL
    raise RenderError(f"no C++ form of {type(expr).__name__}: {expr}")


def _condition(expr: sympy.Basic, name: Names) -> str:
    if is_exact(expr):
        return f"({_print(expr, name)[0]})"
    if isinstance(expr, (sympy.And, sympy.Or)):
        joiner = " && " if isinstance(expr, sympy.And) else " || "
        return f"({joiner.join(sorted(_condition(part, name) for part in expr.args))})"
    if type(expr) in _RELATIONS:
        sides = (_real(part, name) for part in expr.args)
        left, right = (text if level > _COMPARE else f"({text})" for text, level in sides)
        return f"({left} {_RELATIONS[type(expr)][0]} {right})"
    raise RenderError(f"no C++ form of {type(expr).__name__}: {expr}")


def _is_small(expr: sympy.Basic) -> bool:
    """Whether no product of positions is in it, which might leave int32."""
    for part in sympy.preorder_traversal(expr):
        if part.is_Pow or (part.is_Mul and sum(not factor.is_number for factor in part.args) > 1):
            return False
    return True


def _literal(number: sympy.Basic) -> tuple[str, int]:
    if number in (sympy.oo, -sympy.oo):
        return ("INFINITY", _ATOM) if number is sympy.oo else ("-INFINITY", _UNARY)
    text = repr(float(number))
    text = text if "." in text or "e" in text else f"{text}.0"
    return f"{text}f", _UNARY if text.startswith("-") else _ATOM


def _real_sum(expr: sympy.Add, at: Callable[[sympy.Basic, int], str]) -> str:
    """Terms with their signs; multiples of integers together, under their common factor."""
    whole = [t for t in expr.args if t.free_symbols and is_integral(t.as_coeff_Mul()[1])]
    terms = [term for term in summands(expr) if term not in whole]
    if whole:
        terms.append(sympy.factor_terms(sympy.Add(*whole)))
    if len(terms) == 1 and terms[0] == expr:
        terms = list(expr.args)
    signs = [term.could_extract_minus_sign() for term in terms]
    parts = (at(-x if negative else x, _SUM + 1) for negative, x in zip(signs, terms, strict=True))
    return _signed(zip(signs, parts, strict=True))


def _real_product(expr: sympy.Mul, at: Callable[[sympy.Basic, int], str]) -> tuple[str, int]:
    """Factors; what is divided by comes last, in one quotient."""
    over = [f for f in expr.args if f.is_Pow and f.exp.is_Rational and f.exp < 0]
    factors = [at(f, _PRODUCT + 1) for f in expr.args if f not in over and f != -1]
    below = [at(f.base**-f.exp, _PRODUCT + 1) for f in over]
    text = " * ".join(factors) or "1.0f"
    if below:
        below_text = below[0] if len(below) == 1 else f"({' * '.join(below)})"
        text = f"{text} / {below_text}"
    return (f"-{text}", _UNARY) if -1 in expr.args else (text, _PRODUCT)


def _real_power(expr: sympy.Pow, at: Callable[[sympy.Basic, int], str]) -> tuple[str, int]:
    base, exponent = expr.args
    if exponent == sympy.Rational(1, 2):
        return f"sqrtf({at(base, _CONDITIONAL)})", _ATOM
    if exponent.is_Integer and 0 < exponent <= 4:
        return " * ".join([at(base, _PRODUCT + 1)] * int(exponent)), _PRODUCT
    if exponent.is_Rational and exponent < 0:
        return f"1.0f / {at(base**-exponent, _PRODUCT + 1)}", _PRODUCT
    return f"powf({at(base, _CONDITIONAL)}, {at(exponent, _CONDITIONAL)})", _ATOM
