"""The shipped specs: each runs on the interpreter and agrees with what is written by hand."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch

import fa3gen
from fa3gen.check import Case, Layout, Variant, run_case
from fa3gen.errors import UnsupportedError
from fa3gen.paths import SPECS
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.examples import InputExample
from fa3gen.spec import AttentionSpec, load_spec

SHIPPED = sorted(path.stem for path in SPECS.glob("*.yaml"))
CASES = (
    Case(2, 1, 1, 140, 140, seed=1),
    Case(1, 2, 1, 70, 270, Layout.EXPANDED, seed=2),
    Case(1, 1, 1, 130, 60, seed=3),
)
LONGER = {  # where a mask's own lengths are reached
    "chunked": Case(1, 1, 1, 40, 8210, seed=4),
    "dilated": Case(1, 1, 1, 100, 1100, seed=5),
    "window_d128_bf16": Case(1, 1, 1, 100, 1100, seed=6),
}


@functools.cache
def compiled(name: str) -> tuple[AttentionSpec, Attention]:
    spec = load_spec(name)
    try:
        return spec, fa3gen.compile(spec)
    except UnsupportedError as error:
        if spec.sink and "not compiled yet" in str(error):
            pytest.skip(str(error))
        raise


def variant_of(spec: AttentionSpec) -> Variant:
    declared = [(meta, spec.inputs[meta.name]) for meta in spec.input_metas]
    inputs = tuple(InputExample(meta, one.example, one.size) for meta, one in declared)
    return Variant(spec.mask, spec.score, inputs, spec.sink)


@pytest.mark.parametrize(
    ("name", "case"),
    [*itertools.product(SHIPPED, CASES), *LONGER.items()],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_shipped_spec_is_right(name: str, case: Case) -> None:
    spec, op = compiled(name)
    result = run_case(
        op,
        variant_of(spec),
        case,
        device="cpu",
        dtype=getattr(torch, spec.dtype.torch_name),
        head_dims=(spec.head_dim.qk, spec.head_dim.v),
    )
    assert result.ok, (name, result)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_spec_is_named_as_its_file_and_says_what_it_is(name: str) -> None:
    text = (Path(SPECS) / f"{name}.yaml").read_text()
    spec = load_spec(name)
    assert spec.name == name
    assert re.match(r"# [A-Z].*\.\n", text.partition("name:")[0].replace("\n# ", " "))
    if spec.score != "score" or spec.inputs or spec.sink:
        assert "arXiv" in text or "doi" in text
