"""The Markdown page made from a benchmark's JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fa3gen.bench.report import geometric_mean, main, ratio, render, tflops


def row(mask: str, seqlen: int, ms: dict[str, float], **changes: Any) -> dict[str, Any]:
    values = {"op": "forward", "variant": "plain", "dtype": "bf16", "d": 128, "dv": 128}
    shape = {"B": 1, "Hq": 16, "Hk": 16, "Sq": seqlen, "Sk": seqlen}
    return {
        **values,
        **shape,
        "mask": mask,
        "flops": 10**12,
        "bytes": 10**9,
        "schedule": None,
        "error": {name: {"ok": True} for name in ms},
        "ms": ms,
        **changes,
    }


META = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "clocks": {"sm_mhz": {"min": 1200, "median": 1600, "max": 1980}},
    "command": "python -m fa3gen.bench.run --mask causal",
    "date": "2026-01-02",
    "skipped": {"fa4": "not installed", "fa2": "no mask", "cudnn, S=512": "no mask"},
}


def test_figures() -> None:
    one = row("full", 4096, {"fa3gen": 2.0, "fa3": 1.0})
    assert tflops(one, "fa3gen") == 500
    assert tflops(one, "cudnn") is None
    assert ratio(one, "fa3") == 0.5
    assert ratio(one, "cudnn") is None
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([]) is None


def test_a_wrong_output_has_no_ratio() -> None:
    for name in ("fa3gen", "fa3"):
        one = row("full", 4096, {"fa3gen": 2.0, "fa3": 1.0}, error={name: {"ok": False}})
        assert ratio(one, "fa3") is None
        assert "500 **wrong**" in render({"meta": META, "rows": [one]}) or name == "fa3"


def test_page_has_cells_means_and_facts() -> None:
    rows = [
        row("full", 4096, {"fa3gen": 1.25, "fa3": 1.0, "cudnn": 2.5}),
        row("full", 8192, {"fa3": 2.0, "fa3gen": 1.0}),
        row("causal", 4096, {"fa3gen": 1.0, "fa3": 1.0}, Hk=4),
    ]
    page = render({"meta": META, "rows": rows})
    assert "NVIDIA H100 80GB HBM3, driver 580.1, CUDA 13.0, torch 2.11.0, 2026-01-02" in page
    assert "SM clock 1200 / 1600 / 1980 MHz" in page
    assert "`python -m fa3gen.bench.run --mask causal`" in page
    assert "Skipped: fa4: not installed" in page
    assert "Skipped: fa2; cudnn, S=512: no mask" in page
    assert "### forward plain bf16" in page
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    assert table[0][-5:] == ["fa3gen", "fa3", "cudnn", "x/fa3", "x/cudnn"]
    assert all(len(cells) == len(table[0]) for cells in table)
    speeds = ["800", "1000", "400", "0.800", "2.000"]
    assert table[2] == ["128", "full", "1", "16", "4096", "4096", *speeds]
    assert table[3][-3:] == ["–", "2.000", "–"]  # noqa: RUF001
    assert table[4][:5] == ["128", "causal", "1", "16/4", "4096"]
    means = {cells[1]: cells[-2:] for cells in table if cells[0] == "**mean**"}
    assert means["full"] == [f"{math.sqrt(1.6):.3f}", "2.000"]
    assert means["causal"] == ["1.000", "–"]  # noqa: RUF001
    assert means["all"][0] == f"{1.6 ** (1 / 3):.3f}"


def test_kinds_of_rows_get_tables_of_their_own() -> None:
    rows = [row("full", 512, {"fa3gen": 1.0}), row("full", 512, {"fa3gen": 1.0}, dtype="fp16")]
    page = render({"meta": {}, "rows": rows})
    assert "### forward plain bf16" in page
    assert "### forward plain fp16" in page
    assert "mean" not in page
    assert "no GPU" in page


def test_main_rewrites_the_page_beside_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"meta": META, "rows": [row("full", 512, {"fa3gen": 1.0})]}
    (tmp_path / "causal.json").write_text(json.dumps(results))
    assert main([str(tmp_path / "causal.json")]) == 0
    assert (tmp_path / "causal.md").read_text() == render(results)
    assert "causal.md" in capsys.readouterr().out
    assert main([]) == 2
