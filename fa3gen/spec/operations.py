"""The typed operations of formulas, from values to (kind, sympy expression).

Each refuses operands of the wrong type with a FormulaError at the operand's place.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import sympy

from fa3gen.dtypes import DType
from fa3gen.spec.constants import apply_function, check_numbers, is_constant, power, settle
from fa3gen.spec.symbols import (
    FloorDiv,
    FloorMod,
    FormulaError,
    Kind,
    Value,
    Where,
    both,
    either,
    negate,
    relation,
)

if TYPE_CHECKING:
    from fa3gen.spec.model import InputSpec

__all__ = [
    "MAX_INTEGER",
    "arithmetic",
    "comparison",
    "expect",
    "function",
    "kind_of",
    "literal",
    "logical",
    "unary",
    "where",
]

MAX_INTEGER = 2**31 - 1
_MAX_ARGUMENTS = 16  # sympy compares each pair

_UNARY_FUNCTIONS = {"exp": sympy.exp, "log": sympy.log, "sqrt": sympy.sqrt, "tanh": sympy.tanh}
_COMPARISONS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_SYMBOLS = {ast.BitAnd: "&", ast.BitOr: "|", ast.And: "and", ast.Or: "or"}


def kind_of(declared: InputSpec) -> Kind:
    """The kind of an input's elements."""
    return Kind.INTEGER if declared.dtype is DType.INT32 else Kind.REAL


def literal(value: object) -> tuple[Kind, Any]:
    """A Python literal: boolean, int32 or a decimal, which is read exactly."""
    match value:
        case bool():
            return Kind.BOOLEAN, sympy.true if value else sympy.false
        case int():
            if value > MAX_INTEGER:
                raise FormulaError(
                    f"integers are at most {MAX_INTEGER}", "write a real number: 1e10"
                )
            return Kind.INTEGER, sympy.Integer(value)
        case float() if value != float("inf"):
            return Kind.REAL, settle(sympy.Rational(repr(value)))
    raise FormulaError("not a literal of formulas", "write an integer, a decimal number or inf")


def expect(value: Value, kinds: set[Kind], rule: str, remedy: str | None = None) -> None:
    """Refuse a value of another kind, with the rule it breaks."""
    if value.kind not in kinds:
        raise FormulaError(f"{rule}, and this is {value.kind.value}", remedy, value.node)


def numbers(*values: Value) -> Kind:
    """The common kind of finite or infinite numbers; booleans are refused."""
    for value in values:
        expect(value, {Kind.INTEGER, Kind.REAL}, "a number is needed", "use where(condition, 1, 0)")
    integers = all(value.kind is Kind.INTEGER for value in values)
    return Kind.INTEGER if integers else Kind.REAL


def finite(*values: Value) -> None:
    for value in values:
        if value.expr in (sympy.oo, -sympy.oo):
            raise FormulaError(
                "inf is not an operand of arithmetic",
                "use it in where, min, max or a comparison",
                value.node,
            )


def unary(operator: ast.unaryop, value: Value) -> tuple[Kind, Any]:
    """``-x``, ``+x``; ``not x`` and ``~x`` of a boolean."""
    if isinstance(operator, ast.Not | ast.Invert):
        sign = "~" if isinstance(operator, ast.Invert) else "not"
        expect(value, {Kind.BOOLEAN}, f"`{sign}` works on booleans", _parenthesise(value))
        return Kind.BOOLEAN, negate(value.expr)
    kind = numbers(value)
    return kind, value.expr if isinstance(operator, ast.UAdd) else -value.expr


def _parenthesise(value: Value) -> str | None:
    return "parenthesise the comparison" if value.kind is Kind.INTEGER else None


def logical(operator: ast.AST, values: list[Value]) -> tuple[Kind, Any]:
    """``and or & |``, of booleans only."""
    for value in values:
        rule = f"`{_SYMBOLS[type(operator)]}` works on booleans"
        expect(value, {Kind.BOOLEAN}, rule, _parenthesise(value))
    join = both if isinstance(operator, ast.And | ast.BitAnd) else either
    return Kind.BOOLEAN, join(*(value.expr for value in values))


def comparison(operators: list[ast.cmpop], values: list[Value]) -> tuple[Kind, Any]:
    """A comparison, maybe chained: ``0 <= k < n`` is ``(0 <= k) & (k < n)``."""
    numbers(*values)
    links = []
    for operator, left, right in zip(operators, values, values[1:], strict=False):
        if type(operator) not in _COMPARISONS:
            raise FormulaError("formulas compare with < <= > >= == !=")
        links.append(relation(_COMPARISONS[type(operator)], left.expr, right.expr))
    return Kind.BOOLEAN, both(*links)


def arithmetic(operator: ast.operator, left: Value, right: Value) -> tuple[Kind, Any]:
    """``+ - * / // % **`` of numbers; ``/`` is real, ``//`` an integer."""
    kind = numbers(left, right)
    finite(left, right)
    x, y = left.expr, right.expr
    if isinstance(operator, ast.Div | ast.FloorDiv | ast.Mod) and y == 0:
        raise FormulaError("division by zero", None, right.node)
    match operator:
        case ast.Add():
            return kind, _settled(x + y)
        case ast.Sub():
            return kind, _settled(x - y)
        case ast.Mult():
            return kind, _settled(x * y)
        case ast.Div():
            return Kind.REAL, _settled(x / y)
        case ast.FloorDiv():
            quotient = FloorDiv(x, y) if kind is Kind.INTEGER else _floor(x / y)
            return Kind.INTEGER, quotient
        case ast.Mod():
            return kind, _settled(FloorMod(x, y))
        case ast.Pow():
            return _power(kind, x, y)
    raise FormulaError("not an operator of formulas", "use + - * / // % **")


def _settled(expr: Any) -> Any:
    return settle(expr) if is_constant(expr) else expr


def _power(kind: Kind, base: Any, exponent: Any) -> tuple[Kind, Any]:
    whole = exponent.is_Integer and exponent >= 0
    expr = power(base, exponent) if is_constant(exponent) else base**exponent
    check_numbers(expr)
    return kind if whole else Kind.REAL, expr


def where(condition: Value, yes: Value, no: Value) -> tuple[Kind, Any]:
    """``where(condition, yes, no)``, of two numbers or two booleans."""
    expect(condition, {Kind.BOOLEAN}, "the first argument of where is a condition")
    if Kind.BOOLEAN in (yes.kind, no.kind):
        for branch in (yes, no):
            expect(branch, {Kind.BOOLEAN}, "both branches of where have one type")
        chosen = both(condition.expr, yes.expr)
        return Kind.BOOLEAN, either(chosen, both(negate(condition.expr), no.expr))
    return numbers(yes, no), Where(condition.expr, yes.expr, no.expr)


def function(name: str, values: list[Value]) -> tuple[Kind, Any]:
    """``abs floor min max exp log sqrt tanh sigmoid`` of numbers."""
    kind = numbers(*values)
    exprs = [value.expr for value in values]
    if name in ("min", "max"):
        return kind, _extreme(name, exprs)
    finite(*values)
    if name == "abs":
        # Of what may not be real, like log(score), sympy would take real and imaginary parts.
        return kind, sympy.Abs(exprs[0], evaluate=bool(exprs[0].is_extended_real))
    if name == "floor":
        return Kind.INTEGER, _floor(exprs[0])
    if is_constant(exprs[0]):
        return Kind.REAL, apply_function(name, exprs[0])
    if name == "sigmoid":
        return Kind.REAL, 1 / (1 + sympy.exp(-exprs[0]))
    return Kind.REAL, _UNARY_FUNCTIONS[name](exprs[0])


def _extreme(name: str, exprs: list[Any]) -> Any:
    """The least or greatest of numbers; those of a min in a min count as its own."""
    join = sympy.Min if name == "min" else sympy.Max
    if sum(len(expr.args) if isinstance(expr, join) else 1 for expr in exprs) > _MAX_ARGUMENTS:
        raise FormulaError(f"{name} takes at most {_MAX_ARGUMENTS} arguments")
    return join(*exprs)


def _floor(expr: Any) -> Any:
    """``floor(k / 3)`` as the exact ``FloorDiv(k, 3)``; a real number's floor stays what it is."""
    content, primitive = expr.as_content_primitive()
    small = max(abs(content.p), content.q) <= MAX_INTEGER
    if content.q > 1 and small and primitive.is_integer:
        return FloorDiv(content.p * primitive, sympy.Integer(content.q))
    return sympy.floor(expr)
