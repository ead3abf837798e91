"""Masks written by hand, for references, checks and peers: they share no parser with the compiler.

A mask is a function of :class:`Positions` that says which score elements are kept. Positions
follow the spec's convention: ``row`` is the query's index, ``q = row + seqlen_k - seqlen_q`` its
position aligned to the end of the keys (may be negative), ``k`` the key's index.

A text is cut at its ``or and | &`` into pieces; each piece is one that somebody has written here.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Union

import torch
from torch import Tensor

from fa3gen.errors import InputError, UnsupportedError

__all__ = [
    "INPUT_NAME",
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
    """Integer index tensors of some score elements, broadcastable to (batch, heads, rows, keys),
    and the tensors that formulas name."""

    b: Tensor
    h: Tensor
    hk: Tensor
    row: Tensor
    q: Tensor
    k: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def table(self, name: str, *indices: Tensor) -> Tensor:
        """Elements of an input: an index beyond it gives what is nearest, so that an axis of one
        element stands for all."""
        found = self.input(name)
        sized = zip(indices, found.shape, strict=True)
        return found[tuple(index.clamp(0, size - 1) for index, size in sized)]

    def value(self, text: str) -> Tensor | int:
        """An integer's text as it is, or a scalar input by its name."""
        return int(text) if re.fullmatch(r"-?\d+", text) else self.input(text)

    def input(self, name: str) -> Tensor:
        """An input by its name. Raises InputError where there is none."""
        if name not in self.inputs:
            raise InputError(f"{name}: missing, and the mask or the score names it")
        return self.inputs[name]


IndexMask = Callable[[Positions], Tensor]
Keep = Union[Tensor, IndexMask, None]  # noqa: UP007  (evaluated at run time on Python 3.10)


# --- pieces ---------------------------------------------------------------------------------------


def _full(at: Positions) -> Tensor:
    return (at.q == at.q) & (at.k == at.k)


def _causal(at: Positions) -> Tensor:
    return at.k <= at.q


def _window(left: str, right: str) -> IndexMask:
    """q - left <= k <= q + right, both inclusive; -1 leaves a side unbounded."""

    def keep(at: Positions) -> Tensor:
        before, behind = at.value(left), at.value(right)
        from_left = (at.k >= at.q - before) | (before == -1)
        return from_left & ((at.k <= at.q + behind) | (behind == -1))

    return keep


def _chunk(size: str) -> IndexMask:
    """Blocks of positions that see each other alone, as in Llama 4."""

    def keep(at: Positions) -> Tensor:
        return _floor(at.q, at.value(size)) == _floor(at.k, at.value(size))

    return keep


def _prefix(length: str) -> IndexMask:
    return lambda at: at.k < at.value(length)


def _prefix_of_batch(lengths: str) -> IndexMask:
    """A prefix of its own for each batch (T5's prefix LM, arXiv 1910.10683)."""
    return lambda at: at.k < at.table(lengths, at.b)


def _document(ids: str) -> IndexMask:
    """Query and key of one document, by ids of positions; before the first key, the first's."""
    return lambda at: at.table(ids, at.b, at.q) == at.table(ids, at.b, at.k)


def _dilated(step: str) -> IndexMask:
    """Each ``step``-th key back from the query (Longformer, arXiv 2004.05150, section 3.1)."""
    return lambda at: torch.remainder(at.q - at.k, int(step)) == 0


def _near_lines(width: str, again: str, radius: str) -> IndexMask | None:
    """Lines of an image ``width`` wide that are at most ``radius`` apart."""
    n = int(width)
    near: IndexMask = lambda at: (_floor(at.q, n) - _floor(at.k, n)).abs() <= int(radius)  # noqa: E731
    return near if width == again else None


def _near_columns(width: str, again: str, radius: str) -> IndexMask | None:
    """Columns of an image ``width`` wide that are at most ``radius`` apart."""
    n = int(width)

    def near(at: Positions) -> Tensor:
        return (torch.remainder(at.q, n) - torch.remainder(at.k, n)).abs() <= int(radius)

    return near if width == again else None


def _before_queries(at: Positions) -> Tensor:
    """Keys that are there already when the queries come: the first seqlen_k - seqlen_q."""
    return at.k < at.q - at.row


def _tree(table: str) -> IndexMask:
    """Tokens of a tree of guesses and those before them, by a table of queries and new keys
    (SpecInfer, arXiv 2305.09781)."""
    return lambda at: at.table(table, at.row, at.k - (at.q - at.row)) > 0


def _floor(x: Tensor, size: Tensor | int) -> Tensor:
    return torch.div(x, size, rounding_mode="floor")


# --- from text to pieces --------------------------------------------------------------------------

INPUT_NAME = r"((?!(?:b|h|hk|row|q|k|seqlen_q|seqlen_k|score|inf)\b)[A-Za-z_]\w*)"
_NUMBER = r"(\d+)"
_VALUE = rf"(-?\d+|{INPUT_NAME[1:-1]})"
_BEHIND = r"k-\(seqlen_k-seqlen_q\)"

_FORMS: tuple[tuple[str, Callable[..., IndexMask | None]], ...] = (
    (r"full", lambda: _full),
    (r"causal", lambda: _causal),
    (rf"window\({_VALUE},{_VALUE}\)", _window),
    (rf"chunk\({_VALUE}\)", _chunk),
    (rf"prefix\({_VALUE}\)", _prefix),
    (rf"document\({INPUT_NAME}\)", _document),
    (rf"k<{INPUT_NAME}\[b\]", _prefix_of_batch),
    (rf"k<{_VALUE}", _prefix),
    (rf"\(q-k\)%{_NUMBER}==0", _dilated),
    (rf"abs\(q//{_NUMBER}-k//{_NUMBER}\)<={_NUMBER}", _near_lines),
    (rf"abs\(q%{_NUMBER}-k%{_NUMBER}\)<={_NUMBER}", _near_columns),
    (r"k<seqlen_k-seqlen_q", lambda: _before_queries),
    (rf"{INPUT_NAME}\[row,{_BEHIND}\]>0", _tree),
)

_JOINTS: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (  # the loosest first
    (r"\bor\b", operator.or_),
    (r"\band\b", operator.and_),
    (r"\|", operator.or_),
    (r"&", operator.and_),
)


def reference_mask(text: str) -> IndexMask:
    """The hand-written function of a spec's mask text, such as ``causal`` or ``window(127, 0)``.

    Raises:
        UnsupportedError: nobody has written this mask by hand.
    """
    found = _read(text.strip())
    if found is None:
        raise UnsupportedError(
            f"no hand-written reference for the mask {text!r}; known: full, causal, window(l, r), "
            "chunk(n), prefix(n), k < n, k < input[b], document(ids), (q - k) % n == 0, those of "
            "the shipped specs, and these joined by & and |"
        )
    return found


def _read(text: str) -> IndexMask | None:
    """The mask of a text, or None."""
    for joint, join in _JOINTS:
        if len(parts := _split(text, joint)) > 1:
            return _joined([_read(part) for part in parts], join)
    if _is_wrapped(text):
        return _read(text[1:-1].strip())
    compact = re.sub(r"\s+", "", text)
    for pattern, make in _FORMS:
        if match := re.fullmatch(pattern, compact):
            return make(*match.groups())
    return None


def _split(text: str, joint: str) -> list[str]:
    """The parts of a text between those of its joints that are in no parentheses."""
    parts, begin = [], 0
    for match in re.finditer(joint, text):
        before = text[: match.start()]
        if before.count("(") == before.count(")"):
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*parts, text[begin:].strip()]


def _is_wrapped(text: str) -> bool:
    """Whether the first parenthesis closes at the text's end."""
    depths = [text[:end].count("(") - text[:end].count(")") for end in range(1, len(text) + 1)]
    return text.startswith("(") and depths.index(0) == len(text) - 1 if 0 in depths else False


def _joined(
    parts: list[IndexMask | None], join: Callable[[Tensor, Tensor], Tensor]
) -> IndexMask | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return lambda at: functools.reduce(join, (part(at) for part in known))


# --- what else a mask is asked for ----------------------------------------------------------------


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
    keep = _window(str(left), str(right))
    return dense_mask(keep, seqlen_q, seqlen_k, device)


def kept_pairs(
    keep: IndexMask,
    seqlen_q: int,
    seqlen_k: int,
    device: torch.device | str | None = None,
    *,
    batch: int = 1,
    inputs: Mapping[str, Tensor] | None = None,
) -> int:
    """How many (query, key) pairs the first head of ``batch`` batches keeps, counted one by one;
    without ``inputs`` all batches keep the same."""
    if keep is _full:
        return batch * seqlen_q * seqlen_k
    step = max(1, _COUNT_BLOCK // max(1, seqlen_k))
    blocks = torch.split(torch.arange(seqlen_q, device=device), step)
    counted = range(batch) if inputs else range(min(batch, 1))
    pairs = sum(
        int(_block(keep, rows, seqlen_q, seqlen_k, b, inputs).sum())
        for b in counted
        for rows in blocks
    )
    return pairs if inputs else batch * pairs


def _block(
    keep: IndexMask,
    rows: Tensor,
    seqlen_q: int,
    seqlen_k: int,
    batch: int = 0,
    inputs: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The mask's rows ``rows`` as booleans (len(rows), seqlen_k), of a batch and head 0."""
    zero = torch.zeros((), dtype=torch.int64, device=rows.device)
    row = rows[:, None]
    at = Positions(
        b=zero + batch,
        h=zero,
        hk=zero,
        row=row,
        q=row + (seqlen_k - seqlen_q),
        k=torch.arange(seqlen_k, device=rows.device)[None, :],
        inputs=inputs or {},
    )
    return keep(at).expand(len(rows), seqlen_k)
