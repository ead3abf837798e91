"""Masks written by hand, for references, checks and peers: they share no parser with the compiler.

A mask is a function of :class:`Positions` that says which score elements are kept. Positions
follow the spec's convention: ``row`` is the query's index, ``q = row + seqlen_k - seqlen_q`` its
position aligned to the end of the keys (may be negative), ``k`` the key's index.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from fa3gen.errors import UnsupportedError

__all__ = [
    "IndexMask",
    "Keep",
    "Positions",
    "causal_mask",
    "dense_mask",
    "kept_pairs",
    "reference_mask",
    "window_bounds",
    "window_mask",
]

_COUNT_BLOCK = 1 << 24  # score elements evaluated at once when pairs are counted


@dataclass(frozen=True)
class Positions:
    """Integer index tensors of some score elements, broadcastable to (batch, heads, rows, keys)."""

    b: Tensor
    h: Tensor
    row: Tensor
    q: Tensor
    k: Tensor


IndexMask = Callable[[Positions], Tensor]
Keep = Union[Tensor, IndexMask, None]  # noqa: UP007  (evaluated at run time on Python 3.10)


def _full(at: Positions) -> Tensor:
    return (at.q == at.q) & (at.k == at.k)


def _causal(at: Positions) -> Tensor:
    return at.k <= at.q


def _window(left: int, right: int) -> IndexMask:
    """q - left <= k <= q + right, both inclusive; -1 leaves a side unbounded."""

    def keep(at: Positions) -> Tensor:
        kept = _full(at)
        if left >= 0:
            kept = kept & (at.k >= at.q - left)
        if right >= 0:
            kept = kept & (at.k <= at.q + right)
        return kept

    return keep


def _chunk(size: int) -> IndexMask:
    def keep(at: Positions) -> Tensor:
        return torch.div(at.q, size, rounding_mode="floor") == torch.div(
            at.k, size, rounding_mode="floor"
        )

    return keep


def _prefix_causal(size: int) -> IndexMask:
    def keep(at: Positions) -> Tensor:
        return (at.k <= at.q) | (at.k < size)

    return keep


_FORMS: tuple[tuple[str, Callable[..., IndexMask]], ...] = (
    (r"full", lambda: _full),
    (r"causal", lambda: _causal),
    (r"window\((-?\d+),(-?\d+)\)", _window),
    (r"chunk\((\d+)\)", _chunk),
    (r"causal\|prefix\((\d+)\)", _prefix_causal),
)


def reference_mask(text: str) -> IndexMask:
    """The hand-written function of a spec's mask text, such as ``causal`` or ``window(127, 0)``.

    Raises:
        UnsupportedError: nobody has written this mask by hand.
    """
    compact = re.sub(r"\s+", "", text)
    for pattern, make in _FORMS:
        if match := re.fullmatch(pattern, compact):
            return make(*(int(group) for group in match.groups()))
    raise UnsupportedError(
        f"no hand-written reference for the mask {text!r}; "
        "known: full, causal, window(l, r), chunk(n), causal | prefix(n)"
    )


def window_bounds(text: str) -> tuple[int, int] | None:
    """(left, right) of a mask that is one window (-1: unbounded), None for any other mask."""
    compact = re.sub(r"\s+", "", text)
    if compact == "full":
        return (-1, -1)
    if compact == "causal":
        return (-1, 0)
    if match := re.fullmatch(r"window\((-?\d+),(-?\d+)\)", compact):
        return (int(match[1]), int(match[2]))
    return None


def dense_mask(
    keep: IndexMask, seqlen_q: int, seqlen_k: int, device: torch.device | str | None = None
) -> Tensor:
    """The mask as booleans (seqlen_q, seqlen_k), for batch 0 and head 0."""
    rows = torch.arange(seqlen_q, device=device)
    return _block(keep, rows, seqlen_q, seqlen_k)


def causal_mask(seqlen_q: int, seqlen_k: int, device: torch.device | str | None = None) -> Tensor:
    """Booleans (seqlen_q, seqlen_k): k <= row + seqlen_k - seqlen_q."""
    return dense_mask(_causal, seqlen_q, seqlen_k, device)


def window_mask(
    seqlen_q: int,
    seqlen_k: int,
    left: int,
    right: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Booleans (seqlen_q, seqlen_k): q - left <= k <= q + right; -1 leaves a side unbounded."""
    return dense_mask(_window(left, right), seqlen_q, seqlen_k, device)


def kept_pairs(
    keep: IndexMask, seqlen_q: int, seqlen_k: int, device: torch.device | str | None = None
) -> int:
    """How many (query, key) pairs one head keeps, counted one by one."""
    if keep is _full:
        return seqlen_q * seqlen_k
    step = max(1, _COUNT_BLOCK // max(1, seqlen_k))
    blocks = torch.split(torch.arange(seqlen_q, device=device), step)
    return sum(int(_block(keep, rows, seqlen_q, seqlen_k).sum()) for rows in blocks)


def _block(keep: IndexMask, rows: Tensor, seqlen_q: int, seqlen_k: int) -> Tensor:
    """The mask's rows ``rows`` as booleans (len(rows), seqlen_k)."""
    zero = torch.zeros((), dtype=torch.int64, device=rows.device)
    column = rows[:, None]
    keys = torch.arange(seqlen_k, device=rows.device)[None, :]
    at = Positions(b=zero, h=zero, row=column, q=column + (seqlen_k - seqlen_q), k=keys)
    return keep(at).expand(len(rows), seqlen_k)
