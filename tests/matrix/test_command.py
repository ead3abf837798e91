from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fa3gen.cli import app
from fa3gen.errors import InputError
from fa3gen.matrix import command, sets
from fa3gen.matrix.calls import parse_case
from fa3gen.matrix.command import Request, execute
from fa3gen.matrix.covering import pairs_of
from fa3gen.matrix.journal import Journal
from fa3gen.matrix.points import Point
from fa3gen.matrix.report import markdown


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "has_hopper", lambda: False)


def test_quick(tmp_path: Path) -> None:
    """The quick matrix itself: every pair of its kernels' choices, on the interpreter."""
    found = execute(Request(matrix="quick"), tmp_path)
    assert not found.failed, markdown(found)
    points = sets.read("quick").points
    assert found.pairs == len({pair for point in points for pair in pairs_of(point.chosen)})
    assert all(one.calls for one in found.outcomes)
    started = time.monotonic()
    again = execute(Request(matrix="quick"), tmp_path, resume=True)
    assert again.outcomes == found.outcomes
    assert time.monotonic() - started < 20, "outcomes are kept, only their calls are shared out"


def test_some_points() -> None:
    request = Request(matrix="quick", where={"mask": ("band",), "dtype": ("fp16",)}, limit=2)
    targets = list(request.targets())
    assert len(targets) == 2
    assert all("mask=band" in one.key and "dtype=fp16" in one.key for one in targets)
    assert request.what == "quick mask=band dtype=fp16"


def test_product_has_refusals(tmp_path: Path) -> None:
    """Of two neighbours in the product one fits and one does not."""
    where = {factor: (value,) for factor, value in Point.of({"head_dim": "256"}).chosen.items()}
    where["tile_n"] = ("16", "176")
    found = execute(Request(matrix="product", where=where), tmp_path)
    fits, refused = found.outcomes
    assert (fits.ok, refused.ok, refused.fault) == (True, False, False)
    assert refused.refusal.startswith("ScheduleError: tile 64x176 does not fit")
    assert not found.failed
    assert (tmp_path / "report.md").read_text() == markdown(found)


def test_nothing_to_test(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no point of the matrix has the values"):
        execute(Request(matrix="quick", where={"head_dim": ("256",)}), tmp_path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["test", *arguments])


def test_one_call_of_a_spec(tmp_path: Path) -> None:
    report, xml = tmp_path / "report", tmp_path / "junit.xml"
    done = run(
        *("causal_d64_bf16", "--call", "b1-h2/1-q70-k90-packed"),
        *("-o", str(report), "--junit", str(xml)),
    )
    assert done.exit_code == 0, done.output
    assert "1 kernels, 1 calls: all right" in done.output
    record = json.loads((report / "report.json").read_text())
    (outcome,) = record["outcomes"]
    assert outcome["worst_call"] == "b1-h2/1-q70-k90-packed"
    assert 'name="causal_d64_bf16"' in xml.read_text()


def test_a_spec_without_a_reference_fails(tmp_path: Path) -> None:
    spec = tmp_path / "strange.yaml"
    spec.write_text("head_dim: 64\nscore: score ** 3\n")
    done = run(str(spec), "--point", "head_dim=64", "--call", "b1-h1/1-q3-k5", "-o", str(tmp_path))
    assert done.exit_code == 1
    text = (tmp_path / "report.md").read_text()
    assert "no hand-written reference for the score 'score ** 3'" in text
    assert f"`fa3gen test {spec}`" in text
    assert "| head_dim=64 | 1 |" in text


def test_nothing_but_a_refusal(tmp_path: Path) -> None:
    spec = tmp_path / "strange.yaml"
    spec.write_text("head_dim: 64\nscore: score ** 3\n")
    done = run(str(spec), "-o", str(tmp_path))
    assert done.exit_code == 1
    assert "1 kernels, 0 calls: 1 kernels failed" in done.output


def test_a_kernel_named_twice_is_one() -> None:
    point = Point.parse(sets.read("quick").points[0].key)
    request = Request(specs=("causal", "causal"), points=(point, point), matrix="quick")
    keys = [target.key for target in request.targets()]
    assert keys[:2] == ["causal", point.key]
    assert len(keys) == len(set(keys)) == 1 + len(sets.read("quick").points)


def test_one_call_is_not_the_kernel(tmp_path: Path) -> None:
    """What was right stays kept, and one call more does not count for all."""
    point, other = Point.parse("head_dim=64"), Point.parse("head_dim=64,mask=band")
    case = parse_case("b1-h1/1-q3-k5")
    (first,) = execute(Request(points=(point,)), tmp_path).outcomes
    assert first.calls > 1
    for one in (point, other):
        execute(Request(points=(one,)), tmp_path, case=case)
    kept = Journal(tmp_path / "outcomes.jsonl", resume=True)
    assert kept.find(point.key, first.identity) == first
    assert other.key not in (tmp_path / "outcomes.jsonl").read_text()


def test_other_neighbours_are_other_calls(tmp_path: Path) -> None:
    """Points share out their calls, so that what is kept of one with others is not all of it."""
    points = [Point.parse(f"head_dim=64,mask={mask}") for mask in ("band", "chunk", "dilated")]
    execute(Request(points=points), tmp_path)
    (alone,) = execute(Request(points=points[:1]), tmp_path, resume=True).outcomes
    together = execute(Request(points=points), tmp_path / "new").outcomes
    assert alone.calls > max(outcome.calls for outcome in together)


def test_what_repeats_a_failure_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--point", "head_dim=64", "--call", "b1-h1/1-q3-k5")
    assert done.exit_code == 0, done.output
    assert [path.parent for path in Path().rglob("report.md")] == [Path("test-report/again")]


@pytest.mark.parametrize("option", [["--where", "head_dim=64"], ["--limit", "1"]])
def test_only_a_set_has_some_points(option: list[str]) -> None:
    done = run("causal", *option)
    assert done.exit_code == 2
    assert "give --matrix too" in done.output


def test_a_wrong_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter whose softmax takes another scale than it is given."""
    from fa3gen.schedule.interpret import Interpreter

    honest = Interpreter.__call__

    def wrong(self: Any, q: Any, k: Any, v: Any, scale: float, *more: Any) -> Any:
        return honest(self, q, k, v, scale * 1.05, *more)

    monkeypatch.setattr(Interpreter, "__call__", wrong)
    request = Request(points=(Point.parse("head_dim=64,mask=band"),))
    found = execute(request, tmp_path)
    (outcome,) = found.failed
    assert outcome.failures
    text = markdown(found)
    call = outcome.failures[0].call
    assert f"`fa3gen test --point head_dim=64,mask=band --call {call}`" in text
    assert text.index("## Failures") > 0
