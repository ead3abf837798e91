"""BiasTile: an input that a score formula adds at each element's own row and key.

For ``score + bias[b, h, row, k]`` TMA loads a tile of the bias for each tile of scores, beside K.
A warpgroup reads its rows in the layout of its accumulators (``ldmatrix``) and adds bias / scale
to the products, while the product with V of the tile before runs; what follows is the softmax of
the formula without the bias. Read by each thread from global memory instead, the bias would keep
the L1 busier than the products do the tensor core. NOTES tells of other places for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.dtypes import DType
from fa3gen.inputs import InputMeta
from fa3gen.ir.score import ScoreForm, score_form
from fa3gen.spec import AttentionSpec, symbols

__all__ = ["BiasTile", "kernel_score"]

_LOADED = (DType.BF16, DType.FP16)  # elements of two bytes, which ldmatrix moves
_HEADS = frozenset({symbols.b, symbols.h, symbols.hk})


@dataclass(frozen=True)
class BiasTile:
    """The input, as the formula looks it up, and the constant that multiplies it."""

    meta: InputMeta
    lookup: Any
    factor: float

    @property
    def heads(self) -> tuple[Any, Any]:
        """The indices before row and key, outermost first; 0 where there are fewer."""
        zero = sympy.Integer(0)
        first, second = (zero, zero, *self.lookup.args[:-2])[-2:]
        return first, second


def kernel_score(spec: AttentionSpec) -> tuple[ScoreForm, BiasTile | None]:
    """The formula that scores go through after their product, and the bias that is added to it, if
    there is one: of several the first by name."""
    score = spec.score_expr
    metas = {meta.name: meta for meta in spec.input_metas}
    for lookup in sorted(score.atoms(AppliedUndef), key=str):
        meta = metas[lookup.func.__name__]
        factor = _factor(score, lookup) if _has_tiles(lookup, meta) else None
        if factor is not None:
            bias = BiasTile(meta, lookup, float(factor))
            return score_form(score.xreplace({lookup: sympy.Integer(0)})), bias
    return score_form(score), None


def _has_tiles(lookup: Any, meta: InputMeta) -> bool:
    """Whether elements are looked up at their own row and key, of what a work tile shares."""
    if meta.dtype not in _LOADED or meta.shape[-2:] != ("row", "k"):
        return False
    *heads, row, key = lookup.args
    known = all(index.free_symbols <= _HEADS and not index.has(AppliedUndef) for index in heads)
    return known and (row, key) == (symbols.row, symbols.k)


def _factor(score: Any, lookup: Any) -> Any | None:
    """The constant c with which a formula f, free of the lookup, is f(score + c * lookup). Nothing
    is multiplied out: what a formula's text can make of that has no bound."""
    rest = score.xreplace({lookup: sympy.Integer(0)})
    if rest.xreplace({symbols.score: symbols.score + lookup}) == score:
        return sympy.Integer(1)
    terms = sympy.Add.make_args(score)
    found = [
        term.as_coeff_Mul()
        for symbol in (lookup, symbols.score)
        for term in terms
        if term.has(symbol)
    ]
    if [x for _, x in found] != [lookup, symbols.score]:
        return None
    added, multiplied = (factor for factor, _ in found)
    return added / multiplied if added.is_Rational and multiplied.is_Rational else None
