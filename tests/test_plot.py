"""The picture of a schedule."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fa3gen.errors import InputError, ToolchainError
from fa3gen.ir.graph import OpGraph
from fa3gen.plot import draw, layers
from fa3gen.schedule import make_schedule
from fa3gen.schedule.lower import lower
from fa3gen.spec import load_spec
from fa3gen.timeline import Timeline, simulate


@pytest.fixture(scope="module")
def drawn() -> tuple[OpGraph, Timeline]:
    schedule = make_schedule(load_spec({"head_dim": 64, "mask": "causal", "name": "drawn"}))
    return schedule.graph, simulate(lower(schedule), schedule.graph)


def test_layers_follow_the_data(drawn: tuple[OpGraph, Timeline]) -> None:
    graph, _ = drawn
    column = {op.name: index for index, ops in enumerate(layers(graph)) for op in ops}
    assert column.keys() == {op.name for op in graph.ops}
    for edge in graph.dependences:
        if not edge.distance:
            assert column[edge.source] < column[edge.target], edge
    assert column["LoadV"] == column["GemmPV"] - 1, "beside what reads it"


def test_svg(drawn: tuple[OpGraph, Timeline], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(*drawn, tmp_path / "a.svg")
    draw(*drawn, tmp_path / "b.SVG")
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml")
    assert text == (tmp_path / "b.SVG").read_text(), "the same schedule gives the same bytes"


def test_png(drawn: tuple[OpGraph, Timeline], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(*drawn, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a.pdf", "a", "svg"])
def test_other_formats(drawn: tuple[OpGraph, Timeline], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must end in \.svg or \.png"):
        draw(*drawn, tmp_path / name)


def test_no_matplotlib(
    drawn: tuple[OpGraph, Timeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolchainError, match=r"pip install 'fa3gen\[plot\]'"):
        draw(*drawn, tmp_path / "a.svg")
