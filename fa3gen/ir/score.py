"""Score formulas as kernels compute them: a factor for the softmax to multiply by, and the rest.

The softmax takes powers of 2 of ``x * c`` minus a maximum, one FFMA an element, whatever ``c`` is.
So a formula's constant factor, like the 50 of ``50 * tanh(score / 50)``, costs nothing: with
log2(e) it becomes ``c``. Where nothing else is left (``2 * score``) the formula costs nothing at
all, and the softmax scale joins ``c`` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

from fa3gen.spec import symbols

__all__ = ["PLAIN", "ScoreForm", "score_form"]

_SPECIAL = {sympy.tanh: 2, sympy.exp: 1, sympy.log: 1}  # instructions of the special-function unit


@dataclass(frozen=True)
class ScoreForm:
    """``factor * expr``; ``expr`` in the atoms of formulas, ``score`` scaled as users mean it."""

    factor: sympy.Rational
    expr: Any

    @property
    def plain(self) -> bool:
        """Whether nothing is computed an element."""
        return bool(self.expr == symbols.score)

    @property
    def special(self) -> int:
        """Instructions of the special-function unit an element."""
        parts = list(sympy.preorder_traversal(self.expr))
        calls = sum(_SPECIAL.get(part.func, 0) for part in parts)
        return calls + sum(bool(part.is_Pow) and not _is_power(part.exp) for part in parts)

    @property
    def arithmetic(self) -> int:
        """About how many other instructions an element."""
        return max(int(sympy.count_ops(self.expr)) - self.special, 0)

    def multiplier(self, scale: float) -> float:
        """What the softmax multiplies by, base e, for a softmax scale."""
        return float(self.factor) * (scale if self.plain else 1.0)


PLAIN = ScoreForm(sympy.Integer(1), symbols.score)


def score_form(expr: Any) -> ScoreForm:
    """The form of a parsed score formula; only positive factors are taken out."""
    factor, rest = expr.as_coeff_Mul()
    if factor.is_Rational and factor > 0:
        return ScoreForm(factor, rest)
    return ScoreForm(sympy.Integer(1), expr)


def _is_power(exponent: Any) -> bool:
    """Whether a power is made of products alone."""
    return bool(exponent.is_Integer and exponent > 0)
