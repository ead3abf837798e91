"""Far formulas: what is left of a formula where its tables end.

An index beyond a table is clamped to it. Of ``rel[h, k - q + 127]``, a table of 255, each row of a
query tile looks up ``rel[h, 0]`` in all keys that lie 127 or more before its first row: there the
formula is another, which looks up nothing an element::

    score + rel[h, k - q + 127]     score + far0      far0 = rel[h, 0], or rel[h, 254]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.inputs import InputMeta
from fa3gen.ir.score import ScoreForm, score_form
from fa3gen.ir.staging import Rate, rate_of, stage_score
from fa3gen.spec import symbols
from fa3gen.spec.sums import expanded

__all__ = ["FIRSTS", "LASTS", "FarForm", "FarLookup", "far_form"]

# The first and last positions of some rows and keys.
FIRSTS = {
    symbol: sympy.Symbol(f"{symbol.name}_first", integer=True)
    for symbol in (symbols.row, symbols.q, symbols.k)
}
LASTS = {symbol: sympy.Symbol(f"{symbol.name}_last", integer=True) for symbol in FIRSTS}


@dataclass(frozen=True)
class FarLookup:
    """A lookup that gives an end of its table: ``symbol`` for it, the two ends, and the least and
    the greatest index over some rows and keys, in FIRSTS and LASTS."""

    symbol: Any
    ends: tuple[Any, Any]
    least: Any
    most: Any
    last: int  # index


@dataclass(frozen=True)
class FarForm:
    """A formula whose lookups give ends of their tables."""

    form: ScoreForm
    lookups: tuple[FarLookup, ...]


def far_form(form: ScoreForm, inputs: Sequence[InputMeta]) -> FarForm | None:
    """What is left of a formula where its tables end; None if it has elements of another kind."""
    metas = {meta.name: meta for meta in inputs}
    whole = form.factor * form.core + form.bias
    tables = sorted((t for t in whole.atoms(AppliedUndef) if _is_of_element(t)), key=str)
    found = [_far(table, f"_far{i}", metas) for i, table in enumerate(tables)]
    lookups = tuple(one for one in found if one is not None)
    if not lookups or len(lookups) != len(tables):
        return None
    names = {table: one.symbol for table, one in zip(tables, lookups, strict=True)}
    left = score_form(whole.xreplace(names))
    if left.biased != form.biased or stage_score(left).of(Rate.ROW):
        return None
    return FarForm(left, lookups)


def _is_of_element(table: Any) -> bool:
    return rate_of(table) is Rate.ELEMENT


def _far(table: Any, name: str, metas: Mapping[str, InputMeta]) -> FarLookup | None:
    """A lookup along a fixed size, whose index grows evenly with rows and keys."""
    size = metas[table.func.__name__].shape[-1]
    *before, index = table.args
    if not isinstance(size, int) or any(rate_of(one) is not Rate.WORK for one in before):
        return None
    ends = _extremes(expanded(index))
    if ends is None or table.is_integer:
        return None
    first, last = (table.func(*before, sympy.Integer(i)) for i in (0, size - 1))
    return FarLookup(sympy.Symbol(name, real=True), (first, last), *ends, size - 1)


def _extremes(index: Any) -> tuple[Any, Any] | None:
    """The least and the greatest value of an index that is affine in positions."""
    least = most = index
    for symbol in FIRSTS:
        slope = index.coeff(symbol, 1)
        if not slope.is_Integer or symbol in (index - slope * symbol).free_symbols:
            return None
        low, high = (FIRSTS, LASTS) if slope > 0 else (LASTS, FIRSTS)
        least, most = least.xreplace({symbol: low[symbol]}), most.xreplace({symbol: high[symbol]})
    return least, most
