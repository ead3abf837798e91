"""Modulo schedules against a checker that walks them cycle by cycle and knows no model."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fa3gen.errors import ScheduleError
from fa3gen.ir.build import build_forward
from fa3gen.ir.graph import OpGraph
from fa3gen.ir.ops import GemmPV, GemmQK, Scope
from fa3gen.schedule.modulo import ModuloSchedule, Timing
from fa3gen.schedule.rates import BARE, EXACT, LAZY, LoopRates
from fa3gen.schedule.solve import solve
from fa3gen.schedule.step import Budget, make_step
from fa3gen.spec import AttentionSpec

REGISTERS = {1: 248, 2: 240, 3: 160}
WORKING = 26
ROOMY = Budget(240, WORKING, second=32)


@functools.cache
def graph(dims: tuple[int, int], rows: int, keys: int) -> OpGraph:
    head_dim = {"qk": dims[0], "v": dims[1]}
    return build_forward(AttentionSpec(name="tile", head_dim=head_dim), rows, keys)


@functools.cache
def solved(
    dims: tuple[int, int],
    warpgroups: int,
    keys: int,
    rates: LoopRates = EXACT,
    masked: bool = False,
    patterns: tuple[int, ...] = (),
) -> ModuloSchedule:
    budget = Budget(REGISTERS[warpgroups], WORKING)
    tile = graph(dims, 64 * warpgroups, keys)
    return solve(make_step(tile, budget, rates, masked=masked, patterns=patterns))


def check(
    schedule: ModuloSchedule, tile: OpGraph, budget: Budget, rates: LoopRates, masked: bool
) -> None:
    """Raise AssertionError for the first rule of the machine that a schedule breaks."""
    names = {op.name for op in tile.ops if op.scope is Scope.LOOP} - (set() if masked else {"Mask"})
    for w in range(schedule.warpgroups):
        own = schedule.of(w)
        assert {t.op for t in own + schedule.of(None)} == names
        _check_dependences(schedule, tile, w, rates)
        _check_stream(schedule, own, rates)
        _check_registers(schedule, tile, budget, own)
    for t in schedule.timings:
        assert t.issue == t.stage * schedule.interval + t.offset
        assert 0 <= t.offset < schedule.interval
    products = [t for t in schedule.timings if t.op.startswith("Gemm")]
    assert max(_taken(schedule, [(t.start, t.end, 1.0) for t in products])) == 1
    _check_shares(schedule, tile, rates)
    _check_rings(schedule, budget)


def _taken(schedule: ModuloSchedule, spans: Iterable[tuple[int, int, float]]) -> list[float]:
    """Sum of the heights of (start, end, height) spans in every cycle of an interval."""
    cycles = [0.0] * schedule.interval
    for start, end, height in spans:
        for cycle in range(start, end):
            cycles[cycle % schedule.interval] += height
    return cycles


def _span(own: tuple[Timing, ...], op: str) -> tuple[int, int, int]:
    """Issue, start and end of an operation, all parts together."""
    parts = [t for t in own if t.op == op]
    first = min(parts, key=lambda t: t.start)
    return first.issue, first.start, max(t.end for t in parts)


def _check_dependences(schedule: ModuloSchedule, tile: OpGraph, w: int, rates: LoopRates) -> None:
    own = schedule.of(w) + schedule.of(None)
    latency = {"GemmQK": 64, "GemmPV": 64, "RowMax": 64, "Exp": 32, "LoadK": 800, "LoadV": 800}
    if rates is not BARE:
        latency |= {"GemmQK": 216, "RowMax": 104}
    unmasked = all(t.op != "Mask" for t in own)
    for edge in tile.dependences:
        if unmasked and edge.source == "Mask":
            edge = replace(edge, source="GemmQK")
        if {edge.source, edge.target} <= {t.op for t in own}:
            lag = latency.get(edge.source, 0)
            _, begin, end = _span(own, edge.source)
            issue, _, done = _span(own, edge.target)
            issue += edge.distance * schedule.interval
            if edge.source == "Exp":  # a stream: element by element
                assert issue >= begin + lag, edge
                assert done >= end + lag, edge
            else:
                assert issue >= end + (lag if edge.source != edge.target else 0), edge
    issue, start, end = _span(own, "GemmQK")
    assert end - start >= tile.op(GemmQK).cycles / schedule.warpgroups
    pv_issue, pv_start, pv_end = _span(own, "GemmPV")
    assert pv_end - pv_start >= tile.op(GemmPV).cycles / schedule.warpgroups
    assert pv_issue == pv_start, "P V cannot be queued"
    waits = range(issue, start + 1)
    shift = (pv_issue - issue) % schedule.interval
    assert issue + shift not in waits, "a product overtakes another of its warpgroup"


def _check_stream(schedule: ModuloSchedule, own: tuple[Timing, ...], rates: LoopRates) -> None:
    """One thing at a time, issues included; sum and conversion may accompany the exponentials."""
    _, begin, end = _span(own, "Exp")
    spans = []
    for t in own:
        if t.op.startswith("Gemm"):
            turn = 128 if t.op == "GemmQK" and rates is not BARE else 0
            spans.append((t.issue - turn, t.issue + 8, 1.0))
        elif (t.op, t.start, t.end) != ("ConvertP", begin + 32, end + 32) and t.op != "RowSum":
            spans.append((t.start, t.end, 1.0))
    assert max(_taken(schedule, spans)) == 1


def _check_shares(schedule: ModuloSchedule, tile: OpGraph, rates: LoopRates) -> None:
    """MUFU, ALU and issue slots, each operation's work spread evenly over its time."""
    scores = tile.op(GemmQK).writes[0].elements / schedule.warpgroups
    output = tile.op(GemmPV).writes[0].elements / schedule.warpgroups
    lanes: dict[str, dict[str, float]] = {
        "MUFU": {"Exp": scores / 16},
        "ALU": {"Mask": 2 * scores / 64, "RowMax": scores / 64, "ConvertP": scores / 2 / 64},
        "issue": {
            "Mask": 2 * scores / 128,
            "RowMax": scores / 128,
            "Rescale": output / 128,
            "Exp": 3.5 * scores / 128,  # scale, exponential, sum, half a conversion
        },
    }
    if rates is LAZY:  # the shift is subtracted beside the maxima, O left alone
        lanes["ALU"]["RowMax"] /= 2
        lanes["issue"] |= {"RowMax": 1.5 * scores / 128, "Rescale": 0, "Exp": 2.5 * scores / 128}
    for unit, work in lanes.items():
        spans = []
        for t in schedule.timings:
            parts = sum(t.op == other.op for other in schedule.of(0))
            if t.op in work and not (t.op == "ConvertP" and t.end - t.start > 3 * work[t.op]):
                spans.append((t.start, t.end, work[t.op] / parts / (t.end - t.start)))
        most = max(_taken(schedule, spans))
        assert schedule.warpgroups == 1 or most <= 1.02, (unit, most)


def _check_registers(
    schedule: ModuloSchedule, tile: OpGraph, budget: Budget, own: tuple[Timing, ...]
) -> None:
    """Tiles of scores and of P alive in every cycle."""
    (issue, _, _), (_, _, read) = _span(own, "GemmQK"), _span(own, "GemmPV")
    _, begin, end = _span(own, "ConvertP")
    scores = int(max(_taken(schedule, [(issue, end, 1)])))
    operands = int(max(_taken(schedule, [(begin, read, 1)])))
    assert (scores, operands) == (schedule.score_tiles, schedule.p_tiles)
    keys, dim_v = tile.op(GemmQK).writes[0].cols, tile.op(GemmPV).writes[0].cols
    needs = (
        budget.second * (scores - 1)
        + scores * keys // 2
        + operands * keys // 4
        + dim_v // 2
        + budget.working
    )
    assert needs <= budget.registers


def _check_rings(schedule: ModuloSchedule, budget: Budget) -> None:
    """A stage is loaded again only when every warpgroup has read it; loads keep to 32 B a cycle."""
    for load, product, stages in (
        ("LoadK", "GemmQK", budget.stages_k),
        ("LoadV", "GemmPV", budget.stages_v),
    ):
        _, begin, _ = _span(schedule.of(None), load)
        last = max(_span(schedule.of(w), product)[2] for w in range(schedule.warpgroups))
        assert begin + stages * schedule.interval >= last, load
    assert sum(t.end - t.start for t in schedule.of(None)) <= schedule.interval


FAMILIES = [
    ((64, 64), 2, 128, BARE, False),
    ((64, 64), 2, 96, EXACT, False),
    ((64, 64), 3, 128, EXACT, False),
    ((96, 96), 2, 128, EXACT, True),
    ((128, 128), 1, 128, EXACT, True),
    ((128, 128), 2, 176, EXACT, False),
    ((192, 128), 2, 128, LAZY, True),
    ((192, 192), 2, 96, BARE, False),
    ((256, 256), 2, 80, LAZY, False),
]


@pytest.mark.parametrize(("dims", "warpgroups", "keys", "rates", "masked"), FAMILIES)
def test_schedules_keep_to_the_machine(
    dims: tuple[int, int], warpgroups: int, keys: int, rates: LoopRates, masked: bool
) -> None:
    schedule = solved(dims, warpgroups, keys, rates, masked)
    budget = Budget(REGISTERS[warpgroups], WORKING)
    check(schedule, graph(dims, 64 * warpgroups, keys), budget, rates, masked)
    assert schedule.proved
    assert schedule.interval >= max(cycles for _, cycles in schedule.loads)


@pytest.mark.parametrize(
    ("op", "later"),
    [
        ("LoadK", 8),  # arrives late
        ("LoadV", -1024),  # over a stage that is still read
        ("GemmQK", 8),  # while the other warpgroup's P V runs
        ("GemmPV", -8),
        ("RowMax", -8),  # before the scores
        ("Rescale", 1024),  # behind the product that accumulates
        ("Exp", -8),  # before the maxima
        ("ConvertP", 2048),  # scores live on beyond the next Q K^T
    ],
)
def test_the_checker_sees_each_rule_broken(op: str, later: int) -> None:
    schedule = solved((128, 128), 2, 128)
    moved = [
        replace(t, issue=t.issue + later, start=t.start + later, end=t.end + later)
        if t.op == op and t.warpgroup != 1
        else t
        for t in schedule.timings
    ]
    placed = [
        replace(t, stage=t.issue // schedule.interval, offset=t.issue % schedule.interval)
        for t in moved
    ]
    with pytest.raises(AssertionError):
        check(
            replace(schedule, timings=tuple(placed)),
            graph((128, 128), 128, 128),
            Budget(REGISTERS[2], WORKING),
            EXACT,
            False,
        )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    dims=st.tuples(st.sampled_from([16, 32, 64, 80]), st.sampled_from([16, 48, 64])),
    warpgroups=st.integers(1, 2),
    keys=st.sampled_from([16, 32, 48, 64, 96]),
    stages=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rates=st.sampled_from([BARE, EXACT, LAZY]),
    masked=st.booleans(),
)
def test_small_tiles_keep_to_the_machine(
    dims: tuple[int, int],
    warpgroups: int,
    keys: int,
    stages: tuple[int, int],
    rates: LoopRates,
    masked: bool,
) -> None:
    tile = graph(dims, 64 * warpgroups, keys)
    budget = Budget(140, WORKING, *stages)
    schedule = solve(make_step(tile, budget, rates, masked=masked))
    check(schedule, tile, budget, rates, masked)
    roomy = Budget(240, WORKING, 4, 4)
    more = solve(make_step(tile, roomy, rates, masked=masked))
    assert not (schedule.proved and more.interval > schedule.interval), "more room is never slower"


def test_finds_flash_attention_3() -> None:
    """P V one iteration late, beside the softmax of the next KV tile; warpgroups half an interval
    apart, in an order that only barriers can keep (FlashAttention-3, section 3)."""
    schedule = solved((128, 128), 2, 128, LAZY)
    stages, turns = schedule.stages(), schedule.turns
    assert schedule.interval == 2048
    assert schedule.binding == "tensor core"
    assert schedule.utilisation == 1
    assert (stages["GemmQK"], stages["RowMax"], stages["Exp"], stages["GemmPV"]) == (0, 0, 0, 1)
    slots = schedule.slots()
    assert slots.index("GemmQK") < slots.index("GemmPV") < slots.index("RowMax")
    assert turns.offsets == (0, 1024)
    assert turns.order == ((0, "GemmQK"), (0, "GemmPV"), (1, "GemmQK"), (1, "GemmPV"))
    assert turns.binding
    assert schedule.predicted_tflops(1.755) == pytest.approx(949, abs=1)


def test_of_equally_quick_loops_the_one_with_most_slack() -> None:
    """At the bare rates the softmax fits beside the other warpgroup's products alone, and P V could
    follow in the same iteration; but there it would wait for each cycle that the softmax loses."""
    in_sequence = solved((128, 128), 2, 128, BARE, patterns=(1,))
    assert (in_sequence.utilisation, in_sequence.stages()["GemmPV"]) == (1, 0)
    assert in_sequence.turns.offsets == (0, 1024)
    best = solved((128, 128), 2, 128, BARE)
    assert (best.utilisation, best.stages()["GemmPV"]) == (1, 1)


@pytest.mark.parametrize(
    ("rates", "measured", "binding"),
    [(EXACT, 2396, "one warpgroup's chain"), (LAZY, 2147, "tensor core")],
)
def test_steps_take_what_was_measured(rates: LoopRates, measured: int, binding: str) -> None:
    """At 128x128, d 128; contention, which the model lacks, makes them 5 to 10 % longer."""
    schedule = solved((128, 128), 2, 128, rates)
    assert 0.89 * measured < schedule.interval < measured
    assert schedule.binding == binding


def test_products_in_sequence_are_slower() -> None:
    """1.21 times measured (benchmarks/results/ablation_d128_fp16.md)."""
    one, two = (solved((128, 128), 2, 128, patterns=(overlap,)) for overlap in (1, 2))
    assert one.interval / two.interval == pytest.approx(1.21, abs=0.07)
    assert (one.stages()["GemmPV"], two.stages()["GemmPV"]) == (0, 1)


@pytest.mark.parametrize(
    ("dims", "keys"), [((64, 64), 96), ((64, 64), 112), ((128, 128), 80), ((160, 160), 64)]
)
def test_two_tiles_of_scores_are_slower(dims: tuple[int, int], keys: int) -> None:
    """Where the registers hold them; the first three are measured (benchmarks/NOTES.md)."""
    step = make_step(graph(dims, 128, keys), ROOMY, EXACT, patterns=(1, 2, 3))
    best, late = solve(step), solve(replace(step, patterns=(3,)))
    assert best.stages()["GemmPV"] == 1
    assert (late.stages()["RowMax"], late.stages()["GemmPV"], late.score_tiles) == (1, 2, 2)
    assert late.interval > best.interval


@pytest.mark.parametrize("patterns", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("dims", [(16, 16), (96, 96)])
def test_only_overlaps_that_may_be(dims: tuple[int, int], patterns: tuple[int, ...]) -> None:
    tile = graph(dims, 128, 64)
    schedule = solve(make_step(tile, ROOMY, EXACT, patterns=patterns))
    check(schedule, tile, ROOMY, EXACT, False)
    stages = schedule.stages()
    assert (stages["RowMax"], stages["Exp"], stages["GemmPV"]) in {
        1: {(0, 0, 0)},
        2: {(0, 0, 0), (0, 0, 1)},
        3: {(0, 0, 0), (0, 0, 1), (1, 1, 2)},
    }[max(patterns)]


@pytest.mark.parametrize(("dim", "binding"), [(16, False), (64, True), (128, True), (256, True)])
def test_turns_bind_where_products_fill_the_interval(dim: int, binding: bool) -> None:
    rows, keys = {16: (3, 128), 64: (3, 128), 128: (2, 128), 256: (2, 64)}[dim]
    assert solved((dim, dim), rows, keys, LAZY).turns.binding is binding


def test_equal_input_gives_equal_bytes() -> None:
    step = make_step(graph((64, 64), 128, 96), ROOMY, EXACT)
    texts = {solve(step).to_json() for _ in range(2)}
    assert len(texts) == 1
    schedule = ModuloSchedule.from_json(texts.pop())
    assert schedule == solve(step)
    assert "." not in schedule.to_json(), "integers only"


def test_steps_are_told_apart_by_what_the_solver_sees() -> None:
    def key(dtype: str, rates: LoopRates, budget: Budget) -> str:
        spec = AttentionSpec(name="tile", head_dim=128, dtype=dtype)
        return make_step(build_forward(spec, 128, 128), budget, rates).key()

    ours = key("bf16", EXACT, ROOMY)
    assert ours == key("fp16", EXACT, Budget(232, WORKING, second=32))
    assert ours != key("bf16", LAZY, ROOMY)
    assert ours != key("bf16", EXACT, replace(ROOMY, stages_v=3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["score", "20 * tanh(score / 20)"])
def test_a_bias_is_taken_for_a_part_of_its_product(score: str, masked: bool) -> None:
    """What follows still waits for the product."""
    steps = []
    for text in (score, score.replace("score", "(score + bias[row, k])")):
        inputs = {"bias": {"shape": ["row", "k"], "dtype": "bf16"}} if "bias" in text else {}
        spec = AttentionSpec(head_dim=128, score=text, inputs=inputs)
        steps.append(make_step(build_forward(spec, 128, 128), ROOMY, EXACT, masked=masked))
    without, biased = steps
    assert biased == without


def test_prints_a_row_for_each_operation() -> None:
    text = str(solved((128, 128), 2, 128, LAZY))
    assert "bound by tensor core; tensor core 100 % busy" in text
    for op in ("LoadK", "GemmQK", "GemmPV", "RowMax", "Exp'", "ConvertP"):
        assert f"\n{op:10s} " in text


@pytest.mark.parametrize(
    ("rows", "budget", "message"),
    [
        (128, Budget(128, WORKING), r"186 of 128 registers .*S 64, P 32, O 64, working 26"),
        (128, Budget(240, WORKING, stages_v=0), "K and V need a stage each"),
        (256, Budget(240, WORKING), r"64 query rows for each .*got 256 rows"),
    ],
)
def test_refuses_what_cannot_fit(rows: int, budget: Budget, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        make_step(graph((128, 128), rows, 128), budget, EXACT)


def test_overlap_3_needs_its_registers() -> None:
    budget = Budget(240, WORKING, second=32)
    with pytest.raises(ScheduleError, match="two tiles of scores"):
        make_step(graph((128, 128), 128, 128), budget, EXACT, patterns=(3,))
