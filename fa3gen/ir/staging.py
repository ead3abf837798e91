"""Staging: a formula's parts, each computed as seldom as what it depends on allows.

::

    score + slopes[h] * (k - q)       work    w0 = slopes[h] log2(e)
                                      base    b0 = w0 * (k - q), at a thread's first key of a tile
                                      element product * scale log2(e) + (w0 * offset + b0)
    doc[b, q] == doc[b, k]            row     r0 = doc[b, q]
                                      column  c0 = doc[b, k]
                                      element r0 == c0

A thread's keys in a KV tile are its first one and others at constant offsets: so a real number that
is linear in k, with whole steps, is one FFMA with the offset as an immediate. Its base is computed
from exact integer differences of positions, however long the sequence.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.ir.integral import is_exact, is_integral
from fa3gen.ir.score import LOG2E, PRODUCT, SCALE_LOG2, ScoreForm
from fa3gen.spec import symbols
from fa3gen.spec.sums import expanded
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where

__all__ = ["OFFSET", "Part", "Rate", "Staged", "rate_of", "stage_mask", "stage_score"]

OFFSET = sympy.Symbol("offset from the first key", integer=True, nonnegative=True)


class Rate(enum.Enum):
    """How often a part is computed."""

    WORK = "work tile"
    ROW = "row of a work tile"
    COLUMN = "key of a KV tile"
    BASE = "row of a KV tile, at a thread's first key"
    PAIR = "row and two keys in a row"
    ELEMENT = "element"


@dataclass(frozen=True)
class Part:
    """A named part: ``expr`` in the atoms of formulas and in parts that are computed before."""

    symbol: Any
    rate: Rate
    expr: Any


@dataclass(frozen=True)
class Staged:
    """A formula as parts, in the order of their definitions, and an element's value in them.

    Of a biased score ``factor`` and ``bias`` make ``value * factor + bias`` of it, and ``base`` is
    the part of the bias that a shift may be taken from.
    """

    parts: tuple[Part, ...]
    value: Any
    factor: Any = sympy.S.One
    bias: Any = sympy.S.Zero
    base: Any = None

    def of(self, rate: Rate) -> tuple[Part, ...]:
        """The parts of a rate."""
        return tuple(part for part in self.parts if part.rate is rate)

    def __str__(self) -> str:
        lines = [f"  {p.rate.value}: {p.symbol} = {p.expr}" for p in self.parts]
        return "\n".join([*lines, f"  element: {self.value} * {self.factor} + {self.bias}"])


def rate_of(expr: Any) -> Rate:
    """How often a value changes; that of a bias's base is the caller's to know."""
    free = expr.free_symbols
    rows, keys = bool(free & {symbols.q, symbols.row}), symbols.k in free
    if free & {symbols.score, PRODUCT, OFFSET} or (rows and keys):
        return Rate.ELEMENT
    return Rate.ROW if rows else Rate.COLUMN if keys else Rate.WORK


@functools.lru_cache(maxsize=64)  # asked for with every tile that may be chosen
def stage_score(form: ScoreForm, by_key: frozenset[str] = frozenset()) -> Staged:
    """The parts of a score formula; ``by_key``: inputs that lie in memory key by key."""
    factor, core, bias = form.exponent
    stager = _Stager(by_key)
    value = stager.real(core)
    if not form.biased:
        return Staged(tuple(stager.parts), value)
    factor = stager.real(factor)
    base, rest = stager.linear(sympy.Add.make_args(bias), of_base=True)
    return Staged(tuple(stager.parts), value, factor, rest, base)


@functools.lru_cache(maxsize=64)
def stage_mask(keep: Any, by_key: frozenset[str] = frozenset()) -> Staged:
    """The parts of a mask; its value is a condition."""
    stager = _Stager(by_key)
    value = stager.condition(keep)
    return Staged(tuple(stager.parts), value)


_PREFIX = {Rate.WORK: "w", Rate.ROW: "r", Rate.COLUMN: "c", Rate.BASE: "b", Rate.PAIR: "p"}


@dataclass
class _Stager:
    """Takes parts out of expressions; equal ones once."""

    by_key: frozenset[str] = frozenset()
    parts: list[Part] = field(default_factory=list)
    known: dict[tuple[Rate, Any], Any] = field(default_factory=dict)

    # -- parts ------------------------------------------------------------------------------------

    def part(self, expr: Any, rate: Rate) -> Any:
        """The symbol of a part, or the expression where it is as good as one."""
        if _is_constant(expr) or _is_cheap(expr) or self._is_part(expr):
            return expr
        if (rate, expr) not in self.known:
            inner = self._within(expr, rate)
            count = sum(part.rate is rate for part in self.parts)
            kind = {"integer": True} if is_integral(expr) else {"real": True}
            symbol = sympy.Symbol(f"_{_PREFIX[rate]}{count}", **kind)  # no input is called so
            self.parts.append(Part(symbol, rate, inner))
            self.known[rate, expr] = symbol
        return self.known[rate, expr]

    def _is_part(self, expr: Any) -> bool:
        return any(part.symbol == expr for part in self.parts)

    def _within(self, expr: Any, rate: Rate) -> Any:
        """A part's expression, with those of its own parts that change more seldom taken out."""
        if not expr.args or rate is Rate.WORK:
            return expr
        args = []
        for arg in self._grouped(expr, rate):
            seldom = _slower(rate_of(arg), rate)
            take = seldom and isinstance(arg, sympy.Expr)
            args.append(self.part(arg, rate_of(arg)) if take else self._within(arg, rate))
        return expr.func(*args)

    def _grouped(self, expr: Any, rate: Rate) -> list[Any]:
        """The arguments, those of a sum or product that change as seldom joined into one."""
        if not isinstance(expr, (sympy.Add, sympy.Mul)):
            return list(expr.args)
        groups: dict[Rate, list[Any]] = {}
        for arg in expr.args:
            groups.setdefault(rate_of(arg), []).append(arg)
        shared = groups.pop(Rate.WORK, [])
        host = next((r for r in (Rate.ROW, Rate.COLUMN) if r in groups and _slower(r, rate)), None)
        if host is not None and not all(map(_is_constant, shared)):
            groups[host] = [*shared, *groups[host]]
        elif shared:
            groups[Rate.WORK] = shared
        joined = []
        for group, args in groups.items():
            joined += [expr.func(*args)] if _slower(group, rate) else args
        return joined

    # -- elements ---------------------------------------------------------------------------------

    def real(self, expr: Any) -> Any:
        """A real expression of an element."""
        rate = rate_of(expr)
        if rate is not Rate.ELEMENT:
            return self.part(expr, rate)
        if isinstance(expr, sympy.Add):
            base, rest = self.linear(expr.args)
            return sympy.Add(base, rest)
        if isinstance(expr, sympy.Mul):
            return expr.func(*(self.real(arg) for arg in self._grouped(expr, rate)))
        if isinstance(expr, Where):
            condition, yes, no = expr.args
            return Where(self.condition(condition), self.real(yes), self.real(no))
        if self._is_pair(expr):
            return self.part(expr, Rate.PAIR)
        if isinstance(expr, AppliedUndef):
            return expr.func(*map(self.integer, expr.args))
        if isinstance(expr, (FloorDiv, FloorMod)) and is_integral(expr):
            return self.integer(expr)
        return expr.func(*map(self.real, expr.args)) if expr.args else expr

    def linear(self, terms: Sequence[Any], *, of_base: bool = False) -> tuple[Any, Any]:
        """A sum as a base of its row and KV tile, and the rest, the base's steps among it; 0 for a
        base where nothing is linear in k, or (``of_base``) 0 as a base of its own."""
        steps, linear, others = [], [], []
        for term in terms:
            step = _step(term)
            if step is None:
                others.append(term)
            else:
                linear.append(term)
                steps.append(step)
        moves = [step for step in steps if step != 0]
        if not of_base and not moves:
            return sympy.Integer(0), self._sum(terms)
        total = sympy.Add(*linear)
        base = self._base(total, of_base)
        rest = [self._step(sympy.Add(*moves)) * OFFSET] if moves else []
        return base, sympy.Add(*rest, self._sum(others))

    def _base(self, total: Any, of_base: bool) -> Any:
        if not of_base and total.is_integer and _is_cheap(total):
            return self._new_base(total)
        return self._new_base(sympy.factor_terms(total))

    def _new_base(self, expr: Any) -> Any:
        """A part of the base, even if it is as cheap as a position: integers become real there."""
        if (Rate.BASE, expr) not in self.known:
            inner = self._within(expr, Rate.BASE)
            count = sum(part.rate is Rate.BASE for part in self.parts)
            symbol = sympy.Symbol(f"_b{count}", real=True)
            self.parts.append(Part(symbol, Rate.BASE, inner))
            self.known[Rate.BASE, expr] = symbol
        return self.known[Rate.BASE, expr]

    def _step(self, step: Any) -> Any:
        return self.part(step, rate_of(step))

    def _sum(self, terms: Sequence[Any]) -> Any:
        if not terms:
            return sympy.Integer(0)
        total = sympy.Add(*terms)
        if rate_of(total) is not Rate.ELEMENT:
            return self.part(total, rate_of(total))
        if not isinstance(total, sympy.Add):
            return self.real(total)
        grouped = self._grouped(total, Rate.ELEMENT)
        return sympy.Add(*(self.real(arg) for arg in grouped))

    def integer(self, expr: Any) -> Any:
        """An integer expression: an index, a side of an exact comparison."""
        rate = rate_of(expr)
        if not is_integral(expr):
            return self.real(expr)
        if rate is not Rate.ELEMENT and not _is_cheap(expr):
            return self.part(expr, rate)
        if self._is_pair(expr):
            return self.part(expr, Rate.PAIR)
        if isinstance(expr, Where):
            condition, *branches = expr.args
            return Where(self.condition(condition), *map(self.integer, branches))
        return expr.func(*map(self.integer, expr.args)) if expr.args else expr

    def _is_pair(self, expr: Any) -> bool:
        """Whether an element is looked up at its own key, so that two lie side by side."""
        if not isinstance(expr, AppliedUndef) or expr.func.__name__ not in self.by_key:
            return False
        *before, last = expr.args
        return bool(last == symbols.k) and all(symbols.k not in one.free_symbols for one in before)

    def condition(self, expr: Any) -> Any:
        """A condition of an element."""
        if isinstance(expr, (sympy.And, sympy.Or)):
            return expr.func(*map(self.condition, expr.args))
        if not expr.args:
            return expr
        take = self.integer if is_exact(expr) else self.real
        return expr.func(*map(take, expr.args))


def _slower(rate: Rate, than: Rate) -> bool:
    """Whether a part changes more seldom."""
    if than in (Rate.BASE, Rate.PAIR):  # which keys share
        return rate in (Rate.WORK, Rate.ROW)
    order = {Rate.WORK: 0, Rate.ROW: 1, Rate.COLUMN: 1, Rate.BASE: 2, Rate.PAIR: 2, Rate.ELEMENT: 2}
    return order[rate] < order[than]


def _is_constant(expr: Any) -> bool:
    return expr.free_symbols <= {LOG2E, SCALE_LOG2} and not expr.atoms(AppliedUndef)


def _is_cheap(expr: Any) -> bool:
    """Whether it is integer arithmetic on positions that the compiler shares by itself."""
    atoms = (sympy.Symbol, sympy.Integer, sympy.Add, sympy.Mul)
    return bool(expr.is_integer) and all(
        isinstance(part, atoms) and (not part.is_Symbol or part in _POSITIONS)
        for part in sympy.preorder_traversal(expr)
    )


_POSITIONS = frozenset(symbols.INDICES.values())


def _step(term: Any) -> Any | None:
    """What a term grows by from a key to the next: free of k, 0 if it has none; None if it does not
    grow evenly, or not from positions that are exact."""
    if symbols.k not in term.free_symbols:
        return None if rate_of(term) is Rate.ELEMENT else sympy.Integer(0)
    if rate_of(term) is Rate.ELEMENT and term.free_symbols & {symbols.score, PRODUCT}:
        return None
    coefficients: list[Any] = []
    whole: list[Any] = []
    for factor in sympy.Mul.make_args(term):
        (whole if symbols.k in factor.free_symbols else coefficients).append(factor)
    if len(whole) != 1 or not _is_cheap(whole[0]):
        return None
    slope = expanded(whole[0]).coeff(symbols.k, 1)
    if not slope.is_Integer or symbols.k in (expanded(whole[0]) - slope * symbols.k).free_symbols:
        return None
    return sympy.Mul(slope, *coefficients)
