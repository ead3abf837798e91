"""Step: what the solver of the steady loop is asked, one KV tile of every consumer warpgroup.

Rates are measured on an H200: the bare mix (maximum; scale, exponential, sum, half a conversion)
takes 10.0 cycles an element and thread for one warpgroup, 8.24 for several together. Compiled code
is slower: FlashAttention-3 at 128x128, d 128, takes 1,330 cycles from scores to the next product
and issues 6-7 instructions an element, bare code 830 and 4.5; hence ``COMPILED``. Latencies are
estimates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from fa3gen.errors import ScheduleError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import ConvertP, Exp, GemmPV, GemmQK, LoadK, LoadV, Mask, Rescale, RowMax
from fa3gen.schedule.arch import HOPPER

__all__ = [
    "ARRIVAL",
    "BARE",
    "COMPILED",
    "DRAIN",
    "GRID",
    "LATENCY",
    "SHARE",
    "TILES",
    "Budget",
    "Pace",
    "Part",
    "Step",
    "make_step",
    "units",
]

BARE, COMPILED = 100, 160  # pace of a warpgroup

GRID = 8  # cycles
TILES = 2  # most tiles of scores, and of P, that live
SHARE = 120  # a whole unit in a cumulative constraint: 1/2 and 1/3 are whole numbers

DRAIN = 32  # cycles from the last exponential to its sum and conversion
ARRIVAL = 800  # from the end of a load's transfer
LATENCY = {
    "GemmQK": 64,  # until the registers can be read
    "GemmPV": 64,
    "RowMax": 64,  # two shuffles and alpha
    "ConvertP": 16,  # fence before the product
    "Rescale": 16,
}
_MUFU = (8.0, 8.24)  # cycles an element, of one warpgroup and of several
_ALU = {"Mask": 4.0, "RowMax": 2.0, "ConvertP": 1.0}
_ISSUE = {"Mask": 2.0, "RowMax": 1.0, "Rescale": 1.0, "Exp": 3.5, "ConvertP": 0.5}  # Exp: with sum


@dataclass(frozen=True)
class Budget:
    """What the loop may take: ``registers`` of a consumer thread, of which ``working`` hold neither
    scores nor P nor O; stages of the K and V rings."""

    registers: int
    working: int
    stages_k: int = 2
    stages_v: int = 2


@dataclass(frozen=True)
class Pace:
    """A duration, and the shares of MUFU, ALU and issue slots then taken."""

    duration: int
    shares: tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """Work of an instruction stream that is not parted; the quickest pace first."""

    op: str
    part: int
    work: tuple[int, int, int]  # cycles of MUFU, ALU, issue slots
    paces: tuple[Pace, ...]

    @property
    def name(self) -> str:
        return f"{self.op} {self.part}"


@dataclass(frozen=True)
class Step:
    """One KV tile of a warpgroup; times in units of the grid."""

    warpgroups: int
    flops: int  # of all warpgroups
    qk: int
    pv: int
    load_k: int
    load_v: int
    parts: tuple[Part, ...]
    edges: tuple[tuple[str, str, int], ...]  # source, target, distance in KV tiles
    tiles: tuple[tuple[int, int], ...]  # of scores and P, that the registers hold
    stages: tuple[int, int]  # of K and V

    def loads(self) -> dict[str, int]:
        """Lower bounds of the interval."""
        parts = [part for part in self.parts if part.op != "ConvertP"]  # may be in Exp's shadow
        quickest = {part.name: part.paces[0].duration for part in parts}
        mufu, alu, issue = (sum(part.work[unit] for part in parts) for unit in range(3))
        scores = self.qk + sum(quickest.values()) - quickest["Rescale 0"]
        scores += units(LATENCY["GemmQK"]) + units(LATENCY["RowMax"]) + units(DRAIN)
        held = max(tiles for tiles, _ in self.tiles)
        rings = zip((self.load_k, self.load_v), (self.qk, self.pv), self.stages, strict=True)
        return {
            "tensor core": self.warpgroups * (self.qk + self.pv),
            "MUFU": units(self.warpgroups * mufu),
            "ALU": units(self.warpgroups * alu),
            "issue": units(self.warpgroups * issue),
            "TMA": self.load_k + self.load_v,
            "one warpgroup's chain": max(2 + sum(quickest.values()), -(-scores // held)),
            "rings": max(-(-(load + units(ARRIVAL) + use) // n) for load, use, n in rings),
        }


def units(cycles: float) -> int:
    """Cycles in units of the grid, rounded up."""
    return -int(-cycles // GRID)


def _products(graph: OpGraph) -> tuple[GemmQK, GemmPV]:
    return graph.op(GemmQK), graph.op(GemmPV)


def make_step(graph: OpGraph, warpgroups: int, budget: Budget, pace: int, masked: bool) -> Step:
    """The problem of a graph under a budget."""
    rows, stages = graph.op(GemmQK).writes[0].rows, (budget.stages_k, budget.stages_v)
    if not 1 <= warpgroups <= 3 or rows != HOPPER.wgmma_rows * warpgroups:
        raise ScheduleError(
            "modulo schedule: takes 64 query rows for each of 1 to 3 warpgroups "
            f"(got {rows} rows, {warpgroups} warpgroups)"
        )
    if min(stages) < 1 or pace < BARE:
        raise ScheduleError(
            "modulo schedule: K and V need a stage each and pace is 100 or more "
            f"(got stages {stages}, pace {pace})"
        )
    qk, pv = (units(op.cycles / warpgroups) for op in _products(graph))
    load_k, load_v = (units(graph.op(load).cycles) for load in (LoadK, LoadV))
    parts = tuple(_parts(graph, warpgroups, pace, masked))
    edges, tiles = tuple(_edges(graph, masked)), tuple(_live_tiles(graph, budget))
    flops = 2 * sum(op.writes[0].elements * op.inner for op in _products(graph))
    return Step(warpgroups, flops, qk, pv, load_k, load_v, parts, edges, tiles, stages)


def _live_tiles(graph: OpGraph, budget: Budget) -> list[tuple[int, int]]:
    """Numbers of score and P tiles that fit a thread's registers."""
    tiles = (graph.op(op).writes[0] for op in (GemmQK, ConvertP, GemmPV))
    s, p, o = (
        tile.bytes // 4 * HOPPER.wgmma_rows // HOPPER.warpgroup // tile.rows for tile in tiles
    )
    spare = budget.registers - budget.working - o
    counts = itertools.product(range(1, TILES + 1), repeat=2)
    fitting = [
        (scores, operands) for scores, operands in counts if scores * s + operands * p <= spare
    ]
    if not fitting:
        raise ScheduleError(
            f"modulo schedule: {s + p + o + budget.working} of {budget.registers} registers a "
            f"consumer thread (S {s}, P {p}, O {o}, working {budget.working}); take fewer keys"
        )
    return fitting


def _parts(graph: OpGraph, warpgroups: int, pace: int, masked: bool) -> list[Part]:
    """The softmax of a warpgroup."""
    kinds = (RowMax, Rescale, Exp, Exp, ConvertP)
    found: list[Part] = []
    for kind in (Mask, *kinds) if masked else kinds:
        op = graph.op(kind)
        count = op.reads[0].elements / (HOPPER.warpgroup * warpgroups)  # a thread's
        count /= kinds.count(kind) or 1
        mufu = _MUFU[warpgroups > 1] * count if kind is Exp else 0
        bare = (mufu, _ALU.get(op.name, 0) * count, _ISSUE[op.name] * count)
        work = (round(bare[0]), round(bare[1]), round(bare[2] * pace / 100))
        slower = {units(max(work) * n) for n in range(2, warpgroups + 1)}
        own = max(units(max(bare) * pace / 100), 1)
        durations = sorted({own, *(duration for duration in slower if duration > own)})
        part = sum(before.op == op.name for before in found)
        found.append(Part(op.name, part, work, tuple(_paced(work, d) for d in durations)))
    return found


def _paced(work: tuple[int, int, int], duration: int) -> Pace:
    """Work spread over a duration."""
    mufu, alu, issue = (-(-cycles * SHARE // (duration * GRID)) for cycles in work)
    return Pace(duration, (mufu, alu, issue))


def _edges(graph: OpGraph, masked: bool) -> list[tuple[str, str, int]]:
    """Dependences between a consumer's operations; scores bypass a mask that is not run. Sum and
    conversion, which accompany the exponentials, are not among the targets."""
    timed = {"GemmQK", "RowMax", "Rescale", "Exp", "GemmPV"} | ({"Mask"} if masked else set())
    found = set()
    for edge in graph.dependences:
        source = edge.source if edge.source != "Mask" or masked else "GemmQK"
        if source in timed | {"ConvertP"} and edge.target in timed:
            found.add((source, edge.target, edge.distance))
    return sorted(found)
