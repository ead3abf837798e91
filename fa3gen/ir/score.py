"""Score formulas as kernels compute them: ``factor * core + bias``, for a softmax in base 2.

The softmax takes powers of 2 of ``x * c - shift``, one FFMA an element, whatever ``c`` and the
shift are. So what a formula adds to a function of the score, and what it multiplies that by, need
not be instructions of their own::

    50 * tanh(score / 50)         core tanh(..), factor 50          c = 50 log2(e)
    score + slopes[h] * (k - q)   core score, bias slopes[h] * ..   the bias joins the shift, c = 1

A formula with a bias, or with a factor that is not a positive constant, is *biased*: kernels
compute the exponent of 2 itself, log2(e) in both terms. Else its constant joins log2(e) in ``c``,
and where the core is the score itself (``2 * score``) the formula costs nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.spec import symbols
from fa3gen.spec.sums import expanded

__all__ = ["LOG2E", "PLAIN", "PRODUCT", "SCALE", "SCALE_LOG2", "ScoreForm", "score_form"]

PRODUCT = sympy.Symbol("Q K^T", real=True)  # an element of it; a name that no input can have
SCALE = sympy.Symbol("softmax scale", positive=True)
SCALE_LOG2 = sympy.Symbol("softmax scale log2(e)", real=True)  # times a constant factor
LOG2E = sympy.Symbol("log2(e)", positive=True)  # no number: sympy would multiply it out

_SPECIAL = {sympy.tanh: 2, sympy.exp: 1, sympy.log: 1}  # instructions of the special-function unit
_ONE = sympy.Integer(1)


@dataclass(frozen=True)
class ScoreForm:
    """``factor * core + bias``: the factor is that of a row at most, the bias knows no score."""

    factor: Any
    core: Any
    bias: Any = sympy.S.Zero

    @property
    def plain(self) -> bool:
        """Whether nothing is computed an element."""
        return not self.biased and bool(self.core == symbols.score)

    @property
    def biased(self) -> bool:
        """Whether kernels compute exponents of 2, and not the core for the softmax to multiply."""
        constant = self.factor.is_Rational and self.factor > 0
        return bool(self.bias != 0 or not constant)

    @property
    def value(self) -> Any:
        """What S holds of the score once the formula has gone over it."""
        return LOG2E * (self.factor * self.core + self.bias) if self.biased else self.core

    def multiplier(self, scale: float) -> float:
        """What the softmax multiplies S by, base e, for a softmax scale."""
        if self.biased:
            return math.log(2)
        return float(self.factor) * (scale if self.plain else 1.0)

    @property
    def scales_products(self) -> bool:
        """Whether products are multiplied by a constant times the softmax scale: by the softmax, or
        as the score of a biased formula."""
        return bool(self.core == symbols.score and self.factor.is_Rational)

    @property
    def constant(self) -> float:
        """The factor of what products, or else the cores, are multiplied by."""
        return float(self.factor) if self.factor.is_Rational else 1.0

    @cached_property
    def exponent(self) -> tuple[Any, Any, Any]:
        """(factor, core, bias) in PRODUCT and SCALE; with log2(e) where the form is biased."""
        scaled = PRODUCT * SCALE
        core = self.core.xreplace({symbols.score: scaled})
        if not self.biased:
            return _ONE, core, sympy.Integer(0)
        factor = LOG2E * self.factor
        if self.scales_products:
            factor, core = SCALE_LOG2, PRODUCT
        elif self.core == symbols.score:
            factor, core = factor * SCALE, PRODUCT
        return factor, core, sympy.Add(*(LOG2E * term for term in _by_positions(self.bias)))

    @property
    def rises(self) -> bool:
        """Whether the bias may grow from a key to those before it, which are visited later, as far
        as positions tell; coefficients are taken to be positive."""
        terms = [term for term in sympy.Add.make_args(self.bias) if _positions(term)]
        return any(not _falls(term) for term in terms)

    @property
    def special(self) -> int:
        """Instructions of the special-function unit an element."""
        parts = [part for part in self._parts if not _is_shared(part)]
        calls = sum(_SPECIAL.get(part.func, 0) for part in parts)
        return calls + sum(bool(part.is_Pow) and not _is_power(part.exp) for part in parts)

    @property
    def arithmetic(self) -> int:
        """About how many other instructions an element."""
        operations = [part for part in self._parts if part.args and not _is_shared(part)]
        return max(len(operations) - self.special, 0)

    @property
    def _parts(self) -> list[Any]:
        return [p for x in (self.core, self.bias) for p in sympy.preorder_traversal(x)]


PLAIN = ScoreForm(_ONE, symbols.score)


def score_form(expr: Any) -> ScoreForm:
    """The form of a parsed score formula."""
    terms = sympy.Add.make_args(expr)
    scored = [term for term in terms if term.has(symbols.score)]
    bias = sympy.Add(*(term for term in terms if term not in scored))
    if not scored:  # the scores do not matter
        return ScoreForm(_ONE, expr)
    factor, core = _parted(scored)
    return ScoreForm(factor, core, bias)


def _parted(terms: Sequence[Any]) -> tuple[Any, Any]:
    """The factors of a single term that its row shares, and the rest."""
    if len(terms) > 1:
        return _ONE, sympy.Add(*terms)
    factors = sympy.Mul.make_args(terms[0])
    shared = [factor for factor in factors if _is_of_row(factor)]
    core = [factor for factor in factors if factor not in shared]
    return sympy.Mul(*shared), sympy.Mul(*core)


def _positions(term: Any) -> bool:
    """Whether a term has the key's position in it, beside indices of inputs."""
    tables = {table: sympy.Dummy(real=True) for table in term.atoms(AppliedUndef)}
    return symbols.k in term.xreplace(tables).free_symbols


def _falls(term: Any) -> bool:
    """Whether a term is a multiple of k minus what does not depend on it."""
    sign, rest = term.as_coeff_Mul()
    moving = [f for f in sympy.Mul.make_args(rest) if symbols.k in f.free_symbols]
    if sign < 0 or len(moving) != 1:
        return False
    slope = expanded(moving[0]).coeff(symbols.k, 1)
    left = expanded(moving[0] - slope * symbols.k)
    return bool(slope.is_positive) and symbols.k not in left.free_symbols


def _by_positions(bias: Any) -> list[Any]:
    """The terms of a sum, those of positions alone together: their differences are exact."""
    terms = sympy.Add.make_args(bias)
    positions = frozenset(symbols.INDICES.values())
    of_positions = [t for t in terms if t.free_symbols <= positions and not t.atoms(AppliedUndef)]
    others = [term for term in terms if term not in of_positions]
    return [sympy.factor_terms(sympy.Add(*of_positions)), *others]


def _is_of_row(expr: Any) -> bool:
    return not expr.free_symbols & {symbols.score, symbols.k} and bool(expr.is_finite is not False)


def _is_shared(expr: Any) -> bool:
    """Whether a part is computed once for many elements."""
    free = expr.free_symbols
    rows = bool(free & {symbols.q, symbols.row})
    return symbols.score not in free and not (rows and symbols.k in free)


def _is_power(exponent: Any) -> bool:
    """Whether a power is made of products alone."""
    return bool(exponent.is_Integer and exponent > 0)
