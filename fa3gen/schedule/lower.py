"""Schedule to Program: modulo expansion of the KV loop, role by role.

With operations in stages 0..D an iteration t of the steady loop runs stage s on KV tile t - s. The
first D tiles are peeled into a prologue, and D iterations after the last tile drain what is owed::

    overlap 2 (D = 1), tiles 0 .. n-1
      FIRST     QK(0) mask softmax convert
      loops     QK(t) PV(t-1) [mask] softmax convert rescale          t = 1 .. n-1
      DRAIN     PV(n-1)

The steady loop is emitted once for each segment: tiles masked at the upper end, tiles without a
mask, tiles masked at the lower end.
"""

from __future__ import annotations

from fa3gen.errors import GraphError
from fa3gen.ir.ops import GemmPV, GemmQK, Mask
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.emit import Emitter, Turn
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
from fa3gen.schedule.schedule import (
    MemoryPlan,
    Persistence,
    Placement,
    RegisterPlan,
    RoleName,
    Schedule,
)

__all__ = ["lower"]

_CALCS: dict[str, tuple[CalcKind, tuple[str, ...], tuple[str, ...]]] = {
    "Mask": (CalcKind.MASK, ("S",), ("S",)),
    "RowMax": (CalcKind.ROW_MAX, ("S", "row_max"), ("row_max", "alpha")),
    "Exp": (CalcKind.EXP, ("S", "row_max"), ("S",)),
    "RowSum": (CalcKind.ROW_SUM, ("S", "row_sum", "alpha"), ("row_sum",)),
    "ConvertP": (CalcKind.CONVERT, ("S",), ("P",)),
    "Rescale": (CalcKind.RESCALE, ("O", "alpha"), ("O",)),
}


def lower(schedule: Schedule) -> Program:
    """The Program of a schedule whose placements, memory and registers are planned."""
    memory, registers = schedule.memory, schedule.registers
    if memory is None or registers is None or not schedule.placements:
        raise GraphError("lower needs placements, memory and registers: run the passes before it")
    tiling = schedule.tiling
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
            _producer(schedule, memory, registers),
            _consumer(schedule, memory, registers),
        ),
        block_m=tiling.block_m,
        block_n=tiling.block_n,
        dtype=schedule.spec.dtype,
        keep=schedule.graph.op(Mask).keep,
        threads=schedule.threads,
        shared_bytes=memory.bytes,
        peeled=schedule.depth,
    )


# --- resources ------------------------------------------------------------------------------------


def _buffers(schedule: Schedule, memory: MemoryPlan) -> tuple[Buffer, ...]:
    chunk = HOPPER.swizzle_bytes // schedule.spec.dtype.bytes
    return tuple(
        Buffer(
            plan.tile,
            plan.offset,
            plan.rows,
            plan.cols,
            plan.dtype,
            plan.stages,
            min(chunk, plan.cols),
        )
        for plan in memory.buffers
    )


def _named(schedule: Schedule) -> tuple[NamedBarrier, ...]:
    """Ids from 1 (0 is __syncthreads): one a consumer for its store, one for its turn."""
    count = schedule.tiling.warpgroups
    named = [NamedBarrier("store", 1, count, HOPPER.warpgroup)]
    if schedule.tiling.pingpong:
        named.append(NamedBarrier("turn", 1 + count, count, 2 * HOPPER.warpgroup))
    return tuple(named)


def _register_tiles(schedule: Schedule) -> tuple[RegisterTile, ...]:
    """S, P and O as one warpgroup holds them."""
    graph = schedule.graph
    tiles = (graph.op(GemmQK).writes[0], graph.op(GemmPV).reads[0], graph.op(GemmPV).writes[0])
    rows = HOPPER.wgmma_rows
    words = {tile.name: rows * product_dim(tile.cols) * tile.dtype.bytes // 4 for tile in tiles}
    return tuple(
        RegisterTile(
            tile.name,
            rows,
            product_dim(tile.cols),
            tile.dtype,
            words[tile.name] // HOPPER.warpgroup,
        )
        for tile in tiles
    )


# --- producer -------------------------------------------------------------------------------------


def _producer(schedule: Schedule, memory: MemoryPlan, registers: RegisterPlan) -> Role:
    """K of the first tile, Q, then K(t) and V(t-1) for each tile, V of the last."""
    emit = Emitter()
    places = schedule.of_role(RoleName.PRODUCER)
    depth = schedule.depth
    sizes = {buffer.name: buffer.stage_bytes for buffer in _buffers(schedule, memory)}

    def loads(stages: range, segment: Segment) -> None:
        with emit.for_tiles(segment):
            for place in places:
                if place.stage in stages:
                    tile = schedule.graph.networkx.nodes[place.op]["op"].writes[0].name
                    emit.load(tile, sizes[tile], skew=place.stage)

    _set_registers(emit, registers.producer, registers.launch)
    with emit.each_work():
        emit.append(*_claim(schedule))
        with emit.if_tiles():
            if depth:
                loads(range(depth), Segment.FIRST)
        emit.load("Q", sizes["Q"])
        with emit.if_tiles():
            loads(range(depth + 1), Segment.ALL)
        if schedule.tiling.persistence is Persistence.DYNAMIC:  # as late as hides the answer
            emit.append(ClaimAhead())
        with emit.if_tiles():
            if depth:
                loads(range(1, depth + 1), Segment.DRAIN)
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
    emit = Emitter()
    tiling = schedule.tiling
    turn = Turn("turn", 2 * HOPPER.warpgroup) if tiling.pingpong else None
    over_q = memory.buffer("O").over is not None

    _set_registers(emit, registers.consumer, registers.launch)
    if turn is not None:  # the last consumer opens the first one's turn
        emit.append(
            OnInstance(tiling.warpgroups - 1, (NamedArrive(turn.barrier, turn.threads, 1),))
        )
    with emit.each_work():
        emit.append(*_follow(schedule))
        emit.calc(CalcKind.CLEAR, (), ("O", "row_max", "row_sum"))
        emit.acquire("Q")
        with emit.if_tiles():
            _kv_tiles(emit, schedule, turn)
        if not over_q:
            emit.append(Arrive("Q_empty", "Q", Executor.EACH_WARP), Advance("Q"))
        _store(emit, over_q)
        emit.awaited.discard("Q")
    if not over_q:
        emit.append(TmaStoreWait(0, read=True))
    return Role("consumer", 1, tiling.warpgroups, registers.consumer, registers.needs, emit.body)


def _kv_tiles(emit: Emitter, schedule: Schedule, turn: Turn | None) -> None:
    """Prologue, one steady loop a segment, drain."""
    depth, bounds = schedule.depth, schedule.bounds
    if depth:
        with emit.for_tiles(Segment.FIRST):
            _iteration(emit, schedule, range(depth), masked=True, turn=None)
    if bounds.masks_right or not depth:
        with emit.for_tiles(Segment.RIGHT):
            _iteration(emit, schedule, range(depth + 1), masked=True, turn=turn)
    if bounds.exact:
        with emit.for_tiles(Segment.FULL):
            _iteration(emit, schedule, range(depth + 1), masked=False, turn=turn)
        if bounds.masks_left:
            with emit.for_tiles(Segment.LEFT):
                _iteration(emit, schedule, range(depth + 1), masked=True, turn=turn)
    if depth:
        with emit.for_tiles(Segment.DRAIN):
            _iteration(emit, schedule, range(1, depth + 1), masked=False, turn=None)


def _iteration(
    emit: Emitter, schedule: Schedule, stages: range, masked: bool, turn: Turn | None
) -> None:
    """The operations of some stages, in slot order. Draining retires every product."""
    places = [p for p in schedule.of_role(RoleName.CONSUMER) if p.stage in stages]
    first = stages.start == 0 and len(stages) <= schedule.depth
    products = [place for place in places if place.op in ("GemmQK", "GemmPV")]
    for place in places:
        if place in products:
            emit.gemm(_gemm(place), turn if place is products[0] else None)
            if turn is not None and place is products[-1]:
                emit.pass_turn(turn)
        elif place.op == "Mask" and not masked:
            continue
        elif place.op == "Rescale" and first:
            continue  # O is still empty
        else:
            emit.calc(*_CALCS[place.op], skew=place.stage)
    if stages.stop > schedule.depth:  # everything owed to this iteration's tiles was issued
        emit.drain()


def _gemm(place: Placement) -> Gemm:
    if place.op == "GemmQK":
        return Gemm(GemmKind.QK, "S", "Q", "K", "Q", "K", place.stage)
    return Gemm(GemmKind.PV, "O", "P", "V", None, "V", place.stage)


def _store(emit: Emitter, over_q: bool) -> None:
    """Normalise, write LSE, and store O through shared memory."""
    threads = HOPPER.warpgroup
    emit.calc(CalcKind.NORMALIZE, ("O", "row_sum", "row_max"), ("O", "lse"))
    emit.append(StoreRows("lse"))
    if not over_q:  # the store of the work tile before may still read the buffer
        emit.append(TmaStoreWait(0, read=True))
    emit.append(
        NamedSync("store", threads),
        StageOut("O", "O"),
        ProxyFence(),
        NamedSync("store", threads),
        TmaStore("O"),
        TmaStoreCommit(),
    )
    if over_q:
        emit.append(
            TmaStoreWait(0, read=True), Arrive("Q_empty", "Q", Executor.ELECTED), Advance("Q")
        )
