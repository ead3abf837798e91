"""The table of variants as a Markdown page, from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fa3gen.bench.report import (
    Row,
    geometric_mean,
    header,
    is_right,
    number,
    ratio,
    speed,
    table_line,
)
from fa3gen.bench.variants_plan import VARIANTS, Relation

__all__ = ["in_order", "plain_ratio", "rate_ratio", "render", "row_key"]

_OURS, _PLANNED, _PLAN, _FLEX = "fa3gen", "planned", "plan", "flex"
_NAMES = [one.name for one in VARIANTS]


def row_key(row: Row) -> tuple[object, ...]:
    """The key of the cell that a row holds."""
    return (row["variant"], row["d"], row["Sk"])


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the table's order."""

    def place(row: Row) -> tuple[int, ...]:
        name = row["variant"]
        return (row["d"], row["Sk"], _NAMES.index(name) if name in _NAMES else len(_NAMES))

    return sorted(rows, key=place)


def plain_ratio(row: Row) -> float | None:
    """The plain kernel's time over the variant's: 1 where the formula costs nothing."""
    for one in row["baselines"]:
        if one["relation"] != Relation.RATE.name and _are_right(row, one["name"]):
            return float(row["ms"][one["name"]]) / float(row["ms"][_OURS])
    return None


def rate_ratio(row: Row) -> float | None:
    """The variant's TFLOP/s over those of a plain causal kernel, each over what it keeps."""
    for one in row["baselines"]:
        if one["relation"] == Relation.RATE.name and _are_right(row, one["name"]):
            ours = row["flops"] / row["ms"][_OURS]
            return float(ours / (one["flops"] / row["ms"][one["name"]]))
    return None


def _are_right(row: Row, name: str) -> bool:
    return all(one in row["ms"] and is_right(row, one) for one in (_OURS, name))


def render(results: Mapping[str, Any], picture: str | None = None) -> str:
    """The whole page; ``picture`` is the file name of the figure, if one was drawn."""
    meta, rows = results["meta"], list(results["rows"])
    parts = ["# Variants, forward pass, bf16", _facts(meta)]
    if picture:
        parts.append(f"![TFLOP/s of variants]({picture})")
    parts += [_means(rows)] if rows else []
    for d in sorted({row["d"] for row in rows}):
        for length in sorted({row["Sk"] for row in rows}):
            members = [row for row in rows if (row["d"], row["Sk"]) == (d, length)]
            if members:
                parts.append(f"## d{d}, S {length}\n\n{_table(members)}")
    parts += [_baselines()]
    return "\n\n".join(parts) + "\n"


def _facts(meta: Mapping[str, Any]) -> str:
    lengths = ", ".join(map(str, meta["flex_lengths"])) or "no length"
    lines = [
        header({**meta, "skipped": {}}),
        f"- medians of {meta['repeats']} calls, contenders interleaved; flex, compiled with "
        f"`dynamic=False` and its block mask made beforehand, is timed at S {lengths}",
        "- `x/plain`: the time of fa3gen's plain kernel (same elements, or about the same tiles) "
        "over the variant's; `x/rate`: the variant's TFLOP/s over a plain causal kernel's, each "
        "over the elements that it keeps; what is set against what stands below",
        "- `ms` has the listing of KV tiles in it where a mask needs one; `planned` has not, "
        "`plan` is that alone",
    ]
    return "\n".join(lines)


def _means(rows: Sequence[Row]) -> str:
    columns = ["mean over all variants", "x/plain", "x/rate", "x/flex"]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    for d in sorted({row["d"] for row in rows}):
        members = [row for row in rows if row["d"] == d]
        figures = [_mean(members, figure) for figure in (plain_ratio, rate_ratio, _flex_ratio)]
        lines.append(table_line([f"d{d}", *figures]))
    return "\n".join(lines)


def _mean(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> str:
    found = [value for row in rows if (value := figure(row)) is not None]
    return number(geometric_mean(found), 3)


def _flex_ratio(row: Row) -> float | None:
    return ratio(row, _FLEX)


def _table(rows: Sequence[Row]) -> str:
    """One head dim and length."""
    columns = ["variant", "B", "heads", _OURS, "ms", _PLANNED, _PLAN, "x/plain", "x/rate"]
    columns += [_FLEX, "x/flex"]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    for row in rows:
        cells = [row["variant"], str(row["B"]), str(row["Hq"]), _own_speed(row)]
        cells += [number(row["ms"].get(name), 3) for name in (_OURS, _PLANNED, _PLAN)]
        cells += [number(plain_ratio(row), 3), number(rate_ratio(row), 3)]
        cells += [speed(row, _FLEX), number(_flex_ratio(row), 2)]
        lines.append(table_line(cells))
    gaps = [
        f"- {row['variant']}: no {name}: {reason}"
        for row in rows
        for name, reason in row["gaps"].items()
    ]
    wrong = [
        f"- {row['variant']}, ragged lengths: {'; '.join(row['ragged']['problems'])}"
        for row in rows
        if not row["ragged"]["ok"]
    ]
    return "\n".join(lines) + ("\n\n" + "\n".join(gaps + wrong) if gaps or wrong else "")


def _own_speed(row: Row) -> str:
    mark = "" if row["ragged"]["ok"] else " **wrong**"
    return speed(row, _OURS) + (mark if "wrong" not in speed(row, _OURS) else "")


def _baselines() -> str:
    """What each variant is and is set against."""
    columns = ["variant", "score", "mask", "x/plain", "x/rate"]
    lines = ["## What is set against what", ""]
    lines += [table_line(columns), table_line("---" for _ in columns)]
    for one in VARIANTS:
        formula = one.formula
        sink = f", sink {formula.sink}" if formula.sink else ""
        against = {"plain": "", "rate": ""}
        for base in one.baselines:
            short = f", S / {base.parts}" if base.parts > 1 else ""
            short += f", S up to {base.longest}" if base.longest < 16384 else ""
            key = "rate" if base.relation is Relation.RATE else "plain"
            note = f" ({base.relation.value})" if key == "plain" else ""
            against[key] = f"{base.formula.mask}{short}{note}"
        score, mask = f"`{formula.score}`{sink}", f"`{formula.mask}`"
        lines.append(table_line([one.name, score, mask, *against.values()]))
    return "\n".join(lines)
