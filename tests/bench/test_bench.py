"""The benchmark without a GPU: rows, errors, skipped peers, FLOPs and samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.bench import contenders
from fa3gen.bench.contenders import (
    PEERS,
    Contender,
    UnavailableError,
    bind_schema,
    load_contender,
)
from fa3gen.bench.problem import Problem, SpecFacts, grid
from fa3gen.bench.report import render
from fa3gen.bench.run import run_bench
from fa3gen.bench.timing import Call, ClockSampler, CudaTimer, summarize_samples
from fa3gen.errors import InputError
from fa3gen.runtime.artifact import KernelFacts
from fa3gen.runtime.reference import attention_reference, reference_mask

FACTS = SpecFacts(mask="causal", head_dim_qk=16, head_dim_v=16)
SMALL: dict[str, Any] = {"tokens": 64, "heads": 2, "device": "cpu"}


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: str = "causal") -> Tensor:
    return attention_reference(q, k, v, reference_mask(mask), scale)[0].to(q.dtype)


def wrong(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attend(q, k, v, scale=scale, mask="full")


class FakeTimer:
    """Calls everything once; each contender takes one millisecond more than the one before."""

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: 1.0 + i for i, name in enumerate(calls)}


def add_peer(monkeypatch: pytest.MonkeyPatch, name: str, op: Any) -> None:
    prepare = contenders.own_contender(name, op).prepare
    monkeypatch.setattr(contenders, "PEERS", {**PEERS, name: lambda: prepare})


def test_rows_have_the_promised_form(monkeypatch: pytest.MonkeyPatch) -> None:
    add_peer(monkeypatch, "fa3", attend)
    results = run_bench(
        attend, FACTS, ["fa3"], [16, 32], kv_heads=1, timer=FakeTimer(), command="c", **SMALL
    )
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    meta_keys = {"gpu", "driver", "cuda", "torch", "cudnn", "clocks", "command", "date", "skipped"}
    assert results["meta"].keys() == meta_keys
    assert results["meta"]["skipped"] == {}
    row = results["rows"][1]
    assert row["ms"] == {"fa3gen": 1.0, "fa3": 2.0}
    assert row["error"].keys() == row["ms"].keys()
    assert all(report["ok"] for report in row["error"].values())
    del row["ms"], row["error"]
    assert row == {
        "op": "forward",
        "variant": "plain",
        "dtype": "bf16",
        "d": 16,
        "dv": 16,
        "mask": "causal",
        "B": 2,
        "Hq": 2,
        "Hk": 1,
        "Sq": 32,
        "Sk": 32,
        "flops": 2 * 2 * 32 * 32 * 32,
        "bytes": 2 * (2 * 2 * 32 * 2 * 16 + 2 * 2 * 32 * 1 * 16) + 4 * 2 * 2 * 32,
        "schedule": None,
    }


def test_a_wrong_contender_is_flagged_and_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    add_peer(monkeypatch, "fa3", wrong)
    results = run_bench(attend, FACTS, ["fa3"], [32], timer=FakeTimer(), **SMALL)
    assert not results["rows"][0]["error"]["fa3"]["ok"]
    assert "max error" in results["rows"][0]["error"]["fa3"]["problems"][0]
    page = render(results)
    assert "**wrong**" in page
    assert "2.000" not in page


def test_an_unwritten_output_is_wrong() -> None:
    def unwritten(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        out = attend(q, k, v, scale=scale)
        out[:, -1] = torch.nan
        return out

    results = run_bench(unwritten, FACTS, [], [32], timer=FakeTimer(), **SMALL)
    assert not results["rows"][0]["error"]["fa3gen"]["ok"]


def test_missing_and_refusing_peers_are_skipped_with_their_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FA3GEN_FA3_LIBRARY", raising=False)
    add_peer(monkeypatch, "picky", picky)
    peers = ["fa3", "fa4", "picky", "nosuch"]
    results = run_bench(attend, FACTS, peers, [16, 32], timer=FakeTimer(), **SMALL)
    skipped = results["meta"]["skipped"]
    assert "FA3GEN_FA3_LIBRARY" in skipped["fa3"]
    assert "flash_attn.cute" in skipped["fa4"]
    assert "unknown peer" in skipped["nosuch"]
    assert skipped["picky, S=16"] == "too short"
    assert "picky, S=32" not in skipped
    assert [sorted(row["ms"]) for row in results["rows"]] == [["fa3gen"], ["fa3gen", "picky"]]


def picky(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    if q.shape[1] < 32:
        raise RuntimeError("too short\nand more")
    return attend(q, k, v, scale=scale)


def test_our_own_failure_is_not_skipped() -> None:
    with pytest.raises(RuntimeError, match="too short"):
        run_bench(picky, FACTS, [], [16], timer=FakeTimer(), **SMALL)


def test_several_ops_of_ours_and_their_schedule() -> None:
    class Built:
        artifact = SimpleNamespace(
            kernels=(
                KernelFacts("kernel_to_512", 512, 128, 64, 384, 500, 80, 0),
                KernelFacts("kernel", None, 128, 176, 384, 1000, 168, 0),
            )
        )

        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            return attend(q, k, v, scale=scale)

    ops: dict[str, Any] = {"fa3gen": Built(), "deep": attend}
    results = run_bench(ops, FACTS, [], [16], timer=FakeTimer(), **SMALL)
    row = results["rows"][0]
    assert row["ms"] == {"fa3gen": 1.0, "deep": 2.0}
    short, long = row["schedule"].split("; ")
    assert short.startswith("tile 128x64 up to 512 keys, 384 threads")
    assert long.startswith("tile 128x176, 384 threads")
    with pytest.raises(InputError, match="name of a peer"):
        run_bench({"fa3": attend}, FACTS, [], [16], timer=FakeTimer(), **SMALL)


def test_fa2_runs_on_a_cpu_and_refuses_what_it_cannot_do() -> None:
    fa2 = load_contender("fa2")
    assert isinstance(fa2, Contender)
    square, *_ = grid(FACTS, (32,), tokens=64, heads=4, kv_heads=2)
    q, k, v = square.inputs("cpu", 0)
    out = fa2.prepare(square, q, k, v)()
    expected = attend(q, k, v, scale=square.scale)
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    with pytest.raises(UnavailableError, match="aligns causal"):
        fa2.prepare(Problem(FACTS, 1, 4, 2, 16, 32), q, k, v)
    with pytest.raises(UnavailableError, match="dense tensor"):
        fa2.prepare(Problem(SpecFacts(mask="window(7, 0)"), 1, 4, 2, 32, 32), q, k, v)
    with pytest.raises(UnavailableError, match="no mask chunk"):
        fa2.prepare(Problem(SpecFacts(mask="chunk(7)"), 1, 4, 2, 32, 32), q, k, v)


SCHEMA = (
    "flash_attn_3::fwd(Tensor q, Tensor k, Tensor v, Tensor? q_v, Tensor(a!)? out=None, "
    "float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
    "int window_size_right=-1, float softcap=0., int num_splits=0) -> (Tensor(a!), Tensor)"
)


def test_schema_binding_is_by_name() -> None:
    schema = torch._C.parse_schema(SCHEMA)
    values = bind_schema(
        schema, {("q",): 1, ("k",): 2, ("v",): 3, ("causal", "is_causal"): True, ("num_splits",): 1}
    )
    assert values == {"q": 1, "k": 2, "v": 3, "q_v": None, "is_causal": True, "num_splits": 1}
    with pytest.raises(UnavailableError, match="no argument chunk or attention_chunk"):
        bind_schema(schema, {("chunk", "attention_chunk"): 0})
    with pytest.raises(UnavailableError, match="needs k"):
        bind_schema(schema, {("q",): 1})


def test_fa3_is_called_through_its_registered_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fwd(**arguments: Any) -> tuple[Tensor, None]:
        seen.update(arguments)
        q, k, v = (arguments.pop(name) for name in "qkv")
        return attend(q, k, v, scale=arguments["softmax_scale"]), None

    fwd._schema = torch._C.parse_schema(SCHEMA)  # type: ignore[attr-defined]
    packet = SimpleNamespace(fwd=SimpleNamespace(default=fwd))
    monkeypatch.setattr(torch.ops, "flash_attn_3", packet, raising=False)
    monkeypatch.delenv("FA3GEN_FA3_LIBRARY", raising=False)
    results = run_bench(attend, FACTS, ["fa3"], [32], timer=FakeTimer(), **SMALL)
    assert results["meta"]["skipped"] == {}
    assert results["rows"][0]["error"]["fa3"]["ok"]
    assert seen["is_causal"] is True
    assert (seen["window_size_left"], seen["window_size_right"]) == (-1, 0)


def test_a_library_that_does_not_load_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FA3GEN_FA3_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.raises(UnavailableError, match="does not load"):
        load_contender("fa3")


@pytest.mark.parametrize(
    ("mask", "seqlen_q", "seqlen_k", "pairs"),
    [
        ("full", 8, 8, 64),
        ("causal", 8, 8, 32),  # the field's half, not the exact 36
        ("causal", 4, 8, 26),
        ("window(1, 0)", 8, 8, 15),
    ],
)
def test_flops_count_kept_pairs(mask: str, seqlen_q: int, seqlen_k: int, pairs: int) -> None:
    facts = SpecFacts(mask=mask, head_dim_qk=192, head_dim_v=128)
    problem = Problem(facts, 2, 3, 1, seqlen_q, seqlen_k)
    assert problem.flops() == 2 * 3 * pairs * 2 * (192 + 128)


def test_grid_keeps_the_tokens_and_the_width() -> None:
    problems = grid(SpecFacts(mask="full"), (512, 16384, 32768))
    assert [(p.batch, p.seqlen_k) for p in problems] == [(32, 512), (1, 16384), (1, 32768)]
    assert {(p.heads, p.kv_heads) for p in problems} == {(16, 16)}
    assert grid(SpecFacts(mask="full", head_dim_qk=64, head_dim_v=64), (512,))[0].heads == 32
    with pytest.raises(InputError, match="multiple of kv_heads"):
        grid(FACTS, (512,), heads=6, kv_heads=4)


def test_samples_count_inside_the_windows_only() -> None:
    text = (
        "2026/01/02 10:00:00.000, 1980, 2619, 700.10, 60\n"
        "2026/01/02 10:00:01.500, 1500, 2619, 650.00, [N/A]\n"
        "2026/01/02 10:00:01.600, 1600, 2619, 690.00, 62\n"
        "2026/01/02 10:00:03.000, 345, 2619, 80.00, 40\n"
        "no devices\n"
        "2026/01/02 10:00:01.700, 16"
    )
    window = (datetime(2026, 1, 2, 10, 0, 1), datetime(2026, 1, 2, 10, 0, 2))
    summary = summarize_samples(text, [window])
    assert summary["sm_mhz"] == {"min": 1500, "median": 1550, "max": 1600}
    assert summary["power_w"]["max"] == 690
    assert summary["temperature_c"] == {"min": 62, "median": 62, "max": 62}
    assert summarize_samples(text, []) == {}


def test_a_machine_without_nvidia_smi_gives_no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with ClockSampler() as sampler, sampler.window():
        pass
    assert sampler.summary() == {}


def test_timer_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="repeats >= 1"):
        CudaTimer(repeats=0)
