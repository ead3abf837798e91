from __future__ import annotations

import time

import pytest
import sympy

from fa3gen.schedule import make_schedule
from fa3gen.spec import load_spec
from fa3gen.spec.sums import expanded
from fa3gen.spec.symbols import FloorDiv, k, q


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [
        (3 * (q - k) + 1, 3 * q - 3 * k + 1),
        ((q + k) ** 2, q**2 + 2 * q * k + k**2),
        ((q + 1) * (k - 1), q * k - q + k - 1),
        (FloorDiv(2 * (q + k), sympy.Integer(3)), FloorDiv(2 * q + 2 * k, sympy.Integer(3))),
    ],
)
def test_small_sums_are_multiplied_out(expr: sympy.Expr, wanted: sympy.Expr) -> None:
    assert expanded(expr) == wanted


@pytest.mark.parametrize(
    "expr",
    [
        (q + k + 1) ** 60,
        sympy.Mul(*(q + k + i for i in range(20)), evaluate=False),
        sympy.tanh((q + k + 1) ** 60),
        1 + q * ((q + k) ** 30 + 1) ** 30,
    ],
)
def test_large_ones_stay_as_they_are(expr: sympy.Expr) -> None:
    begin = time.process_time()
    assert expanded(expr) == expr
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "mask",
    [
        "((q + k + row) ** 40) % 4 == 0",
        "causal & ((k * k * q + row) ** 31 % 8 == 1)",
        "(q + k + row + h) ** 60 <= 7",
        " * ".join(f"(q + {i} * k + row)" for i in range(1, 30)) + " > 0",
    ],
)
def test_masks_that_would_take_long(mask: str) -> None:
    begin = time.process_time()
    make_schedule(load_spec({"name": "wide", "head_dim": 64, "mask": mask}))
    assert time.process_time() - begin < 5


def test_formulas_that_would_take_long() -> None:
    begin = time.process_time()
    bias = {"bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"}}
    score = "score + bias[b, h, row, k] * (q + k + row) ** 50 + (q - k + row) ** 60"
    make_schedule(load_spec({"name": "wide", "head_dim": 64, "score": score, "inputs": bias}))
    assert time.process_time() - begin < 5
