"""The steady loop by modulo scheduling: the least interval at which KV tiles can be handled.

CP-SAT finds the times of ``fa3gen.schedule.modulo`` and the turns for the least II (by bisection:
what fits one II fits the next, with an idle cycle put in), of those for the fewest tiles of scores
and P that live, of those for the most slack: what the softmax may take longer before a product has
to wait, for its times are means. Then for the shortest live ranges and the least k.

* The tensor core does one product at a time. Q K^T is queued: its warpgroup goes on at once. P V
  with P in registers cannot be queued: its warpgroup stands until the tensor core takes it.
* A warpgroup's softmax operations run one at a time and whole, but for the exponentials, of which
  there are two parts. Each takes the time of ``fa3gen.schedule.rates``, longer where two tiles of
  scores live, or 1/2 or 1/3 of what a unit can. MUFU, ALU and issue slots are shared (FMA needs no
  more than its issue slots). The sum runs in the shadow of the exponentials, the conversion of P
  there or apart. Before its products a warpgroup stands for its turn.
* A tile of scores lives from the issue of Q K^T to the end of the conversion, P from there to the
  end of P V: at most II times the tiles that the registers hold.
* A stage of K or V is taken from its load's start to the end of the last warpgroup's product. Loads
  share 32 B a cycle; only the sum of their times is bounded.

What it cannot see: the start and end of a work tile; steps with mask code among others; loads that
come late, L2 and power; dispatch stalls and register banks, by which kernels of one schedule differ
by 10 % (benchmarks/NOTES.md); how ping-pong changes a loop (its order is in the turns, its barriers
are taken to be free); P in shared memory, consumers that load, CTAs that share an SM. Tiles whose
products fill the interval all look alike to it.

Method: B. R. Rau, Iterative modulo scheduling (MICRO-27, 1994).
"""

from __future__ import annotations

import itertools
from typing import Any

from ortools.sat.python import cp_model

from fa3gen.schedule.modulo import ModuloSchedule, Timing
from fa3gen.schedule.step import (
    ARRIVAL,
    DRAIN,
    GRID,
    SHARE,
    TILES,
    Pace,
    Part,
    Step,
    units,
)

__all__ = ["solve"]

_DEPTH = 4  # most stages of an operation after its Q K^T
_EFFORT = 0.5  # deterministic seconds of a solve, after which its best answer stands
_SEARCH = 1.0  # of all, after which the least interval found stands
_FOUND = (cp_model.OPTIMAL, cp_model.FEASIBLE)


def solve(step: Step) -> ModuloSchedule:
    """The best steady loop of a problem; the same each time."""
    return _answer(step, *_search(step))


class _Loop:
    """The constraints of one interval; times in units of the grid, of KV tile 0 in warpgroup 0,
    whose Q K^T is issued at 0."""

    def __init__(self, step: Step, interval: int) -> None:
        self.step, self.interval = step, interval
        self.model = cp_model.CpModel()
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.stage: dict[str, Any] = {}
        self.turns = [self._var(0, interval - 1) for _ in range(step.warpgroups)]
        self.latency = dict(step.latency)
        self.counts = [self._var(1, TILES), self._var(1, TILES)]  # tiles of scores and of P
        self.model.add_allowed_assignments(self.counts, step.tiles)
        self.twice = self.model.new_bool_var("")  # two tiles of scores
        self.model.add(self.counts[0] == 1 + self.twice)
        self.apart = self.model.new_bool_var("")  # the conversion
        self.model.add(self.turns[0] == 0)
        for one, other in itertools.pairwise(self.turns):
            self.model.add(one < other)
        self._occupancy()
        self._conversion()
        self._dependences()
        self._registers()
        self._rings()
        self._pattern()

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
        stream = [
            model.new_fixed_size_interval_var(product, 1, ""),
            model.new_fixed_size_interval_var(self.interval - step.turn, step.turn, ""),
        ]
        shared = [taken for part in step.parts for taken in self._run(part, stream)]
        model.add_no_overlap(stream)
        for unit in range(3 if step.warpgroups > 1 else 0):
            used = [(span, pace.shares[unit]) for span, pace in shared if pace.shares[unit]]
            model.add_cumulative([span for span, _ in used], [share for _, share in used], SHARE)

    def _run(self, part: Part, stream: list[Any]) -> list[tuple[Any, Pace]]:
        """Put a part on the stream at one of its paces; return what each warpgroup takes."""
        model, paces = self.model, part.paces
        chosen = [model.new_bool_var("") for _ in paces]
        model.add(sum(chosen) == (self.apart if part.op == "ConvertP" else 1))
        for pace, choice in zip(paces, chosen, strict=True):
            if pace.duration < part.slowed:
                model.add_implication(choice, ~self.twice)
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
        model, start, end, drain = self.model, self.start, self.end, units(DRAIN)
        model.add(start["Exp 1"] >= end["Exp 0"])
        model.add(start["ConvertP 0"] >= end["Exp"] + drain).only_enforce_if(self.apart)
        for times, shadow in ((start, start["Exp"]), (end, end["Exp"])):
            times["ConvertP"] = self._var(0, (_DEPTH + 2) * self.interval)
            model.add(times["ConvertP"] == times["ConvertP 0"]).only_enforce_if(self.apart)
            model.add(times["ConvertP"] == shadow + drain).only_enforce_if(~self.apart)

    def _dependences(self) -> None:
        for source, target, distance in self.step.edges:
            begin: Any = 0 if target == "GemmQK" else self.start[target]  # of Q K^T, the issue
            ready = self.end[source] + self.latency.get(source, 0)
            self.model.add(begin + distance * self.interval >= ready)

    def _registers(self) -> None:
        """Live ranges within the tiles of scores and P that the registers hold."""
        self.scores = self.end["ConvertP"]  # from the issue of Q K^T, at 0
        self.operands = self.end["GemmPV"] - self.start["ConvertP"]
        self.model.add(self.scores <= self.counts[0] * self.interval)
        self.model.add(self.operands <= self.counts[1] * self.interval)

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
            self.model.add(self.end[load] + units(ARRIVAL) <= first)
            self.held.append(last + self.turns[-1] - self.start[load])
            self.model.add(self.held[-1] <= stages * self.interval)

    def _pattern(self) -> None:
        """The stages of the softmax and of P V in the overlaps that may be."""
        stages = [self.stage[name] for name in ("RowMax 0", "Exp 0", "Exp 1", "GemmPV")]
        softmax = [max(overlap - 2, 0) for overlap in self.step.patterns]
        allowed = [
            (s, s, s, overlap - 1) for s, overlap in zip(softmax, self.step.patterns, strict=True)
        ]
        if allowed:
            self.model.add_allowed_assignments(stages, allowed)

    def _slack(self) -> Any:
        """How much longer the softmax may take before a product waits."""
        slack = self._var(0, self.interval)
        ready = self.end["ConvertP"] + self.latency["ConvertP"]
        self.model.add(self.start["GemmPV"] >= ready + slack)
        free = self.counts[0] * self.interval - self.step.turn
        self.model.add(self.scores + slack <= free + units(DRAIN))
        return slack

    def minimise(self, solver: cp_model.CpSolver) -> None:
        """From an answer on: fewest tiles, of those most slack, shortest live ranges, least k; then
        even turns, and early starts but late loads, so that one answer is the best."""
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
        goal = 2 * self.counts[0] + self.counts[1]  # registers
        live = 2 * self.scores + self.operands  # registers times cycles
        for term, bound in (
            (interval - self._slack(), interval),
            (live, 3 * TILES * interval),
            (depth, _DEPTH),
            (uneven, count * interval),
            (rest, most),
        ):
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


def _search(step: Step) -> tuple[_Loop, cp_model.CpSolver, bool]:
    """The least interval, by doubled strides from the lower bound and then by halves, and the best
    answer there; whether it is proved."""
    low = high = step.least_interval()
    stride, proved, found, spent = 1, True, None, 0.0
    while found is None or (low < high and spent < _SEARCH):
        tried = (low + high) // 2 if found else high
        loop = _Loop(step, tried)
        status, solver = loop.solve()
        assert status != cp_model.MODEL_INVALID, loop.model.validate()
        spent += solver.response_proto.deterministic_time
        if status in _FOUND:
            high, found = tried, (loop, solver)
        else:
            low, proved = tried + 1, proved and status == cp_model.INFEASIBLE
            if found is None:
                high, stride = high + stride, 2 * stride
    loop, solver = found
    loop.minimise(solver)
    status, better = loop.solve()
    proved = proved and low == high and status == cp_model.OPTIMAL
    return loop, better if status in _FOUND else solver, proved


def _answer(step: Step, loop: _Loop, solver: cp_model.CpSolver, proved: bool) -> ModuloSchedule:
    """The solver's answer in cycles, for every warpgroup."""
    interval = loop.interval
    spans = {(part.op, part.part): part.name for part in step.parts if part.op != "ConvertP"}
    spans |= {(op, 0): op for op in ("GemmQK", "GemmPV", "ConvertP", "LoadK", "LoadV")}
    values = {
        key: (int(solver.value(loop.start[name])), int(solver.value(loop.end[name])))
        for key, name in spans.items()
    }
    second = values["Exp", 1]
    shadow = (values["Exp", 0][0] + units(DRAIN), second[1] + units(DRAIN))
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
        times = [GRID * (time + turn) for time in (issue, start, end)]
        return Timing(*key, w, times[0], times[1], times[2], *divmod(times[0], GRID * interval))

    timings = [timing(key, None, 0) for key in keys if key[0].startswith("Load")]
    for w, turn in enumerate(int(solver.value(turn)) for turn in loop.turns):
        timings += [timing(key, w, turn) for key in keys if not key[0].startswith("Load")]
    score_tiles = -(-int(solver.value(loop.scores)) // interval)
    return ModuloSchedule(
        step.warpgroups,
        interval * GRID,
        step.flops,
        tuple((unit, load * GRID) for unit, load in step.loads(score_tiles).items()),
        score_tiles,
        -(-int(solver.value(loop.operands)) // interval),
        proved,
        tuple(timings),
    )
