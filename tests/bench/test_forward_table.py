"""The forward table without a GPU: its plan, a run with a fake timer, resuming, the page."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from fa3gen.bench import forward
from fa3gen.bench.contenders import Contender, own_contender
from fa3gen.bench.forward import Bench, main, prepare, render_files, resume, run_cells
from fa3gen.bench.forward_plan import (
    Cell,
    Section,
    kernels,
    plan,
    row_key,
    select,
    spec_of,
    variant_name,
)
from fa3gen.bench.forward_table import best_ratio, next_ratio, render, summary
from fa3gen.bench.problem import Problem, SpecFacts
from fa3gen.bench.run import load_contenders
from fa3gen.bench.timing import Call
from fa3gen.errors import BuildError, InputError
from fa3gen.runtime.artifact import KernelFacts
from fa3gen.runtime.reference import attention_reference, reference_mask

META: dict[str, Any] = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "cudnn": "91900",
    "fa3gen": "0.1.0",
    "dtype": "bf16",
    "repeats": 25,
    "contenders": ["fa3gen", "fa3", "cudnn"],
    "flex_lengths": [1024],
    "skipped": {},
    "clocks": {},
    "command": "python -m fa3gen.bench.forward",
    "date": "2026-01-02",
}
ABSENT = "–"  # noqa: RUF001


def row(seqlen: int, ms: Mapping[str, float], **changes: Any) -> dict[str, Any]:
    """A row of 1e12 FLOPs: 1 ms is 1000 TFLOP/s."""
    shape = {"B": 1, "Hq": 16, "Hk": 16, "Sq": seqlen, "Sk": seqlen, "d": 128, "dv": 128}
    what = {"section": "grid", "dtype": "bf16", "mask": "full", "flops": 10**12}
    made = {"kernel": "k1", "clocks": {}, "error": {}, "gaps": {}}
    return {**what, **shape, **made, "ms": dict(ms), **changes}


def tables(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- the plan -----------------------------------------------------------------------------------


def test_the_plan_has_every_problem_once() -> None:
    cells = plan("bf16")
    assert len({cell.key for cell in cells}) == len(cells) == 8 * 2 * 6 + 3 + 2 * 2 * 8
    heads: dict[tuple[int, int], set[int]] = {}
    for cell in cells:
        facts = cell.problem.facts
        heads.setdefault((facts.head_dim_qk, facts.head_dim_v), set()).add(cell.problem.heads)
    assert heads == {
        (64, 64): {32},
        (96, 96): {21},
        (128, 128): {16},
        (192, 192): {10, 16},
        (192, 128): {10, 16},
        (256, 256): {8},
    }
    shapes = [
        (cell.problem.batch, cell.problem.seqlen_q, cell.problem.seqlen_k)
        for cell in select(cells, ["ragged", "causal", "d128"])
    ]
    assert shapes[:2] == [(16, 1000, 1000), (16, 1024, 1024)]
    assert shapes[-2:] == [(4, 2048, 4096), (2, 1024, 8192)]


def test_variants_have_names_and_specs() -> None:
    found = kernels(plan("fp16"))
    variants = {variant_name(facts): spec_of(facts) for facts in found}
    assert len(variants) == len(found) == 13
    assert variants["causal_d192_128_fp16"] == {
        "name": "causal_d192_128_fp16",
        "head_dim": {"qk": 192, "v": 128},
        "dtype": "fp16",
        "mask": "causal",
    }
    assert variants["window_d128_fp16"]["mask"] == "window(1023, 0)"
    assert "full_d64_fp16" in variants


def test_only_selects_by_whole_words() -> None:
    cells = plan("bf16")
    assert select(cells, []) == cells
    assert {cell.problem.facts.head_dim_v for cell in select(cells, ["d192"])} == {192}
    assert len(select(cells, ["grid", "causal_d192_128_bf16", "s512"])) == 2
    with pytest.raises(InputError, match=r"all of d32; known: grid, full, d64, full_d64_bf16, s51"):
        select(cells, ["d32"])


# --- a run --------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: str = "causal") -> Tensor:
    return attention_reference(q, k, v, reference_mask(mask), scale)[0].to(q.dtype)


def broken(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    raise RuntimeError("no kernel\nfor this")


class Op:
    """An op of fa3gen's with an artifact."""

    def __init__(self, identity: str = "k1") -> None:
        kernel = KernelFacts("kernel", None, 128, 176, 384, 1000, 168, 0)
        self.artifact = SimpleNamespace(library_sha256=identity, kernels=(kernel,))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        return attend(q, k, v, scale=scale)


class FakeTimer:
    """Each contender takes one millisecond more than the one before; counts the rounds."""

    def __init__(self) -> None:
        self.rounds = 0

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, float]:
        self.rounds += 1
        return {name: 1.0 + place for place, name in enumerate(calls)}


def peer(name: str, op: Callable[..., Tensor] = attend) -> Contender:
    return Contender(name, own_contender(name, op).prepare)


def cells_of(*lengths: int, section: Section = Section.GRID) -> list[Cell]:
    facts = SpecFacts(mask="causal", head_dim_qk=16, head_dim_v=16)
    return [Cell(section, Problem(facts, 1, 2, 2, s, s)) for s in lengths]


def bench(op: Any, peers: Sequence[Contender] = (), **changes: Any) -> Bench:
    return Bench(lambda facts: op, peers, FakeTimer(), device="cpu", **changes)


def empty() -> dict[str, Any]:
    return {"meta": dict(META), "rows": []}


def run(bench: Bench, cells: Sequence[Cell], results: dict[str, Any]) -> list[str]:
    """Runs the cells; returns the saved states."""
    saved: list[str] = []
    run_cells(bench, cells, results, lambda state: saved.append(json.dumps(state)))
    return saved


def test_a_row_says_what_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    results = empty()
    (cell,) = cells_of(32)
    run(bench(Op(), [peer("fa3"), peer("fa2", broken)]), [cell], results)
    (made,) = results["rows"]
    assert row_key(made) == cell.key
    assert made["ms"] == {"fa3gen": 1.0, "fa3": 2.0}
    assert made["tflops"].keys() == made["ms"].keys()
    assert made["gaps"] == {"fa2": "no kernel"}
    assert made["error"]["fa3"]["ok"]
    assert made["kernel"] == "k1"
    assert made["schedule"].startswith("tile 128x176")
    line = capsys.readouterr().err
    assert line.startswith("[1/1] grid causal_d16_bf16 h2 S 32: fa3gen 0, fa3 0 TFLOP/s, no fa2, ")


def test_the_results_are_saved_after_each_problem() -> None:
    saved = run(bench(Op()), cells_of(16, 32), empty())
    assert [len(json.loads(state)["rows"]) for state in saved] == [1, 2]


def test_a_kernel_that_cannot_be_had_is_a_gap() -> None:
    def refuse(facts: SpecFacts) -> Any:
        raise BuildError(f"{variant_name(facts)} spills\nand more")

    results = empty()
    run(Bench(refuse, [peer("fa3")], FakeTimer(), device="cpu"), cells_of(16), results)
    assert results["rows"][0]["ms"] == {"fa3": 1.0}
    assert results["rows"][0]["gaps"] == {"fa3gen": "causal_d16_bf16 spills"}
    assert results["rows"][0]["kernel"] is None
    run(bench(broken), cells_of(32), results)
    assert results["rows"][1]["gaps"] == {"fa3gen": "no kernel"}


def test_flex_runs_at_its_lengths_and_is_compiled_anew_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resets: list[None] = []
    monkeypatch.setattr(forward.torch.compiler, "reset", lambda: resets.append(None))
    results = empty()
    timed = bench(Op(), [peer("flex"), peer("fa3")], flex_lengths=frozenset({32, 64}))
    run(timed, [*cells_of(16, 32, 64), *cells_of(32, section=Section.RAGGED)], results)
    names = [sorted(made["ms"]) for made in results["rows"]]
    without, with_flex = ["fa3", "fa3gen"], ["fa3", "fa3gen", "flex"]
    assert names == [without, with_flex, with_flex, without]
    assert len(resets) == 2


def test_clocks_of_the_problems_are_joined() -> None:
    results = empty()
    span = {"min": 1000, "median": 1500, "max": 1980}
    low = {"min": 900, "median": 1400, "max": 1700}
    clocks = [{"sm_mhz": span}, {"sm_mhz": low}]
    results["rows"] = [row(s, {}, clocks=c) for s, c in zip((512, 1024), clocks, strict=True)]
    run(bench(Op()), cells_of(16), results)
    assert results["meta"]["clocks"] == {"sm_mhz": {"min": 900, "median": 1450, "max": 1980}}


def test_a_torch_that_cannot_compile_has_no_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.flex_attention", None)
    peers, skipped = load_contenders({}, ["flex"])
    assert peers == []
    assert skipped["flex"].startswith("torch.compile does not work here: ")


# --- resuming -----------------------------------------------------------------------------------


def test_a_resumed_run_times_what_is_missing() -> None:
    results = empty()
    run(bench(Op(), [peer("fa3", broken)]), cells_of(16), results)
    again = bench(Op(), [peer("fa3", broken)])
    assert len(run(again, cells_of(16, 32), results)) == 1
    assert [made["Sk"] for made in results["rows"]] == [16, 32]
    assert len(run(again, cells_of(16, 32), results)) == 0


def test_another_kernel_or_a_new_peer_is_timed_again() -> None:
    results = empty()
    run(bench(Op("k1")), cells_of(16), results)
    run(bench(Op("k2")), cells_of(16), results)
    assert [made["kernel"] for made in results["rows"]] == ["k2"]
    run(bench(Op("k2"), [peer("fa3")]), cells_of(16), results)
    assert [sorted(made["ms"]) for made in results["rows"]] == [["fa3", "fa3gen"]]
    assert len(run(bench(Op("k2")), cells_of(16), results)) == 0


def test_rows_take_the_order_of_the_plan() -> None:
    results = empty()
    results["rows"] = [row(1024, {"fa3gen": 1.0}), row(512, {"fa3gen": 1.0})]
    run(bench(Op()), cells_of(16), results)
    assert [made["Sk"] for made in results["rows"] if made["d"] == 128] == [512, 1024]


def test_resume_needs_the_same_machine_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "forward.json"
    assert resume(path, META) == {"meta": META, "rows": []}
    old = {**META, "contenders": ["fa3gen", "fa2"], "flex_lengths": [4096], "date": "2025-01-01"}
    path.write_text(json.dumps({"meta": old, "rows": [row(512, {"fa3gen": 1.0})]}))
    merged = resume(path, META)
    assert merged["rows"] == [row(512, {"fa3gen": 1.0})]
    assert merged["meta"]["contenders"] == ["fa3gen", "fa3", "cudnn", "fa2"]
    assert merged["meta"]["flex_lengths"] == [1024, 4096]
    assert merged["meta"]["date"] == "2026-01-02"
    with pytest.raises(InputError, match=r"torch must be that of forward.json, 2.11.0 \(got 2.12"):
        resume(path, {**META, "torch": "2.12"})
    with pytest.raises(InputError, match="gpu must be"):
        resume(path, {**META, "gpu": "NVIDIA H100"})
    path.write_text('{"rows": [')
    with pytest.raises(InputError, match="no results of a forward table"):
        resume(path, META)


# --- the page -----------------------------------------------------------------------------------


def test_ratios() -> None:
    one = row(512, {"fa3gen": 1.0, "fa3": 2.0, "cudnn": 0.5})
    assert best_ratio(one) == 0.5
    assert best_ratio(row(512, {"fa3gen": 1.0, "fa3": 2.0})) == 2.0
    assert best_ratio(row(512, {"fa3gen": 1.0, "fa2": 2.0})) is None
    wrong = {**one, "error": {"cudnn": {"ok": False}}}
    assert best_ratio(wrong) == 2.0
    ragged, whole = row(1000, {"fa3gen": 2.0}), row(1024, {"fa3gen": 1.0})
    assert next_ratio(ragged, "fa3gen", [ragged, whole]) == 0.5
    assert next_ratio(ragged, "fa3", [ragged, whole]) is None
    assert next_ratio(whole, "fa3gen", [ragged, whole]) is None
    assert next_ratio(ragged, "fa3gen", [ragged]) is None
    assert next_ratio({**ragged, "Sk": 2000}, "fa3gen", [ragged, whole]) is None


def test_summary_has_geometric_means_and_minima() -> None:
    rows = [
        row(512, {"fa3gen": 1.0, "fa3": 0.5, "cudnn": 0.25}),  # 0.5, 0.25
        row(1024, {"fa3gen": 1.0, "fa3": 2.0, "cudnn": 4.0}),  # 2.0, 2.0
        row(512, {"fa3gen": 1.0, "fa3": 4.0}, d=192, Hq=10),  # 4.0, 4.0
        row(512, {"fa3gen": 1.0, "fa3": 0.25}, mask="causal"),  # 0.25, 0.25
        row(512, {"fa3gen": 1.0, "fa2": 1.0}, d=64, dv=64),
        row(1024, {"fa3gen": 1.0, "fa3": 8.0}, section="window", mask="window(1023, 0)"),
        row(1000, {"fa3gen": 1.0, "fa3": 9.0}, section="ragged"),
    ]
    lines = {tuple(cells[:3]): cells[3:] for cells in tables(summary(rows))[2:]}
    # Full, d128: sqrt(0.5 * 2) = 1 and sqrt(0.25 * 2) = 0.707. Over all full rows the cube roots
    # of 0.5 * 2 * 4 and of 0.25 * 2 * 4; over both masks the fourth roots of 1 and of 0.5.
    assert lines == {
        ("128", "16", "full"): ["1.000", "0.500 (512)", "0.707", "0.250 (512)"],
        ("192/128", "10", "full"): ["4.000", "4.000 (512)", "4.000", "4.000 (512)"],
        ("128", "16", "causal"): ["0.250", "0.250 (512)", "0.250", "0.250 (512)"],
        ("64", "16", "full"): [ABSENT] * 4,
        ("128", "16", "window(1023, 0)"): ["8.000", "8.000 (1024)", "8.000", "8.000 (1024)"],
        ("**all**", "", "full"): ["1.587", "0.500 (d128, 512)", "1.260", "0.250 (d128, 512)"],
        ("**all**", "", "causal"): ["0.250", "0.250 (512)", "0.250", "0.250 (512)"],
        ("**all**", "", "both"): ["1.000", "0.250 (d128, 512)", "0.841", "0.250 (d128, 512)"],
    }


def test_page_has_a_table_for_each_head_dim_and_mask() -> None:
    rows = [
        row(512, {"fa3gen": 2.0, "fa3": 1.0}, gaps={"cudnn": "no kernel"}),
        row(1024, {"fa3gen": 1.0, "fa3": 2.0}, gaps={"cudnn": "no kernel"}),
        row(512, {"fa3gen": 1.25, "fa3": 1.0, "cudnn": 2.5}, mask="causal"),
    ]
    meta = {**META, "contenders": [*META["contenders"], "flex"], "skipped": {"flex": "too old"}}
    page = render({"meta": meta, "rows": rows})
    assert "NVIDIA H200, driver 580.1, CUDA 13.0, torch 2.11.0, 2026-01-02" in page
    assert "`python -m fa3gen.bench.forward`" in page
    assert "fa3gen 0.1.0, cuDNN 91900; medians of 25 calls" in page
    assert "flex is timed at 1024 only" in page
    assert "![" not in page
    _, full, causal = (part.partition("\n## d128, ")[2] for part in split(page))
    assert tables(full)[2:] == [
        ["512", "1", "16", "500", "1000", ABSENT, ABSENT, "0.500", "0.500"],
        ["1024", "1", "16", "1000", "500", ABSENT, ABSENT, "2.000", "2.000"],
        ["**mean**", "", "", "", "", "", "", "1.000", "1.000"],
    ]
    assert "- cudnn, S 512, 1024: no kernel\n- flex: too old" in full
    assert tables(causal)[2][3:] == ["800", "1000", "400", ABSENT, "0.800", "0.800"]
    assert "cudnn" not in causal.partition("**mean**")[2]


def split(page: str) -> list[str]:
    """The page up to the first table of a head dim, then each of those."""
    head, *parts = page.split("\n## d128, ")
    return [head, *("\n## d128, " + part for part in parts)]


def test_ragged_lengths_are_set_against_the_next_multiple() -> None:
    rows = [
        row(1000, {"fa3gen": 1.25, "fa3": 1.0}, section="ragged"),
        row(1024, {"fa3gen": 1.0, "fa3": 1.0}, section="ragged"),
        row(4096, {"fa3gen": 1.0}, section="ragged", Sq=2048, gaps={"fa3": "too odd"}),
    ]
    page = render({"meta": META, "rows": rows})
    part = page.partition("### d128, full")[2]
    columns, _, *lines = tables(part)
    assert columns[-4:] == ["x/fa3", "x/best", "fa3gen/next", "fa3/next"]
    assert [line[-4:] for line in lines] == [
        ["0.800", "0.800", "0.800", "1.000"],
        ["1.000", "1.000", ABSENT, ABSENT],
        [ABSENT] * 4,
        ["0.894", "0.894", "0.800", "1.000"],  # sqrt(0.8)
    ]
    assert all(len(line) == len(columns) for line in lines)
    assert "- fa3, S 2048/4096: too odd" in part


def test_an_empty_table_renders() -> None:
    assert "Forward pass" in render({"meta": META, "rows": []})


# --- files and picture --------------------------------------------------------------------------


def write_results(path: Path) -> Path:
    rows = [
        row(512, {"fa3gen": 2.0, "fa3": 1.5, "cudnn": 3.0}),
        row(16384, {"fa3gen": 2.0, "fa3": 1.5}, error={"fa3": {"ok": False}}),
        row(1024, {"fa3gen": 1.0}, mask="causal", d=192, dv=128, Hq=10),
    ]
    path.write_text(json.dumps({"meta": META, "rows": rows}))
    return path


def test_render_writes_page_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = write_results(tmp_path / "forward.json")
    assert main(["--render", str(path)]) == 0
    picture = (tmp_path / "forward.png").read_bytes()
    assert struct.unpack(">I", picture[16:20]) == (1600,)
    assert "(forward.png)" in (tmp_path / "forward.md").read_text()
    assert "forward.md" in capsys.readouterr().out
    render_files(path)
    assert (tmp_path / "forward.png").read_bytes() == picture


def test_without_matplotlib_the_picture_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = write_results(tmp_path / "forward.json")
    assert main(["--render", str(path)]) == 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "forward.png is left out: matplotlib is not installed" in message
    assert not (tmp_path / "forward.png").exists()
    assert "![" not in (tmp_path / "forward.md").read_text()


# --- command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "fa3,fa9"], "fa9 is none of fa3, cudnn"),
        (["--repeats", "0"], "must be a positive integer"),
        (["--jobs", "two"], "must be a positive integer"),
        (["--dtype", "fp8"], "invalid choice"),
        (["--flex-lengths", "4k"], "--flex-lengths"),
        (["--prepare", "a", "--artifacts", "b"], "not allowed with"),
    ],
)
def test_bad_use_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as failure:
        main(words)
    assert failure.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "d32"], "no cell has all of d32"),
        (["--render", "missing.json"], "missing.json: no results"),
        ([], "needs a Hopper GPU"),
    ],
)
def test_errors_are_one_message(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(forward.torch.cuda, "is_available", lambda: False)
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "code"), [(False, 0), (True, 1)])
def test_a_run_writes_all_files_and_tells_of_errors(
    wrong: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward.torch.cuda, "is_available", lambda: True)
    facts = {name: META[name] for name in ("gpu", "driver", "cuda", "torch", "cudnn")}
    monkeypatch.setattr(forward, "gpu_facts", lambda: facts)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delenv("FA3GEN_FA3_LIBRARY", raising=False)
    seen: list[Any] = []

    def fake_run(bench: Bench, cells: Sequence[Cell], results: Any, save: Any) -> None:
        seen.extend((bench, cells))
        error = {"fa3gen": {"ok": not wrong}}
        results["rows"].append(row(512, {"fa3gen": 1.0}, error=error))
        save(results)

    monkeypatch.setattr(forward, "run_cells", fake_run)
    path = tmp_path / "new/table.json"
    words = ["--artifacts", "built", "--only", "d128,full", "--against", "fa4,fa2", "--repeats"]
    assert main([*words, "7", "--flex-lengths", "512", "--json", str(path)]) == code
    bench, cells = seen
    assert {cell.problem.facts.head_dim_qk for cell in cells} == {128}
    assert [one.name for one in bench.peers] == ["fa2"]
    assert (bench.timer.repeats, bench.flex_lengths) == (7, {512})
    meta = json.loads(path.read_text())["meta"]
    assert meta["contenders"] == ["fa3gen", "fa4", "fa2"]
    assert "flash_attn.cute" in meta["skipped"]["fa4"]
    command = "python -m fa3gen.bench.forward --artifacts built --only d128,full --against fa4,fa2"
    assert meta["command"].startswith(command)
    assert "- fa4: flash_attn.cute" in path.with_suffix(".md").read_text()
    with pytest.raises(InputError, match=r"causal_d64_bf16: no readable artifact.json"):
        bench.load_op(SpecFacts(mask="causal", head_dim_qk=64, head_dim_v=64))


def test_prepare_builds_every_kernel_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Path] = []

    def build(facts: SpecFacts, directory: Path) -> str:
        built.append(directory / variant_name(facts))
        return "ptxas spills" if facts.mask == "causal" else ""

    monkeypatch.setattr(forward, "_build", build)
    assert main(["--prepare", str(tmp_path), "--only", "d64", "--jobs", "2"]) == 1
    assert sorted(path.name for path in built) == ["causal_d64_bf16", "full_d64_bf16"]
    output = capsys.readouterr().err
    assert "2 kernels, 2 at a time" in output
    assert "step 2/2: " in output
    assert "fa3gen: causal_d64_bf16: ptxas spills" in output
    assert prepare([SpecFacts(mask="full")], tmp_path, 1) == 0


def test_a_build_replaces_an_artifact_and_says_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full_d128_bf16"
    folder.mkdir()
    (folder / "artifact.json").write_text("{}")
    commands: list[list[str]] = []

    def fake_process(command: list[str], **_: Any) -> Any:
        assert not folder.exists()
        commands.append(command)
        return SimpleNamespace(returncode=1, stderr="step 1/4: x\nfa3gen: no nvcc\n")

    monkeypatch.setattr(forward.subprocess, "run", fake_process)
    assert main(["--prepare", str(tmp_path), "--only", "full_d128_bf16,s512"]) == 1
    assert commands[0][-2:] == ["-o", str(folder)]
    assert json.loads(commands[0][-3])["name"] == "full_d128_bf16"
