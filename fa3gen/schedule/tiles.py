"""Pass 1: tile sizes and pipeline knobs, from the spec's knobs and the budgets of an SM.

A knob the user gives is kept and checked; the rest is the widest KV tile that the registers and the
shared memory allow. Under a mask that bounds keys by the query's position the KV tile also divides
the query tile, because a diagonal tile wastes the part that it sticks out.
"""

from __future__ import annotations

from fa3gen.dtypes import DType
from fa3gen.errors import ScheduleError, UnsupportedError
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.ranges import KeyBounds
from fa3gen.schedule.schedule import Persistence, Tiling
from fa3gen.spec import AttentionSpec

__all__ = ["WORKING_REGISTERS", "choose_tiling", "padded_dim", "register_needs", "shared_needs"]

# Row statistics, addresses, loop counters, ring cursors and the registers of softmax's temporaries:
# the least count at which ptxas compiled every tile tried without a spill.
WORKING_REGISTERS = 34


def padded_dim(dim: int, dtype: DType) -> int:
    """A head dim padded in shared memory to whole 128-byte column chunks."""
    chunk = HOPPER.swizzle_bytes // dtype.bytes
    return -(-dim // chunk) * chunk


def register_needs(spec: AttentionSpec, block_n: int) -> dict[str, int]:
    """Registers of a consumer thread by tile value, for 64 rows a warpgroup."""
    rows_per_register = HOPPER.warpgroup // HOPPER.wgmma_rows
    return {
        "S": block_n // rows_per_register,
        "P": block_n // rows_per_register * spec.dtype.bytes // 4,
        "O": padded_dim(spec.head_dim.v, spec.dtype) // rows_per_register,
        "working": WORKING_REGISTERS,
    }


def shared_needs(spec: AttentionSpec, block_m: int, block_n: int, stages: int) -> dict[str, int]:
    """Bytes of shared memory by tile value, O apart from the rest."""
    qk, v = (padded_dim(dim, spec.dtype) for dim in (spec.head_dim.qk, spec.head_dim.v))
    size = spec.dtype.bytes
    return {
        "Q": block_m * qk * size,
        "K": stages * block_n * qk * size,
        "V": stages * block_n * v * size,
        "O": block_m * v * size,
        "barriers": HOPPER.tile_alignment,
    }


def producer_needs(persistence: Persistence) -> int:
    """Registers of the producer: addresses, cursors and, where it claims, its claim."""
    return HOPPER.min_registers + (8 if persistence is Persistence.DYNAMIC else 0)


def consumer_limit(warpgroups: int, persistence: Persistence) -> int:
    """The registers that setmaxnreg can grant each consumer thread beside the producer."""
    lanes = HOPPER.registers // HOPPER.warpgroup
    launch = lanes // (warpgroups + 1) // HOPPER.register_step * HOPPER.register_step
    share = (launch * (warpgroups + 1) - producer_needs(persistence)) // warpgroups
    return min(share // HOPPER.register_step * HOPPER.register_step, HOPPER.max_registers)


def choose_tiling(spec: AttentionSpec, bounds: KeyBounds) -> Tiling:
    """Tile sizes and knobs of a spec; ScheduleError with the budget if what it asks cannot fit."""
    knobs = spec.schedule
    _check_supported(spec)
    warpgroups = _warpgroups(spec)
    block_m = HOPPER.wgmma_rows * warpgroups
    stages = knobs.pipeline_depth or 2
    overlap = knobs.overlap or 2
    pingpong = warpgroups >= 2 and overlap == 2 if knobs.pingpong is None else knobs.pingpong
    if pingpong and overlap == 1:
        raise UnsupportedError(
            "schedule.pingpong: with overlap 1 the two products of a step have no common turn; "
            "use overlap 2 or pingpong false"
        )
    persistence = _persistence(spec, bounds)
    registers = consumer_limit(warpgroups, persistence)
    asked = knobs.tile.n if knobs.tile else None
    block_n = asked or _widest(spec, bounds, block_m, stages, registers)
    problem = over_budget(spec, block_m, block_n, stages, registers)
    if problem:
        raise ScheduleError(f"tile {block_m}x{block_n} does not fit: {problem}")
    return Tiling(block_m, block_n, warpgroups, stages, overlap, pingpong, persistence)


def _persistence(spec: AttentionSpec, bounds: KeyBounds) -> Persistence:
    """As asked; else claims if work tiles differ in length, for a fixed order leaves a tail."""
    asked = spec.schedule.persistent
    if asked is not None:
        return {
            "false": Persistence.NONE,
            "static": Persistence.STATIC,
            "dynamic": Persistence.DYNAMIC,
        }[asked.value]
    uneven = bounds.masks_right or bounds.masks_left
    return Persistence.DYNAMIC if uneven else Persistence.STATIC


def _check_supported(spec: AttentionSpec) -> None:
    """Refuse the knobs whose Programs this release cannot make."""
    knobs = spec.schedule
    refused = {
        "overlap": knobs.overlap == 3,
        "p_operand": knobs.p_operand is not None and knobs.p_operand.value == "shared",
        "warp_specialized": knobs.warp_specialized is False,
    }
    for key, refuse in refused.items():
        if refuse:
            value = getattr(knobs, key)
            raise UnsupportedError(
                f"schedule.{key}: {getattr(value, 'value', value)} is not compiled yet; "
                "leave it out"
            )


def _warpgroups(spec: AttentionSpec) -> int:
    """Consumer warpgroups: as asked, as the query tile implies, or two."""
    knobs = spec.schedule
    rows = knobs.tile.m if knobs.tile else None
    if knobs.warpgroups and rows and rows != HOPPER.wgmma_rows * knobs.warpgroups:
        raise ScheduleError(
            "schedule.tile.m: must be 64 x warpgroups "
            f"(got m {rows}, warpgroups {knobs.warpgroups})"
        )
    return knobs.warpgroups or (rows // HOPPER.wgmma_rows if rows else 2)


def _widest(
    spec: AttentionSpec, bounds: KeyBounds, block_m: int, stages: int, registers: int
) -> int:
    """The widest KV tile within the budgets."""
    diagonal = bounds.masks_right or bounds.masks_left
    for block_n in range(256, 0, -16):
        if diagonal and block_m % block_n:
            continue
        if not over_budget(spec, block_m, block_n, stages, registers):
            return block_n
    raise ScheduleError(
        "no KV tile fits: "
        + (over_budget(spec, block_m, 16, stages, registers) or "no width divides the tile")
    )


def over_budget(
    spec: AttentionSpec, block_m: int, block_n: int, stages: int, registers: int
) -> str | None:
    """The first budget that a tile breaks, line by line; None if it fits.

    ``registers``: what a consumer thread may hold.
    """
    needs = register_needs(spec, block_n)
    if sum(needs.values()) > registers:
        return _lines(needs, registers, "registers a consumer thread")
    shared = shared_needs(spec, block_m, block_n, stages)
    over_q = spec.head_dim.v <= spec.head_dim.qk
    if over_q:
        shared = {tile: size for tile, size in shared.items() if tile != "O"}
    if sum(shared.values()) > HOPPER.shared_bytes:
        return _lines(shared, HOPPER.shared_bytes, "bytes of shared memory")
    return None


def _lines(needs: dict[str, int], limit: int, unit: str) -> str:
    listed = "".join(f"\n  {tile:8s} {amount:7d}" for tile, amount in needs.items())
    return f"{sum(needs.values())} of {limit} {unit}{listed}"
