"""Score formulas in the form that kernels compute."""

from __future__ import annotations

import math

import pytest

from fa3gen.ir import build_forward
from fa3gen.ir.ops import ScoreMod, Unit
from fa3gen.ir.score import score_form
from fa3gen.spec import AttentionSpec

INPUTS = {
    "alpha": {"dtype": "fp32"},
    "slopes": {"shape": ["h"], "dtype": "fp32"},
    "doc": {"shape": ["b", "k"], "dtype": "int32"},
}


def form(text: str):  # type: ignore[no-untyped-def]
    return score_form(AttentionSpec(head_dim=64, score=text, inputs=INPUTS).score_expr)


@pytest.mark.parametrize(
    ("text", "factor", "core"),
    [
        ("score", 1, "score"),
        ("2 * score", 2, "score"),
        ("score / 4", 0.25, "score"),
        ("50 * tanh(score / 50)", 50, "tanh(score/50)"),
        ("score + tanh(score)", 1, "score + tanh(score)"),
        ("0 * score", 1, "0"),
        ("slopes[h]", 1, "slopes(h)"),
    ],
)
def test_positive_factors_are_left_to_the_softmax(text: str, factor: float, core: str) -> None:
    found = form(text)
    assert (float(found.factor), str(found.core), found.bias) == (factor, core, 0)
    assert not found.biased
    assert found.plain == (core == "score")


@pytest.mark.parametrize(
    ("text", "factor", "core", "bias"),
    [
        ("score + k", "1", "score", "k"),
        ("-score", "-1", "score", "0"),
        ("-3 * tanh(score)", "-3", "tanh(score)", "0"),
        ("score * log(q + 2)", "log(q + 2)", "score", "0"),
        ("alpha * (score - k) / 2", "alpha/2", "-k + score", "0"),
        ("alpha * score - k * q", "alpha", "score", "-k*q"),
        ("2 * alpha * tanh(score) * slopes[h]", "2*alpha*slopes(h)", "tanh(score)", "0"),
        ("score + slopes[h] * (k - q)", "1", "score", "(k - q)*slopes(h)"),
        ("score * k + doc[b, k]", "1", "k*score", "doc(b, k)"),
        ("score + exp(score) + 3", "1", "score + exp(score)", "3"),
    ],
)
def test_what_is_biased_has_its_factor_and_bias_apart(
    text: str, factor: str, core: str, bias: str
) -> None:
    """The factor is that of a row at most, and the bias knows no score."""
    found = form(text)
    assert (str(found.factor), str(found.core), str(found.bias)) == (factor, core, bias)
    assert found.biased
    assert not found.plain


def test_what_the_softmax_multiplies_by() -> None:
    """The softmax scale too, but where the formula has taken it; powers of 2 of what is biased."""
    assert form("2 * score").multiplier(0.125) == 0.25
    assert form("50 * tanh(score / 50)").multiplier(0.125) == 50
    assert form("score + k").multiplier(0.125) == math.log(2)
    assert form("-score").multiplier(0.125) == math.log(2)


def test_a_factor_alone_costs_nothing() -> None:
    plain = build_forward(AttentionSpec(head_dim=64, score="3 * score"), 128, 128)
    assert plain.score is None
    assert not plain.has(ScoreMod)


@pytest.mark.parametrize(
    ("text", "unit", "special"),
    [
        ("score + k / 8", Unit.FMA, 0),
        ("score ** 2", Unit.FMA, 0),
        ("exp(score)", Unit.MUFU, 1),
        ("tanh(score)", Unit.MUFU, 2),
        ("sigmoid(score)", Unit.MUFU, 2),
    ],
)
def test_units(text: str, unit: Unit, special: int) -> None:
    graph = build_forward(AttentionSpec(head_dim=64, score=text), 128, 128)
    op = graph.op(ScoreMod)
    assert (op.unit, op.form.special) == (unit, special)
    if special:
        assert op.cycles == 128 * 128 * special // 16
