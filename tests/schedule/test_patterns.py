"""Masks that repeat along a row: the period, and what of a row lies in the interval."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fa3gen.schedule.interpret import evaluate
from fa3gen.schedule.key_sets import Interval
from fa3gen.schedule.patterns import Pattern, row_pattern
from fa3gen.spec import AttentionSpec
from fa3gen.spec.symbols import INDICES

INPUTS = {
    "doc": {"shape": ["b", "k"], "dtype": "int32"},
    "few": {"shape": [8], "dtype": "int32"},
    "lut": {"shape": ["k"], "dtype": "int32"},
    "n": {"dtype": "int32"},
    "reach": {"dtype": "int32"},
    "rows": {"shape": ["row"], "dtype": "int32"},
    "step": {"shape": ["h"], "dtype": "int32"},
}
DILATED = "window(1023, 0) & ((q - k) % 4 == 0)"
NEIGHBOURHOOD = "(abs(q // 32 - k // 32) <= 6) & (abs(q % 32 - k % 32) <= 6)"


@functools.cache
def mask_of(text: str) -> Any:
    return AttentionSpec(head_dim=64, mask=text, inputs=INPUTS).mask_expr


def pattern(text: str) -> Pattern:
    found = row_pattern(mask_of(text))
    assert found is not None, text
    return found


# --- by hand --------------------------------------------------------------------------------------

_PATTERNS = [
    # mask, the interval's begin and end, what holds inside, blocks of 8 keys
    (DILATED, ("q - 1023", "q + 1"), "(q - k) % 4 == 0", 1),
    (
        NEIGHBOURHOOD,
        ("32*FloorDiv(q, 32) - 192", "32*FloorDiv(q, 32) + 224"),
        "abs(q % 32 - k % 32) <= 6",
        4,
    ),
    ("causal & (k % 3 == 1)", ("None", "q + 1"), "k % 3 == 1", 3),
    ("k % 5 != 2", ("None", "None"), "k % 5 != 2", 5),
    ("window(9, 2) & (3 * k % 4 == 1)", ("q - 9", "q + 3"), "3 * k % 4 == 1", 1),
    ("3 * k % 9 == 0", ("None", "None"), "3 * k % 9 == 0", 3),  # every 3 keys
    ("causal & ((3 * k + q) % 24 == 0)", ("None", "q + 1"), "(3 * k + q) % 24 == 0", 1),
    ("-k % 4 == 0", ("None", "None"), "-k % 4 == 0", 1),
    ("k % 7 < 2", ("None", "None"), "k % 7 < 2", 7),
    ("causal & (k % 16 == 0)", ("None", "q + 1"), "k % 16 == 0", 2),
    ("k % 64 == 0", ("None", "None"), "k % 64 == 0", 8),  # the longest
    ("16 * k % 256 == 0", ("None", "None"), "16 * k % 256 == 0", 2),
    (
        "causal & (k % 2 == 0) & ((q - k) % 3 != 0)",
        ("None", "q + 1"),
        "(k % 2 == 0) & ((q - k) % 3 != 0)",
        3,
    ),
    ("(k % 6 == 0) | ((q - k) % 4 == 0)", ("None", "None"), "(k % 6 == 0) | ((q - k) % 4 == 0)", 3),
    ("k % 8 * (k % 5) == 0", ("None", "None"), "k % 8 * (k % 5) == 0", 5),
    ("k % 64 % 3 == 0", ("None", "None"), "k % 64 % 3 == 0", 8),
    # what a row or a work tile looks up does not depend on the key
    ("causal & (k % 4 == rows[row])", ("None", "q + 1"), "k % 4 == rows[row]", 1),
    ("(k + doc[b, q]) % 4 == n", ("None", "None"), "(k + doc[b, q]) % 4 == n", 1),
    ("few[k % 8] > 0", ("None", "None"), "few[k % 8] > 0", 1),
    ("k % 2 == q % n", ("None", "None"), "k % 2 == q % n", 1),
]


@pytest.mark.parametrize(("text", "bounds", "keep", "blocks"), _PATTERNS)
def test_patterns(text: str, bounds: tuple[str, str], keep: str, blocks: int) -> None:
    found = pattern(text)
    assert (str(found.keys.begin), str(found.keys.end)) == bounds, text
    assert found.keep == mask_of(keep), text
    assert found.blocks == blocks, text


_NONE = [
    # an interval, or all keys, or none
    *("full", "causal", "window(100, 20)", "chunk(64)", "false", "k % 1 == 0", "causal and q >= 9"),
    # no remainder of the key
    *("k != q", "causal & (q % 4 == 0)", "k // 2 * 2 == k", "(q - k) // 4 == 0", "k * k <= q"),
    # beside what does not repeat
    *("document(doc)", "causal & document(doc)", "document(doc) & (k % 4 == 0)"),
    *("causal & (k % 4 != 0) & (k != 7)", "causal | (k % 4 == 0)", "(k % 4 == 0) & (k * k <= q)"),
    *("where(k % 2 == 0, causal, k % 3 == 0)", "k < 8 * (k % 3)"),
    # a period that is not known
    *("k % n == 0", "k % step[h] == 0", "(k % 4 == 0) & (k % n == 0)", "k % -4 == 0"),
    *("k * n % 4 == 0", "k * q % 4 == 0", "k * k % 4 == 0", "k // 2 % 4 == 0"),
    *("(k % 64 + k) % 3 == 0", "k / 2 % 2 == 0"),
    # or is longer than 64 keys
    *("k % 65 == 0", "k % 128 == 0", "k % 9 == 0", "(q - k) % 11 == 3", "(k % 3) + (k % 7) == 2"),
    "(k % 16 == 0) | (k % 5 == 0)",
    # lookups at k
    *("lut[k] % 3 == 0", "k % 3 == lut[k] % 3", "(k + lut[k]) % 4 == 0", "few[k] == k % 2"),
]


@pytest.mark.parametrize("text", _NONE)
def test_no_patterns(text: str) -> None:
    assert row_pattern(mask_of(text)) is None


# --- element by element ---------------------------------------------------------------------------

_QUERIES = range(-9, 90)  # positions before the first key, too
_KEYS = 320  # more than twice the longest period
_TABLES = {
    "doc": torch.arange(200)[None] // 7,
    "few": torch.arange(8) % 3,
    "rows": torch.arange(100) % 4,
    "n": torch.tensor(3),
}


def values(expr: Any) -> Tensor:
    """A condition or a bound at each query and key, of one batch and head."""
    q = torch.arange(_QUERIES.start, _QUERIES.stop)[:, None]
    at = {"q": q, "k": torch.arange(_KEYS)[None], "row": q - _QUERIES.start}
    zero = torch.tensor(0)
    symbols = {**{INDICES[name]: x for name, x in at.items()}, INDICES["b"]: zero}
    scalars = {sympy.Symbol("n", integer=True): _TABLES["n"]}
    return evaluate(expr, {**symbols, **scalars, **_TABLES}).expand(len(_QUERIES), _KEYS)


def inside(keys: Interval) -> Tensor:
    """Whether a key lies in the interval of its row."""
    k = torch.arange(_KEYS)
    kept = torch.ones(len(_QUERIES), _KEYS, dtype=torch.bool)
    if keys.begin is not None:
        kept &= k >= values(keys.begin)
    if keys.end is not None:
        kept &= k < values(keys.end)
    return kept


def check_elements(text: str, found: Pattern) -> None:
    """The condition repeats, and in the interval it is the mask."""
    keep, period = values(found.keep), 8 * found.blocks
    assert 0 < period <= 64, text
    assert torch.equal(keep[:, period:], keep[:, :-period]), (text, period)
    assert torch.equal(keep & inside(found.keys), values(mask_of(text))), (text, found)


@pytest.mark.parametrize("text", [text for text, *_ in _PATTERNS])
def test_elements(text: str) -> None:
    check_elements(text, pattern(text))


_INTERVALS = ("full", "causal", "window(7, 3)", "k >= q - 20", "k < 77", "k // 16 == q // 16")
_SMALL = st.integers(-6, 6)


@st.composite
def remainders(draw: st.DrawFn) -> tuple[str, int]:
    """A comparison of a remainder, and its divisor over what that has in common with k's factor."""
    step = draw(_SMALL.filter(lambda step: step != 0))
    divisor, of_q, more = draw(st.integers(2, 24)), draw(_SMALL), draw(_SMALL)
    compare, right = draw(st.sampled_from(("==", "!=", "<", ">="))), draw(st.integers(0, 5))
    text = f"(({step} * k + {of_q} * q + {more}) % {divisor} {compare} {right})"
    return text, divisor // math.gcd(divisor, step)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(_INTERVALS),
    st.lists(remainders(), min_size=1, max_size=2),
    st.sampled_from((" & ", " | ")),
)
def test_elements_of_drawn_masks(
    interval: str, conditions: list[tuple[str, int]], joint: str
) -> None:
    text = f"({interval}) & ({joint.join(condition for condition, _ in conditions)})"
    found = row_pattern(mask_of(text))
    period = math.lcm(8, *(divisor for _, divisor in conditions))
    if found is not None:
        check_elements(text, found)
        assert 8 * found.blocks <= period, (text, found)
    elif period <= 64:  # then no remainder with a period of its own is left
        kept = values(mask_of(text))
        assert _is_interval(kept & inside(Interval(None, None))), text


def _is_interval(kept: Tensor) -> bool:
    """Whether the kept keys of each row follow each other."""
    starts = kept[:, 1:] & ~kept[:, :-1]
    return bool((starts.sum(-1) + kept[:, 0] <= 1).all())


def test_every_small_modulus() -> None:
    """Of multiples of k: whole blocks for periods of up to 64 keys."""
    for step, divisor in itertools.product((1, 2, 3, -1, 6), range(2, 70)):
        text = f"causal & (({step} * k + q) % {divisor} == 0)"
        period = divisor // math.gcd(divisor, step)
        found = row_pattern(mask_of(text))
        keys = math.lcm(8, period)
        if period == 1:
            continue
        assert (None if found is None else 8 * found.blocks) == (keys if keys <= 64 else None), text
