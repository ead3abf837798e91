"""Rank correlation of the scheduler's models with (synthetic) measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fa3gen.bench.rank import main, rank, render, spearman, to_json

TILES = {"wide": (128, 128), "narrow": (128, 64), "thin": (128, 32), "alone": (64, 128)}
VARIANTS = {
    name: {"schedule": {"tile": {"m": m, "n": n}, "overlap": 2}} for name, (m, n) in TILES.items()
}
ORDERED = {
    "wide": 1.0,
    "narrow": 1.1,
    "thin": 1.6,
    "alone": 2.0,
}  # as the solver has them; cost.py exchanges the last two


def results(ms: dict[str, float], **facts: Any) -> dict[str, Any]:
    row = {"d": 128, "dv": 128, "mask": "full", "Sq": 4096, "Sk": 4096, **facts}
    longer = {**row, "Sq": 8192, "Sk": 8192, "ms": {name: 4 * t for name, t in ms.items()}}
    return {"meta": {"variants": VARIANTS}, "rows": [{**row, "ms": dict(ms)}, longer]}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),
        ([1, 2, 2, 4], [1, 3, 3, 4], 1.0),
        ([1, 2, 3], [1, 1, 2], 0.8660254),
        ([1, 2, 3], [1, 1, 1], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_spearman(one: list[float], other: list[float], expected: float | None) -> None:
    found = spearman(one, other)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_orders_as_measured() -> None:
    (group,) = rank([results({**ORDERED, "fa3": 0.5})])
    assert [(v.name, v.tile) for v in group.variants] == [
        ("wide", "128x128"),
        ("narrow", "128x64"),
        ("thin", "128x32"),
        ("alone", "64x128"),
    ]
    assert group.variants[3].measured / group.variants[0].measured == pytest.approx(2)
    assert group.rho("modulo") == pytest.approx(1)
    assert group.rho("cost") == pytest.approx(0.8), "one warpgroup before 32 keys"


def test_relative_times_make_groups_comparable() -> None:
    """A slower GPU, or head dim, does not bear on the rank of a variant."""
    slow = {name: 100 * time for name, time in ORDERED.items()}
    groups = rank([results(ORDERED), results(slow, mask="causal"), results(slow, d=96, dv=96)])
    assert [(g.d, g.mask) for g in groups] == [(96, "full"), (128, "causal"), (128, "full")]
    found = to_json(groups)
    assert found["all"]["variants"] == 12
    assert found["all"]["rho"]["modulo"] > 0.8
    by_mask = {(g["d"], g["mask"]): g["variants"][0]["measured"] for g in found["groups"]}
    assert by_mask[128, "full"] == pytest.approx(by_mask[128, "causal"])


def test_what_the_solver_does_not_know_is_left_out() -> None:
    shared = {"shared": {"schedule": {"tile": {"m": 128, "n": 128}, "p_operand": "shared"}}}
    result = results({**ORDERED, "shared": 1.2})
    result["meta"]["variants"] = {**VARIANTS, **shared}
    (group,) = rank([result])
    (variant,) = [v for v in group.variants if v.name == "shared"]
    assert variant.predicted["modulo"] is None
    assert variant.predicted["cost"] is not None
    assert group.rho("modulo") == pytest.approx(1)


def test_a_contender_that_is_missing_in_a_row() -> None:
    result = results(ORDERED)
    del result["rows"][0]["ms"]["thin"]
    result["rows"][1]["ms"]["narrow"] = None
    (group,) = rank([result])
    assert {v.name for v in group.variants} == set(TILES)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "run.json", tmp_path / "rank.json"
    source.write_text(json.dumps(results(ORDERED)))
    assert main([str(source), "--json", str(target)]) == 0
    table = capsys.readouterr().out
    assert table == render(rank([results(ORDERED)]))
    assert "| 128 | full | 4 | 0.80 | 1.00 | wide (128x128) |" in table
    assert table.splitlines()[-1] == "| **all** |  | 4 | 0.80 | 1.00 |  |"
    assert json.loads(target.read_text())["all"]["rho"] == pytest.approx(
        {"cost": 0.8, "modulo": 1.0}
    )
