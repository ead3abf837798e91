"""Overlap and ping-pong from the solved steady loop, and the stored solutions."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import pytest

from fa3gen.paths import SPECS
from fa3gen.schedule import make_schedule
from fa3gen.schedule.loop import emitted, steady_step
from fa3gen.schedule.modulo import Origin
from fa3gen.schedule.passes import start_plan
from fa3gen.schedule.rates import BARE
from fa3gen.schedule.show import show_schedule
from fa3gen.schedule.solutions import main, stored_problems
from fa3gen.schedule.solve import solve
from fa3gen.schedule.step import Budget, Step, make_step
from fa3gen.schedule.store import SOLUTIONS, stored, stored_keys
from fa3gen.spec import AttentionSpec
from fa3gen.spec.load import load_spec

SHIPPED = sorted(path.stem for path in SPECS.glob("*.yaml"))
UNSTORED: dict[str, Any] = {"head_dim": 128, "schedule": {"tile": {"m": 128, "n": 112}}}


def problem(spec: AttentionSpec) -> Step:
    step = steady_step(start_plan(spec)[-1])
    assert step is not None
    return step


@pytest.mark.parametrize("name", ["causal_d64_bf16", "full_d128_bf16", "full_d256_fp16"])
def test_stored_solutions_are_the_solvers(name: str) -> None:
    step = problem(load_spec(name))
    lines = SOLUTIONS.read_text().splitlines()
    assert f'"{step.key()}":{solve(step).to_json()}' in [line.rstrip(",") for line in lines]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_are_stored(name: str) -> None:
    schedule = make_schedule(load_spec(name))
    assert schedule.origin is Origin.STORED
    assert schedule.modulo == stored(problem(schedule.spec))
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (2, True)


def test_the_file_holds_its_problems_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert stored_keys() == set(stored_problems())
    assert main([]) == 0
    assert "0 missing" in capsys.readouterr().out
    assert main(["--wrong"]) == 2


@pytest.mark.parametrize("name", SHIPPED)
def test_operations_are_placed_as_solved(name: str) -> None:
    """But for the rescaling of O, which ``place`` has in front of the exponentials."""
    schedule = make_schedule(load_spec(name))
    assert schedule.modulo is not None
    solved, slots = schedule.modulo.stages(), schedule.modulo.slots()
    placed = {place.op: place for place in schedule.placements}
    consumer = ["GemmQK", "GemmPV", "RowMax", "Exp", "ConvertP"]
    assert [placed[op].stage for op in consumer] == [solved[op] for op in consumer]
    assert sorted(consumer, key=lambda op: placed[op].slot) == sorted(consumer, key=slots.index)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_other_stages_are_better(name: str) -> None:
    """The solver, free to place operations in any iteration, finds the emitted overlap."""
    step = problem(load_spec(name))
    free, held = solve(replace(step, patterns=())), stored(step)
    assert held is not None
    assert (free.interval, free.stages()) == (held.interval, held.stages())


def test_a_compiler_without_the_solver() -> None:
    """Nothing that makes a shipped kernel imports OR-tools."""
    program = textwrap.dedent("""
        import sys, fa3gen
        from fa3gen.codegen import render
        from fa3gen.paths import SPECS
        from fa3gen.schedule import make_plan
        from fa3gen.spec import load_spec

        for path in SPECS.glob("*.yaml"):
            render(make_plan(load_spec(path.stem)))
        fa3gen.compile("causal_d128_bf16")
        assert not [name for name in sys.modules if name.startswith("ortools")]
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_problem_that_is_not_stored_is_solved() -> None:
    schedule = make_schedule(AttentionSpec(**UNSTORED))
    assert schedule.origin is Origin.SOLVED
    assert schedule.modulo == solve(problem(schedule.spec))
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (2, True)


def test_a_problem_that_is_not_stored_without_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    schedule = make_schedule(AttentionSpec(**UNSTORED))
    assert (schedule.origin, schedule.modulo) == (Origin.UNSOLVED, None)
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (2, True)
    shown = show_schedule(schedule)
    assert "ortools is not installed\ninterval unknown" in shown
    alone = make_schedule(AttentionSpec(head_dim=128, schedule={"warpgroups": 1}))
    assert (alone.tiling.overlap, alone.tiling.pingpong) == (2, False)


@pytest.mark.parametrize(
    "knobs",
    [{"p_operand": "shared"}, {"warp_specialized": False}, {"ctas_per_sm": 2, "overlap": 1}],
    ids=str,
)
def test_what_the_solver_does_not_know(knobs: dict[str, Any]) -> None:
    schedule = make_schedule(AttentionSpec(head_dim=64, schedule=knobs))
    assert (schedule.origin, schedule.modulo) == (Origin.UNSEEN, None)
    overlap = knobs.get("overlap", 2)
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (overlap, overlap == 2)


@pytest.mark.parametrize(
    ("knobs", "overlap", "pingpong"),
    [
        ({"overlap": 1}, 1, False),
        ({"overlap": 2}, 2, True),
        ({"pingpong": False}, 2, False),
        ({"overlap": 2, "pingpong": False}, 2, False),
        ({"overlap": 3, "tile": {"n": 64}, "pingpong": True}, 3, True),
        ({"pipeline_depth": 1}, 2, True),
        ({"warpgroups": 1}, 2, False),
    ],
    ids=str,
)
def test_knobs_are_kept(knobs: dict[str, Any], overlap: int, pingpong: bool) -> None:
    schedule = make_schedule(AttentionSpec(head_dim=128, schedule=knobs))
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (overlap, pingpong)
    assert schedule.modulo is not None
    assert emitted(schedule.modulo)[0] == overlap, "the loop that is shown is the one emitted"


@pytest.mark.parametrize("head_dim", [16, 48, 80, 256])
def test_warpgroups_take_turns_wherever_they_may(head_dim: int) -> None:
    schedule = make_schedule(AttentionSpec(head_dim=head_dim))
    assert (schedule.tiling.overlap, schedule.tiling.pingpong) == (2, True)


def test_loops_that_no_program_has_map_to_the_nearest() -> None:
    tile = start_plan(AttentionSpec(**UNSTORED))[-1].graph
    one = solve(make_step(tile, Budget(240, 28), BARE, patterns=(1,)))
    assert one.turns.binding
    assert emitted(one) == (1, False), "two products apart have no turn in common"
    held = [replace(t, stage=2 * (t.op == "GemmPV")) for t in one.timings]
    assert emitted(replace(one, timings=tuple(held))) == (2, True), "P V is late, by however much"
    late = [replace(t, stage=int(t.op == "RowMax")) for t in one.timings]
    assert emitted(replace(one, timings=tuple(late))) == (3, True)


def test_show_tells_interval_unit_and_speed() -> None:
    schedule = make_schedule(load_spec("full_d128_bf16"))
    shown = show_schedule(schedule)
    assert "overlap 2, ping-pong: from a stored solution" in shown
    assert "predicted 934 TFLOP/s at 1.755 GHz on 132 SMs" in shown
    assert "interval 2080 clk, 2 warpgroups, bound by one warpgroup's chain" in shown
    assert "tensor core 98 % busy" in shown


def test_show_as_json() -> None:
    command = [sys.executable, "-m", "fa3gen.cli", "show", "causal_d64_bf16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)[-1]
    modulo = shown["modulo"]
    assert shown["origin"] == "a stored solution"
    assert modulo["binding_unit"] == "one warpgroup's chain"
    assert modulo["interval"] == pytest.approx(1824)
    assert modulo["tensor_utilisation"] == pytest.approx(1536 / 1824)
    assert modulo["predicted_tflops"] == pytest.approx(799.1, abs=0.1)
    assert modulo["turns"]["binding"] is True
