"""Which input of a score formula is loaded as tiles, and what the formula is without it."""

from __future__ import annotations

import re

import pytest

from fa3gen.ir import build_forward
from fa3gen.ir.bias import BiasTile, kernel_score
from fa3gen.ir.ops import AddBias, LoadBias
from fa3gen.ir.score import PLAIN, ScoreForm, score_form
from fa3gen.spec import AttentionSpec

INPUTS = {
    "bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"},
    "cap": {"dtype": "fp32"},
    "few": {"shape": [3, "row", "k"], "dtype": "bf16"},
    "flat": {"shape": ["row", "k"], "dtype": "fp16"},
    "flipped": {"shape": ["b", "h", "k", "row"], "dtype": "bf16"},
    "groups": {"shape": ["hk", "row", "k"], "dtype": "bf16"},
    "ints": {"shape": ["b", "h", "row", "k"], "dtype": "int32"},
    "lut": {"shape": ["h"], "dtype": "int32"},
    "pairs": {"shape": ["h", "row", "k"], "dtype": "fp16"},
    "square": {"shape": [64, 64], "dtype": "bf16"},
    "t": {"shape": ["h"], "dtype": "fp32"},
    "wide": {"shape": ["b", "h", "row", "k"], "dtype": "fp32"},
}


def spec(text: str) -> AttentionSpec:
    """The formula with the inputs that it names."""
    named = {name: one for name, one in INPUTS.items() if re.search(rf"\b{name}\b", text)}
    return AttentionSpec(head_dim=64, score=text, inputs=named)


def tiled(text: str) -> tuple[ScoreForm, BiasTile]:
    """The form and the bias of a formula that has one."""
    form, bias = kernel_score(spec(text))
    assert bias is not None, text
    return form, bias


def parts(form: ScoreForm) -> tuple[str, str, str]:
    return str(form.factor), str(form.core), str(form.bias)


# --- formulas with a bias -------------------------------------------------------------------------

_TILED = [
    # formula, the bias's factor, what is left: factor, core, bias
    ("score + bias[b, h, row, k]", 1, ("1", "score", "0")),
    ("bias[b, h, row, k] + score", 1, ("1", "score", "0")),
    ("score - bias[b, h, row, k]", -1, ("1", "score", "0")),
    ("2 * score + bias[b, h, row, k]", 1 / 2, ("2", "score", "0")),
    ("score / 3 + bias[b, h, row, k]", 3, ("1/3", "score", "0")),
    ("2 * (score + bias[b, h, row, k])", 1, ("2", "score", "0")),
    ("-score + bias[b, h, row, k]", -1, ("-1", "score", "0")),
    ("score + 0.1 * bias[b, h, row, k]", 0.1, ("1", "score", "0")),
    ("score + bias[b, h, row, k] - bias[b, h, row, k] / 4", 3 / 4, ("1", "score", "0")),
    ("50 * tanh((score + bias[b, h, row, k]) / 50)", 1, ("50", "tanh(score/50)", "0")),
    ("cap * tanh((score + bias[b, h, row, k]) / cap)", 1, ("cap", "tanh(score/cap)", "0")),
    ("exp(score + bias[b, h, row, k])", 1, ("1", "exp(score)", "0")),
    ("(score + bias[b, h, row, k]) ** 2", 1, ("1", "score**2", "0")),
    ("t[h] * (score + bias[b, h, row, k]) + k", 1, ("t(h)", "score", "k")),
    (
        "score + 0.5 * bias[b, h, row, k] + t[h] * (k - q)",
        1 / 2,
        ("1", "score", "(k - q)*t(h)"),
    ),
    (
        "where(k <= q, score + bias[b, h, row, k], -inf)",
        1,
        ("1", "Where(k <= q, score, -oo)", "0"),
    ),
]


@pytest.mark.parametrize(("text", "factor", "rest"), _TILED)
def test_a_formula_of_the_score_plus_a_multiple_of_the_bias(
    text: str, factor: float, rest: tuple[str, str, str]
) -> None:
    form, bias = tiled(text)
    assert (bias.meta.name, str(bias.lookup)) == ("bias", "bias(b, h, row, k)"), text
    assert bias.factor == factor, text
    assert parts(form) == rest, text


def test_what_is_left_of_a_sum_costs_nothing() -> None:
    """Nor does what is left of a multiple; of the negative, the exponent is computed."""
    assert tiled("score + bias[b, h, row, k]")[0] == PLAIN
    assert tiled("2 * score + bias[b, h, row, k]")[0].plain
    negative = tiled("-score + bias[b, h, row, k]")[0]
    assert negative.biased
    assert not negative.plain
    assert not tiled("50 * tanh((score + bias[b, h, row, k]) / 50)")[0].biased
    assert tiled("score + bias[b, h, row, k] + t[h] * (k - q)")[0].biased


@pytest.mark.parametrize(
    ("lookup", "heads"),
    [
        ("bias[b, h, row, k]", ("b", "h")),
        ("bias[h, b, row, k]", ("h", "b")),
        ("bias[b, h // 2, row, k]", ("b", "FloorDiv(h, 2)")),
        ("bias[b, hk, row, k]", ("b", "hk")),
        ("bias[0, h - 1, row, k]", ("0", "h - 1")),
        ("pairs[h, row, k]", ("0", "h")),
        ("groups[hk, row, k]", ("0", "hk")),
        ("few[2, row, k]", ("0", "2")),
        ("few[h % 3, row, k]", ("0", "FloorMod(h, 3)")),
        ("flat[row, k]", ("0", "0")),
    ],
)
def test_indices_before_row_and_key(lookup: str, heads: tuple[str, str]) -> None:
    """Outermost first: batch and head, of a smaller rank zeros before them."""
    form, bias = tiled(f"score + {lookup}")
    assert tuple(map(str, bias.heads)) == heads, lookup
    assert bias.meta.name == lookup.partition("[")[0]
    assert form == PLAIN


def test_of_several_the_first_by_name_is_loaded() -> None:
    form, bias = tiled("score + pairs[h, row, k] + bias[b, h, row, k] + 2 * flat[row, k]")
    assert bias.meta.name == "bias"
    assert parts(form) == ("1", "score", "2*flat(row, k) + pairs(h, row, k)")
    form, bias = tiled("score + pairs[h, row, k] + bias[b, h, row - 1, k]")
    assert bias.meta.name == "pairs"
    assert parts(form) == ("1", "score", "bias(b, h, row - 1, k)")


def test_of_one_input_one_place_is_loaded() -> None:
    form, bias = tiled("score + bias[b, h, row, k] + bias[b, h, k, k]")
    assert str(bias.lookup) == "bias(b, h, row, k)"
    assert parts(form) == ("1", "score", "bias(b, h, k, k)")


def test_a_graph_loads_and_adds_it() -> None:
    with_bias = build_forward(spec("score + bias[b, h, row, k]"), 128, 128)
    assert with_bias.has(LoadBias)
    assert with_bias.has(AddBias)
    without = build_forward(spec("score * bias[b, h, row, k]"), 128, 128)
    assert not without.has(LoadBias)
    assert not without.has(AddBias)


# --- formulas without -----------------------------------------------------------------------------

_MULTIPLIED = [  # no constant times the bias is added to the score
    "score * bias[b, h, row, k]",
    "t[h] * score + bias[b, h, row, k]",
    "cap * score + bias[b, h, row, k]",
    "score + cap * bias[b, h, row, k]",
    "score + k * bias[b, h, row, k]",
    "score + bias[b, h, row, k] ** 2",
    "score + max(bias[b, h, row, k], 0)",
    "50 * tanh(score / 50) + bias[b, h, row, k]",
    "score ** 2 + bias[b, h, row, k]",
    "score + tanh(score + bias[b, h, row, k])",
    "bias[b, h, row, k]",
]
_ELSEWHERE = [  # not at the element's own row and key of a work tile's heads
    "score + flipped[b, h, k, row]",
    "score + square[row, k]",
    "score + flat[k, row]",
    "score + bias[b, h, row - 1, k]",
    "score + bias[b, h, row, k + 1]",
    "score + bias[b, h, q, k]",
    "score + bias[b, lut[h], row, k]",
    "score + bias[b, k, row, k]",
    "score + bias[row, h, row, k]",
]
_TYPES = ["score + wide[b, h, row, k]", "score + ints[b, h, row, k]"]


@pytest.mark.parametrize("text", [*_MULTIPLIED, *_ELSEWHERE, *_TYPES, "score", "score + t[h]"])
def test_other_formulas_stay_as_they_are(text: str) -> None:
    """Threads look up each element, or there is nothing to look up."""
    form, bias = kernel_score(spec(text))
    assert bias is None, text
    assert form == score_form(spec(text).score_expr), text


def test_what_is_looked_up_by_threads() -> None:
    """The forms themselves, of formulas like those that have a bias."""
    forms = {
        "score * bias[b, h, row, k]": ("1", "score*bias(b, h, row, k)", "0"),
        "score + wide[b, h, row, k]": ("1", "score", "wide(b, h, row, k)"),
        "t[h] * score + bias[b, h, row, k]": ("t(h)", "score", "bias(b, h, row, k)"),
        "50 * tanh(score / 50) + flat[row, k]": ("50", "tanh(score/50)", "flat(row, k)"),
    }
    for text, rest in forms.items():
        assert parts(kernel_score(spec(text))[0]) == rest, text
