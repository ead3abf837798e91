"""Render a benchmark's JSON as Markdown.

::

    python -m fa3gen.bench.report FILE.json     # rewrites FILE.md beside it
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "geometric_mean",
    "header",
    "is_right",
    "main",
    "number",
    "ratio",
    "render",
    "speed",
    "table_line",
    "tflops",
]

_OURS = "fa3gen"
_ABSENT = "–"  # noqa: RUF001  (the sign of an empty cell)
Row = Mapping[str, Any]


def tflops(row: Row, name: str) -> float | None:
    """TFLOP/s of one contender in a row, None if it was not timed there."""
    ms = row["ms"].get(name)
    return None if ms is None else float(row["flops"]) / ms / 1e9


def ratio(row: Row, peer: str) -> float | None:
    """fa3gen's speed over the peer's (above 1: faster); None if either is missing or wrong."""
    ours, theirs = row["ms"].get(_OURS), row["ms"].get(peer)
    if ours is None or theirs is None or not (is_right(row, _OURS) and is_right(row, peer)):
        return None
    return float(theirs) / float(ours)


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def render(results: Mapping[str, Any]) -> str:
    """The whole page: facts of the run, then a table for each kind of row."""
    rows: list[Row] = list(results["rows"])
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["variant"], row["dtype"]), []).append(row)
    parts = [header(results["meta"])]
    parts += [_section(" ".join(key), members) for key, members in groups.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def header(meta: Mapping[str, Any]) -> str:
    """The facts of a run as a list: GPU, versions, clocks, command, what its columns mean."""
    versions = [
        f"{label} {meta[key]}"
        for key, label in (("driver", "driver"), ("cuda", "CUDA"), ("torch", "torch"))
        if meta.get(key)
    ]
    lines = [
        ", ".join([meta.get("gpu") or "no GPU", *versions, meta.get("date") or ""]).strip(", ")
    ]
    clocks = meta.get("clocks") or {}
    for key, text in (("sm_mhz", "SM clock {} MHz"), ("power_w", "power {} W")):
        if span := clocks.get(key):
            values = f"{span['min']:.0f} / {span['median']:.0f} / {span['max']:.0f}"
            lines.append(f"{text.format(values)} (least / median / greatest)")
    if meta.get("command"):
        lines.append(f"Made by `{meta['command']}`")
    lines.append(
        "Each contender's column is TFLOP/s; `x/peer` is fa3gen's speed over that peer's in the "
        "same run. FLOPs: 2 (d + dv) for each kept pair of each head, causal squares counted as "
        "half."
    )
    reasons: dict[str, list[str]] = {}
    for name, reason in (meta.get("skipped") or {}).items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"Skipped: {'; '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(f"- {line}" for line in lines)


def _section(title: str, rows: Sequence[Row]) -> str:
    """A heading and one table, with the geometric means of each mask and of all rows last."""
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    names.sort(key=lambda name: name != _OURS)  # ours first, the others in order of appearance
    peers = names[1:] if _OURS in names else []
    columns = ["d", "mask", "B", "heads", "Sq", "Sk", *names, *(f"x/{peer}" for peer in peers)]
    lines = [table_line(columns), table_line("---:" for _ in columns)]
    lines += [table_line(_cells(row, names, peers)) for row in rows]
    masks = list(dict.fromkeys(row["mask"] for row in rows))
    groups = [(mask, [row for row in rows if row["mask"] == mask]) for mask in masks]
    if len(masks) > 1:
        groups.append(("all", list(rows)))
    for label, members in groups if peers else ():
        means = (geometric_mean(_ratios(members, peer)) for peer in peers)
        blank = [""] * (4 + len(names))
        lines.append(table_line(["**mean**", label, *blank, *(number(m, 3) for m in means)]))
    return f"### {title}\n\n" + "\n".join(lines)


def _cells(row: Row, names: Sequence[str], peers: Sequence[str]) -> list[str]:
    d = f"{row['d']}" if row["d"] == row["dv"] else f"{row['d']}/{row['dv']}"
    heads = f"{row['Hq']}" if row["Hq"] == row["Hk"] else f"{row['Hq']}/{row['Hk']}"
    cells = [d, row["mask"], row["B"], heads, row["Sq"], row["Sk"]]
    speeds = [speed(row, name) for name in names]
    return [*map(str, cells), *speeds, *(number(ratio(row, peer), 3) for peer in peers)]


def speed(row: Row, name: str) -> str:
    """A contender's cell: TFLOP/s, marked where its output is wrong."""
    return number(tflops(row, name), 0) + ("" if is_right(row, name) else " **wrong**")


def is_right(row: Row, name: str) -> bool:
    """Whether the contender's output passed the error rule (an absent one did not fail it)."""
    return bool(row.get("error", {}).get(name, {}).get("ok", True))


def _ratios(rows: Iterable[Row], peer: str) -> list[float]:
    return [value for value in (ratio(row, peer) for row in rows) if value is not None]


def number(value: float | None, digits: int) -> str:
    """A figure with ``digits`` decimals, or the sign of an empty cell."""
    return _ABSENT if value is None else f"{value:.{digits}f}"


def table_line(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite NAME.md beside each NAME.json given."""
    paths = [Path(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if not paths:
        print("usage: python -m fa3gen.bench.report FILE.json ...", file=sys.stderr)
        return 2
    for path in paths:
        page = path.with_suffix(".md")
        page.write_text(render(json.loads(path.read_text())))
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
