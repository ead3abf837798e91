"""Score formulas in the form that kernels compute."""

from __future__ import annotations

import pytest

from fa3gen.ir import build_forward
from fa3gen.ir.ops import ScoreMod, Unit
from fa3gen.ir.score import score_form
from fa3gen.spec import AttentionSpec


def form(text: str):  # type: ignore[no-untyped-def]
    return score_form(AttentionSpec(head_dim=64, score=text).score_expr)


@pytest.mark.parametrize(
    ("text", "factor", "rest"),
    [
        ("score", 1, "score"),
        ("2 * score", 2, "score"),
        ("score / 4", 0.25, "score"),
        ("50 * tanh(score / 50)", 50, "tanh(score/50)"),
        ("-score", 1, "-score"),
        ("-3 * tanh(score)", 1, "-3*tanh(score)"),
        ("0 * score", 1, "0"),
        ("score + k", 1, "k + score"),
    ],
)
def test_positive_factors_are_left_to_the_softmax(text: str, factor: float, rest: str) -> None:
    found = form(text)
    assert (float(found.factor), str(found.expr)) == (factor, rest)
    assert found.plain == (rest == "score")


def test_what_the_softmax_multiplies_by() -> None:
    """The softmax scale too, but where the formula has taken it."""
    assert form("2 * score").multiplier(0.125) == 0.25
    assert form("50 * tanh(score / 50)").multiplier(0.125) == 50


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
