"""Formulas with inputs: the parser and the interpreter against Python's own reading of the text."""

from __future__ import annotations

import random

import pytest
import torch
from formulas import INPUTS, MASKS, SCORES, Drawn, Sizes, direct, draw_inputs, draw_scores, symbolic
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fa3gen.errors import SpecError, VerificationError
from fa3gen.schedule.interpret import evaluate
from fa3gen.spec import symbols
from fa3gen.spec.formula import parse_mask, parse_score

CALLS = [
    (Sizes(), ()),
    (Sizes(row=9, k=4), ("bias", "doc", "slopes")),
    (Sizes(b=1, h=3, hk=3, row=2, k=11), ("key", "kvs", "rows", "lengths", "span")),
]


def read(text: str, sizes: Sizes, single: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """A text's values, as the interpreter has them and as Python does."""
    inputs, scores = draw_inputs(sizes, 0, single), draw_scores(sizes, 1)
    expr = parse_mask(text, INPUTS) if text in MASKS else parse_score(text, INPUTS)
    found = evaluate(expr, symbolic(sizes, inputs) | {symbols.score: scores})
    return found.expand(sizes.all), direct(text, sizes, inputs, scores)


@pytest.mark.parametrize(("sizes", "single"), CALLS, ids=str)
@pytest.mark.parametrize("text", [*SCORES, *MASKS])
def test_formulas_by_hand(text: str, sizes: Sizes, single: tuple[str, ...]) -> None:
    found, wanted = read(text, sizes, single)
    if text in MASKS:
        assert torch.equal(found, wanted), text
        return
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5, msg=text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(), st.sampled_from(CALLS))
def test_drawn_masks(pick: random.Random, call: tuple[Sizes, tuple[str, ...]]) -> None:
    sizes, single = call
    text, inputs = Drawn(pick).condition(3), draw_inputs(sizes, 0, single)
    found = evaluate(parse_mask(text, INPUTS), symbolic(sizes, inputs)).expand(sizes.all)
    assert torch.equal(found, direct(text, sizes, inputs)), text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(), st.sampled_from(CALLS))
def test_drawn_scores(pick: random.Random, call: tuple[Sizes, tuple[str, ...]]) -> None:
    sizes, single = call
    text, inputs, scores = Drawn(pick).score(), draw_inputs(sizes, 0, single), draw_scores(sizes, 1)
    try:
        expr = parse_score(text, INPUTS)
    except SpecError:  # a condition that never holds left nothing but -inf
        assume(False)
    values = symbolic(sizes, inputs) | {symbols.score: scores}
    found = evaluate(expr, values).expand(sizes.all).double()
    wanted = direct(text, sizes, inputs, scores).double()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda m: f"{text}: {m}")


@pytest.mark.parametrize("empty", [{"k": 0}, {"row": 0}, {"b": 0}], ids=str)
def test_calls_without_elements(empty: dict[str, int]) -> None:
    sizes = Sizes(**empty)
    inputs, scores = draw_inputs(sizes, 0), draw_scores(sizes, 1)
    values = symbolic(sizes, inputs) | {symbols.score: scores}
    for text in SCORES:
        assert evaluate(parse_score(text, INPUTS), values).expand(sizes.all).shape == sizes.all
    for text in MASKS:
        found = evaluate(parse_mask(text, INPUTS), values).expand(sizes.all)
        assert found.dtype is torch.bool


def test_an_empty_table_gives_zero() -> None:
    """Of a call that has no key: what a formula makes of it is never kept."""
    doc = symbols.table_input("doc", INPUTS["doc"].dtype)
    values = {symbols.b: torch.tensor(0), symbols.k: torch.tensor([0, 5])}
    found = evaluate(doc(symbols.b, symbols.k), values | {"doc": torch.empty(2, 0).int()})
    assert (found.dtype, found.tolist()) == (torch.int32, 0)


def test_indices_outside_a_table_are_clamped() -> None:
    lut = symbols.table_input("lut", INPUTS["lut"].dtype)
    values = {symbols.q: torch.tensor([-9, -1, 0, 3, 4, 2**40]), "lut": torch.tensor([7, 8, 9, 10])}
    assert evaluate(lut(symbols.q), values).tolist() == [7, 7, 7, 10, 10, 10]


def test_a_table_without_values_is_refused() -> None:
    lut = symbols.table_input("lut", INPUTS["lut"].dtype)
    with pytest.raises(VerificationError, match="no value of"):
        evaluate(lut(symbols.q), {symbols.q: torch.tensor(0)})
