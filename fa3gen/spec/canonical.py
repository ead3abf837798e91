"""One text for all spellings of a formula, and the name of a spec that has none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import sympy

from fa3gen.spec.masks import NAMED_MASKS

if TYPE_CHECKING:
    from fa3gen.spec.model import AttentionSpec

__all__ = ["canonical_text", "derived_name"]


def canonical_text(expr: Any) -> str:
    """A formula's text with relations brought to one side.

    ``k <= q``, ``q >= k`` and ``k - q < 1`` all give ``k - q <= 0``.
    """
    return str(sympy.sstr(_one_sided(expr), order="lex"))


def _one_sided(expr: Any) -> Any:
    if expr.is_Atom:
        return expr
    args = tuple(_one_sided(arg) for arg in expr.args)
    if isinstance(expr, sympy.Le | sympy.Lt | sympy.Eq | sympy.Ne):
        return _zero_sided(expr.func, args[0] - args[1])
    if args == expr.args:
        return expr
    if isinstance(expr, sympy.Mod | sympy.Piecewise):  # evaluating these can take very long
        return expr.func(*args, evaluate=False)
    return expr.func(*args)


def _zero_sided(relation: Any, difference: Any) -> Any:
    """``d relation 0``: of integers ``d < 0`` is ``d + 1 <= 0``, and ``-d == 0`` is ``d == 0``."""
    if relation is sympy.Lt and difference.is_integer:
        relation, difference = sympy.Le, difference + 1
    if relation in (sympy.Eq, sympy.Ne) and difference.could_extract_minus_sign():
        difference = -difference
    return relation(difference, 0, evaluate=False)


def derived_name(spec: AttentionSpec) -> str:
    """A name that follows from the variant: ``causal_d128_bf16``, ``full_d192_128_bf16``.

    A mask that no bare name stands for, and a score other than ``score``, give 8 hex digits each.
    """
    mask = canonical_text(spec.mask_expr)
    bare = {
        canonical_text(named.build()): name
        for name, named in NAMED_MASKS.items()
        if not named.parameters
    }
    dims = spec.head_dim
    parts = [
        bare.get(mask, f"mask_{_short_hash(mask)}"),
        f"d{dims.qk}" if dims.qk == dims.v else f"d{dims.qk}_{dims.v}",
        spec.dtype.value,
    ]
    score = canonical_text(spec.score_expr)
    return "_".join(parts if score == "score" else [*parts, f"score_{_short_hash(score)}"])


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
