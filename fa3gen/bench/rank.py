"""How well the scheduler's models rank measured variants of a kernel: Spearman's rho.

::

    python -m fa3gen.bench.rank RESULTS.json ... [--json OUT.json]

Reads what ``fa3gen.bench.run`` writes, with the knobs of each contender that is a variant in
``meta["variants"]``, ``{name: {"schedule": {...}}}``, and predicts their times in two ways:

* ``cost``: the cycles of a query row by which tiles are chosen (``fa3gen.schedule.cost``);
* ``modulo``: the interval of the solved steady loop times the KV tiles visited
  (``fa3gen.schedule.solve``).

A group is a head dim and mask. Times in it are relative: in each row to the geometric mean of the
row's variants, then the geometric mean over the rows. ``all`` ranks the relative times of all
groups together. Ping-pong off, and masked tiles, are beyond both models.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa3gen.bench.report import number, table_line
from fa3gen.errors import ScheduleError
from fa3gen.schedule import Schedule, make_plan
from fa3gen.schedule.ranges import tile_range
from fa3gen.spec import AttentionSpec

__all__ = ["MODELS", "Group", "Variant", "main", "rank", "render", "spearman", "to_json"]

MODELS = ("cost", "modulo")
_FEWEST = 3  # variants that have a rank correlation

Row = Mapping[str, Any]
Key = tuple[int, int, str]  # d, dv, mask


@dataclass(frozen=True)
class Variant:
    """A kernel of a group: its tile, and relative times; None where a model has no answer."""

    name: str
    tile: str
    measured: float
    predicted: Mapping[str, float | None]


@dataclass(frozen=True)
class Group:
    """The variants of a head dim and mask, the quickest first."""

    d: int
    dv: int
    mask: str
    variants: tuple[Variant, ...]

    def rho(self, model: str) -> float | None:
        """A model's rank correlation with the measured times."""
        return _rho(self.variants, model)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rho, equal values sharing the mean of their ranks; None for fewer than three
    pairs, or where all values of one side are equal."""
    if len(one) < _FEWEST:
        return None
    ranks = [_ranks(one), _ranks(other)]
    mean = (len(one) + 1) / 2
    x, y = ([rank - mean for rank in side] for side in ranks)
    norm = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else None


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the least value; equal values share the mean of their ranks."""
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    return [b + (e + 1) / 2 for b, e in zip(below, equal, strict=True)]


def rank(results: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The groups of some results, in order of head dim and mask."""
    times: dict[Key, dict[tuple[str, str], list[tuple[Row, float]]]] = {}
    for result in results:
        knobs = {name: _knobs(v) for name, v in result["meta"].get("variants", {}).items()}
        for row in result["rows"]:
            timed = {name: row["ms"][name] for name in knobs if row["ms"].get(name) is not None}
            group = times.setdefault((row["d"], row["dv"], row["mask"]), {})
            for name, relative in _relative(timed).items():
                group.setdefault((name, knobs[name]), []).append((row, relative))
    return [_group(key, members) for key, members in sorted(times.items()) if members]


def _knobs(variant: Mapping[str, Any]) -> str:
    return json.dumps(variant.get("schedule", {}), sort_keys=True)


def _group(key: Key, members: Mapping[tuple[str, str], Sequence[tuple[Row, float]]]) -> Group:
    """A group with its predictions."""
    d, dv, mask = key
    measured, tiles = {}, {}
    predicted: dict[str, dict[str, float]] = {model: {} for model in MODELS}
    for (name, knobs), timed in members.items():
        spec = AttentionSpec(head_dim={"qk": d, "v": dv}, mask=mask, schedule=json.loads(knobs))
        try:
            (schedule,) = make_plan(spec, tables=())
        except ScheduleError as error:  # measured, but fa3gen allows for more registers since
            reason = str(error).splitlines()[0]
            print(f"left out: {mask} {d}/{dv} {name}: {reason}", file=sys.stderr)
            continue
        tiles[name] = f"{schedule.tiling.block_m}x{schedule.tiling.block_n}"
        measured[name] = _mean(relative for _, relative in timed)
        assert schedule.choice is not None
        predicted["cost"][name] = schedule.choice.candidates[0].cost.cycles_per_row
        if schedule.modulo is not None:
            lengths = [(row["Sq"], row["Sk"]) for row, _ in timed]
            cycles = schedule.modulo.interval * _mean(_tiles(schedule, *pair) for pair in lengths)
            predicted["modulo"][name] = cycles
    relative = {model: _relative(values) for model, values in predicted.items()}
    variants = [
        Variant(name, tiles[name], time, {model: relative[model].get(name) for model in MODELS})
        for name, time in measured.items()
    ]
    return Group(d, dv, mask, tuple(sorted(variants, key=lambda v: (v.measured, v.name))))


def _tiles(schedule: Schedule, seqlen_q: int, seqlen_k: int) -> int:
    """KV tiles that the query tiles of a head visit."""
    block_m, bounds = schedule.tiling.block_m, schedule.bounds
    found = 0
    for first in range(0, seqlen_q, block_m):
        last = min(first + block_m, seqlen_q) - 1
        lengths = (seqlen_q, seqlen_k)
        found += tile_range(bounds, first, last, lengths, schedule.tiling.block_n).tiles
    return found


def _relative(values: Mapping[str, float]) -> dict[str, float]:
    """Values over their geometric mean."""
    mean = _mean(values.values()) if values else 1.0
    return {name: value / mean for name, value in values.items()}


def _mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _rho(variants: Sequence[Variant], model: str) -> float | None:
    pairs = [(v.measured, p) for v in variants if (p := v.predicted[model]) is not None]
    return spearman([time for time, _ in pairs], [time for _, time in pairs])


def to_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Rank correlations and relative times."""
    everything = [variant for group in groups for variant in group.variants]
    return {
        "groups": [
            {
                "d": group.d,
                "dv": group.dv,
                "mask": group.mask,
                "rho": {model: group.rho(model) for model in MODELS},
                "variants": [
                    {"name": v.name, "tile": v.tile, "measured": v.measured, **v.predicted}
                    for v in group.variants
                ],
            }
            for group in groups
        ],
        "all": {
            "variants": len(everything),
            "rho": {model: _rho(everything, model) for model in MODELS},
        },
    }


def render(groups: Sequence[Group]) -> str:
    """A Markdown table: a line for each group, all of them together last."""
    columns = ["d", "mask", "variants", *(f"rho, {model}" for model in MODELS), "quickest"]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    for group in groups:
        dims = f"{group.d}" if group.d == group.dv else f"{group.d}/{group.dv}"
        rhos = [number(group.rho(model), 2) for model in MODELS]
        best = f"{group.variants[0].name} ({group.variants[0].tile})"
        lines.append(table_line([dims, group.mask, str(len(group.variants)), *rhos, best]))
    everything = [variant for group in groups for variant in group.variants]
    rhos = [number(_rho(everything, model), 2) for model in MODELS]
    lines.append(table_line(["**all**", "", str(len(everything)), *rhos, ""]))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write the JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.bench.rank", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON of fa3gen.bench.run")
    parser.add_argument("--json", type=Path, help="write the correlations here")
    options = parser.parse_args(arguments)
    groups = rank(json.loads(path.read_text()) for path in options.results)
    if options.json:
        options.json.write_text(json.dumps(to_json(groups), indent=1) + "\n")
    print(render(groups), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
