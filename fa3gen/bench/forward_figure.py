"""The forward table as a picture: bars by length, a panel for each head dim and mask.

Needs matplotlib, which the extra ``fa3gen[plot]`` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa3gen.bench.forward_plan import LENGTHS, MASKS, TOKENS, WIDTH, Section
from fa3gen.bench.report import Row, is_right, tflops
from fa3gen.errors import ToolchainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

HeadDims = tuple[int, int]  # of queries and of values

BANDS: tuple[tuple[HeadDims, ...], ...] = (
    ((64, 64), (128, 128), (256, 256)),
    ((96, 96), (192, 192), (192, 128)),
)
LABELS = {  # in the order of the bars
    "fa3gen": ("fa3gen", "#d55e00"),
    "fa3": ("FlashAttention-3", "#0072b2"),
    "cudnn": ("cuDNN", "#009e73"),
    "fa2": ("FlashAttention-2", "#999999"),
    "flex": ("FlexAttention", "#e69f00"),
    "fa4": ("FlashAttention-4", "#56b4e9"),
}
WRITTEN = ("fa3gen", "fa3")  # whose bars carry their values
_DPI = 100
_WIDTH, _ROW_HEIGHT, _HEAD = 16.0, 3.2, 0.8  # inches: 1600 pixels wide
_GROUP = 0.86  # of the distance between two lengths


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Writes the picture, a PNG 1600 pixels wide. Raises ToolchainError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ToolchainError(
            f"{path.name} is left out: matplotlib is not installed; `pip install 'fa3gen[plot]'`"
        ) from None
    meta = results["meta"]
    rows = [row for row in results["rows"] if row["section"] == Section.GRID.value]
    bands = [band for band in BANDS if any(_cells(rows, mask, d) for mask in MASKS for d in band)]
    grid = [(mask, band) for band in bands for mask in MASKS]
    with matplotlib.rc_context({"font.size": 10.0}):
        height = len(grid) * _ROW_HEIGHT + _HEAD
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        names = [name for name in LABELS if name in meta["contenders"]]
        _draw_grid(figure, grid, rows, names)
        figure.legend(
            handles=[_handle(name) for name in names],
            title=f"Forward pass on {meta.get('gpu') or 'no GPU'}, {meta['dtype']}, "
            f"{TOKENS // 1024}k tokens a call",
            title_fontsize=13.0,
            loc="outside upper center",
            ncols=len(names),
            frameon=False,
        )
        figure.savefig(path, metadata={"Software": None})


def _cells(rows: Sequence[Row], mask: str, dims: HeadDims) -> list[Row]:
    """A panel's rows: the head count that is as wide as the other head dims'."""
    wanted = (mask, *dims, WIDTH // dims[0])
    return [row for row in rows if (row["mask"], row["d"], row["dv"], row["Hq"]) == wanted]


def _draw_grid(
    figure: Figure,
    grid: Sequence[tuple[str, Sequence[HeadDims]]],
    rows: Sequence[Row],
    names: Sequence[str],
) -> None:
    """Rows of panels with one scale."""
    if not grid:
        return
    panels = figure.subplots(len(grid), len(grid[0][1]), sharey=True, squeeze=False)
    for axes_row, (mask, band) in zip(panels, grid, strict=True):
        for axes, dims in zip(axes_row, band, strict=True):
            _draw_panel(axes, _cells(rows, mask, dims), names)
            label = f"{dims[0]}" if dims[0] == dims[1] else f"{dims[0]} / {dims[1]}"
            axes.set_title(f"{mask}, head dim {label}, {WIDTH // dims[0]} heads")
        axes_row[0].set_ylabel("TFLOP/s")


def _handle(name: str) -> Any:
    from matplotlib.patches import Patch

    label, colour = LABELS[name]
    return Patch(color=colour, label=label)


def _draw_panel(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """A group of bars for each length; a contender that is missing or wrong leaves its place."""
    width = _GROUP / max(1, len(names))
    by_length = {row["Sk"]: row for row in rows}
    for column, length in enumerate(LENGTHS):
        for index, name in enumerate(names):
            row = by_length.get(length)
            value = tflops(row, name) if row is not None and is_right(row, name) else None
            if value is None:
                continue
            x = column + (index - (len(names) - 1) / 2) * width
            axes.bar(x, value, width, color=LABELS[name][1])
            if name in WRITTEN:
                axes.annotate(
                    f"{value:.0f}",
                    (x, value),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=9,
                )
    axes.set_xticks(range(len(LENGTHS)), [_short(length) for length in LENGTHS])
    axes.set_xlim(-0.5, len(LENGTHS) - 0.5)
    axes.margins(y=0.14)  # room for the values
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length}"
