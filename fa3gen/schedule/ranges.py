"""Which KV tiles a query tile visits, and which of them need the mask.

Derived from the mask expression alone. The mask is read as a conjunction; each comparison that is
affine in ``q`` with ``k`` alone on one side bounds ``k``. For positions ``q_first .. q_last``::

    k <= q + 3     some row keeps keys up to q_last + 3, every row keeps keys up to q_first + 3
    k >= q - 100   some row keeps keys from q_first - 100, every row from q_last - 100

A conjunct of any other form bounds nothing, and then every visited tile is masked element by
element: slower, never wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import q as Q
from fa3gen.spec.symbols import row as ROW
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K
from fa3gen.spec.symbols import seqlen_q as SEQLEN_Q

__all__ = ["Q_FIRST", "Q_LAST", "KeyBounds", "TileRange", "key_bounds", "tile_range"]

Q_FIRST = sympy.Symbol("q_first", integer=True)
Q_LAST = sympy.Symbol("q_last", integer=True)


@dataclass(frozen=True)
class KeyBounds:
    """Half-open key bounds of a query tile, as expressions in q_first, q_last and the lengths.

    Keys in [some_begin, some_end) are kept by some row, keys in [every_begin, every_end) by every
    row. None: no bound on that side but the keys themselves. ``exact`` is False if a conjunct of
    the mask bounds nothing, so that no tile may skip the mask.
    """

    some_begin: sympy.Expr | None
    every_begin: sympy.Expr | None
    every_end: sympy.Expr | None
    some_end: sympy.Expr | None
    exact: bool

    @property
    def masks_right(self) -> bool:
        """Whether tiles other than the one that holds the last key may need the mask."""
        return self.some_end is not None or not self.exact

    @property
    def masks_left(self) -> bool:
        """Whether tiles at the low end of the keys may need the mask."""
        return self.some_begin is not None


@dataclass(frozen=True)
class TileRange:
    """KV tiles: begin <= full_begin <= full_end <= end; those in [full_begin, full_end) are full.

    Tiles are visited from ``end - 1`` down to ``begin``.
    """

    begin: int
    full_begin: int
    full_end: int
    end: int

    @property
    def tiles(self) -> int:
        """Number of tiles visited."""
        return self.end - self.begin


def key_bounds(keep: sympy.Basic) -> KeyBounds:
    """The key bounds that follow from a mask expression in q, k, row and the lengths."""
    keep = keep.subs(ROW, Q + SEQLEN_Q - SEQLEN_K)
    upper: list[sympy.Expr] = []  # k < upper
    lower: list[sympy.Expr] = []  # k >= lower
    exact = True
    for conjunct in sympy.And.make_args(keep):
        if conjunct is sympy.true:
            continue
        bounds = _solve(conjunct)
        if bounds is None:
            exact = False
            continue
        upper += [bound for is_upper, bound in bounds if is_upper]
        lower += [bound for is_upper, bound in bounds if not is_upper]
    some_end, every_end = (_extreme(upper, most, sympy.Min) for most in (True, False))
    some_begin, every_begin = (_extreme(lower, most, sympy.Max) for most in (False, True))
    return KeyBounds(some_begin, every_begin, every_end, some_end, exact)


def _solve(conjunct: sympy.Basic) -> list[tuple[bool, sympy.Expr]] | None:
    """Bounds on k as (is upper, expression in q): k < upper, k >= lower; None if not affine."""
    if not isinstance(conjunct, (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt, sympy.Eq)):
        return None
    difference = sympy.expand(conjunct.lhs - conjunct.rhs)
    slope = difference.coeff(K, 1)
    rest = sympy.expand(difference - slope * K)
    if slope not in (1, -1) or rest.has(K) or not _is_affine(rest):
        return None
    bound = sympy.expand(-rest / slope)  # k (relation) bound
    if isinstance(conjunct, sympy.Eq):
        return [(True, bound + 1), (False, bound)]
    is_upper = isinstance(conjunct, (sympy.Le, sympy.Lt)) == (slope == 1)
    strict = isinstance(conjunct, (sympy.Lt, sympy.Gt))
    if is_upper:
        return [(True, bound if strict else bound + 1)]
    return [(False, bound + 1 if strict else bound)]


def _is_affine(rest: sympy.Expr) -> bool:
    """Whether an expression is an integer combination of q, the lengths and 1."""
    if not rest.free_symbols <= {Q, SEQLEN_Q, SEQLEN_K}:
        return False
    if not rest.is_polynomial(*rest.free_symbols):
        return False
    polynomial = sympy.Poly(rest, Q, SEQLEN_Q, SEQLEN_K)
    return polynomial.total_degree() <= 1 and all(c.is_Integer for c in polynomial.coeffs())


def _extreme(bounds: list[sympy.Expr], most: bool, joined: type[sympy.Basic]) -> sympy.Expr | None:
    """The bounds over q_first .. q_last at their largest (``most``) or smallest, joined."""
    if not bounds:
        return None
    ends = []
    for bound in bounds:
        rises = bound.coeff(Q, 1) >= 0
        ends.append(bound.subs(Q, Q_LAST if rises == most else Q_FIRST))
    return joined(*ends)


def tile_range(
    bounds: KeyBounds, q_first: int, q_last: int, lengths: tuple[int, int], block_n: int
) -> TileRange:
    """The KV tiles of the query positions ``q_first .. q_last``; ``lengths``: seqlen_q, seqlen_k.

    The kernel evaluates the same expressions; its text is made from the same record.
    """
    seqlen_q, seqlen_k = lengths
    values = {Q_FIRST: q_first, Q_LAST: q_last, SEQLEN_Q: seqlen_q, SEQLEN_K: seqlen_k}

    def value(bound: sympy.Expr | None, default: int) -> int:
        return default if bound is None else int(bound.subs(values))

    def clamp(number: int, low: int, high: int) -> int:
        return max(low, min(number, high))

    end = -(-clamp(value(bounds.some_end, seqlen_k), 0, seqlen_k) // block_n)
    begin = min(clamp(value(bounds.some_begin, 0), 0, seqlen_k) // block_n, end)
    full_end = clamp(value(bounds.every_end, seqlen_k), 0, seqlen_k) // block_n
    full_begin = -(-max(value(bounds.every_begin, 0), 0) // block_n)
    full_end = clamp(full_end, begin, end) if bounds.exact else begin
    full_begin = clamp(full_begin, begin, full_end)
    return TileRange(begin, full_begin, full_end, end)
