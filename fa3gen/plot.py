"""A schedule as a picture: the op graph above, the timeline of its roles below.

Needs matplotlib, which the extra ``fa3gen[plot]`` brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fa3gen.errors import InputError, ToolchainError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import TileOp, Unit
from fa3gen.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FORMATS", "draw", "layers"]

FORMATS = (".png", ".svg")

_COLOURS = {
    Unit.TMA: "#8da0cb",
    Unit.TENSOR: "#66a61e",
    Unit.MUFU: "#e6ab02",
    Unit.FMA: "#d95f02",
    Unit.ALU: "#e7298a",
}
_WIDTH = 14.0  # inches
_HALF_BOX = 0.27  # of a column
_MIN_LABEL = 0.016  # of the time axis: a narrower span has no room for its name


def draw(graph: OpGraph, timeline: Timeline, path: str | Path) -> None:
    """Writes the picture to ``path``, whose suffix (.svg or .png) says the format.

    The same schedule gives the same bytes. Raises InputError for another suffix, ToolchainError
    where matplotlib is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise InputError(f"--plot: the file must end in .svg or .png (got {target.name})")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ToolchainError(
            "--plot: matplotlib is not installed; `pip install 'fa3gen[plot]'`"
        ) from None
    rows = max(len(layer) for layer in layers(graph))
    heights = (0.9 * rows + 0.6, 0.34 * len(_rows(timeline)) + 1.2)
    with matplotlib.rc_context({"svg.hashsalt": timeline.name, "font.size": 9.0}):
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _draw_graph(above, graph, timeline.name)
        _draw_timeline(below, timeline)
        svg = target.suffix.lower() == ".svg"
        figure.savefig(target, dpi=120, metadata={"Date": None} if svg else {})


def layers(graph: OpGraph) -> list[list[TileOp]]:
    """The operations in columns: each right of all that it waits for in the same KV tile.

    One that waits for nothing stands left of the first that needs it.
    """
    inner = [edge for edge in graph.dependences if not edge.distance]
    column: dict[str, int] = {}
    for op in graph.ops:  # in the order of the data flow
        sources = [edge.source for edge in inner if edge.target == op.name]
        column[op.name] = max((column[name] for name in sources), default=-1) + 1
    for op in graph.ops:
        targets = [column[edge.target] for edge in inner if edge.source == op.name]
        if targets and not any(edge.target == op.name for edge in inner):
            column[op.name] = min(targets) - 1
    columns: list[list[TileOp]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for op in graph.ops:
        columns[column[op.name]].append(op)
    return columns


def _draw_graph(axes: Axes, graph: OpGraph, name: str) -> None:
    """Boxes for operations, arrows for dependences, dashed ones from an earlier KV tile."""
    places: dict[str, tuple[float, float]] = {}
    for column, ops in enumerate(layers(graph)):
        for index, op in enumerate(ops):
            places[op.name] = (float(column), (len(ops) - 1) / 2 - index)
    for edge in graph.dependences:
        _draw_edge(axes, places[edge.source], places[edge.target], edge.distance)
    for op in graph.ops:
        x, y = places[op.name]
        axes.text(
            x,
            y,
            f"{op.name}\n{op.cycles} clk",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.35", "fc": _COLOURS[op.unit], "ec": "#333333"},
        )
    heights = [y for _, y in places.values()]
    axes.set_xlim(-0.6, max(x for x, _ in places.values()) + 0.6)
    axes.set_ylim(min(heights) - 0.9, max(heights) + 0.7)
    axes.set_title(f"{name}: one KV tile (dashed: from the tile before)", loc="left")
    axes.axis("off")


def _draw_edge(
    axes: Axes, source: tuple[float, float], target: tuple[float, float], distance: int
) -> None:
    """An arrow between two boxes' sides; one that runs far or back is bent around those between."""
    (x, y), (x_target, y_target) = source, target
    steps = x_target - x
    bend = 0.0 if steps == 1 else -0.25 if steps > 1 else -0.35
    if steps > 0:
        source, target = (x + _HALF_BOX, y), (x_target - _HALF_BOX, y_target)
    else:  # from an earlier tile: under the boxes
        source, target = (x - 0.1, y - 0.3), (x_target + 0.1, y_target - 0.3)
    if not steps:
        bend = 0.9
    style: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": "#555555",
        "linestyle": "--" if distance else "-",
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", xy=target, xytext=source, arrowprops=style)


def _draw_timeline(axes: Axes, timeline: Timeline) -> None:
    """A row for each role and unit that it uses, a bar for each span."""
    rows = _rows(timeline)
    total = max(timeline.cycles, 1)
    for span in timeline.spans:
        row = rows[span.role, span.unit]
        width = span.end - span.begin
        axes.barh(
            row,
            width,
            left=span.begin,
            height=0.8,
            color=_COLOURS[span.unit],
            edgecolor="#333333",
            linewidth=0.4,
        )
        if width / total > _MIN_LABEL:
            tile = "" if span.tile is None else f" {span.tile}"
            middle = span.begin + width / 2
            name = span.op.removeprefix("Gemm").removeprefix("Load")
            axes.text(middle, row, f"{name}{tile}", ha="center", va="center", fontsize=6)
    axes.set_yticks(list(rows.values()), [f"{role} · {unit.value}" for role, unit in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, total)
    axes.set_xlabel("cycles of one SM (unit occupancy alone)")
    busy = ", ".join(f"{unit.value} {100 * timeline.busy(unit):.0f} %" for unit in _used(timeline))
    axes.set_title(f"{timeline.tiles} KV tiles in {timeline.cycles} cycles; {busy}", loc="left")


def _rows(timeline: Timeline) -> Mapping[tuple[str, Unit], int]:
    """The row of each role and unit: products and softmax of a warpgroup run at once."""
    used = {(span.role, span.unit) for span in timeline.spans}
    pairs = [(role, unit) for role in timeline.roles for unit in Unit if (role, unit) in used]
    return {pair: index for index, pair in enumerate(pairs)}


def _used(timeline: Timeline) -> Sequence[Unit]:
    return [unit for unit in Unit if any(span.unit is unit for span in timeline.spans)]
