"""Hand-written score functions for references, by the text of a spec's formula.

They share no code with the compiler's parser: a check of a formula compares two readings of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from fa3gen.errors import UnsupportedError
from fa3gen.runtime.masks import Positions

__all__ = ["ScoreFunction", "reference_score"]

ScoreFunction = Callable[[Tensor, Positions], Tensor]  # of scaled products, and where they are

_NUMBER = r"(\d+(?:\.\d+)?)"


def _softcap(cap: str, again: str) -> ScoreFunction | None:
    """Gemma 2's soft cap of logits (arXiv 2408.00118, section 2)."""
    value = float(cap)
    return (lambda s, at: value * torch.tanh(s / value)) if cap == again else None


def _scaled(factor: str) -> ScoreFunction:
    value = float(factor)
    return lambda s, at: value * s


def _sloped(divisor: str) -> ScoreFunction:
    """ALiBi's penalty of distance (arXiv 2108.12409) with one slope for all heads."""
    value = float(divisor)
    return lambda s, at: s + (at.k - at.q) / value


_FORMS: tuple[tuple[str, Callable[..., ScoreFunction | None]], ...] = (
    (rf"{_NUMBER}\*tanh\(score/{_NUMBER}\)", _softcap),
    (rf"{_NUMBER}\*score", _scaled),
    (rf"score\+\(k-q\)/{_NUMBER}", _sloped),
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
        f"no hand-written reference for the score {text!r}; "
        "known: score, c * score, c * tanh(score / c), score + (k - q) / c"
    )
