"""The table of variants without a GPU: its cells, a run with a fake timer, the page."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.bench import variants
from fa3gen.bench.problem import Problem, SpecFacts
from fa3gen.bench.timing import Call
from fa3gen.bench.variants import main, prepare, render_files
from fa3gen.bench.variants_flex import MODS, prepare_flex
from fa3gen.bench.variants_plan import (
    LARGEST,
    VARIANTS,
    Cell,
    Formula,
    Relation,
    Variant,
    cells,
    formulas,
    select,
)
from fa3gen.bench.variants_run import Bench, run_cells
from fa3gen.bench.variants_table import plain_ratio, rate_ratio, render
from fa3gen.errors import BuildError, InputError
from fa3gen.paths import SPECS
from fa3gen.runtime.artifact import KernelFacts
from fa3gen.runtime.reference import attention_reference, reference_mask, reference_score
from fa3gen.spec import AttentionSpec, load_spec

META: dict[str, Any] = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "cudnn": "91900",
    "fa3gen": "0.1.0",
    "dtype": "bf16",
    "repeats": 25,
    "contenders": ["fa3gen", "planned", "flex"],
    "flex_lengths": [32],
    "skipped": {},
    "clocks": {},
    "command": "python -m fa3gen.bench.variants",
    "date": "2026-01-02",
}
BY_NAME = {one.name: one for one in VARIANTS}
EAGER = functools.partial(prepare_flex, compiled=False)
ALL = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


# --- the plan -------------------------------------------------------------------------------------


def test_the_table_has_every_variant_once_at_each_size() -> None:
    table = cells()
    assert len({cell.key for cell in table}) == len(table) == 2 * 2 * len(VARIANTS)
    for cell in table:
        problem = cell.problem
        assert problem.batch * problem.seqlen_k == 16384
        assert problem.heads * cell.head_dim == 2048
        assert cell.input_bytes <= LARGEST
        assert problem.seqlen_q == (256 if cell.variant.name == "tree" else problem.seqlen_k)
    assert {cell.problem.seqlen_k for cell in table} == {4096, 16384}


def test_a_bias_that_is_too_large_is_left_out() -> None:
    names = {cell.variant.name for cell in cells(lengths=(65536,))}
    assert names == set(BY_NAME) - {"full_bias"}


def test_kernels_have_specs_that_compile() -> None:
    found = formulas(cells(head_dims=(64,)))
    assert len(found) == len(set(found)) == len(VARIANTS) + 4
    for formula, d in found:
        spec = AttentionSpec(**formula.spec(d))
        assert spec.name == formula.kernel(d)
        assert spec.input_metas == formula.inputs
        reference_mask(formula.mask), reference_score(formula.score)


def test_shipped_variants_are_those_of_the_specs() -> None:
    shipped = {path.stem for path in Path(SPECS).glob("*.yaml")} & set(BY_NAME)
    assert len(shipped) == 11
    for name in shipped:
        spec, formula = load_spec(name), BY_NAME[name].formula
        assert (spec.mask, spec.score, spec.sink) == (formula.mask, formula.score, formula.sink)
        assert spec.input_metas == formula.inputs


def test_only_selects_by_whole_words() -> None:
    assert {cell.head_dim for cell in select(cells(), ["d64"])} == {64}
    assert len(select(cells(), ["alibi", "s4096"])) == 2
    with pytest.raises(InputError, match="no cell has all of d32; known: alibi, d64, s4096"):
        select(cells(), ["d32"])


@pytest.mark.parametrize(
    ("name", "seqlen", "lengths"),
    [
        ("document_causal", 4096, [512]),
        ("document_causal", 16384, [2048]),
        ("chunked", 4096, [4096]),
        ("chunked", 16384, [8192]),
        ("sink_window", 16384, [16384, 2048]),
        ("alibi", 16384, [16384]),
    ],
)
def test_baselines_are_as_long_as_what_they_are_set_against(
    name: str, seqlen: int, lengths: list[int]
) -> None:
    assert [one.length(seqlen) for one in BY_NAME[name].baselines] == lengths


@pytest.mark.parametrize("name", ["alibi", "document_causal", "sink_window", "chunked", "softcap"])
def test_the_same_elements_are_the_same(name: str) -> None:
    """A baseline that is set against by time keeps as many elements as the variant."""
    cell = cell_of(BY_NAME[name], 64)
    inputs = cell.variant.draw(cell.sizes, torch.Generator())
    base = cell.variant.baselines[0]
    assert base.relation is Relation.SAME
    length = base.length(64)
    facts = SpecFacts(base.formula.mask, head_dim_qk=16, head_dim_v=16)
    plain = Problem(facts, 2 * 64 // length, 2, 2, length, length)
    kept = cell.problem.flops(inputs=inputs) / plain.flops()
    assert 1 <= kept <= (length + 1) / length  # half a square is counted without the diagonal


# --- a run ----------------------------------------------------------------------------------------


class Op:
    """fa3gen's op of a formula."""

    def __init__(self, formula: Formula, listed: bool = False, identity: str = "k1") -> None:
        self.formula, self.listed = formula, listed
        kernel = KernelFacts("kernel", None, 128, 176, 384, 1000, 168, 0)
        self.artifact = SimpleNamespace(library_sha256=identity, kernels=(kernel,))

    def plan(self, **given: Any) -> Any:
        return SimpleNamespace(lists=torch.ones(1) if self.listed else None)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        return_lse: bool = False,
        plan: Any = None,
        **inputs: Tensor,
    ) -> Any:
        formula = self.formula
        assert inputs.keys() == {meta.name for meta in formula.inputs}
        result, lse = attention_reference(
            q,
            k,
            v,
            reference_mask(formula.mask),
            scale,
            torch.float32,
            reference_score(formula.score),
            inputs=inputs,
            sink=inputs[formula.sink] if formula.sink else None,
        )
        return (result.to(q.dtype), lse) if return_lse else result.to(q.dtype)


class FakeTimer:
    """Calls everything; each contender takes one millisecond more than the one before."""

    def __init__(self) -> None:
        self.rounds = 0

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, float]:
        self.rounds += 1
        for call in calls.values():
            call()
        return {name: 1.0 + place for place, name in enumerate(calls)}


def cell_of(variant: Variant, seqlen: int = 32) -> Cell:
    facts = SpecFacts(variant.formula.mask, "bf16", 16, 16, variant=variant.name)
    queries = min(variant.queries or seqlen, seqlen // 2) if variant.queries else seqlen
    return Cell(variant, Problem(facts, 2, 2, 2, queries, seqlen))


def bench(
    load: Callable[[Formula, int], Any] = lambda formula, d: Op(formula), **changes: Any
) -> Bench:
    return Bench(load, FakeTimer(), flex=EAGER, device="cpu", ragged=(30, 45), **changes)


def empty() -> dict[str, Any]:
    return {"meta": dict(META), "rows": []}


def run(bench: Bench, table: list[Cell], results: dict[str, Any]) -> int:
    """Runs the cells; how often the results were saved."""
    saved: list[str] = []
    run_cells(bench, table, results, lambda state: saved.append(json.dumps(state, allow_nan=False)))
    return len(saved)


@ALL
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_each_variant_is_timed_and_right(variant: Variant) -> None:
    results = empty()
    run(bench(flex_lengths=frozenset({32})), [cell_of(variant)], results)
    (row,) = results["rows"]
    assert row["gaps"] == {}
    names = ["fa3gen", *(one["name"] for one in row["baselines"]), "flex"]
    assert list(row["ms"]) == names
    assert {name: report["problems"] for name, report in row["error"].items()} == {
        name: [] for name in names
    }
    assert row["ragged"]["ok"]
    assert row["kernels"].keys() == {variant.name, *(b.formula.name for b in variant.baselines)}
    assert row["flops"] > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", list(MODS))
def test_flex_callables_say_what_the_formulas_say(name: str) -> None:
    """At all elements of a call with fewer queries than keys, too."""
    cell = Cell(BY_NAME[name], Problem(cell_of(BY_NAME[name]).problem.facts, 2, 2, 2, 20, 300))
    tensors = cell.problem.inputs("cpu", 0)
    inputs = cell.variant.draw(cell.sizes, torch.Generator().manual_seed(2))
    expected = Op(cell.variant.formula)(*tensors, scale=cell.problem.scale, **inputs)
    out = EAGER(cell, *tensors, inputs)()
    torch.testing.assert_close(out, expected, rtol=0.03, atol=0.02)


def test_every_variant_has_its_callables() -> None:
    assert list(MODS) == [one.name for one in VARIANTS]


def test_what_lists_tiles_is_timed_in_parts() -> None:
    results = empty()
    cell = cell_of(BY_NAME["document_causal"])
    run(bench(lambda formula, d: Op(formula, listed=bool(formula.inputs))), [cell], results)
    (row,) = results["rows"]
    assert list(row["ms"]) == ["fa3gen", "planned", "plan", "plain_causal 4"]
    assert row["error"].keys() == {"fa3gen", "planned", "plain_causal 4"}


def test_a_wrong_kernel_is_flagged_and_a_missing_one_is_a_gap() -> None:
    def load(formula: Formula, d: int) -> Any:
        if formula.name == "plain_causal":
            raise BuildError("plain_causal spills\nand more")
        return Op(Formula("alibi", "full", formula.score, formula.inputs))

    results = empty()
    run(bench(load), [cell_of(BY_NAME["alibi"])], results)
    (row,) = results["rows"]
    assert row["gaps"] == {"plain_causal 32": "plain_causal spills"}
    assert not row["error"]["fa3gen"]["ok"]
    assert not row["ragged"]["ok"]
    assert plain_ratio(row) is None
    assert "**wrong**" in render(results)


def test_a_resumed_run_times_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = empty()
    table = [cell_of(BY_NAME["alibi"]), cell_of(BY_NAME["softcap"])]
    assert run(bench(), table[:1], results) == 1
    assert run(bench(), table, results) == 1
    assert run(bench(), table, results) == 0
    assert run(bench(lambda formula, d: Op(formula, identity="k2")), table, results) == 2

    def flex(*_: object) -> Any:
        raise RuntimeError("no triton\nhere")

    with_flex = Bench(
        lambda formula, d: Op(formula, identity="k2"),
        FakeTimer(),
        frozenset({32}),
        flex,
        "cpu",
        (30, 45),
    )
    assert run(with_flex, table, results) == 2
    assert run(with_flex, table, results) == 0
    assert [row["gaps"] for row in results["rows"]] == [{"flex": "no triton"}] * 2
    assert [row["variant"] for row in results["rows"]] == ["alibi", "softcap"]


def test_the_timed_run_needs_torch_alone() -> None:
    code = (
        "import sys\n"
        "names = 'yaml pydantic typer rich filelock ortools ninja platformdirs matplotlib'\n"
        "sys.modules.update(dict.fromkeys(names.split()))\n"
        "import fa3gen.bench.variants, fa3gen.runtime.attention"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the page -------------------------------------------------------------------------------------


def row_of(name: str, ms: Mapping[str, float], **changes: Any) -> dict[str, Any]:
    """A row of 1e12 FLOPs: 1 ms is 1000 TFLOP/s."""
    shape = {"B": 4, "Hq": 16, "Hk": 16, "Sq": 4096, "Sk": 4096, "d": 128, "dv": 128}
    what = {"section": "variants", "variant": name, "dtype": "bf16", "mask": "full"}
    baselines = [
        {"name": "plain_full 4096", "relation": "SAME", "flops": 10**12},
        {"name": "plain_causal 2048", "relation": "RATE", "flops": 10**12 // 2},
    ]
    made = {"kernels": {}, "clocks": {}, "error": {}, "gaps": {}, "ragged": {"ok": True}}
    more = {"baselines": baselines, "flops": 10**12}
    return {**what, **shape, **made, **more, "ms": dict(ms), **changes}


def test_ratios() -> None:
    row = row_of("full_bias", {"fa3gen": 2.0, "plain_full 4096": 1.5, "plain_causal 2048": 0.8})
    assert plain_ratio(row) == 0.75
    assert rate_ratio(row) == pytest.approx(0.8)
    row["error"] = {"plain_full 4096": {"ok": False}}
    assert plain_ratio(row) is None


def results_of(path: Path) -> Path:
    times = {"fa3gen": 2.0, "plain_full 4096": 1.5, "flex": 4.0}
    rows = [
        row_of("alibi_full", times),
        row_of("dilated", {"fa3gen": 2.5, "planned": 2.25, "plan": 0.125}, d=64, dv=64),
        row_of("tree", {}, gaps={"fa3gen": "spills"}, ragged={"ok": False, "problems": ["NaN"]}),
    ]
    path.write_text(json.dumps({"meta": META, "rows": rows}))
    return path


def test_the_page_has_a_table_for_each_size(tmp_path: Path) -> None:
    page = render(json.loads(results_of(tmp_path / "variants.json").read_text()))
    assert "| alibi_full | 4 | 16 | 500 | 2.000 | – | – | 0.750 | – | 250 | 2.00 |" in page  # noqa: RUF001
    assert "| dilated | 4 | 16 | 400 | 2.500 | 2.250 | 0.125 |" in page
    assert page.index("## d64, S 4096") < page.index("## d128, S 4096")
    assert "- tree: no fa3gen: spills" in page
    assert "- tree, ragged lengths: NaN" in page
    assert "| document_causal | `score` | `causal & document(doc)` | causal, S / 8" in page
    assert all(f"| {one.name} | `" in page for one in VARIANTS)
    assert "Variants" in render(empty())


def test_render_writes_page_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = results_of(tmp_path / "variants.json")
    assert main(["--render", str(path)]) == 0
    picture = (tmp_path / "variants.png").read_bytes()
    assert int.from_bytes(picture[16:20], "big") == 1600
    assert "(variants.png)" in (tmp_path / "variants.md").read_text()
    render_files(path)
    assert (tmp_path / "variants.png").read_bytes() == picture


def test_without_matplotlib_the_picture_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--render", str(results_of(tmp_path / "variants.json"))]) == 0
    assert "variants.png is left out" in capsys.readouterr().err
    assert "![" not in (tmp_path / "variants.md").read_text()


# --- command line ---------------------------------------------------------------------------------


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
    monkeypatch.setattr(variants.torch.cuda, "is_available", lambda: False)
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
def test_a_run_writes_all_files_and_tells_of_errors(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(variants.torch.cuda, "is_available", lambda: True)
    facts = {name: META[name] for name in ("gpu", "driver", "cuda", "torch", "cudnn")}
    monkeypatch.setattr(variants, "gpu_facts", lambda: facts)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    seen: list[Bench] = []

    def fake_run(bench: Bench, table: list[Cell], results: Any, save: Any) -> None:
        seen.append(bench)
        error = {"fa3gen": {"ok": not wrong, "problems": ["max error"]}}
        ragged = {"ok": True, "problems": []}
        row = row_of("alibi", {"fa3gen": 1.0}, error=error, ragged=ragged)
        results["rows"].append(row)
        save(results)

    monkeypatch.setattr(variants, "run_cells", fake_run)
    path = tmp_path / "new/variants.json"
    words = ["--artifacts", "built", "--only", "alibi,d128,s4096", "--repeats", "7"]
    assert main([*words, "--flex-lengths", "", "--json", str(path)]) == int(wrong)
    (bench,) = seen
    assert bench.flex_lengths == frozenset()
    meta = json.loads(path.read_text())["meta"]
    assert meta["contenders"] == ["fa3gen", "planned"]
    assert meta["command"].startswith("python -m fa3gen.bench.variants --artifacts built --only")
    assert path.with_suffix(".md").exists()
    told = "alibi d128, S 4096: max error" in capsys.readouterr().err
    assert told == wrong
    with pytest.raises(InputError, match=r"alibi_d64: no readable artifact.json"):
        bench.load_op(BY_NAME["alibi"].formula, 64)


def test_prepare_builds_every_kernel_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[str] = []

    def build(spec: Mapping[str, Any], directory: Path) -> str:
        built.append(spec["name"])
        return "ptxas spills" if spec["name"].startswith("alibi") else ""

    monkeypatch.setattr(variants, "build_spec", build)
    assert main(["--prepare", str(tmp_path), "--only", "alibi,d64", "--jobs", "2"]) == 1
    assert sorted(built) == ["alibi_d64", "plain_causal_d64"]
    assert "fa3gen: alibi_d64: ptxas spills" in capsys.readouterr().err
    assert prepare(select(cells(), ["softcap"]), tmp_path, 1) == 0
