"""Tuning: what is tried, what is kept, and that a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fa3gen.bench import tune
from fa3gen.bench.candidates import DEFAULT, candidates
from fa3gen.bench.timing import Call
from fa3gen.bench.winners import Winner, speedup, winners
from fa3gen.errors import InputError
from fa3gen.runtime.reference import attention_reference, reference_mask
from fa3gen.schedule import make_plan, tuned
from fa3gen.spec import AttentionSpec, load_spec
from fa3gen.spec.model import Maxima

SPEC = AttentionSpec(head_dim=64, mask="causal", name="tuned")
LENGTHS = [32, 64, 128, 160]


# --- winners --------------------------------------------------------------------------------------


def test_one_kernel_where_one_is_best() -> None:
    times = {s: {DEFAULT: 2.0, "a": 1.0, "b": 1.001} for s in (512, 1024, 2048)}
    assert winners(times, DEFAULT) == [Winner("a", None)]


def test_noise_wins_nothing() -> None:
    times = {s: {DEFAULT: 1.0, "a": 0.997} for s in (512, 1024, 2048)}
    assert winners(times, DEFAULT) == [Winner(DEFAULT, None)]


def test_classes_meet_between_lengths() -> None:
    times = {
        512: {DEFAULT: 1.0, "short": 0.8, "long": 1.0},
        1024: {DEFAULT: 1.0, "short": 0.9, "long": 1.0},
        2048: {DEFAULT: 1.0, "short": 1.2, "long": 0.95},
        4096: {DEFAULT: 1.0, "short": 1.3, "long": 0.9},
    }
    assert winners(times, DEFAULT) == [Winner("short", 1472), Winner("long", None)]
    assert speedup(times[512], 512, winners(times, DEFAULT), DEFAULT) == pytest.approx(1.25)
    assert speedup(times[2048], 2048, winners(times, DEFAULT), DEFAULT) == pytest.approx(1 / 0.95)


def test_a_class_ends_where_its_kernel_is_clearly_better() -> None:
    times = {
        1024: {DEFAULT: 1.0, "short": 0.8},
        2048: {DEFAULT: 1.0, "short": 0.9},
        4096: {DEFAULT: 1.0, "short": 0.997},
        8192: {DEFAULT: 1.0, "short": 1.1},
    }
    assert winners(times, DEFAULT) == [Winner("short", 2880), Winner(DEFAULT, None)]


def test_limits_lie_between_lengths() -> None:
    times = {
        **{key: {DEFAULT: 1.0, "a": 0.5, "b": 0.9} for key in (1000, 1001)},
        **{key: {DEFAULT: 1.0, "a": 1.1, "b": 0.5} for key in (1024, 1025)},
        **{key: {DEFAULT: 0.5, "a": 1.1, "b": 1.0} for key in (1056, 1057)},
    }
    won = winners(times, DEFAULT)
    assert won == [Winner("a", 1001), Winner("b", 1025), Winner(DEFAULT, None)]


def test_a_class_has_two_lengths() -> None:
    times = {s: {DEFAULT: 1.0, "a": 0.5 if s == 1000 else 1.1} for s in (512, 1000, 1024, 2048)}
    assert winners(times, DEFAULT) == [Winner(DEFAULT, None)]


def test_one_more_kernel_must_pay() -> None:
    times = {
        512: {DEFAULT: 1.0, "short": 0.99},
        1024: {DEFAULT: 1.0, "short": 1.1},
        2048: {DEFAULT: 1.0, "short": 1.1},
    }
    assert winners(times, DEFAULT) == [Winner(DEFAULT, None)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_never_slower_than_the_default(data: st.DataObject) -> None:
    names = [DEFAULT, "a", "b", "c"]
    time = st.floats(0.5, 2.0)
    lengths = data.draw(st.lists(st.integers(64, 40_000), min_size=1, max_size=6, unique=True))
    times = {s: {name: data.draw(time) for name in names} for s in lengths}
    won = winners(times, DEFAULT)
    limits = [w.max_keys for w in won]
    assert limits[-1] is None
    assert limits[:-1] == sorted({*limits[:-1]})  # type: ignore[type-var]
    assert len(won) <= 3
    best_single = min(
        (name for name in names if all(times[s][name] <= times[s][DEFAULT] for s in lengths)),
        key=lambda name: torch.tensor([times[s][name] for s in lengths]).log().mean().item(),
    )
    gains = [speedup(times[s], s, won, DEFAULT) for s in lengths]
    assert min(gains) > 0.99
    single = [times[s][DEFAULT] / times[s][best_single] for s in lengths]
    means = [torch.tensor(x).log().mean().item() for x in (gains, single)]
    assert means[0] >= means[1] - 0.005


# --- candidates -----------------------------------------------------------------------------------


def test_candidates_are_different_kernels_and_can_be_scheduled() -> None:
    found = candidates(SPEC)
    assert next(iter(found)) == DEFAULT
    assert found[DEFAULT] == {}
    tilings = set()
    for knobs in found.values():
        (schedule,) = make_plan(SPEC.model_copy(update={"schedule": knobs}), tables=())
        tilings.add(schedule.tiling)
    assert len(tilings) == len(found) > 10
    assert {tiling.ctas_per_sm for tiling in tilings} == {1, 2}
    assert {tiling.maxima for tiling in tilings} == set(Maxima)


def test_knobs_are_not_tuned_away(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"schedule": {"overlap": 1}})
    with pytest.raises(InputError, match="leave its schedule out"):
        tune.prepare(spec, tmp_path)


# --- a run ----------------------------------------------------------------------------------------


class Op:
    """A candidate that is right, and counts its calls."""

    calls = 0

    def __init__(self, folder: Path) -> None:
        self.artifact = SimpleNamespace(library_sha256=f"sha of {folder.name}")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        Op.calls += 1
        return attention_reference(q, k, v, reference_mask("causal"), scale)[0].to(q.dtype)


class FakeTimer:
    """The two-CTA kernels are quick up to 64 keys, and slow beyond."""

    def __init__(self, stop_at: int = 0) -> None:
        self.rounds, self.stop_at = 0, stop_at

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, float]:
        self.rounds += 1
        if self.rounds == self.stop_at:
            raise KeyboardInterrupt
        two_ctas = 0.5 if self.rounds < 3 else 2.0
        return {name: two_ctas if "2ctas" in name else 1.0 for name in calls}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Candidates that "were built": one of them was refused."""

    def build(spec: AttentionSpec, knobs: Mapping[str, Any], folder: Path) -> str:
        return "spills" if folder.name == "192x112" else ""

    monkeypatch.setattr(tune, "_build", build)
    lines: list[str] = []
    count = tune.prepare(SPEC, tmp_path / "tuned", progress=lines.append)
    assert len(lines) == count + 1 == len(candidates(SPEC))
    assert any("refused" in line for line in lines)
    return tmp_path / "tuned"


def run(folder: Path, timer: FakeTimer) -> dict[str, Any]:
    return tune.time_candidates(folder, lengths=LENGTHS, timer=timer, device="cpu", load=Op)


def test_a_run_that_was_cut_off_goes_on(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, FakeTimer(stop_at=3))
    kept = json.loads((folder / "results.json").read_text())
    assert [row["Sk"] for row in kept["rows"]] == [32, 64]
    timer = FakeTimer()
    results = run(folder, timer)
    assert timer.rounds == len(LENGTHS) - 2
    assert [row["Sk"] for row in results["rows"]] == LENGTHS
    Op.calls = 0
    assert run(folder, timer)["rows"] == results["rows"]
    assert Op.calls == 0, "nothing is left to do"


def test_builds_that_were_cut_off_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: AttentionSpec, knobs: Mapping[str, Any], folder: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "_build", build)
    with pytest.raises(KeyboardInterrupt):
        tune.prepare(SPEC, tmp_path / "tuned")
    with pytest.raises(InputError, match="not complete"):
        run(tmp_path / "tuned", FakeTimer())


def test_builds_of_another_compiler_are_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = folder / "default" / "artifact.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    tune.prepare(SPEC, folder)
    assert stale.exists()
    monkeypatch.setattr("fa3gen.jit.index.package_fingerprint", lambda: "another")
    tune.prepare(SPEC, folder)
    assert not stale.exists()


def test_other_kernels_are_timed_again(folder: Path) -> None:
    run(folder, FakeTimer())
    kept = json.loads((folder / "results.json").read_text())
    kept["meta"]["kernels"][DEFAULT] = "another"
    (folder / "results.json").write_text(json.dumps(kept))
    timer = FakeTimer()
    run(folder, timer)
    assert timer.rounds == len(LENGTHS)


def test_a_wrong_kernel_is_a_fault(folder: Path) -> None:
    class Wrong(Op):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            return super().__call__(q, k, v, scale=scale * 1.1)

    with pytest.raises(InputError, match=r"wrong results.*default"):
        tune.time_candidates(folder, lengths=LENGTHS, timer=FakeTimer(), device="cpu", load=Wrong)


def test_winners_go_into_the_table_and_into_plans(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tune,
        "gpu_facts",
        lambda: dict.fromkeys(("driver", "cuda", "torch"), "1") | {"gpu": "NVIDIA H200"},
    )
    run(folder, FakeTimer())
    table = tmp_path / "table.json"
    won = tune.decide(folder, table)
    assert "2ctas" in won[0].name
    assert won[0].max_keys == 64
    (entry,) = tuned.read(table)
    assert (entry.head_dim, entry.mask, entry.gpu) == ((64, 64), "k - q <= 0", "H200")
    assert entry.measured["speedup"] == {"32": 2.0, "64": 2.0, "128": 1.0, "160": 1.0}
    short, long = make_plan(SPEC, tables=(table,))
    assert (short.max_keys, long.max_keys) == (64, None)
    assert (short.tiling.ctas_per_sm, long.tiling.ctas_per_sm) == (2, 1)
    assert short.spec == long.spec == SPEC
    fp16 = SPEC.model_copy(update={"dtype": "fp16"})
    assert len(make_plan(fp16, tables=(table,))) == 2
    for other in ({"schedule": {"overlap": 1}}, {"mask": "full"}, {"head_dim": 128}):
        assert len(make_plan(SPEC.model_copy(update=other), tables=(table,))) == 1
    before = table.read_bytes()
    tune.decide(folder, table)
    assert table.read_bytes() == before


def test_the_gpu_has_its_own_entries(tmp_path: Path) -> None:
    table = tmp_path / "table.json"

    def entry(gpu: str, keys: int) -> tuned.Entry:
        knobs = load_spec({"head_dim": 64, "schedule": {"tile": {"m": 128, "n": keys}}}).schedule
        return tuned.Entry.of(SPEC, gpu, [tuned.TunedKernel(None, knobs)], {})

    tuned.write(table, [entry("H100", 96), entry("H200", 128)])
    for gpu, keys in (("NVIDIA H100 80GB HBM3", 96), ("NVIDIA H200", 128), ("NVIDIA H20", 128)):
        assert make_plan(SPEC, gpu=gpu, tables=(table,))[0].tiling.block_n == keys
    assert make_plan(SPEC, tables=(table,))[0].tiling.block_n == 128


def test_knobs_that_do_not_fit_are_left(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    knobs = load_spec({"head_dim": 256, "schedule": {"tile": {"m": 128, "n": 80}}}).schedule
    wide, narrow = (AttentionSpec(head_dim={"qk": qk, "v": 256}) for qk in (256, 248))
    tuned.write(table, [tuned.Entry.of(wide, "H200", [tuned.TunedKernel(None, knobs)], {})])
    assert make_plan(wide, tables=(table,))[0].tiling.block_n == 80
    assert tuned.find(narrow, None, (table,))
    assert make_plan(narrow, tables=(table,)) == make_plan(narrow, tables=())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 3, "entries": []}',
        '{"format": 2, "entries": [{"head_dim": [64, 64]}]}',
    ],
)
def test_other_files_are_no_tables(text: str, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(text)
    with pytest.raises(InputError, match="no table of tuned kernels"):
        tuned.read(table)


def test_the_shipped_table_is_whole() -> None:
    for entry in tuned.read(tuned.SHIPPED):
        assert entry.gpu in ("H100", "H200")
        assert min(entry.measured["speedup"].values()) >= 0.99
