"""The kernel that lists KV tiles, for masks that leave no tile known to be kept whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.codegen.cpp import print_cpp
from fa3gen.codegen.elements import ElementsView, FieldView, KernelNames, elements_view
from fa3gen.codegen.source import VariantMeta
from fa3gen.inputs import by_key
from fa3gen.ir.integral import is_integral
from fa3gen.ir.staging import Rate, rate_of, stage_mask
from fa3gen.schedule.program import Program
from fa3gen.schedule.ranges import KeyBounds, list_axes
from fa3gen.spec.symbols import FloorDiv, FloorMod

__all__ = ["ListsView", "lists_view"]

_UNKNOWN = "fa3gen::Truth(true, false)"
_ARITHMETIC = (
    *(sympy.Symbol, sympy.Integer, sympy.Add, sympy.Mul, sympy.Min, sympy.Max, sympy.Abs),
    *(FloorDiv, FloorMod),
)


@dataclass(frozen=True)
class EndsView:
    """The keys that some row keeps, as C++ expressions."""

    some_begin: str
    some_end: str


@dataclass(frozen=True)
class _Mask:
    elements: ElementsView


@dataclass(frozen=True)
class ListsView:
    """The translation unit of the kernel that lists KV tiles."""

    variant: VariantMeta
    program: Program
    symbol: str
    params: str
    bounds: EndsView
    mask: _Mask
    row_spans: tuple[FieldView, ...]  # of what rows look up
    column_spans: tuple[FieldView, ...]
    known: str  # what intervals tell of a pair of tiles

    @property
    def by_batch(self) -> bool:
        """Whether batches have lists of their own."""
        return list_axes(self.program.keep)[0]

    @property
    def by_head(self) -> bool:
        """Whether query heads have lists of their own."""
        return list_axes(self.program.keep)[1]


def lists_view(variant: VariantMeta, program: Program, bounds: KeyBounds, symbol: str) -> ListsView:
    """The view of a variant's kernel that lists KV tiles."""
    names = KernelNames(program.inputs, bounded=True)

    def bound(expr: sympy.Expr | None, default: str) -> str:
        return default if expr is None else print_cpp(expr, names)

    comment = "The mask: whether an element is kept."
    staged = stage_mask(program.keep, by_key(program.inputs))
    elements = elements_view("Mask", comment, staged, program.inputs, keep=True)
    spans = _Spans(KernelNames(program.inputs))
    return ListsView(
        variant=variant,
        program=program,
        symbol=symbol,
        params="Params",
        bounds=EndsView(bound(bounds.some_begin, "0"), bound(bounds.some_end, "params.seqlen_k")),
        mask=_Mask(elements),
        known=spans.known(program.keep),
        row_spans=tuple(spans.found[Rate.ROW]),
        column_spans=tuple(spans.found[Rate.COLUMN]),
    )


class _NoSpanError(Exception):
    """An expression that has no interval here."""


@dataclass
class _Spans:
    """A mask in the arithmetic of intervals; what rows and keys look up has intervals by name."""

    names: KernelNames
    found: dict[Rate, list[FieldView]] = field(
        default_factory=lambda: {Rate.ROW: [], Rate.COLUMN: []}
    )
    known_as: dict[Any, Any] = field(default_factory=dict)

    def known(self, keep: Any) -> str:
        """The text of the mask's truth; unknown where it has other parts."""
        try:
            return print_cpp(self._condition(keep), self.names)
        except _NoSpanError:
            for spans in self.found.values():
                spans.clear()
            return _UNKNOWN

    def _condition(self, expr: Any) -> Any:
        if isinstance(expr, (sympy.And, sympy.Or)):
            return expr.func(*map(self._condition, expr.args))
        return expr.func(*map(self._span, expr.args)) if expr.args else expr

    def _span(self, expr: Any) -> Any:
        if isinstance(expr, AppliedUndef):
            return self._looked_up(expr)
        if not (is_integral(expr) and isinstance(expr, _ARITHMETIC)):
            raise _NoSpanError
        if isinstance(expr, (FloorDiv, FloorMod)):
            divisor = expr.args[1]
            if not (divisor.is_Integer and divisor > 0):
                raise _NoSpanError
        return expr.func(*map(self._span, expr.args)) if expr.args else expr

    def _looked_up(self, expr: Any) -> Any:
        rate = rate_of(expr)
        if not expr.is_integer or rate is Rate.ELEMENT:
            raise _NoSpanError
        if rate is Rate.WORK:
            return expr
        if expr not in self.known_as:
            spans = self.found[rate]
            name = f"{expr.func.__name__}_of_{'rows' if rate is Rate.ROW else 'keys'}_{len(spans)}"
            spans.append(FieldView("fa3gen::Span", name, print_cpp(expr, self.names)))
            self.known_as[expr] = sympy.Symbol(name, integer=True)
        return self.known_as[expr]
