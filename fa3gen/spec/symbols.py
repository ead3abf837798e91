"""The atoms of a formula: index symbols, declared inputs, floor division, typed values.

A parsed formula is made of these and of ``Add Mul Pow exp log tanh Abs Min Max floor`` over
``Rational`` constants, with ``oo`` only as a branch of ``Where``; a parsed mask of ``And`` and
``Or`` over ``Le Lt Eq Ne`` of such expressions. There is no ``Not``, ``Ge`` or ``Gt``: the parser
turns them round.
"""

from __future__ import annotations

import ast
import enum
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef, UndefinedFunction
from sympy.printing.precedence import PRECEDENCE

from fa3gen.dtypes import DType

__all__ = [
    "INDICES",
    "FloorDiv",
    "FloorMod",
    "FormulaError",
    "Kind",
    "Value",
    "Where",
    "b",
    "both",
    "either",
    "h",
    "hk",
    "k",
    "negate",
    "q",
    "relation",
    "row",
    "scalar_input",
    "score",
    "seqlen_k",
    "seqlen_q",
    "table_input",
]

score = sympy.Symbol("score", real=True)
row = sympy.Symbol("row", integer=True, nonnegative=True)
q = sympy.Symbol("q", integer=True)  # row + seqlen_k - seqlen_q: negative before the first key
k = sympy.Symbol("k", integer=True, nonnegative=True)
b = sympy.Symbol("b", integer=True, nonnegative=True)
h = sympy.Symbol("h", integer=True, nonnegative=True)
hk = sympy.Symbol("hk", integer=True, nonnegative=True)
seqlen_q = sympy.Symbol("seqlen_q", integer=True, nonnegative=True)
seqlen_k = sympy.Symbol("seqlen_k", integer=True, nonnegative=True)

INDICES = {symbol.name: symbol for symbol in (row, q, k, b, h, hk, seqlen_q, seqlen_k)}


class Kind(enum.Enum):
    """The type of a formula's piece."""

    INTEGER = "integer"
    REAL = "real"
    BOOLEAN = "boolean"


@dataclass(frozen=True)
class Value:
    """A typed piece of a formula and the syntax it came from."""

    kind: Kind
    expr: Any  # sympy.Expr, or a sympy Boolean where kind is BOOLEAN
    node: ast.expr


class FormulaError(Exception):
    """A rule that a piece of a formula breaks; the parser adds the place."""

    def __init__(self, rule: str, remedy: str | None = None, node: ast.expr | None = None) -> None:
        super().__init__(rule)
        self.rule, self.remedy, self.node = rule, remedy, node


class FloorDiv(sympy.Function):  # type: ignore[misc]
    """``a // b`` of two integers, rounded down as in Python.

    Kept whole because ``floor(a / b)`` invites a rounded division; ``rewrite(floor)`` gives that.
    """

    nargs = 2
    is_integer = True

    @classmethod
    def eval(cls, dividend: Any, divisor: Any) -> Any:
        """Fold constants and division by one; None leaves the quotient as it is."""
        if divisor == 1:
            return dividend
        if dividend.is_Integer and divisor.is_Integer and divisor != 0:
            return sympy.Integer(int(dividend) // int(divisor))
        return None

    def _eval_is_nonnegative(self) -> bool | None:
        dividend, divisor = self.args
        return True if dividend.is_nonnegative and divisor.is_positive else None

    def _eval_derivative(self, symbol: Any) -> Any:
        return sympy.Integer(0)  # but at the steps

    def _eval_rewrite_as_floor(self, dividend: Any, divisor: Any, **hints: Any) -> Any:
        return sympy.floor(dividend / divisor)


class FloorMod(sympy.Function):  # type: ignore[misc]
    """``a % b`` with the divisor's sign, as in Python; ``rewrite(Mod)`` gives sympy's own.

    sympy takes the operands' polynomial gcd whenever a Mod is rebuilt, which can take very long.
    """

    nargs = 2

    @classmethod
    def eval(cls, dividend: Any, divisor: Any) -> Any:
        """Fold constants; None leaves the remainder as it is."""
        if dividend.is_Number and divisor.is_Number and divisor != 0:
            return dividend - divisor * sympy.floor(dividend / divisor)
        return None

    def _eval_is_extended_real(self) -> bool | None:
        return True if all(arg.is_real for arg in self.args) else None

    def _eval_is_integer(self) -> bool | None:
        return True if all(arg.is_integer for arg in self.args) else None

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.args[0].is_real and self.args[1].is_positive else None

    def _eval_derivative(self, symbol: Any) -> Any:
        dividend, divisor = self.args
        return dividend.diff(symbol) - divisor.diff(symbol) * sympy.floor(dividend / divisor)

    def _eval_rewrite_as_Mod(self, dividend: Any, divisor: Any, **hints: Any) -> Any:  # noqa: N802
        return sympy.Mod(dividend, divisor)


class Where(sympy.Function):  # type: ignore[misc]
    """``yes`` where a condition holds, else ``no``; ``rewrite(Piecewise)`` gives sympy's own.

    sympy solves a Piecewise's conditions whenever it is rebuilt, which can take very long.
    """

    nargs = 3
    is_commutative = True  # sympy would say no: a condition is not an algebra's element

    @classmethod
    def eval(cls, condition: Any, yes: Any, no: Any) -> Any:
        """Choose where the condition is constant or the branches are equal."""
        if condition in (sympy.true, sympy.false):
            return yes if condition == sympy.true else no
        return yes if yes == no else None

    def _eval_derivative(self, symbol: Any) -> Any:
        condition, yes, no = self.args
        return Where(condition, yes.diff(symbol), no.diff(symbol))

    def _branches_are(self, assumption: str) -> bool | None:
        held = [getattr(branch, f"is_{assumption}") for branch in self.args[1:]]
        return held[0] if held[0] == held[1] else None

    def _eval_is_extended_real(self) -> bool | None:
        return self._branches_are("extended_real")

    def _eval_is_finite(self) -> bool | None:
        return self._branches_are("finite")

    def _eval_is_integer(self) -> bool | None:
        return self._branches_are("integer")

    def _eval_is_nonnegative(self) -> bool | None:
        return self._branches_are("nonnegative")

    def _eval_rewrite_as_Piecewise(self, *args: Any, **hints: Any) -> Any:  # noqa: N802
        condition, yes, no = args
        return sympy.Piecewise((yes, condition), (no, True))


def scalar_input(name: str, dtype: DType) -> Any:
    """The Symbol of an input without a shape."""
    return sympy.Symbol(name, **_assumption(dtype))


class _Lookup(AppliedUndef):  # type: ignore[misc]
    """An element of an input, an instance of a class of the input's name.

    sympy's printers choose by the names of classes, and an input may be called Float.
    """

    precedence = PRECEDENCE["Func"]

    def _sympystr(self, printer: Any) -> str:
        return str(printer._print_Function(self))


def table_input(name: str, dtype: DType) -> Any:
    """The undefined function of an input with a shape: ``slopes[h]`` is ``slopes(h)``."""
    return UndefinedFunction(name, bases=(_Lookup,), **_assumption(dtype))


def _assumption(dtype: DType) -> dict[str, bool]:
    return {"integer": True} if dtype is DType.INT32 else {"real": True}


def relation(operator: str, left: Any, right: Any) -> Any:
    """``left operator right`` for one of ``< <= > >= == !=``, as Lt, Le, Eq or Ne (or a constant).

    ``a > b`` becomes ``Lt(b, a)``, ``a >= b`` becomes ``Le(b, a)``.
    """
    if operator in (">", ">="):
        left, right, operator = right, left, {">": "<", ">=": "<="}[operator]
    build = {"<": sympy.Lt, "<=": sympy.Le, "==": sympy.Eq, "!=": sympy.Ne}[operator]
    return build(left, right)


def both(*conditions: Any) -> Any:
    """Conjunction."""
    return sympy.And(*conditions)


def either(*conditions: Any) -> Any:
    """Disjunction."""
    return sympy.Or(*conditions)


def negate(condition: Any) -> Any:
    """Negation, pushed down to the relations: ``negate(Le(k, q))`` is ``Lt(q, k)``."""
    if condition in (sympy.true, sympy.false):
        return sympy.false if condition == sympy.true else sympy.true
    if isinstance(condition, sympy.And):
        return either(*(negate(part) for part in condition.args))
    if isinstance(condition, sympy.Or):
        return both(*(negate(part) for part in condition.args))
    left, right = condition.args
    turned = {sympy.Le: ">", sympy.Lt: ">=", sympy.Eq: "!=", sympy.Ne: "=="}
    return relation(turned[condition.func], left, right)
