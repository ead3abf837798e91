from __future__ import annotations

import json
from pathlib import Path

from fa3gen.bench import bundles
from fa3gen.paths import SPECS

_KEPT = SPECS.parent / "benchmarks/results/bundles"


def test_the_table_is_that_of_the_results() -> None:
    results = json.loads(_KEPT.with_suffix(".json").read_text())
    assert bundles.render(results) == _KEPT.with_suffix(".md").read_text()


def test_ten_shipped_specs_are_built() -> None:
    shipped = {path.stem for path in Path(SPECS).glob("*.yaml")}
    assert len(set(bundles.FORWARD)) == 10
    assert set(bundles.FORWARD) <= shipped
