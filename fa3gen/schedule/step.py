"""Step: what the solver of the steady loop is asked, one KV tile of every consumer warpgroup.

Everything the solver sees is in it, as integers: equal steps have equal answers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass

from fa3gen.errors import ScheduleError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import (
    ConvertP,
    Exp,
    GemmPV,
    GemmQK,
    LoadK,
    LoadV,
    Mask,
    Rescale,
    RowMax,
    ScoreMod,
)
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.rates import LoopRates, Work

__all__ = [
    "ARRIVAL",
    "DRAIN",
    "GRID",
    "SHARE",
    "TILES",
    "Budget",
    "Pace",
    "Part",
    "Step",
    "make_step",
    "units",
]

GRID = 8  # cycles
TILES = 2  # most tiles of scores, and of P, that live
SHARE = 120  # a whole unit in a cumulative constraint: 1/2 and 1/3 are whole numbers

DRAIN = 32  # cycles from the last exponential to its sum and conversion
ARRIVAL = 800  # from the end of a load's transfer
_LATENCY = {"GemmPV": 64, "ConvertP": 16, "Rescale": 16}  # a fence before the product
_MUFU = (8.0, 8.24)  # cycles an element, of one warpgroup and of several


@dataclass(frozen=True)
class Budget:
    """What the loop may take: ``registers`` of a consumer thread, of which ``working`` hold neither
    scores nor P nor O, and ``second`` more where two tiles of scores live; stages of the rings."""

    registers: int
    working: int
    stages_k: int = 2
    stages_v: int = 2
    second: int = 0


@dataclass(frozen=True)
class Pace:
    """A duration, and the shares of MUFU, ALU and issue slots then taken."""

    duration: int
    shares: tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """Work of an instruction stream that is not parted; the quickest pace first, and the least
    duration where two tiles of scores live."""

    op: str
    part: int
    work: tuple[int, int, int]  # cycles of MUFU, ALU, issue slots
    paces: tuple[Pace, ...]
    slowed: int

    @property
    def name(self) -> str:
        """Unique in a step."""
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
    turn: int  # the stream stands before the products
    beside: int  # issue slots beside the parts, of one warpgroup; cycles
    parts: tuple[Part, ...]
    latency: tuple[tuple[str, int], ...]
    edges: tuple[tuple[str, str, int], ...]  # source, target, distance in KV tiles
    tiles: tuple[tuple[int, int], ...]  # of scores and P, that the registers hold
    stages: tuple[int, int]  # of K and V
    patterns: tuple[int, ...] = ()  # overlaps (see Tiling) that may be; none: any stages

    def loads(self, score_tiles: int) -> dict[str, int]:
        """Lower bounds of the interval where so many tiles of scores live."""
        parts = [part for part in self.parts if part.op != "ConvertP"]  # may be in Exp's shadow
        slow = score_tiles > 1
        times = {p.name: p.slowed if slow else p.paces[0].duration for p in parts}
        mufu, alu, issue = (sum(part.work[unit] for part in parts) for unit in range(3))
        rings = zip((self.load_k, self.load_v), (self.qk, self.pv), self.stages, strict=True)
        stream = self.turn + 2 + sum(times.values())
        return {
            "tensor core": self.warpgroups * (self.qk + self.pv),
            "MUFU": units(self.warpgroups * mufu),
            "ALU": units(self.warpgroups * alu),
            "issue": units(self.warpgroups * (issue + self.beside)),
            "TMA": self.load_k + self.load_v,
            "one warpgroup's chain": max(stream, self._chain(times, score_tiles)),
            "rings": max(-(-(load + units(ARRIVAL) + use) // n) for load, use, n in rings),
        }

    def _chain(self, times: dict[str, int], score_tiles: int) -> int:
        """What an interval needs for the way from Q K^T to P."""
        latency = dict(self.latency)
        chain = self.qk + sum(times.values()) - times["Rescale 0"]
        chain += latency["GemmQK"] + latency["RowMax"]
        if self.patterns == (1,):
            chain += units(DRAIN) + latency["ConvertP"] + self.pv
        else:
            chain += max(units(DRAIN), self.turn if score_tiles == 1 else 0)
        return -(-chain // score_tiles)

    def least_interval(self) -> int:
        """The largest lower bound."""
        return min(max(self.loads(scores).values()) for scores, _ in self.tiles)

    def to_json(self) -> str:
        """Canonical JSON: equal steps have equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def key(self) -> str:
        """What its answer is stored under: the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def units(cycles: float) -> int:
    """Cycles in units of the grid, rounded up."""
    return -int(-cycles // GRID)


def make_step(
    graph: OpGraph,
    budget: Budget,
    rates: LoopRates,
    *,
    masked: bool = False,
    patterns: tuple[int, ...] = (),
) -> Step:
    """The problem of a graph of 64 query rows a warpgroup, with mask code or without; ScheduleError
    if the registers hold not even one tile of scores and of P."""
    rows, stages = graph.op(GemmQK).writes[0].rows, (budget.stages_k, budget.stages_v)
    warpgroups = rows // HOPPER.wgmma_rows
    if rows % HOPPER.wgmma_rows or not 1 <= warpgroups <= 3:
        raise ScheduleError(
            f"modulo schedule: takes 64 query rows for each of 1 to 3 warpgroups (got {rows} rows)"
        )
    if min(stages) < 1:
        raise ScheduleError(f"modulo schedule: K and V need a stage each (got stages {stages})")
    products = (graph.op(GemmQK), graph.op(GemmPV))
    qk, pv = (units(op.cycles / warpgroups) for op in products)
    load_k, load_v = (units(graph.op(load).cycles) for load in (LoadK, LoadV))
    latency = {**_LATENCY, "GemmQK": rates.scores, "RowMax": rates.maxima}
    tiles = _live_tiles(graph, budget, patterns == (1,))
    if patterns == (3,) and max(tiles)[0] == 1:
        raise ScheduleError("modulo schedule: overlap 3 needs registers for two tiles of scores")
    slowed = rates.slowed(graph.op(GemmPV).writes[0].cols // 2)
    return Step(
        warpgroups=warpgroups,
        flops=2 * sum(op.writes[0].elements * op.inner for op in products),
        qk=qk,
        pv=pv,
        load_k=load_k,
        load_v=load_v,
        turn=units(rates.turn),
        beside=rates.beside,
        parts=tuple(_parts(graph, rates, masked, slowed)),
        latency=tuple((op, units(cycles)) for op, cycles in sorted(latency.items())),
        edges=tuple(_edges(graph, masked)),
        tiles=tuple(tiles),
        stages=stages,
        patterns=patterns,
    )


def _live_tiles(graph: OpGraph, budget: Budget, replaces: bool) -> list[tuple[int, int]]:
    """Numbers of score and P tiles that fit a thread's registers; with products in sequence P
    ``replaces`` the scores as they turn into it."""
    tiles = (graph.op(op).writes[0] for op in (GemmQK, ConvertP, GemmPV))
    s, p, o = (
        tile.bytes // 4 * HOPPER.wgmma_rows // HOPPER.warpgroup // tile.rows for tile in tiles
    )
    p = 0 if replaces else p
    spare = budget.registers - budget.working - o
    fitting = [
        (scores, operands)
        for scores, operands in itertools.product(range(1, TILES + 1), repeat=2)
        if scores * s + operands * p + budget.second * (scores - 1) <= spare
    ]
    if not fitting:
        raise ScheduleError(
            f"modulo schedule: {s + p + o + budget.working} of {budget.registers} registers a "
            f"consumer thread (S {s}, P {p}, O {o}, working {budget.working}); take fewer keys"
        )
    return fitting


def _parts(graph: OpGraph, rates: LoopRates, masked: bool, percent: int) -> list[Part]:
    """The softmax of a warpgroup, the exponentials in two parts; ``percent`` of its time where two
    tiles of scores live."""
    warpgroups = graph.op(GemmQK).writes[0].rows // HOPPER.wgmma_rows
    works: list[tuple[type[ScoreMod | Mask | RowMax | Rescale | Exp | ConvertP], Work, int]] = [
        (RowMax, rates.row_max, 1),
        (Rescale, rates.rescale, 1),
        (Exp, rates.exp, 2),
        (ConvertP, rates.convert, 1),
    ]
    if masked:
        works.insert(0, (Mask, rates.mask, 1))
    if form := graph.score:
        arithmetic = float(form.arithmetic + form.special)
        cycles = max(rates.exp.cycles * form.special, 1.6 * arithmetic)
        works.insert(0, (ScoreMod, Work(cycles, arithmetic), 1))
    found = []
    for kind, work, parts in works:
        op = graph.op(kind)
        count = op.reads[0].elements / (HOPPER.warpgroup * warpgroups * parts)  # a thread's
        special = {Exp: 1, ScoreMod: graph.score.special if graph.score else 0}.get(kind, 0)
        mufu = _MUFU[warpgroups > 1] * count * special
        demand = (round(mufu), round(work.alu * count), round(work.issue * count))
        own = max(work.cycles * count, mufu, 1.0)
        slowed = units(own * percent / 100)
        shared = {units(max(demand) * n) for n in range(2, warpgroups + 1)}
        slower = {duration for duration in {*shared, slowed} if duration > units(own)}
        paces = tuple(_pace(demand, duration) for duration in sorted({units(own), *slower}))
        found += [Part(op.name, part, demand, paces, slowed) for part in range(parts)]
    return found


def _pace(work: tuple[int, int, int], duration: int) -> Pace:
    """Work spread over a duration."""
    mufu, alu, issue = (-(-cycles * SHARE // (duration * GRID)) for cycles in work)
    return Pace(duration, (mufu, alu, issue))


def _edges(graph: OpGraph, masked: bool) -> list[tuple[str, str, int]]:
    """Dependences between a consumer's operations; scores bypass a mask that is not run, and a
    bias, which is taken for a part of their product. Sum and conversion, which accompany the
    exponentials, are not among the targets."""
    timed = {"GemmQK", "RowMax", "Rescale", "Exp", "GemmPV"} | ({"Mask"} if masked else set())
    timed |= {"ScoreMod"} if graph.score else set()
    passed = {"AddBias": "GemmQK"}
    passed |= {} if masked else {"Mask": "ScoreMod" if graph.score else "GemmQK"}
    found = set()
    for edge in graph.dependences:
        source = passed.get(edge.source, edge.source)
        if source in timed | {"ConvertP"} and edge.target in timed:
            found.add((source, edge.target, edge.distance))
    return sorted(found)
