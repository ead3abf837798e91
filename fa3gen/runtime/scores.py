"""Hand-written score functions for references, by the text of a spec's formula.

They share no code with the compiler's parser: a check of a formula compares two readings of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from fa3gen.errors import UnsupportedError
from fa3gen.runtime.masks import INPUT_NAME, Positions

__all__ = ["ScoreFunction", "reference_score"]

ScoreFunction = Callable[[Tensor, Positions], Tensor]  # of scaled products, and where they are

_NUMBER = r"(\d+(?:\.\d+)?)"


def _softcap(cap: str, again: str) -> ScoreFunction | None:
    """Gemma 2's soft cap of logits (arXiv 2408.00118, section 2)."""
    value = float(cap)
    return (lambda s, at: value * torch.tanh(s / value)) if cap == again else None


def _softcap_by_input(cap: str, again: str) -> ScoreFunction | None:
    """A soft cap that the call gives."""
    return (lambda s, at: at.input(cap) * torch.tanh(s / at.input(cap))) if cap == again else None


def _scaled(factor: str) -> ScoreFunction:
    value = float(factor)
    return lambda s, at: value * s


def _scaled_by_input(factor: str) -> ScoreFunction:
    return lambda s, at: s * at.input(factor)


def _sloped(divisor: str) -> ScoreFunction:
    """ALiBi's penalty of distance (arXiv 2108.12409) with one slope for all heads."""
    value = float(divisor)
    return lambda s, at: s + (at.k - at.q) / value


def _alibi(slopes: str) -> ScoreFunction:
    """ALiBi's penalty of distance (arXiv 2108.12409, section 3), a slope for each head."""
    return lambda s, at: s + at.table(slopes, at.h) * (at.k - at.q)


def _alibi_both_ways(slopes: str) -> ScoreFunction:
    """ALiBi's penalty of distance to keys on both sides."""
    return lambda s, at: s - at.table(slopes, at.h) * (at.q - at.k).abs()


def _relative(table: str, middle: str) -> ScoreFunction:
    """T5's bias by distance (arXiv 1910.10683, section 2.1), a table for each head."""
    return lambda s, at: s + at.table(table, at.h, at.k - at.q + int(middle))


def _bias(table: str) -> ScoreFunction:
    """A bias for each element of the scores."""
    return lambda s, at: s + at.table(table, at.b, at.h, at.row, at.k)


_FORMS: tuple[tuple[str, Callable[..., ScoreFunction | None]], ...] = (
    (rf"{_NUMBER}\*tanh\(score/{_NUMBER}\)", _softcap),
    (rf"{INPUT_NAME}\*tanh\(score/{INPUT_NAME}\)", _softcap_by_input),
    (rf"{_NUMBER}\*score", _scaled),
    (rf"{INPUT_NAME}\*score", _scaled_by_input),
    (rf"score\*{INPUT_NAME}", _scaled_by_input),
    (rf"score\+\(k-q\)/{_NUMBER}", _sloped),
    (rf"score\+{INPUT_NAME}\[h\]\*\(k-q\)", _alibi),
    (rf"score-{INPUT_NAME}\[h\]\*abs\(q-k\)", _alibi_both_ways),
    (rf"score\+{INPUT_NAME}\[h,k-q\+(\d+)\]", _relative),
    (rf"score\+{INPUT_NAME}\[b,h,row,k\]", _bias),
)


def reference_score(text: str) -> ScoreFunction | None:
    """The hand-written function of a score formula's text; None for the plain ``score``.

    Raises:
        UnsupportedError: nobody has written this formula by hand.
    """
    compact = re.sub(r"\s+", "", text)
    if compact == "score":
        return None
    for pattern, make in _FORMS:
        if (match := re.fullmatch(pattern, compact)) and (found := make(*match.groups())):
            return found
    raise UnsupportedError(
        f"no hand-written reference for the score {text!r}; known: score, c * score, "
        "c * tanh(score / c), score + (k - q) / c, score + a[h] * (k - q), "
        "score - a[h] * abs(q - k), score + a[h, k - q + n], score + a[b, h, row, k]"
    )
