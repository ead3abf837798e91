"""The expression language of specs: Python's syntax against a white list, into sympy.

The text is parsed by ``ast`` and walked node by node; nothing is evaluated, and what the walk does
not know it refuses, because a spec may come from a stranger. sympy is built in ways that cannot
run away: constants stay small (``constants``), and remainders and ``where`` are functions of our
own (``symbols``).

An input of no shape is a Symbol (``alpha``), one with a shape an undefined function applied to its
indices: ``slopes[h]`` is ``slopes(h)``. ``a // b`` of integers is ``FloorDiv(a, b)``, ``a % b`` is
``FloorMod(a, b)``, ``where(c, a, b)`` is ``Where(c, a, b)``.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import sympy

from fa3gen.errors import SpecError
from fa3gen.spec.constants import check_numbers, is_constant
from fa3gen.spec.masks import NAMED_MASKS
from fa3gen.spec.operations import (
    MAX_INTEGER,
    arithmetic,
    comparison,
    expect,
    function,
    kind_of,
    literal,
    logical,
    unary,
    where,
)
from fa3gen.spec.rules import one_line
from fa3gen.spec.symbols import (
    INDICES,
    FloorDiv,
    FloorMod,
    FormulaError,
    Kind,
    Value,
    Where,
    b,
    h,
    hk,
    k,
    q,
    row,
    scalar_input,
    score,
    seqlen_k,
    seqlen_q,
    table_input,
)

if TYPE_CHECKING:
    from fa3gen.spec.model import InputSpec

__all__ = [
    "FloorDiv",
    "FloorMod",
    "Where",
    "b",
    "h",
    "hk",
    "k",
    "parse_mask",
    "parse_score",
    "q",
    "row",
    "score",
    "seqlen_k",
    "seqlen_q",
]

_MAX_CHARS = 2000
_MAX_DEPTH = 50
_MAX_PARTS = 2000  # chained comparisons and conditions to choose by are there twice

_FUNCTIONS = ("abs", "exp", "floor", "log", "max", "min", "sigmoid", "sqrt", "tanh", "where")
_LEGAL = (
    sympy.Symbol,
    sympy.Rational,
    type(sympy.oo),
    type(-sympy.oo),
    sympy.core.function.AppliedUndef,
    *(FloorDiv, sympy.Add, sympy.Mul, sympy.Pow, sympy.exp, sympy.log, sympy.tanh, sympy.Abs),
    *(sympy.Min, sympy.Max, sympy.floor, sympy.ceiling, FloorMod, Where),
    *(sympy.And, sympy.Or, sympy.Le, sympy.Lt, sympy.Eq, sympy.Ne),
    type(sympy.true),
    type(sympy.false),
)


def parse_score(text: str, inputs: Mapping[str, InputSpec]) -> Any:
    """The sympy expression of a score formula, real, in ``score``, the indices and the inputs.

    Raises SpecError (key ``score``) naming the offending piece and its column.
    """
    return _Parser("score", text, inputs).parse({Kind.REAL, Kind.INTEGER}, "a number")


def parse_mask(text: str, inputs: Mapping[str, InputSpec]) -> Any:
    """The sympy Boolean of a mask: true where a query may see a key.

    Raises SpecError (key ``mask``) naming the offending piece and its column.
    """
    return _Parser("mask", text, inputs).parse({Kind.BOOLEAN}, "a condition")


class _Parser:
    """One walk over one formula."""

    def __init__(self, key: str, text: str, inputs: Mapping[str, InputSpec]) -> None:
        self.key, self.inputs = key, inputs
        self.text = one_line(text)

    def parse(self, kinds: set[Kind], wanted: str) -> Any:
        value = self.visit(self._tree())
        if value.kind not in kinds:
            self._refuse(value.node, f"the formula is {value.kind.value}, and must be {wanted}")
        if value.expr in (sympy.oo, -sympy.oo):
            self._refuse(value.node, "the formula must be finite")
        try:
            check_numbers(value.expr)
        except FormulaError as fault:
            self._refuse(value.node, fault.rule, fault.remedy)
        for piece in sympy.preorder_traversal(value.expr):
            if not isinstance(piece, _LEGAL):
                self._refuse(
                    value.node, f"the formula reduces to {piece}, which has no kernel code"
                )
        return value.expr

    # -- from text to syntax ----------------------------------------------------------------

    def _tree(self) -> ast.expr:
        if len(self.text) > _MAX_CHARS:
            raise SpecError(
                f"a formula has at most {_MAX_CHARS} characters", key=self.key, value=len(self.text)
            )
        if stray := re.search(r"[^A-Za-z0-9_+\-*/%<>=!&|~()\[\],. ]", self.text):
            remedy = "write ** for a power" if stray[0] == "^" else None
            self._refuse_at(stray.start(), stray[0], "not a character of a formula", remedy)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            column = max((error.offset or 1) - 1, 0)
            self._refuse_at(column, self.text[column : column + 20], f"not a formula: {error.msg}")
        except (ValueError, RecursionError, MemoryError):
            raise self._too_deep() from None
        self._check_depth(tree)
        return tree

    def _check_depth(self, tree: ast.expr) -> None:
        pending: list[tuple[ast.AST, int]] = [(tree, 1)]
        while pending:
            node, depth = pending.pop()
            if depth > _MAX_DEPTH:
                raise self._too_deep()
            pending += [
                (child, depth + isinstance(child, ast.expr)) for child in ast.iter_child_nodes(node)
            ]

    def _too_deep(self) -> SpecError:
        return SpecError(f"a formula nests at most {_MAX_DEPTH} deep", key=self.key)

    # -- errors -----------------------------------------------------------------------------

    def _refuse(self, node: ast.expr, rule: str, remedy: str | None = None) -> NoReturn:
        piece = self.text[node.col_offset : node.end_col_offset]
        self._refuse_at(node.col_offset, piece, rule, remedy)

    def _refuse_at(self, start: int, piece: str, rule: str, remedy: str | None = None) -> NoReturn:
        piece = piece if len(piece) <= 60 else piece[:57] + "..."
        raise SpecError(f"column {start + 1}: {rule}", key=self.key, value=piece, remedy=remedy)

    # -- the walk ---------------------------------------------------------------------------

    def visit(self, node: ast.expr) -> Value:
        """The typed value of a piece; a FormulaError raised on the way gets this piece's place."""
        try:
            kind, expr = self._visit(node)
        except FormulaError as fault:
            self._refuse(fault.node or node, fault.rule, fault.remedy)
        except SpecError:
            raise
        except (
            ArithmeticError,
            NotImplementedError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            self._refuse(node, f"sympy has no answer: {error}")
        if _has_many_parts(expr):
            self._refuse(node, f"a formula has at most {_MAX_PARTS} parts, written out")
        if kind is not Kind.BOOLEAN and expr.is_extended_real is False:
            self._refuse(node, "not a real number for any score")
        if kind is Kind.INTEGER and is_constant(expr) and abs(expr) > MAX_INTEGER:
            kind = Kind.REAL  # kernels count in int32
        return Value(kind, expr, node)

    def _visit(self, node: ast.expr) -> tuple[Kind, Any]:
        match node:
            case ast.Constant(value=value):
                return literal(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return self._lookup(name, index)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments)
            case ast.UnaryOp(op=operator, operand=operand):
                return unary(operator, self.visit(operand))
            case ast.BinOp(left=left, op=(ast.BitAnd() | ast.BitOr()) as operator, right=right):
                return logical(operator, [self.visit(left), self.visit(right)])
            case ast.BinOp(left=left, op=operator, right=right):
                return arithmetic(operator, self.visit(left), self.visit(right))
            case ast.BoolOp(op=operator, values=values):
                return logical(operator, [self.visit(value) for value in values])
            case ast.Compare(left=left, ops=operators, comparators=others):
                return comparison(operators, [self.visit(part) for part in [left, *others]])
            case ast.IfExp():
                raise FormulaError("`if` is not part of a formula", "write where(condition, a, b)")
        raise FormulaError("not part of the formula language")

    def _name(self, name: str) -> tuple[Kind, Any]:
        if name == "score" and self.key == "mask":
            raise FormulaError(
                "a mask cannot depend on the score", "use where in the score formula"
            )
        if name in INDICES:
            return Kind.INTEGER, INDICES[name]
        if name in ("true", "false"):
            return Kind.BOOLEAN, sympy.true if name == "true" else sympy.false
        if name in ("score", "inf"):
            return Kind.REAL, score if name == "score" else sympy.oo
        if name in NAMED_MASKS:
            return Kind.BOOLEAN, self._named_mask(name, [])
        if name in _FUNCTIONS:
            raise FormulaError(f"{name} is a function", f"write {name}(...)")
        declared = self._declared(name)
        if declared.shape:
            axes = ", ".join(str(axis) for axis in declared.shape)
            raise FormulaError(f"{name} has shape [{axes}]", f"index it: {name}[{axes}]")
        return kind_of(declared), scalar_input(name, declared.dtype)

    def _declared(self, name: str) -> InputSpec:
        if name in self.inputs:
            return self.inputs[name]
        known = [*INDICES, *NAMED_MASKS, *_FUNCTIONS, *self.inputs, "score", "inf"]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else "declare it under inputs"
        raise FormulaError("unknown name", hint)

    def _lookup(self, name: str, index: ast.expr) -> tuple[Kind, Any]:
        declared = None if name in (*INDICES, "score") else self._declared(name)
        if declared is None or not declared.shape:
            raise FormulaError(f"{name} has no shape, and only inputs with a shape are indexed")
        parts = list(index.elts) if isinstance(index, ast.Tuple) else [index]
        if len(parts) != len(declared.shape):
            rule = f"{name} takes {len(declared.shape)} indices, not {len(parts)}"
            raise FormulaError(rule)
        values = [self.visit(part) for part in parts]
        for value in values:
            expect(value, {Kind.INTEGER}, "an index must be an integer")
        table = table_input(name, declared.dtype)
        return kind_of(declared), table(*(value.expr for value in values))

    def _call(self, name: str, arguments: list[ast.expr]) -> tuple[Kind, Any]:
        if name in NAMED_MASKS:
            return Kind.BOOLEAN, self._named_mask(name, arguments)
        if name not in _FUNCTIONS:
            close = difflib.get_close_matches(name, [*NAMED_MASKS, *_FUNCTIONS], 1)
            raise FormulaError(
                f"{name} is not a function of formulas",
                f"did you mean {close[0]}?" if close else None,
            )
        least = {"where": 3, "min": 2, "max": 2}.get(name, 1)
        if len(arguments) < least or (len(arguments) > least and name not in ("min", "max")):
            raise FormulaError(f"{name} takes {least} arguments, not {len(arguments)}")
        values = [self.visit(argument) for argument in arguments]
        if name == "where":
            return where(*values)
        return function(name, values)

    def _named_mask(self, name: str, arguments: list[ast.expr]) -> Any:
        mask = NAMED_MASKS[name]
        if len(arguments) != len(mask.parameters):
            form = f"{name}({', '.join(mask.parameters)})" if mask.parameters else name
            raise FormulaError(f"{name} takes {len(mask.parameters)} arguments", f"write {form}")
        if name == "document":
            return mask.build(self._ids(arguments[0]))
        values = [self.visit(argument) for argument in arguments]
        for value in values:
            expect(value, {Kind.INTEGER}, f"{name} takes integers or scalar int32 inputs")
            if not (is_constant(value.expr) or self._is_scalar_input(value.expr)):
                raise FormulaError(
                    f"{name} takes integers or scalar int32 inputs", None, value.node
                )
        return mask.build(*(value.expr for value in values))

    def _is_scalar_input(self, expr: Any) -> bool:
        return isinstance(expr, sympy.Symbol) and expr.name in self.inputs

    def _ids(self, node: ast.expr) -> Any:
        """The table that ``document`` compares."""
        rule = "document takes the name of an int32 input of shape [b, k]"
        if not isinstance(node, ast.Name):
            raise FormulaError(rule, None, node)
        declared = self._declared(node.id)
        if declared.shape != ("b", "k") or kind_of(declared) is not Kind.INTEGER:
            raise FormulaError(rule, f"declare {node.id}: {{shape: [b, k], dtype: int32}}", node)
        return table_input(node.id, declared.dtype)


def _has_many_parts(expr: Any) -> bool:
    parts = sympy.preorder_traversal(expr)
    return next(itertools.islice(parts, _MAX_PARTS, None), None) is not None
