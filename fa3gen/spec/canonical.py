"""One text for all spellings of a formula, and the name of a spec that has none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from fa3gen.spec.masks import NAMED_MASKS

if TYPE_CHECKING:
    from fa3gen.spec.model import AttentionSpec

__all__ = ["canonical_text", "derived_name"]

_SIGNS = {sympy.Le: "<=", sympy.Lt: "<", sympy.Eq: "==", sympy.Ne: "!="}


def canonical_text(expr: Any) -> str:
    """A formula's text, in the language of formulas, with relations brought to one side.

    ``k <= q``, ``q >= k`` and ``k - q < 1`` all give ``k - q <= 0``.
    """
    return str(_CanonicalPrinter({"order": "lex"}).doprint(expr))


class _CanonicalPrinter(StrPrinter):  # type: ignore[misc]
    """Prints relations as ``d <= 0``, ``d == 0``; never rebuilds, hence never re-evaluates."""

    def _print(self, expr: Any, **hints: Any) -> str:
        if isinstance(expr, AppliedUndef):  # whatever its name
            return f"{expr.func.__name__}[{self.stringify(expr.args, ', ')}]"
        return str(super()._print(expr, **hints))

    def _print_Relational(self, expr: Any) -> str:  # noqa: N802
        difference = expr.lhs - expr.rhs
        sign = _SIGNS[expr.func]
        if sign == "<" and difference.is_integer:
            sign, difference = "<=", difference + 1
        if sign in ("==", "!=") and difference.could_extract_minus_sign():
            difference = -difference
        return f"{self._print(difference)} {sign} 0"

    def _print_And(self, expr: Any) -> str:  # noqa: N802
        return self._joined(expr, " & ")

    def _print_Or(self, expr: Any) -> str:  # noqa: N802
        return self._joined(expr, " | ")

    def _print_BooleanTrue(self, expr: Any) -> str:  # noqa: N802
        return "true"

    def _print_BooleanFalse(self, expr: Any) -> str:  # noqa: N802
        return "false"

    def _print_Infinity(self, expr: Any) -> str:  # noqa: N802
        return "inf"

    def _print_NegativeInfinity(self, expr: Any) -> str:  # noqa: N802
        return "-inf"

    def _print_FloorDiv(self, expr: Any) -> str:  # noqa: N802
        return self._binary("//", expr)

    def _print_FloorMod(self, expr: Any) -> str:  # noqa: N802
        return self._binary("%", expr)

    def _binary(self, operator: str, expr: Any) -> str:
        left, right = (self.parenthesize(arg, PRECEDENCE["Pow"]) for arg in expr.args)
        return f"({left} {operator} {right})"

    def _print_Function(self, expr: Any) -> str:  # noqa: N802
        return f"{expr.func.__name__.lower()}({self.stringify(expr.args, ', ')})"

    def _print_LatticeOp(self, expr: Any) -> str:  # noqa: N802
        parts = sorted(self._print(part) for part in expr.args)
        return f"{expr.func.__name__.lower()}({', '.join(parts)})"

    def _joined(self, expr: Any, operator: str) -> str:
        parts = sorted({self._print(part) for part in expr.args})
        return operator.join(f"({part})" for part in parts) if len(parts) > 1 else str(parts[0])


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
