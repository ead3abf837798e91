"""Passes 4 and 5: shared-memory and register plans.

Q has two stages if there is room, so that the next work tile's arrives while this one's is read.

O is staged apart from everything if there is room, so that its store overlaps the next work tile.
Else it is staged over Q: a warpgroup's rows of Q are read by that warpgroup alone, so no other
consumer is waited for, but the next Q cannot be loaded before the store has read O. Over V, where
that is asked, the next Q and K may come early, and V cannot; but every consumer reads V, so all of
them meet before O is written.
"""

from __future__ import annotations

from dataclasses import replace

from fa3gen.dtypes import DType
from fa3gen.ir.bias import kernel_score
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.needs import (
    Setting,
    consumer_limit,
    launch_registers,
    padded_dim,
    register_needs,
    shared_needs,
)
from fa3gen.schedule.schedule import (
    BarrierPlan,
    BufferPlan,
    MemoryPlan,
    Persistence,
    RegisterPlan,
    RegisterUse,
    Schedule,
    Tiling,
)

__all__ = ["plan_memory", "plan_registers", "releases_q_early"]

_WARPS = HOPPER.warpgroup // 32


def plan_memory(schedule: Schedule) -> Schedule:
    """Lay out Q, K, V, O and the mbarriers in shared memory."""
    spec, tiling = schedule.spec, schedule.tiling
    qk, v = (padded_dim(dim, spec.dtype) for dim in (spec.head_dim.qk, spec.head_dim.v))
    setting, over = Setting.of(schedule.tiling), tiling.o_over
    needs = shared_needs(spec, tiling.block_m, tiling.block_n, setting)
    taken = sum(needs.values()) - needs["O"] * (over is not None)
    room = setting.limits.shared_bytes - taken
    scores = (tiling.block_m, padded_dim(tiling.block_n, spec.dtype))
    _, bias = kernel_score(spec)
    buffers: list[BufferPlan] = []
    offset = 0
    for tile, rows, cols, dtype, stages in (
        ("Q", tiling.block_m, qk, spec.dtype, _query_stages(tiling, room >= needs["Q"])),
        ("K", tiling.block_n, qk, spec.dtype, tiling.stages),
        ("V", tiling.block_n, v, spec.dtype, tiling.stages),
        *([("Bias", *scores, bias.meta.dtype, tiling.stages)] if bias else []),
        *([("P", *scores, spec.dtype, 1)] * tiling.p_shared),
    ):
        buffers.append(BufferPlan(tile, offset, rows, cols, dtype, stages, None))
        offset += buffers[-1].bytes
    places = {buffer.tile: buffer.offset for buffer in buffers}
    at = places[over] if over else offset
    buffers.append(BufferPlan("O", at, tiling.block_m, v, spec.dtype, 1, over))
    offset += 0 if over else buffers[-1].bytes
    if tiling.persistence is Persistence.DYNAMIC:  # the number of the work tile at hand
        buffers.append(BufferPlan("Work", offset, 1, 1, DType.INT32, 1, None))
        offset += HOPPER.word_alignment
    barriers = _barriers(buffers, offset, tiling)
    end = offset + sum(barrier.stages for barrier in barriers) * HOPPER.mbarrier_bytes
    return replace(schedule, memory=MemoryPlan(tuple(buffers), barriers, end))


def releases_q_early(tiling: Tiling) -> bool:
    """Whether Q is released after its last product, and loaded only if there is one, rather than
    last of all; not where O is staged over it, nor where that release tells the loading thread that
    every ring is free."""
    return tiling.specialized and tiling.overlap < 3 and tiling.o_over != "Q"


def _query_stages(tiling: Tiling, room: bool) -> int:
    """Two, so that the next work tile's Q arrives while this one's is read, if there is room."""
    follows = releases_q_early(tiling) and tiling.persistence is not Persistence.NONE
    return 2 if follows and room else 1


def _barriers(buffers: list[BufferPlan], offset: int, tiling: Tiling) -> tuple[BarrierPlan, ...]:
    """A full and an empty mbarrier for each stage of each buffer that the producer fills.

    A full barrier gets one arrival, with TMA's bytes; an empty one that of every consumer warp, but
    for Q of each warpgroup's storing thread alone where O lies over it. O over V has an empty
    barrier as well, for V waits for the store. Q needs no empty barrier
    where its stage is free anyway: with products that overlap, a work tile's first K goes before
    its Q, and where work tiles are claimed, none is given out before the one before has been read.
    """
    plans = []
    for buffer in buffers:
        if buffer.tile == "O" and buffer.over == "V":
            plans.append(BarrierPlan("O_empty", offset, 1, tiling.warpgroups))
            offset += HOPPER.mbarrier_bytes
        if buffer.tile in ("P", "O"):
            continue  # the consumers fill them
        stored = buffer.tile == tiling.o_over == "Q"
        readers = tiling.warpgroups * (1 if stored else _WARPS)
        unguarded = buffer.tile == "Q" and _q_is_free(buffers, tiling)
        for name, arrivals in ((f"{buffer.tile}_full", 1), (f"{buffer.tile}_empty", readers)):
            if unguarded and name == "Q_empty":
                continue
            plans.append(BarrierPlan(name, offset, buffer.stages, arrivals))
            offset += buffer.stages * HOPPER.mbarrier_bytes
    return tuple(plans)


def _q_is_free(buffers: list[BufferPlan], tiling: Tiling) -> bool:
    """Whether the stage that a work tile's Q goes to is free by the time it is loaded, because what
    the producer waited for before came after all products with what it held."""
    stages = {buffer.tile: buffer.stages for buffer in buffers}
    behind_claim = tiling.persistence is Persistence.DYNAMIC and stages["Q"] > 1
    behind_k = tiling.overlap > 1 and stages["Q"] >= stages["K"]
    return releases_q_early(tiling) and (behind_claim or behind_k)


def plan_registers(schedule: Schedule) -> Schedule:
    """Split the register file between the producer, if there is one, and the consumers."""
    tiling, setting = schedule.tiling, Setting.of(schedule.tiling)
    step, warpgroups = HOPPER.register_step, tiling.warpgroups + tiling.specialized
    launch = launch_registers(warpgroups, tiling.ctas_per_sm)
    consumer = consumer_limit(tiling.warpgroups, setting)
    producer = min(launch * warpgroups - consumer * tiling.warpgroups, launch)
    uses = register_needs(schedule.spec, tiling.block_n, setting)
    plan = RegisterPlan(
        tuple(RegisterUse(tile, count) for tile, count in uses.items()),
        launch,
        producer // step * step,
        consumer,
    )
    return replace(schedule, registers=plan)
