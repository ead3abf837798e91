"""The table of variants as a picture: bars by variant, a panel for each head dim and length.

Needs matplotlib, which the extra ``fa3gen[plot]`` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa3gen.bench.forward_figure import LABELS
from fa3gen.bench.report import Row, is_right, tflops
from fa3gen.bench.variants_plan import VARIANTS
from fa3gen.errors import ToolchainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

PLAIN = ("fa3gen, plain kernel", "#bbbbbb")  # the first that the variant is set against
_WIDTH, _PANEL_HEIGHT, _HEAD = 16.0, 3.4, 0.8  # inches, of 100 pixels
_GROUP = 0.84  # of the distance between two variants


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes the picture, a PNG 1600 pixels wide. Raises ToolchainError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ToolchainError(
            f"{path.name} is left out: matplotlib is not installed; `pip install 'fa3gen[plot]'`"
        ) from None
    meta, rows = results["meta"], list(results["rows"])
    lengths = sorted({row["Sk"] for row in rows})
    dims = sorted({row["d"] for row in rows})
    panels = [(d, s) for d in dims for s in lengths if _rows(rows, d, s)]
    with matplotlib.rc_context({"font.size": 10.0}):
        size = (_WIDTH, len(panels) * _PANEL_HEIGHT + _HEAD)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        if panels:
            grid = figure.subplots(len(panels), 1, squeeze=False)
            for axes, (d, s) in zip(grid.flat, panels, strict=True):
                _draw_panel(axes, _rows(rows, d, s))
                axes.set_title(f"head dim {d}, S {s}")
        labels = (PLAIN, LABELS["fa3gen"], LABELS["flex"])
        figure.legend(
            handles=[Patch(color=colour, label=label) for label, colour in labels],
            title=f"Variants on {meta.get('gpu') or 'no GPU'}, {meta['dtype']}, forward pass, "
            "TFLOP/s over the elements that are kept",
            title_fontsize=13.0,
            loc="outside upper center",
            ncols=3,
            frameon=False,
        )
        figure.savefig(path, metadata={"Software": None})


def _rows(rows: Sequence[Row], head_dim: int, seqlen: int) -> dict[str, Row]:
    """A panel's rows by variant."""
    return {row["variant"]: row for row in rows if (row["d"], row["Sk"]) == (head_dim, seqlen)}


def _draw_panel(axes: Axes, rows: Mapping[str, Row]) -> None:
    """Three bars a variant; what is missing or wrong leaves its place."""
    names = [one.name for one in VARIANTS if one.name in rows]
    width = _GROUP / 3
    for column, name in enumerate(names):
        row = rows[name]
        bars = (
            (_plain(row), PLAIN[1]),
            (_right(row, "fa3gen"), LABELS["fa3gen"][1]),
            (_right(row, "flex"), LABELS["flex"][1]),
        )
        for place, (value, colour) in enumerate(bars):
            if value is None:
                continue
            x = column + (place - 1) * width
            axes.bar(x, value, width, color=colour)
            axes.annotate(
                f"{value:.0f}",
                (x, value),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.margins(y=0.14)  # room for the values
    axes.set_ylabel("TFLOP/s")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _right(row: Row, name: str) -> float | None:
    return tflops(row, name) if is_right(row, name) else None


def _plain(row: Row) -> float | None:
    """Of the first plain kernel, over the elements that it keeps itself."""
    for one in row["baselines"][:1]:
        if one["name"] in row["ms"] and is_right(row, one["name"]):
            return float(one["flops"]) / float(row["ms"][one["name"]]) / 1e9
    return None
