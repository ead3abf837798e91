"""Schedule to Program: modulo expansion of the KV loop, role by role.

With operations in stages 0..D an iteration t of the steady loop runs stage s on KV tile t - s. The
first D tiles are peeled into a prologue, and D iterations after the last tile drain what is owed::

    overlap 2 (D = 1), tiles 0 .. n-1
      FIRST     QK(0) mask softmax convert
      loops     QK(t) PV(t-1) [mask] softmax convert rescale          t = 1 .. n-1
      DRAIN     PV(n-1)

The steady loop is emitted once for each segment: tiles masked at the upper end, tiles without a
mask, tiles masked at the lower end. With overlap 3 the scores of two tiles are live, so its body
takes two tiles a turn under two names of S (modulo variable expansion), and may leave one over::

    overlap 3 (D = 2)
      FIRST     QK(0) | QK(1) mask softmax convert of 0
      loops     PV(t-2) QK(t) [mask] softmax rescale convert of t-1    t = 2 ..
      REST      the same, if the number of tiles is odd
      DRAIN     PV(n-2) mask softmax rescale convert of n-1 | PV(n-1)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from fa3gen.errors import GraphError
from fa3gen.ir.bias import kernel_score
from fa3gen.ir.far import far_form
from fa3gen.ir.ops import GemmPV, GemmQK, LoadBias, Mask, Normalize
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.emit import Emitter, Prefetch, Turn
from fa3gen.schedule.memory import releases_q_early
from fa3gen.schedule.needs import product_dim
from fa3gen.schedule.program import (
    Advance,
    Arrive,
    Barrier,
    Buffer,
    CalcKind,
    ClaimAhead,
    ClaimWork,
    EndOfWork,
    Executor,
    FenceBarrierInit,
    Gemm,
    GemmKind,
    InitBarrier,
    Instruction,
    NamedArrive,
    NamedBarrier,
    NamedSync,
    OnInstance,
    Program,
    ProxyFence,
    ReadWork,
    RegisterTile,
    Role,
    Segment,
    SetRegisters,
    StageOut,
    StoreRows,
    SyncCta,
    TmaStore,
    TmaStoreCommit,
    TmaStoreWait,
    Wait,
)
from fa3gen.schedule.ranges import row_keys
from fa3gen.schedule.schedule import (
    MemoryPlan,
    Persistence,
    Placement,
    RegisterPlan,
    RoleName,
    Schedule,
)
from fa3gen.spec import symbols
from fa3gen.spec.model import Maxima

__all__ = ["lower"]


@dataclass(frozen=True)
class _Step:
    """A computation of a loop operation on one tile of scores."""

    kind: CalcKind
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    part: int | None = None  # of the keys; None: all


_CALCS: dict[str, tuple[_Step, ...]] = {
    "AddBias": (_Step(CalcKind.BIAS, ("{S}",), ("{S}",)),),
    "ScoreMod": (_Step(CalcKind.SCORE, ("{S}",), ("{S}",)),),
    "Mask": (_Step(CalcKind.MASK, ("{S}",), ("{S}",)),),
    "RowMax": (_Step(CalcKind.ROW_MAX, ("{S}", "row_max"), ("row_max", "alpha")),),
    "Exp": (_Step(CalcKind.EXP, ("{S}", "row_max"), ("{S}",)),),
    "RowSum": (_Step(CalcKind.ROW_SUM, ("{S}", "row_sum", "alpha"), ("row_sum",)),),
    "ConvertP": (_Step(CalcKind.CONVERT, ("{S}",), ("P",)),),
    "Rescale": (_Step(CalcKind.RESCALE, ("O", "alpha"), ("O",)),),
}

_SHIFTED = ("{S}", "shift", "row_sum")
_GROWN = (*_SHIFTED, "alpha")
_LAZY_CALCS = _CALCS | {  # exponentials of the first part run beside the shift of the second
    "RowMax": (
        _Step(CalcKind.SHIFT, _SHIFTED, _GROWN, 0),
        _Step(CalcKind.EXP2, ("{S}",), ("{S}",), 0),
        _Step(CalcKind.SHIFT, _GROWN, _GROWN, 1),
    ),
    "Exp": (_Step(CalcKind.EXP2, ("{S}",), ("{S}",), 1),),
    "RowSum": (_Step(CalcKind.ADD_SUM, ("{S}", "row_sum"), ("row_sum",)),),
    "Rescale": (_Step(CalcKind.RESCALE_GROWN, ("O", "alpha"), ("O",)),),
}


_MAXIMA = {Maxima.EXACT: _CALCS, Maxima.LAZY: _LAZY_CALCS, Maxima.SPECULATIVE: _CALCS}

_GUESS = ("{S}", "P", "tile_sum")
_FULL_CALCS = dict.fromkeys(_CALCS, ()) | {  # of tiles that need no mask, where maxima are guessed
    "AddBias": _CALCS["AddBias"],
    "Exp": (_Step(CalcKind.SPECULATE, ("{S}", "row_max"), _GUESS),),
    "ConvertP": (
        _Step(
            CalcKind.REDO,
            (*_GUESS, "row_max", "row_sum", "O"),
            ("{S}", "P", "row_max", "row_sum", "O"),
        ),
    ),
}


# A formula may branch, past which nothing moves: its exponentials, which take P no room, are told
# apart from P, so that they need not wait for the product that reads it.
_FULL_FORMULA_CALCS = _FULL_CALCS | {
    "Exp": (_Step(CalcKind.SPECULATE_SCORE, ("{S}", "row_max"), ("{S}", "tile_sum")),),
    "ConvertP": (*_CALCS["ConvertP"], *_FULL_CALCS["ConvertP"]),
}


def _calcs(schedule: Schedule, guesses: bool) -> Mapping[str, tuple[_Step, ...]]:
    """The computations of each operation; ``guesses``: where maxima are guessed."""
    if not guesses:
        return _MAXIMA[schedule.tiling.maxima]
    return _FULL_CALCS if schedule.graph.score is None else _FULL_FORMULA_CALCS


def _row_readers(schedule: Schedule) -> frozenset[CalcKind]:
    """The computations that take what is kept of a work tile's rows: those of a formula, and of a
    mask that is told element by element, or depends on heads or inputs."""
    readers: set[CalcKind] = set()
    if schedule.graph.score is not None:
        readers |= {CalcKind.SCORE, CalcKind.SPECULATE_SCORE, CalcKind.REDO}
    mask = schedule.spec.mask_expr
    if row_keys(mask) is None or not mask.free_symbols <= _POSITIONS:
        readers.add(CalcKind.MASK)
    return frozenset(readers)


def _converts_along(schedule: Schedule) -> bool:
    """Whether P is better converted between the exponentials of a formula, after the wait for the
    product that reads P: where that is short, and nothing branches."""
    form = schedule.graph.score
    assert form is not None
    branches = form.core.has(sympy.tanh) or far_form(form, schedule.spec.input_metas)
    return not branches and schedule.spec.head_dim.v <= _SHORT_PRODUCT


_SHORT_PRODUCT = 64  # head dim of V
_POSITIONS = {symbols.q, symbols.row, symbols.k, symbols.seqlen_q, symbols.seqlen_k}


def _parts(block_n: int) -> tuple[tuple[int, int], ...]:
    """A KV tile's keys in the two parts of a lazy softmax: about a quarter, of whole pairs of each
    thread's columns, and the rest."""
    lanes = 4  # share a row
    first = lanes * max(block_n // lanes // 8 * 2, 2)
    return ((0, first), (first, block_n))


def lower(schedule: Schedule) -> Program:
    """The Program of a schedule whose placements, memory and registers are planned."""
    memory, registers = schedule.memory, schedule.registers
    if memory is None or registers is None or not schedule.placements:
        raise GraphError("lower needs placements, memory and registers: run the passes before it")
    tiling = schedule.tiling
    score, bias = kernel_score(schedule.spec)
    return Program(
        name=schedule.spec.name,
        buffers=_buffers(schedule, memory),
        barriers=tuple(Barrier(b.name, b.stages, b.arrivals, b.offset) for b in memory.barriers),
        named=_named(schedule),
        tiles=_register_tiles(schedule),
        setup=(
            *(InitBarrier(barrier.name, barrier.arrivals) for barrier in memory.barriers),
            FenceBarrierInit(),
            SyncCta(),
        ),
        roles=(
            *([_producer(schedule, memory, registers)] if tiling.specialized else []),
            _consumer(schedule, memory, registers),
        ),
        block_m=tiling.block_m,
        block_n=tiling.block_n,
        dtype=schedule.spec.dtype,
        inputs=schedule.spec.input_metas,
        score=score,
        bias=bias,
        sink=schedule.graph.op(Normalize).sink,
        keep=schedule.graph.op(Mask).keep,
        threads=schedule.threads,
        ctas_per_sm=tiling.ctas_per_sm,
        shared_bytes=memory.bytes,
        peeled=schedule.depth,
        lag=schedule.lag,
        unroll=schedule.score_tiles,
        followed=_followed(schedule),
        always=_always(schedule),
        listed=schedule.bounds.listed,
    )


# --- resources ------------------------------------------------------------------------------------


def _buffers(schedule: Schedule, memory: MemoryPlan) -> tuple[Buffer, ...]:
    return tuple(
        Buffer(
            plan.tile,
            plan.offset,
            plan.rows,
            plan.cols,
            plan.dtype,
            plan.stages,
            min(HOPPER.swizzle_bytes // plan.dtype.bytes, plan.cols),
        )
        for plan in memory.buffers
    )


def _named(schedule: Schedule) -> tuple[NamedBarrier, ...]:
    """Ids from 1 (0 is __syncthreads): one a consumer for its store, one for its turn; one for all
    of them, where they meet before O is written over V."""
    count = schedule.tiling.warpgroups
    named = [NamedBarrier("store", 1, count, HOPPER.warpgroup)]
    if schedule.tiling.pingpong:
        named.append(NamedBarrier("turn", 1 + count, count, 2 * HOPPER.warpgroup))
    if schedule.tiling.o_over == "V" and count > 1:
        named.append(NamedBarrier("done", 1 + 2 * count, 1, count * HOPPER.warpgroup))
    return tuple(named)


def _register_tiles(schedule: Schedule) -> tuple[RegisterTile, ...]:
    """S under each of its names, P unless it is in shared memory, and O, of one warpgroup."""
    graph, rows = schedule.graph, HOPPER.wgmma_rows
    s, p, o = graph.op(GemmQK).writes[0], graph.op(GemmPV).reads[0], graph.op(GemmPV).writes[0]
    named = [(name, s) for name in _scores(schedule)]
    named += [] if schedule.tiling.p_shared else [("P", p)]
    return tuple(
        RegisterTile(
            name,
            rows,
            product_dim(tile.cols),
            tile.dtype,
            rows * product_dim(tile.cols) * tile.dtype.bytes // 4 // HOPPER.warpgroup,
        )
        for name, tile in [*named, ("O", o)]
    )


def _scores(schedule: Schedule) -> tuple[str, ...]:
    """The names of S: one for each KV tile whose scores are live at a time."""
    count = schedule.score_tiles
    return ("S",) if count == 1 else tuple(f"S{index}" for index in range(count))


# --- producer -------------------------------------------------------------------------------------


def _producer(schedule: Schedule, memory: MemoryPlan, registers: RegisterPlan) -> Role:
    """K of the first tile, Q, then K(t) and V(t-1) for each tile, V of the last."""
    emit = Emitter(always=_always(schedule))
    places = schedule.of_role(RoleName.PRODUCER)
    depth = schedule.depth
    sizes = {buffer.name: buffer.stage_bytes for buffer in _buffers(schedule, memory)}

    def load(stages: range, free: tuple[str, ...] = ()) -> None:
        for place in places:
            if place.stage in stages:
                tile = schedule.graph.networkx.nodes[place.op]["op"].writes[0].name
                emit.load(tile, sizes[tile], place.stage, tile in free)

    def steps(segment: Segment, indices: range) -> None:
        """Steps of the prologue, where stages 0 .. i run, or of the drain, where the later do."""
        drains = segment is Segment.DRAIN
        with emit.for_tiles(segment):
            for index in indices:
                with emit.step(index):
                    # Q's release came after those of the work tile before
                    free = ("K", "Bias") if index and not drains else ()
                    load(range(index + 1, depth + 1) if drains else range(index + 1), free)

    early, over_v = releases_q_early(schedule.tiling), schedule.tiling.o_over == "V"
    late = ("V",) if schedule.lag else ()  # a late softmax has K released after an older tile's V
    _set_registers(emit, registers.producer, registers.launch)
    with emit.each_work():
        emit.append(*_claim(schedule))
        with emit.if_tiles():
            steps(Segment.FIRST, range(min(depth, 1)))
            if early:
                emit.load("Q", sizes["Q"], free=not _q_is_guarded(memory))
                if over_v:  # V waits until O has left
                    emit.append(Wait("O_empty", "O", empty=True), Advance("O"))
                with emit.for_tiles(Segment.ALL):
                    load(range(depth + 1), late)
        if not early:
            emit.load("Q", sizes["Q"])
            with emit.if_tiles():
                steps(Segment.FIRST, range(1, depth))
                with emit.for_tiles(Segment.ALL):
                    load(range(depth + 1), late)
        if schedule.tiling.persistence is Persistence.DYNAMIC:  # as late as hides the answer
            emit.append(ClaimAhead())
        with emit.if_tiles():
            steps(Segment.DRAIN, range(depth))
    needs = schedule.tiling.producer_registers
    return Role("producer", 0, 1, registers.producer, needs, emit.body)


def _claim(schedule: Schedule) -> tuple[Instruction, ...]:
    """The producer claims work tiles for the CTA, if they are claimed at all."""
    if schedule.tiling.persistence is not Persistence.DYNAMIC:
        return ()
    return (
        Wait("Work_empty", "Work", empty=True),
        ClaimWork("Work", "Work"),
        Arrive("Work_full", "Work", Executor.ELECTED),
        Advance("Work"),
        EndOfWork(),
    )


def _follow(schedule: Schedule) -> tuple[Instruction, ...]:
    """The consumers read what the producer has claimed."""
    if schedule.tiling.persistence is not Persistence.DYNAMIC:
        return ()
    return (
        Wait("Work_full", "Work"),
        ReadWork("Work", "Work"),
        Arrive("Work_empty", "Work", Executor.EACH_WARP),
        Advance("Work"),
        EndOfWork(),
    )


def _set_registers(emit: Emitter, granted: int, launch: int) -> None:
    if granted != launch:
        emit.append(SetRegisters(granted, granted > launch))


# --- consumers ------------------------------------------------------------------------------------


def _consumer(schedule: Schedule, memory: MemoryPlan, registers: RegisterPlan) -> Role:
    """The consumers' program: products and softmax over the KV tiles, then the store of O."""
    tiling, over_q = schedule.tiling, schedule.tiling.o_over == "Q"
    lazy = tiling.maxima is Maxima.LAZY
    rings = ("K", "V", *(["Bias"] * schedule.graph.has(LoadBias)))
    sizes = {buffer.name: buffer.stage_bytes for buffer in _buffers(schedule, memory)}
    emit = Emitter(
        fenced=frozenset(tile.name for tile in _register_tiles(schedule)),
        trailing=frozenset({"K"} if schedule.score_tiles > 1 else ()),
        staged=frozenset({"P"} if tiling.p_shared else ()),
        covered=frozenset({"Q"} if over_q else ()),
        prefetch=None if tiling.specialized else Prefetch(tiling.stages, sizes, rings),
        always=_always(schedule),
    )
    turn = Turn("turn", 2 * HOPPER.warpgroup) if tiling.pingpong else None
    early = releases_q_early(schedule.tiling)
    arrival = (Arrive("Q_empty", "Q", Executor.EACH_WARP),) if _q_is_guarded(memory) else ()
    release = (*arrival, Advance("Q"))

    _set_registers(emit, registers.consumer, registers.launch)
    if turn is not None:  # the last consumer opens the first one's turn
        emit.append(
            OnInstance(tiling.warpgroups - 1, (NamedArrive(turn.barrier, turn.threads, 1),))
        )
    with emit.each_work():
        emit.append(*_follow(schedule))
        if not tiling.specialized:
            emit.load_first()
        if lazy:
            emit.calc(CalcKind.CLEAR_SHIFTED, (), ("O", "shift", "row_sum"))
        else:
            emit.calc(CalcKind.CLEAR, (), ("O", "row_max", "row_sum"))
        if _row_readers(schedule):
            emit.calc(CalcKind.ROWS, (), ("rows",))
        if not early:
            emit.acquire("Q")
        with emit.if_tiles():
            emit.acquire("Q")
            _kv_tiles(emit, schedule, turn, release if early else ())
        if not early and not over_q:
            emit.append(*release)
        if lazy:
            emit.calc(CalcKind.NORMALIZE_SHIFTED, ("O", "row_sum", "shift"), ("O", "lse"))
        else:
            emit.calc(CalcKind.NORMALIZE, ("O", "row_sum", "row_max"), ("O", "lse"))
        _store(emit, schedule)
        emit.awaited.discard("Q")
    if tiling.o_over is None:
        emit.append(TmaStoreWait(0, read=True))
    first = 1 if tiling.specialized else 0
    return Role(
        "consumer", first, tiling.warpgroups, registers.consumer, registers.needs, emit.body
    )


def _always(schedule: Schedule) -> bool:
    """Whether every work tile visits a KV tile: where V waits for the store of O, consumers must
    not run ahead of a producer that has nothing to load."""
    return schedule.tiling.o_over == "V"


def _followed(schedule: Schedule) -> int:
    """Where nothing is peeled, speculation leaves a work tile's first KV tile to the loop that
    follows its maxima: there are none yet to speculate on."""
    return int(schedule.tiling.maxima is Maxima.SPECULATIVE and not schedule.depth)


def _q_is_guarded(memory: MemoryPlan) -> bool:
    """Whether loads of Q wait for its release; else those of K before them wait long enough."""
    return any(barrier.name == "Q_empty" for barrier in memory.barriers)


def _kv_tiles(
    emit: Emitter, schedule: Schedule, turn: Turn | None, release: tuple[Instruction, ...]
) -> None:
    """Prologue, one steady loop a segment, drain; Q's ``release`` in between."""
    depth, bounds, count = schedule.depth, schedule.bounds, schedule.score_tiles
    if depth:
        with emit.for_tiles(Segment.FIRST):
            for index in range(depth):
                with emit.step(index):
                    _iteration(emit, schedule, _Part(range(index + 1), index, True), None)

    def loop(segment: Segment, masked: bool) -> None:
        full = segment is Segment.FULL
        guesses = full and schedule.tiling.maxima is Maxima.SPECULATIVE
        with emit.for_tiles(segment, follows=full and _followed(schedule) > 0):
            for t in range(depth, depth + count):
                with emit.phase(t % count, count):
                    part = _Part(range(depth + 1), t, masked, guesses)
                    _iteration(emit, schedule, part, turn)

    if bounds.masks_right or not depth:
        loop(Segment.RIGHT, True)
    loop(Segment.FULL, False)
    if bounds.masks_left:
        loop(Segment.LEFT, True)
    emit.append(*release)  # every product that reads Q has retired
    if depth:
        _drain(emit, schedule, turn)


def _drain(emit: Emitter, schedule: Schedule, turn: Turn | None) -> None:
    """The tiles that the loops leave over, and what is then owed; no KV tile is left to load."""
    depth, count, bounds = schedule.depth, schedule.score_tiles, schedule.bounds
    masks = bounds.masks_left or bounds.masks_right
    entry = emit.state
    with emit.leftovers(count):
        for left in range(count):
            with emit.leftover(left, count, entry):
                for t in range(depth, depth + left):
                    emit.horizon = depth + left - 1 - t
                    with emit.for_tiles(Segment.REST):
                        _iteration(emit, schedule, _Part(range(depth + 1), t, masks), turn)
                emit.horizon = -1
                with emit.for_tiles(Segment.DRAIN):
                    for index in range(depth):
                        with emit.step(index):
                            part = _Part(range(index + 1, depth + 1), depth + left + index, True)
                            _iteration(emit, schedule, part, None)
    emit.horizon = None


@dataclass(frozen=True)
class _Part:
    """The operations of some stages, in iterations that are alike to number ``t``."""

    stages: range
    t: int
    masked: bool
    guesses: bool = False  # the softmax goes ahead with the maxima of the tiles before


def _iteration(emit: Emitter, schedule: Schedule, part: _Part, turn: Turn | None) -> None:
    """The operations of a part, in slot order. Those of the last stage retire their products."""
    stages, names = part.stages, _scores(schedule)
    places = [p for p in schedule.of_role(RoleName.CONSUMER) if p.stage in stages]
    first = stages.start == 0 and len(stages) <= schedule.depth
    products = [place for place in places if place.op in ("GemmQK", "GemmPV")]
    readers = (CalcKind.BIAS, *([CalcKind.REDO] if part.guesses else []))  # of a bias
    emit.next_iteration()
    for place in places:
        score = names[(part.t - place.stage) % len(names)]
        if place in products:
            emit.gemm(_gemm(schedule, place, score), turn if place is products[0] else None)
            if turn is not None and place is products[-1]:
                emit.pass_turn(turn)
        elif place.op == "Mask" and not part.masked:
            continue
        elif place.op == "Rescale" and first:
            continue  # O is still empty
        elif place.op == "ConvertP" and schedule.tiling.p_shared:
            sync = NamedSync("store", HOPPER.warpgroup)
            emit.stage_operand(StageOut(score, "P", place.stage), sync)
        else:
            parts = _parts(schedule.tiling.block_n)
            for step in _calcs(schedule, part.guesses)[place.op]:
                reads, writes = (
                    tuple(name.format(S=score) for name in side)
                    for side in (step.reads, step.writes)
                )
                reads += ("rows",) if step.kind in _row_readers(schedule) else ()
                keys = None if step.part is None else parts[step.part]
                ring = "Bias" if schedule.graph.has(LoadBias) and step.kind in readers else None
                if step.kind is CalcKind.SPECULATE_SCORE and _converts_along(schedule):
                    emit.free(score, "P")
                emit.calc(step.kind, reads, writes, place.stage, keys, ring)
                if ring is not None and step.kind is readers[-1]:
                    emit.release(ring, place.stage, _fences(schedule, emit.horizon))
    complete = stages.stop > schedule.depth and schedule.score_tiles == 1
    if complete or stages.start == schedule.depth:
        emit.drain()  # everything owed to this iteration's tiles was issued


def _fences(schedule: Schedule, horizon: int | None) -> bool:
    """Whether the stage of a bias is released behind a fence of its own. The last two of a work
    tile are filled after the next one's Q, and so after any fence that comes before Q's release:
    that of the last bias, of P or of O. But a producer fills one stage before Q."""
    tiling = schedule.tiling
    if horizon is None:
        return True
    if horizon < 0:
        return not tiling.p_shared and tiling.o_over != "Q"
    return tiling.specialized and tiling.stages == schedule.depth


def _gemm(schedule: Schedule, place: Placement, score: str) -> Gemm:
    if place.op == "GemmQK":
        return Gemm(GemmKind.QK, score, "Q", "K", "Q", "K", place.stage)
    p_cursor = "P" if schedule.tiling.p_shared else None
    return Gemm(GemmKind.PV, "O", "P", "V", p_cursor, "V", place.stage)


def _store(emit: Emitter, schedule: Schedule) -> None:
    """Write LSE, and store O through shared memory."""
    threads, over = HOPPER.warpgroup, schedule.tiling.o_over
    warpgroups = schedule.tiling.warpgroups
    emit.append(StoreRows("lse"))
    if over is None:  # the store of the work tile before may still read the buffer
        emit.append(TmaStoreWait(0, read=True))
    if over == "V" and warpgroups > 1:  # every consumer has read it
        emit.append(NamedSync("done", warpgroups * threads))
    elif over != "Q" or "Q" in emit.unconverged:
        emit.append(NamedSync("store", threads))
    emit.append(
        StageOut("O", "O"),
        ProxyFence(),
        NamedSync("store", threads),
        TmaStore("O"),
        TmaStoreCommit(),
    )
    if over is not None:
        owner = "Q" if over == "Q" else "O"
        release = Arrive(f"{owner}_empty", owner, Executor.ELECTED)
        emit.append(TmaStoreWait(0, read=True), release, Advance(owner))
    emit.unconverged.clear()
