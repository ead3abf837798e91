"""The forward table's Markdown page, from its JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fa3gen.bench.forward_plan import RAGGED_UNIT, Section
from fa3gen.bench.report import (
    Row,
    geometric_mean,
    header,
    is_right,
    number,
    ratio,
    speed,
    table_line,
    tflops,
)

__all__ = ["best_ratio", "next_ratio", "render", "summary"]

OURS = "fa3gen"
RIVALS = ("fa3", "cudnn")  # `best` is the faster of them
COMPARED = (OURS, "fa3")  # whose ragged lengths are set against the next multiple
Group = tuple[str, list[Row]]  # a title and its rows
Figure = Callable[[Row], "float | None"]


def render(results: Mapping[str, Any], picture: str | None = None) -> str:
    """The whole page; ``picture`` is the file name of the figure, if one was drawn."""
    meta, rows = results["meta"], list(results["rows"])
    parts = [f"# Forward pass, {meta['dtype']}", _facts(meta)]
    if picture:
        parts.append(f"![TFLOP/s by head dim, mask and length]({picture})")
    if rows:
        parts.append("## Summary\n\n" + summary(rows))
    for section in (Section.GRID, Section.WINDOW):
        for title, members in _groups(rows, section):
            parts.append(f"## {title}\n\n{_table(members, meta)}")
    ragged = _groups(rows, Section.RAGGED)
    if ragged:
        parts.append("## Ragged lengths\n\n" + _RAGGED_NOTE)
    parts += [f"### {title}\n\n{_ragged_table(members, meta)}" for title, members in ragged]
    return "\n\n".join(parts) + "\n"


_RAGGED_NOTE = (
    "TFLOP/s count the FLOPs of the lengths given and nothing of padding. `NAME/next` is that "
    f"contender's TFLOP/s over its own at the next multiple of {RAGGED_UNIT}."
)


def _facts(meta: Mapping[str, Any]) -> str:
    lines = [header({**meta, "skipped": {}})]  # each table lists its own gaps
    made = ", ".join(
        f"{label} {meta[key]}"
        for key, label in (("fa3gen", "fa3gen"), ("cudnn", "cuDNN"))
        if meta.get(key)
    )
    lines.append(f"- {made}; medians of {meta['repeats']} calls, contenders interleaved")
    lines.append(
        f"- `x/best` is fa3gen's speed over the faster of {' and '.join(RIVALS)}; "
        "a mean is geometric; B: batch"
    )
    if "flex" in meta["contenders"]:
        lengths = ", ".join(map(str, meta["flex_lengths"])) or "no length"
        lines.append(f"- flex is timed at {lengths} only, and not at ragged lengths")
    return "\n".join(lines)


def best_ratio(row: Row) -> float | None:
    """fa3gen's speed over the fastest rival's."""
    return min(_values([row], *(_over(peer) for peer in RIVALS)), default=None)


def next_ratio(row: Row, name: str, rows: Sequence[Row]) -> float | None:
    """A contender's TFLOP/s over its own at the next multiple of the unit, among ``rows``.

    None where the length is a multiple, and where one of the two was not timed.
    """
    length = row["Sq"]
    multiple = -(-length // RAGGED_UNIT) * RAGGED_UNIT
    if length == multiple or length != row["Sk"]:
        return None
    for other in rows:
        if (other["Sq"], other["Sk"]) == (multiple, multiple):
            here, there = _right_tflops(row, name), _right_tflops(other, name)
            return here / there if here and there else None
    return None


def _right_tflops(row: Row, name: str) -> float | None:
    return tflops(row, name) if is_right(row, name) else None


def summary(rows: Sequence[Row]) -> str:
    """Geometric mean and minimum of both ratios, for each head dim and mask, and over all."""
    columns = ["d", "heads", "mask", "x/fa3", "least", "x/best", "least"]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["section"] != Section.RAGGED.value:
            groups.setdefault((_dims(row), str(row["Hq"]), row["mask"]), []).append(row)
    whole = [row for row in rows if row["section"] == Section.GRID.value]
    for mask in dict.fromkeys(row["mask"] for row in whole):
        groups["**all**", "", mask] = [row for row in whole if row["mask"] == mask]
    groups["**all**", "", "both"] = whole
    for labels, members in groups.items():
        pairs = (_mean_and_least(members, figure) for figure in (_over("fa3"), best_ratio))
        lines.append(table_line([*labels, *(cell for pair in pairs for cell in pair)]))
    return "\n".join(lines)


def _mean_and_least(rows: Sequence[Row], figure: Figure) -> tuple[str, str]:
    """Two cells; the least says at which length, and of which head dim if there are several."""
    found = [(value, row) for row in rows if (value := figure(row)) is not None]
    if not found:
        return number(None, 3), number(None, 3)
    least, where = min(found, key=lambda pair: pair[0])
    mean = geometric_mean(value for value, _ in found)
    several = len({_dims(row) for row in rows}) > 1
    place = f"d{_dims(where)}, {where['Sk']}" if several else f"{where['Sk']}"
    return number(mean, 3), f"{number(least, 3)} ({place})"


def _groups(rows: Iterable[Row], section: Section) -> list[Group]:
    """The rows of a section by head dim and mask, each group with its title."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["section"] == section.value:
            groups.setdefault(f"d{_dims(row)}, {row['mask']}", []).append(row)
    return list(groups.items())


def _table(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """One head dim and mask: TFLOP/s, ratios, their means, and what is missing."""
    names = meta["contenders"]
    columns = ["S", "B", "heads", *names, "x/fa3", "x/best"]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    for row in rows:
        shape = [str(row[column]) for column in ("Sk", "B", "Hq")]
        lines.append(table_line([*shape, *(speed(row, name) for name in names), *_ratios(row)]))
    lines.append(table_line(["**mean**", "", "", *("" for _ in names), *_means(rows)]))
    return "\n".join(lines) + _gaps(rows, meta)


def _ragged_table(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """One head dim and mask of the ragged part."""
    names = [name for name in meta["contenders"] if name != "flex"]
    compared = [name for name in COMPARED if name in names]
    further = [f"{name}/next" for name in compared]
    columns = ["Sq", "Sk", "B", "heads", *names, "x/fa3", "x/best", *further]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    for row in rows:
        cells = [str(row[column]) for column in ("Sq", "Sk", "B", "Hq")]
        cells += [speed(row, name) for name in names]
        cells += [*_ratios(row), *(number(next_ratio(row, name, rows), 3) for name in compared)]
        lines.append(table_line(cells))
    blank = ["" for _ in (*names, "Sk", "B", "heads")]
    figures = [functools.partial(next_ratio, name=name, rows=rows) for name in compared]
    kept = (geometric_mean(_values(rows, figure)) for figure in figures)
    means = [*_means(rows), *(number(mean, 3) for mean in kept)]
    lines.append(table_line(["**mean**", *blank, *means]))
    return "\n".join(lines) + _gaps(rows, meta)


def _gaps(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """The list under a table: who is missing where, and why."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["gaps"].items():
            length = str(row["Sk"]) if row["Sq"] == row["Sk"] else f"{row['Sq']}/{row['Sk']}"
            places.setdefault((name, reason), []).append(length)
    timed = {name for row in rows for name in row["ms"]}
    lines = [
        f"- {name}, S {', '.join(dict.fromkeys(lengths))}: {reason}"
        for (name, reason), lengths in places.items()
    ]
    lines += [f"- {name}: {why}" for name, why in meta["skipped"].items() if name not in timed]
    return "\n\n" + "\n".join(lines) if lines else ""


def _ratios(row: Row) -> list[str]:
    return [number(ratio(row, "fa3"), 3), number(best_ratio(row), 3)]


def _means(rows: Sequence[Row]) -> list[str]:
    return [
        number(geometric_mean(_values(rows, figure)), 3) for figure in (_over("fa3"), best_ratio)
    ]


def _over(peer: str) -> Figure:
    return lambda row: ratio(row, peer)


def _values(rows: Iterable[Row], *figures: Figure) -> list[float]:
    """The figures of the rows, without those that are missing."""
    found = (figure(row) for row in rows for figure in figures)
    return [value for value in found if value is not None]


def _dims(row: Row) -> str:
    return f"{row['d']}" if row["d"] == row["dv"] else f"{row['d']}/{row['dv']}"
