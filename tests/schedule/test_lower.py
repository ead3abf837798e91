"""What lowering emits: synchronisation that follows from the data flow, and no more."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from variants import SHIPPED, VARIANTS, program, schedule

from fa3gen.errors import GraphError, ScheduleError, UnsupportedError
from fa3gen.schedule import make_plan, make_program, make_schedule
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.emit import Emitter
from fa3gen.schedule.flatten import Event, flatten, visits
from fa3gen.schedule.lower import lower
from fa3gen.schedule.program import (
    BLOCKS,
    Advance,
    Arrive,
    Calc,
    CalcKind,
    Executor,
    Expect,
    ForTiles,
    Gemm,
    GemmKind,
    InitBarrier,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    OnInstance,
    Phase,
    Program,
    Segment,
    SetRegisters,
    StageOut,
    Step,
    TmaStoreWait,
    Wait,
    WgmmaFence,
    WgmmaWait,
    instructions,
)
from fa3gen.schedule.ranges import TileRange, tile_range
from fa3gen.schedule.verify import trip_counts
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import Maxima

PROGRAMS = [*SHIPPED, *VARIANTS]
CAUSAL, FULL = "causal_d128_bf16", "full_d128_bf16"
each_program = pytest.mark.parametrize("name", PROGRAMS)


def work(name: str) -> tuple[TileRange, ...]:
    """Work tiles as they come for some lengths, and one without keys."""
    made = schedule(name)
    none = TileRange(0, 0, 0, 0).or_beyond(6) if program(name).always else TileRange(0, 0, 0, 0)
    lengths = (4 * made.tiling.block_m, 5 * made.tiling.block_n + 7)
    shift = lengths[1] - lengths[0]
    ranges = []
    for first in range(0, lengths[0], made.tiling.block_m):
        last = first + made.tiling.block_m - 1
        tiles = tile_range(made.bounds, first + shift, last + shift, lengths, made.tiling.block_n)
        ranges += [tiles, none] if not first else [tiles]
    assert max(tiles.tiles for tiles in ranges) > 1
    return tuple(ranges)


def steps(name: str, role: str, instance: int = 0) -> list[Event]:
    return flatten(program(name), program(name).role(role), instance, work(name))


def loaded(program: Program) -> list[str]:
    """The rings that TMA fills."""
    return [buffer.name for buffer in program.buffers if buffer.name in ("Q", "K", "V", "Bias")]


def loops(program: Program) -> dict[Segment, tuple[Node, ...]]:
    """The consumer's bodies by segment."""
    found: dict[Segment, tuple[Node, ...]] = {}

    def walk(nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            if isinstance(node, ForTiles):
                parts = (p.body if isinstance(p, (Step, Phase)) else (p,) for p in node.body)
                found[node.segment] = tuple(itertools.chain.from_iterable(parts))
            elif isinstance(node, BLOCKS):
                walk(node.body)

    walk(program.role("consumer").body)
    return found


# --- resources ------------------------------------------------------------------------------------


@each_program
def test_named_barriers_have_ids_of_their_own(name: str) -> None:
    ids = [b.first_id + i for b in program(name).named for i in range(b.instances)]
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) < HOPPER.named_barriers
    assert program(name).named_barrier("store").threads == 128
    if schedule(name).tiling.pingpong:
        assert program(name).named_barrier("turn").threads == 256


@each_program
def test_expected_bytes_are_those_of_the_tile(name: str) -> None:
    prog = program(name)
    expected = {
        i.barrier: i.bytes for i in instructions(prog.roles[0].body) if isinstance(i, Expect)
    }
    assert set(expected) == {f"{ring}_full" for ring in loaded(prog)}
    assert ("Bias" in loaded(prog)) == (prog.bias is not None)
    for ring in loaded(prog):
        buffer = prog.buffer(ring)
        assert expected[f"{ring}_full"] == buffer.rows * buffer.cols * 2 == buffer.stage_bytes
        rows = prog.block_m if ring in ("Q", "Bias") else prog.block_n
        assert buffer.rows == rows
        assert ring != "Bias" or buffer.cols == prog.block_n


@each_program
def test_barriers_are_initialised_to_what_arrives(name: str) -> None:
    prog = program(name)
    counts = {i.barrier: i.arrivals for i in prog.setup if isinstance(i, InitBarrier)}
    assert counts == {barrier.name: barrier.arrivals for barrier in prog.barriers}
    threads = {Executor.ELECTED: 1, Executor.EACH_WARP: 4, Executor.ALL: 128}
    for ring in loaded(prog):
        assert counts[f"{ring}_full"] == 1
        if f"{ring}_empty" not in counts:
            assert ring == "Q"  # its stage is free by the time it is loaded
            continue
        (by,) = {
            i.by
            for i in instructions(prog.role("consumer").body)
            if isinstance(i, Arrive) and prog.ring(i.cursor).name == ring
        }
        assert counts[f"{ring}_empty"] == threads[by] * prog.role("consumer").instances


@each_program
def test_registers_are_moved_to_the_consumers(name: str) -> None:
    prog = program(name)
    for role in prog.roles:
        changes = [i for i in instructions(role.body) if isinstance(i, SetRegisters)]
        assert role.registers >= role.needs
        # one warpgroup alone on an SM owns all that a thread can, from the launch, and so do all
        # without producer
        alone = prog.role("consumer").instances == 1 and prog.ctas_per_sm == 1
        if alone or len(prog.roles) == 1:
            assert not changes
            continue
        assert changes == [SetRegisters(role.registers, grows=role.name == "consumer")]
        assert role.body[0] == changes[0]
    held = sum(role.registers * role.instances * 128 for role in prog.roles)
    assert held <= HOPPER.registers


@each_program
def test_buffers_share_bytes_only_where_planned(name: str) -> None:
    prog, memory = program(name), schedule(name).memory
    assert memory is not None
    for one, other in itertools.combinations(prog.buffers, 2):
        meet = one.offset < other.offset + other.bytes and other.offset < one.offset + one.bytes
        assert meet == (memory.buffer(other.name).over == one.name)
    assert prog.shared_bytes <= HOPPER.shared_bytes


# --- rings ----------------------------------------------------------------------------------------


@each_program
def test_rings_go_round(name: str) -> None:
    """Fill f uses stage f % stages; its full barrier is awaited in phase f // stages, its empty
    barrier one phase earlier; every fill is announced, loaded, awaited and released once."""
    prog = program(name)
    for ring in loaded(prog):
        stages = prog.buffer(ring).stages
        produced, consumed = steps(name, prog.roles[0].name), steps(name, "consumer")

        def met(where: list[Event], kind: type, barrier: str) -> list[tuple[int, int]]:
            return [
                (s.stage, s.phase)
                for s in where
                if isinstance(s.instruction, kind) and s.instruction.barrier == barrier
            ]

        full, empty = f"{ring}_full", f"{ring}_empty"

        fills = len(met(produced, Load, full))
        tiles = [tiles.tiles for tiles in work(name)]
        # with O staged over Q, a work tile without KV tiles has its turn at Q as well
        always = schedule(name).tiling.o_over == "Q" or len(prog.roles) == 1
        queries = len(tiles) if always or prog.unroll > 1 else sum(count > 0 for count in tiles)
        assert fills == (queries if ring == "Q" else sum(tiles))
        turns = [(f % stages, f // stages) for f in range(fills)]
        for where, kind in ((produced, Expect), (produced, Load), (consumed, Wait)):
            assert met(where, kind, full) == turns, (ring, kind)
        if all(barrier.name != empty for barrier in prog.barriers):
            assert ring == "Q"
            continue
        assert met(consumed, Arrive, empty) == turns, ring
        awaited = [(stage, phase - 1) for stage, phase in turns]
        if prog.unroll == 1 and len(prog.roles) == 2:
            assert met(produced, Wait, empty) == awaited, ring
        else:  # another stage's wait stands for some of them
            assert set(met(produced, Wait, empty)) <= set(awaited), ring


@each_program
def test_products_use_the_tiles_they_are_meant_for(name: str) -> None:
    for index, tiles in enumerate(work(name)):
        for kind in GemmKind:
            met = [
                s.tile
                for s in steps(name, "consumer")
                if isinstance(s.instruction, Gemm)
                and s.instruction.kind is kind
                and s.work == index
            ]
            assert met == list(range(tiles.tiles)), (kind, index)


@each_program
def test_a_bias_is_added_to_every_tile_once(name: str) -> None:
    """At the stage of the ring that holds it; nothing else computes with a shared tile, but what
    is done again."""
    prog = program(name)
    calcs = [s for s in steps(name, "consumer") if isinstance(s.instruction, Calc)]
    readers = [s for s in calcs if s.instruction.cursor is not None]
    if prog.bias is None:
        assert not readers
        return
    stages = prog.buffer("Bias").stages
    added = [s for s in calcs if s.instruction.kind is CalcKind.BIAS]
    places = [
        (index, tile) for index, tiles in enumerate(work(name)) for tile in range(tiles.tiles)
    ]
    assert [(s.work, s.tile) for s in added] == places
    assert [(s.stage, s.phase) for s in added] == [
        (fill % stages, fill // stages) for fill in range(len(places))
    ]
    for step in readers:
        assert step.instruction.cursor == "Bias"
        assert step in added or step.instruction.kind is CalcKind.REDO


# --- wgmma ----------------------------------------------------------------------------------------


@each_program
def test_every_fence_orders_something(name: str) -> None:
    """For some trip counts each fence is the first, or follows a use of a register operand."""
    right = program(name)
    role = right.role("consumer")
    fences = {id(i) for i in instructions(role.body) if isinstance(i, WgmmaFence)}
    for ranges in trip_counts(right):
        touched = {"nothing fenced yet"}
        for step in flatten(right, role, 0, ranges):
            match step.instruction:
                case Calc(reads=reads, writes=writes):
                    touched |= {*reads, *writes} & {"S", "P", "O"}
                case WgmmaFence() as fence:
                    fences -= {id(fence)} if touched else set()
                    touched = set()
    assert not fences


@pytest.mark.parametrize("name", [CAUSAL, FULL, "window", "one warpgroup", "rescale each step"])
def test_overlap_2_leaves_the_second_product_in_flight(name: str) -> None:
    """The maxima, of scores or of what is shifted of them, are found beside it; speculation is
    free to begin there, which is left to the assembler."""
    maxima = schedule(name).tiling.maxima
    for segment in {Segment.RIGHT, Segment.FULL, Segment.LEFT} & set(loops(program(name))):
        guesses = maxima is Maxima.SPECULATIVE and segment is Segment.FULL
        first, settles, then = _GUESSED if guesses else _FOLLOWED[maxima]
        body = loops(program(name))[segment]
        waits = [node for node in body if isinstance(node, WgmmaWait)]
        assert waits == [WgmmaWait(1, ("S",)), WgmmaWait(0, ("O",), after=settles)]
        between = body[body.index(waits[0]) : body.index(waits[1])]
        kinds = [node.kind for node in between if isinstance(node, Calc)]
        assert (kinds[-len(first) :] if first else kinds) == first
        after = [n.kind for n in body[body.index(waits[1]) :] if isinstance(n, Calc)]
        assert after == then


_EXACT = (
    [CalcKind.ROW_MAX],
    ("alpha",),
    [CalcKind.RESCALE, CalcKind.EXP, CalcKind.ROW_SUM, CalcKind.CONVERT],
)
_GUESSED = ([], (), [CalcKind.SPECULATE, CalcKind.REDO])
_FOLLOWED = {  # computations before the wait for P V, what settles there, computations after it
    Maxima.EXACT: _EXACT,
    Maxima.SPECULATIVE: _EXACT,  # of masked tiles
    Maxima.LAZY: (
        [CalcKind.SHIFT, CalcKind.EXP2, CalcKind.SHIFT],
        (),
        [CalcKind.RESCALE_GROWN, CalcKind.EXP2, CalcKind.ADD_SUM, CalcKind.CONVERT],
    ),
}


@pytest.mark.parametrize("keys", range(16, 257, 16))
def test_a_lazy_softmax_takes_a_tile_in_two_parts(keys: int) -> None:
    """Whole pairs of each thread's columns, about a quarter first; together every key once."""
    spec = AttentionSpec(head_dim=8, schedule={"tile": {"m": 64, "n": keys}, "maxima": "lazy"})
    body = instructions(make_program(spec).role("consumer").body)
    parts = {node.keys for node in body if isinstance(node, Calc) and node.keys}
    (start, middle), (again, end) = sorted(parts)
    assert (start, middle, end) == (0, again, keys)
    assert middle % 8 == 0
    assert 1 / 8 <= middle / keys <= 1 / 2


@pytest.mark.parametrize("dims", [64, 96, 128, {"qk": 192, "v": 128}])
def test_maxima_are_speculated_on_where_a_program_can(dims: Any) -> None:
    """Else they are lazy at large head dims, where exponentials have the time."""
    large = dims != 64
    elsewhere = Maxima.LAZY if large else Maxima.EXACT
    (plan,) = make_plan(AttentionSpec(head_dim=dims, mask="window(1000, 0)"), tables=())
    assert plan.tiling.maxima is Maxima.SPECULATIVE
    for mask in ("window(100, 0)", "chunk(100)"):  # mask nearly every tile
        assert make_schedule(AttentionSpec(head_dim=dims, mask=mask)).tiling.maxima is elsewhere
    listed = AttentionSpec(head_dim=dims, mask="k * k % 128 < q")  # taken to mask few
    assert make_schedule(listed).tiling.maxima is Maxima.SPECULATIVE
    repeating = AttentionSpec(head_dim=dims, mask="(q - k) % 2 == 0")  # masks every tile
    assert make_schedule(repeating).tiling.maxima is elsewhere
    shared = AttentionSpec(head_dim=dims, schedule={"p_operand": "shared", "warpgroups": 2})
    assert make_schedule(shared).tiling.maxima is elsewhere
    for asked in Maxima:
        spec = AttentionSpec(head_dim=dims, schedule={"maxima": asked.value})
        assert make_schedule(spec).tiling.maxima is asked


@pytest.mark.parametrize("mask", ["full", "causal", "window(100, 20)"])
@pytest.mark.parametrize("overlap", [1, 2])
def test_the_first_tile_is_not_speculated_on(overlap: int, mask: str) -> None:
    """There are no maxima yet; where nothing is peeled, the loop with the mask's code takes it."""
    knobs = {"overlap": overlap, "pingpong": False, "maxima": "speculative", "tile": {"n": 64}}
    spec = AttentionSpec(head_dim=64, mask=mask, schedule=knobs)
    made = make_program(spec)
    assert made.followed == (overlap == 1)
    for count, full in ((0, 0), (1, 1), (3, 3), (3, 1)):
        tiles = TileRange(0, 0, full, count).at_least(made.peeled if count else 0)
        assert 0 not in visits(made, tiles, Segment.FULL)


@pytest.mark.parametrize("mask", ["full", "(q - k) % 2 == 0"])
@pytest.mark.parametrize("keys", [{"overlap": 3}, {"p_operand": "shared"}])
def test_speculation_has_its_conditions(keys: dict[str, Any], mask: str) -> None:
    knobs = {"maxima": "speculative", **keys}
    spec = AttentionSpec(head_dim=64, mask=mask, schedule=knobs)
    with pytest.raises(UnsupportedError, match=r"schedule\.maxima: speculative needs"):
        make_schedule(spec)


@pytest.mark.parametrize("name", ["overlap 1", "overlap 1, O over Q"])
def test_overlap_1_retires_each_product_before_the_next(name: str) -> None:
    bodies = loops(program(name))
    assert not {Segment.FIRST, Segment.DRAIN} & set(bodies)
    for body in bodies.values():
        waits = [node for node in body if isinstance(node, WgmmaWait)]
        assert waits == [WgmmaWait(0, ("S",)), WgmmaWait(0, ("O",))]


# --- segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        (FULL, "FIRST FULL DRAIN"),
        (CAUSAL, "FIRST RIGHT FULL DRAIN"),
        ("window", "FIRST RIGHT FULL LEFT DRAIN"),
        ("chunk", "FIRST RIGHT FULL LEFT DRAIN"),
        ("dilated", "FIRST RIGHT FULL DRAIN"),
        ("overlap 1", "RIGHT FULL"),
        ("overlap 1, O over Q", "RIGHT FULL"),
    ],
)
def test_a_mask_decides_the_loops(name: str, segments: str) -> None:
    bodies = loops(program(name))
    assert [segment.name for segment in bodies] == segments.split()
    for segment, body in bodies.items():
        masks = any(isinstance(node, Calc) and node.kind is CalcKind.MASK for node in body)
        assert masks == (segment not in (Segment.FULL, Segment.DRAIN)), segment


# --- turns and the store --------------------------------------------------------------------------


@each_program
def test_turns_are_taken_and_passed_alike(name: str) -> None:
    prog = program(name)
    count = prog.role("consumer").instances
    taken, passed = Counter[int](), Counter[int]()
    for instance in range(count):
        for step in steps(name, "consumer", instance):
            match step.instruction:
                case NamedSync(barrier="turn"):
                    taken[step.slot] += 1
                case NamedArrive(barrier="turn"):
                    passed[step.slot] += 1
    if not schedule(name).tiling.pingpong:
        assert not taken + passed
        return
    assert passed - taken == Counter({0: 1})  # the opening, by the last consumer
    assert not taken - passed
    (opening,) = [node for node in prog.role("consumer").body if isinstance(node, OnInstance)]
    assert opening.instance == count - 1


@pytest.mark.parametrize("name", ["O over Q", "overlap 1, O over Q", "fp16, head dims apart"])
def test_o_is_staged_over_q_where_it_does_not_fit_apart(name: str) -> None:
    prog = program(name)
    assert prog.buffer("O").offset == prog.buffer("Q").offset
    apart = prog.buffer("O").bytes + sum(b.bytes for b in prog.buffers if b.name != "O")
    assert apart + HOPPER.tile_alignment > HOPPER.shared_bytes
    body = list(instructions(prog.role("consumer").body))
    release = Arrive("Q_empty", "Q", Executor.ELECTED)
    assert body[body.index(release) - 1] == TmaStoreWait(0, read=True)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("O over V")])
def test_o_is_staged_over_v_where_that_is_asked(name: str) -> None:
    prog = program(name)
    assert prog.always
    assert prog.buffer("O").offset == prog.buffer("V").offset
    assert prog.buffer("O").bytes <= prog.buffer("V").bytes
    body = list(instructions(prog.role("consumer").body))
    store, release = (
        body.index(StageOut("O", "O")),
        body.index(Arrive("O_empty", "O", Executor.ELECTED)),
    )
    count = prog.role("consumer").instances
    met = NamedSync("done", 128 * count) if count > 1 else NamedSync("store", 128)
    assert body[store - 1] == met
    assert body[release - 1] == TmaStoreWait(0, read=True)
    loads = list(instructions(prog.role("producer").body))
    waited = loads.index(Wait("O_empty", "O", empty=True))
    buffers = [i.buffer for i in loads[waited:] if isinstance(i, Load)]
    assert "V" not in [i.buffer for i in loads[:waited] if isinstance(i, Load)]
    assert "V" in buffers
    assert "Q" not in buffers  # it comes before O has left


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"o_staging": "over_v", "overlap": 3, "tile": {"n": 64}}, "cannot be staged there"),
        ({"o_staging": "over_v", "tile": {"m": 192, "n": 80}}, "cannot be staged there"),
        ({"o_staging": "apart", "tile": {"m": 128, "n": 176}}, "bytes of shared memory"),
        ({"overlap": 1, "maxima": "lazy", "tile": {"n": 48}}, "64 keys or more"),
        ({"o_staging": "over_q"}, None),
    ],
)
def test_where_o_may_be_staged(keys: dict[str, Any], reason: str | None) -> None:
    spec = AttentionSpec(head_dim=128, schedule=keys)
    if reason is None:
        assert make_schedule(spec).tiling.o_over == "Q"
    else:
        with pytest.raises(ScheduleError, match=reason):
            make_schedule(spec)


NORMALIZES = (CalcKind.NORMALIZE, CalcKind.NORMALIZE_SHIFTED)


@pytest.mark.parametrize("name", [CAUSAL, "three stages", "one stage"])
def test_o_is_staged_apart_where_it_fits(name: str) -> None:
    prog = program(name)
    assert prog.buffer("O").offset >= prog.buffer("V").offset + prog.buffer("V").bytes
    body = list(instructions(prog.role("consumer").body))
    release = body.index(Advance("Q"))
    normalise = next(i for i, x in enumerate(body) if isinstance(x, Calc) and x.kind in NORMALIZES)
    assert release < normalise  # the next Q is loaded while this O is stored
    assert body[-1] == TmaStoreWait(0, read=True)


# --- the lowering itself --------------------------------------------------------------------------


@each_program
def test_lowering_is_deterministic(name: str) -> None:
    assert lower(schedule(name)) == program(name)
    assert str(lower(schedule(name))) == str(program(name))


def test_a_program_prints_every_instruction() -> None:
    text = str(program(CAUSAL))
    for role in program(CAUSAL).roles:
        for instruction in instructions(role.body):
            assert type(instruction).__name__ in text
    assert "for masked tiles at the upper end:" in text
    assert "Gemm kind=PV accumulator=O a=P b=V b_cursor=V skew=1" in text


def test_lowering_needs_the_passes_before_it() -> None:
    made = make_schedule(AttentionSpec(head_dim=128))
    for missing in (
        replace(made, memory=None),
        replace(made, registers=None),
        replace(made, placements=()),
    ):
        with pytest.raises(GraphError, match="run the passes before it"):
            lower(missing)


def test_a_loop_must_come_round_to_where_it_began() -> None:
    emit = Emitter()
    product = Gemm(GemmKind.QK, "S", "Q", "K", "Q", "K")
    with pytest.raises(GraphError, match="does not restore its entry state"):  # noqa: SIM117
        with emit.for_tiles(Segment.FULL):
            emit.gemm(product)


def test_a_role_must_not_end_with_a_product_in_flight() -> None:
    emit = Emitter(fenced=frozenset({"S", "P", "O"}))
    emit.gemm(Gemm(GemmKind.QK, "S", "Q", "K", "Q", "K"))
    with pytest.raises(GraphError, match="with a product in flight"):
        _ = emit.body
    emit.drain()
    kinds = [type(node).__name__ for node in emit.body]
    assert kinds == [
        "Wait",
        "Wait",
        "WgmmaFence",
        "Gemm",
        "WgmmaCommit",
        "WgmmaWait",
        "Arrive",
        "Advance",
    ]
