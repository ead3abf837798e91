"""The committed kernels are what the compiler renders now (`make golden` renders them again)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fa3gen.codegen import render
from fa3gen.paths import SPECS
from fa3gen.schedule import make_plan
from fa3gen.spec import load_spec

GENERATED = Path(__file__).parent.parent / "generated"
SHIPPED = sorted(path.stem for path in SPECS.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_generated_is_current(name: str) -> None:
    source = render(make_plan(load_spec(name)))
    folder = GENERATED / source.meta.name
    texts = {f"{kernel.meta.stem}.cu": kernel.text for kernel in source.units}
    committed = {path.name: path.read_text() for path in folder.iterdir()}
    assert committed == {**texts, "host.cpp": source.host}


def test_nothing_else_is_committed() -> None:
    assert sorted(path.name for path in GENERATED.iterdir()) == SHIPPED
