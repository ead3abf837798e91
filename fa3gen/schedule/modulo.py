"""The steady loop by modulo scheduling: the least interval at which KV tiles can be handled.

Every ``interval`` (II) cycles each of the W consumer warpgroups handles one KV tile of its 64 rows.
An operation of KV tile j starts at ``s + j * II``; ``s = k * II + r`` has stage k and offset r. All
warpgroups run the same code at the same times, but each later than the first by its ``turn``.
CP-SAT finds s and the turns for the least II (by bisection: what fits one II fits the next, with an
idle cycle put in), of those for the shortest live ranges of scores and P, of those for the least k.

* The tensor core does one product at a time. Q K^T is queued: its warpgroup goes on at once. P V
  with P in registers cannot be queued: its warpgroup stands until the tensor core takes it.
* A warpgroup's softmax operations run one at a time and whole, but for the exponentials, of which
  there are two parts. Each takes its warpgroup's own ``pace`` (percent of the time that the bare
  instructions need), or 1/2 or 1/3 of what a unit can. MUFU, ALU and issue slots are shared (FMA
  needs no more than its issue slots). The sum runs in the shadow of the exponentials, the
  conversion of P there or apart.
* A tile of scores lives from the issue of Q K^T to the end of the conversion, P from there to the
  end of P V: at most II times the tiles that the registers hold.
* A stage of K or V is taken from its load's start to the end of the last warpgroup's product. Loads
  share 32 B a cycle; only the sum of their times is bounded.

Rates are measured on an H200: the bare mix (maximum; scale, exponential, sum, half a conversion)
takes 10.0 cycles an element and thread for one warpgroup, 8.24 for several together. Compiled code
is slower: FlashAttention-3 at 128x128, d 128, takes 1,330 cycles from scores to the next product
and issues 6-7 instructions an element, bare code 830 and 4.5; hence ``COMPILED``. Latencies are
estimates. Method: B. R. Rau, Iterative modulo scheduling (MICRO-27, 1994).
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from typing import Any

from ortools.sat.python import cp_model

from fa3gen.errors import ScheduleError
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import ConvertP, Exp, GemmPV, GemmQK, LoadK, LoadV, Mask, Rescale, RowMax
from fa3gen.schedule.arch import HOPPER

__all__ = ["BARE", "COMPILED", "Budget", "ModuloSchedule", "Timing", "Turns", "modulo_schedule"]

BARE, COMPILED = 100, 160  # pace of a warpgroup

_GRID = 8  # cycles
_DEPTH = 4  # most stages of an operation after its Q K^T
_TILES = 2  # most tiles of scores, and of P, that live
_SHARE = 120  # a whole unit in a cumulative constraint: 1/2 and 1/3 are whole numbers
_EFFORT = 0.5  # deterministic seconds of a solve, after which its best answer stands
_FOUND = (cp_model.OPTIMAL, cp_model.FEASIBLE)

_DRAIN = 32  # cycles from the last exponential to its sum and conversion
_ARRIVAL = 800  # from the end of a load's transfer
_LATENCY = {
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
class Timing:
    """When an operation, or a part of one, runs for KV tile 0; cycles.

    A warpgroup's instruction stream reaches it at ``issue`` = ``stage`` * II + ``offset``; its unit
    works from ``start`` to ``end``. ``warpgroup`` is None for loads.
    """

    op: str
    part: int
    warpgroup: int | None
    issue: int
    start: int
    end: int
    stage: int
    offset: int


@dataclass(frozen=True)
class Turns:
    """How warpgroups share the tensor core: cycles behind the first, and the order of the products
    (warpgroup, operation) within an interval. No order of warpgroups follows from data; it is
    ``binding``, and needs a barrier, where a product starts as another warpgroup's ends."""

    offsets: tuple[int, ...]
    order: tuple[tuple[int, str], ...]
    binding: bool


@dataclass(frozen=True)
class ModuloSchedule:
    """The steady loop: ``interval`` cycles for one KV tile of every warpgroup.

    ``flops`` of an interval; ``loads``: the least cycles of it that each unit allows;
    ``score_tiles`` and ``p_tiles`` live at a time in a warpgroup; ``proved``: the model has no
    shorter interval and live ranges. A warpgroup's timings are in the order of its code.
    """

    warpgroups: int
    interval: int
    flops: int
    loads: tuple[tuple[str, int], ...]
    score_tiles: int
    p_tiles: int
    proved: bool
    timings: tuple[Timing, ...]

    @property
    def binding(self) -> str:
        """The unit with the highest load."""
        return max(self.loads, key=lambda load: load[1])[0]

    @property
    def utilisation(self) -> float:
        """Share of the interval in which the tensor core is busy."""
        return dict(self.loads)["tensor core"] / self.interval

    def predicted_tflops(self, clock_ghz: float, sms: int = 132) -> float:
        """TFLOP/s of the steady loop."""
        return self.flops / self.interval * clock_ghz * sms / 1000

    def of(self, warpgroup: int | None) -> tuple[Timing, ...]:
        """A warpgroup's timings, or the loads'."""
        return tuple(timing for timing in self.timings if timing.warpgroup == warpgroup)

    def stages(self) -> dict[str, int]:
        """Iterations from Q K^T of a KV tile to each operation; of its last part, if in parts."""
        timings = sorted(self.of(None) + self.of(0), key=lambda timing: timing.part)
        return {timing.op: timing.stage for timing in timings}

    def slots(self) -> tuple[str, ...]:
        """A consumer's operations in the order of its code; Exp twice if others part it."""
        return tuple(op for op, _ in itertools.groupby(timing.op for timing in self.of(0)))

    @property
    def turns(self) -> Turns:
        """The order of the warpgroups on the tensor core."""
        products = [t for t in self.timings if t.op.startswith("Gemm")]
        products.sort(key=lambda t: t.start % self.interval)
        handed = any(
            one.warpgroup != other.warpgroup and (other.start - one.end) % self.interval == 0
            for one, other in zip(products, products[1:] + products[:1], strict=True)
        )
        issues = {t.warpgroup: t.issue for t in products if t.op == "GemmQK"}
        return Turns(
            tuple(issues[w] for w in range(self.warpgroups)),
            tuple((t.warpgroup or 0, t.op) for t in products),
            handed,
        )

    def to_json(self) -> str:
        """Canonical JSON: equal schedules have equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModuloSchedule:
        """The schedule that ``to_json`` wrote."""
        fields: dict[str, Any] = json.loads(text)
        timings = tuple(Timing(**timing) for timing in fields.pop("timings"))
        loads = tuple((unit, cycles) for unit, cycles in fields.pop("loads"))
        return cls(**fields, loads=loads, timings=timings)

    def __str__(self) -> str:
        turns = self.turns
        lines = [
            f"interval {self.interval} clk, {self.warpgroups} warpgroups, bound by {self.binding}; "
            f"tensor core {100 * self.utilisation:.0f} % busy",
            "at least: " + ", ".join(f"{unit} {cycles}" for unit, cycles in self.loads),
            f"live: {self.score_tiles} tiles of scores, {self.p_tiles} of P",
            f"turns: {turns.offsets}, order {'binds' if turns.binding else 'is free'}",
            f"{'':10s} {'stage':>5s} {'offset':>6s} {'issue':>6s} {'start':>6s} {'end':>6s}",
        ]
        for t in self.of(None) + self.of(0):
            name = t.op + "'" * t.part
            times = f"{t.issue:6d} {t.start:6d} {t.end:6d}"
            lines.append(f"{name:10s} {t.stage:5d} {t.offset:6d} {times}")
        return "\n".join(lines)


def modulo_schedule(
    graph: OpGraph, warpgroups: int, budget: Budget, *, masked: bool = False, pace: int = COMPILED
) -> ModuloSchedule:
    """The best steady loop of a graph of 64 ``warpgroups`` query rows, with mask code or without;
    ScheduleError if the registers hold not even one tile of scores and of P."""
    step = _step(graph, warpgroups, budget, pace, masked)
    loop, solver, proved = _search(step)
    flops = 2 * sum(op.writes[0].elements * op.inner for op in _products(graph))
    return _answer(loop, solver, flops, proved)


@dataclass(frozen=True)
class _Pace:
    """A duration, and the shares of MUFU, ALU and issue slots then taken."""

    duration: int
    shares: tuple[int, int, int]


@dataclass(frozen=True)
class _Part:
    """Work of an instruction stream that is not parted; the quickest pace first."""

    op: str
    part: int
    work: tuple[int, int, int]  # cycles of MUFU, ALU, issue slots
    paces: tuple[_Pace, ...]

    @property
    def name(self) -> str:
        return f"{self.op} {self.part}"


@dataclass(frozen=True)
class _Step:
    """One KV tile of a warpgroup; times in units of the grid."""

    warpgroups: int
    qk: int
    pv: int
    load_k: int
    load_v: int
    parts: tuple[_Part, ...]
    edges: tuple[tuple[str, str, int], ...]  # source, target, distance in KV tiles
    tiles: tuple[tuple[int, int], ...]  # of scores and P, that the registers hold
    stages: tuple[int, int]  # of K and V

    def loads(self) -> dict[str, int]:
        """Lower bounds of the interval."""
        parts = [part for part in self.parts if part.op != "ConvertP"]  # may be in Exp's shadow
        quickest = {part.name: part.paces[0].duration for part in parts}
        mufu, alu, issue = (sum(part.work[unit] for part in parts) for unit in range(3))
        scores = self.qk + sum(quickest.values()) - quickest["Rescale 0"]
        scores += _units(_LATENCY["GemmQK"]) + _units(_LATENCY["RowMax"]) + _units(_DRAIN)
        held = max(tiles for tiles, _ in self.tiles)
        rings = zip((self.load_k, self.load_v), (self.qk, self.pv), self.stages, strict=True)
        return {
            "tensor core": self.warpgroups * (self.qk + self.pv),
            "MUFU": _units(self.warpgroups * mufu),
            "ALU": _units(self.warpgroups * alu),
            "issue": _units(self.warpgroups * issue),
            "TMA": self.load_k + self.load_v,
            "one warpgroup's chain": max(2 + sum(quickest.values()), -(-scores // held)),
            "rings": max(-(-(load + _units(_ARRIVAL) + use) // n) for load, use, n in rings),
        }


def _units(cycles: float) -> int:
    """Cycles in units of the grid, rounded up."""
    return -int(-cycles // _GRID)


def _products(graph: OpGraph) -> tuple[GemmQK, GemmPV]:
    return graph.op(GemmQK), graph.op(GemmPV)


def _step(graph: OpGraph, warpgroups: int, budget: Budget, pace: int, masked: bool) -> _Step:
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
    qk, pv = (_units(op.cycles / warpgroups) for op in _products(graph))
    load_k, load_v = (_units(graph.op(load).cycles) for load in (LoadK, LoadV))
    parts = tuple(_parts(graph, warpgroups, pace, masked))
    edges, tiles = tuple(_edges(graph, masked)), tuple(_live_tiles(graph, budget))
    return _Step(warpgroups, qk, pv, load_k, load_v, parts, edges, tiles, stages)


def _live_tiles(graph: OpGraph, budget: Budget) -> list[tuple[int, int]]:
    """Numbers of score and P tiles that fit a thread's registers."""
    tiles = (graph.op(op).writes[0] for op in (GemmQK, ConvertP, GemmPV))
    s, p, o = (
        tile.bytes // 4 * HOPPER.wgmma_rows // HOPPER.warpgroup // tile.rows for tile in tiles
    )
    spare = budget.registers - budget.working - o
    counts = itertools.product(range(1, _TILES + 1), repeat=2)
    fitting = [
        (scores, operands) for scores, operands in counts if scores * s + operands * p <= spare
    ]
    if not fitting:
        raise ScheduleError(
            f"modulo schedule: {s + p + o + budget.working} of {budget.registers} registers a "
            f"consumer thread (S {s}, P {p}, O {o}, working {budget.working}); take fewer keys"
        )
    return fitting


def _parts(graph: OpGraph, warpgroups: int, pace: int, masked: bool) -> list[_Part]:
    """The softmax of a warpgroup."""
    kinds = (RowMax, Rescale, Exp, Exp, ConvertP)
    found: list[_Part] = []
    for kind in (Mask, *kinds) if masked else kinds:
        op = graph.op(kind)
        count = op.reads[0].elements / (HOPPER.warpgroup * warpgroups)  # a thread's
        count /= kinds.count(kind) or 1
        mufu = _MUFU[warpgroups > 1] * count if kind is Exp else 0
        bare = (mufu, _ALU.get(op.name, 0) * count, _ISSUE[op.name] * count)
        work = (round(bare[0]), round(bare[1]), round(bare[2] * pace / 100))
        slower = {_units(max(work) * n) for n in range(2, warpgroups + 1)}
        own = max(_units(max(bare) * pace / 100), 1)
        durations = sorted({own, *(duration for duration in slower if duration > own)})
        part = sum(before.op == op.name for before in found)
        found.append(_Part(op.name, part, work, tuple(_pace(work, d) for d in durations)))
    return found


def _pace(work: tuple[int, int, int], duration: int) -> _Pace:
    """Work spread over a duration."""
    mufu, alu, issue = (-(-cycles * _SHARE // (duration * _GRID)) for cycles in work)
    return _Pace(duration, (mufu, alu, issue))


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


class _Loop:
    """The constraints of one interval; times in units of the grid, of KV tile 0 in warpgroup 0,
    whose Q K^T is issued at 0."""

    def __init__(self, step: _Step, interval: int) -> None:
        self.step, self.interval = step, interval
        self.model = cp_model.CpModel()
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.stage: dict[str, Any] = {}
        self.turns = [self._var(0, interval - 1) for _ in range(step.warpgroups)]
        self.apart = self.model.new_bool_var("")  # the conversion
        self.model.add(self.turns[0] == 0)
        for one, other in itertools.pairwise(self.turns):
            self.model.add(one < other)
        self._occupancy()
        self._conversion()
        self._dependences()
        self._registers()
        self._rings()

    def _var(self, low: int, high: int) -> Any:
        return self.model.new_int_var(low, high, "")

    def _timed(self, name: str, duration: Any, ahead: int = 0) -> Any:
        """Give an operation its times, by stage and offset; return the offset."""
        self.stage[name] = self._var(-ahead, _DEPTH)
        offset = self._var(0, self.interval - 1)
        self.start[name] = self.stage[name] * self.interval + offset
        self.end[name] = self.start[name] + duration
        return offset

    def _turned(self, offset: Any) -> list[Any]:
        """An offset as each warpgroup has it, modulo II."""
        found = [offset]
        for turn in self.turns[1:]:
            found.append(self._var(0, self.interval - 1))
            late = self.model.new_bool_var("")
            self.model.add(found[-1] == offset + turn - self.interval * late)
        return found

    def _occupancy(self) -> None:
        """The tensor core, an instruction stream, and what warpgroups share beside."""
        step, model = self.step, self.model
        queued, product = self._var(0, self.interval - 1), self._timed("GemmPV", step.pv)
        self.start["GemmQK"], self.end["GemmQK"] = queued, queued + step.qk
        model.add(product >= queued + step.qk)  # a warpgroup's products run in order of issue
        model.add(product + step.pv <= queued + self.interval)
        model.add_no_overlap(
            model.new_fixed_size_interval_var(turned + lap, duration, "")
            for offset, duration in ((queued, step.qk), (product, step.pv))
            for turned in self._turned(offset)
            for lap in (0, self.interval)
        )
        stream = [model.new_fixed_size_interval_var(product, 1, "")]
        shared = [taken for part in step.parts for taken in self._run(part, stream)]
        model.add_no_overlap(stream)
        for unit in range(3 if step.warpgroups > 1 else 0):
            used = [(span, pace.shares[unit]) for span, pace in shared if pace.shares[unit]]
            model.add_cumulative([span for span, _ in used], [share for _, share in used], _SHARE)

    def _run(self, part: _Part, stream: list[Any]) -> list[tuple[Any, _Pace]]:
        """Put a part on the stream at one of its paces; return what each warpgroup takes."""
        model, paces = self.model, part.paces
        chosen = [model.new_bool_var("") for _ in paces]
        model.add(sum(chosen) == (self.apart if part.op == "ConvertP" else 1))
        duration: Any = sum(
            pace.duration * choice for pace, choice in zip(paces, chosen, strict=True)
        )
        offset = self._timed(part.name, duration)
        self.start.setdefault(part.op, self.start[part.name])
        self.end[part.op] = self.end[part.name]
        model.add(offset >= 1)  # 0 is when Q K^T is issued, so that nothing lies across it
        model.add(offset + duration <= self.interval)
        taken = []
        for w, turned in enumerate(self._turned(offset)):
            for lap in (0, self.interval) if w else (0,):
                for pace, choice in zip(paces, chosen, strict=True):
                    span = model.new_optional_fixed_size_interval_var(
                        turned - lap, pace.duration, choice, ""
                    )
                    taken.append((span, pace))
                    if not w:
                        stream.append(span)
        return taken

    def _conversion(self) -> None:
        """The conversion in the shadow of the exponentials, or apart and behind them."""
        model, start, end, drain = self.model, self.start, self.end, _units(_DRAIN)
        model.add(start["Exp 1"] >= end["Exp 0"])
        model.add(start["ConvertP 0"] >= end["Exp"] + drain).only_enforce_if(self.apart)
        for times, shadow in ((start, start["Exp"]), (end, end["Exp"])):
            times["ConvertP"] = self._var(0, (_DEPTH + 2) * self.interval)
            model.add(times["ConvertP"] == times["ConvertP 0"]).only_enforce_if(self.apart)
            model.add(times["ConvertP"] == shadow + drain).only_enforce_if(~self.apart)

    def _dependences(self) -> None:
        for source, target, distance in self.step.edges:
            begin: Any = 0 if target == "GemmQK" else self.start[target]  # of Q K^T, the issue
            ready = self.end[source] + _units(_LATENCY.get(source, 0))
            self.model.add(begin + distance * self.interval >= ready)

    def _registers(self) -> None:
        """Live ranges within the tiles of scores and P that the registers hold."""
        self.scores = self.end["ConvertP"]  # from the issue of Q K^T, at 0
        self.operands = self.end["GemmPV"] - self.start["ConvertP"]
        counts = [self._var(1, _TILES), self._var(1, _TILES)]
        self.model.add_allowed_assignments(counts, self.step.tiles)
        self.model.add(self.scores <= counts[0] * self.interval)
        self.model.add(self.operands <= counts[1] * self.interval)

    def _rings(self) -> None:
        """Loads in time for the first warpgroup; stages held until the last is done."""
        step = self.step
        needed = (0, self.start["GemmPV"])  # the issues
        used = (self.end["GemmQK"], self.end["GemmPV"])
        names, sizes = ("LoadK", "LoadV"), (step.load_k, step.load_v)
        self.held = []
        for load, size, stages, first, last in zip(
            names, sizes, step.stages, needed, used, strict=True
        ):
            self._timed(load, size, ahead=stages + 1)
            self.model.add(self.end[load] + _units(_ARRIVAL) <= first)
            self.held.append(last + self.turns[-1] - self.start[load])
            self.model.add(self.held[-1] <= stages * self.interval)

    def minimise(self, solver: cp_model.CpSolver) -> None:
        """From an answer on: shortest live ranges, of those least k; then even turns, and early
        starts but late loads, so that one answer is the best."""
        for index, value in enumerate(solver.response_proto.solution):
            self.model.add_hint(self.model.get_int_var_from_proto_index(index), value)
        count, interval = self.step.warpgroups, self.interval
        depth, uneven = self._var(0, _DEPTH), self._var(0, count * interval)
        for stage in self.stage.values():
            self.model.add(depth >= stage)
        for w, turn in enumerate(self.turns):
            self.model.add(uneven >= count * turn - w * interval)
            self.model.add(uneven >= w * interval - count * turn)
        names = [part.name for part in self.step.parts]
        rest = sum(self.held) + sum(self.start[name] for name in names)
        most = (len(names) + 2) * (_DEPTH + 2) * interval
        goal = 2 * self.scores + self.operands  # registers times cycles
        for term, bound in ((depth, _DEPTH), (uneven, count * interval), (rest, most)):
            goal = goal * (bound + 1) + term
        self.model.minimize(goal)

    def solve(self) -> tuple[Any, cp_model.CpSolver]:
        """Status and answer; the same each time, for its effort is counted and not timed."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.linearization_level = 0  # no linear relaxation: four times as fast
        solver.parameters.max_deterministic_time = _EFFORT
        return solver.solve(self.model), solver


def _search(step: _Step) -> tuple[_Loop, cp_model.CpSolver, bool]:
    """The least interval, by doubled strides from the lower bound and then by halves, and the best
    answer there; whether it is proved."""
    low = high = max(step.loads().values())
    stride, proved, found = 1, True, None
    while found is None or low < high:
        tried = (low + high) // 2 if found else high
        loop = _Loop(step, tried)
        status, solver = loop.solve()
        assert status != cp_model.MODEL_INVALID, loop.model.validate()
        if status in _FOUND:
            high, found = tried, (loop, solver)
        else:
            low, proved = tried + 1, proved and status == cp_model.INFEASIBLE
            if found is None:
                high, stride = high + stride, 2 * stride
    loop, solver = found
    loop.minimise(solver)
    status, better = loop.solve()
    return loop, better if status in _FOUND else solver, proved and status == cp_model.OPTIMAL


def _answer(loop: _Loop, solver: cp_model.CpSolver, flops: int, proved: bool) -> ModuloSchedule:
    """The solver's answer in cycles, for every warpgroup."""
    step, interval = loop.step, loop.interval
    spans = {(part.op, part.part): part.name for part in step.parts if part.op != "ConvertP"}
    spans |= {(op, 0): op for op in ("GemmQK", "GemmPV", "ConvertP", "LoadK", "LoadV")}
    values = {
        key: (int(solver.value(loop.start[name])), int(solver.value(loop.end[name])))
        for key, name in spans.items()
    }
    second = values["Exp", 1]
    shadow = (values["Exp", 0][0] + _units(_DRAIN), second[1] + _units(_DRAIN))
    values["RowSum", 0] = shadow
    code = {key: start % interval for key, (start, _) in values.items()}
    code["GemmQK", 0] = 0
    code["RowSum", 0] = second[0] % interval  # accompanies the exponentials: stands behind them
    if not solver.value(loop.apart):
        code["ConvertP", 0] = second[0] % interval
    keys = sorted(values, key=lambda key: (code[key], key[0] != "Exp", key[0] == "ConvertP", key))

    def timing(key: tuple[str, int], w: int | None, turn: int) -> Timing:
        start, end = values[key]
        issue = 0 if key[0] == "GemmQK" else start
        times = [_GRID * (time + turn) for time in (issue, start, end)]
        return Timing(*key, w, times[0], times[1], times[2], *divmod(times[0], _GRID * interval))

    timings = [timing(key, None, 0) for key in keys if key[0].startswith("Load")]
    for w, turn in enumerate(int(solver.value(turn)) for turn in loop.turns):
        timings += [timing(key, w, turn) for key in keys if not key[0].startswith("Load")]
    return ModuloSchedule(
        step.warpgroups,
        interval * _GRID,
        flops,
        tuple((unit, load * _GRID) for unit, load in step.loads().items()),
        -(-int(solver.value(loop.scores)) // interval),
        -(-int(solver.value(loop.operands)) // interval),
        proved,
        tuple(timings),
    )
