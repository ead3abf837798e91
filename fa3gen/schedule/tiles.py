"""Pass 1: tile sizes and pipeline knobs, from the spec's knobs, the budgets and a cycle model.

A knob the user gives is kept and checked. Of the tiles that fit, the one with the fewest cycles a
query row wins (``fa3gen.schedule.cost``); but KV tiles of 128 keys, which divide the usual lengths
and measure better than the model has them, win over others that are a few percent better. The
``Choice`` tells what was weighed.
"""

from __future__ import annotations

import itertools

from fa3gen.errors import ScheduleError, UnsupportedError
from fa3gen.ir.bias import kernel_score
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.cost import estimate, rates_of, whole_share
from fa3gen.schedule.needs import (
    Setting,
    key_unit,
    o_over,
    over_budget,
    producer_needs,
    product_dim,
)
from fa3gen.schedule.patterns import row_pattern
from fa3gen.schedule.ranges import KeyBounds
from fa3gen.schedule.schedule import Candidate, Choice, Persistence, Tiling
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import Maxima, POperand

__all__ = ["choose_tiling"]

_KEYS = range(16, 257, 16)  # of a KV tile
_LAZY_DIMS = 192  # head dims, together, from which lazy maxima measure faster
_MOSTLY = 0.3  # of the KV tiles visited, that need no mask where speculation is worth its code
_LISTED_KEYS = 128  # at most, of tiles that are listed: edges cut longer ones more often
_LISTED_CLOSE = 1.075  # for documents of usual lengths end where whole tiles do
_BIASED_CLOSE = 1.05  # for with fewer keys products read shared memory as fast as it can be read
_WHOLE_KEYS = 128  # preferred, if not much slower by the model


def choose_tiling(spec: AttentionSpec, bounds: KeyBounds, spare: int = 0) -> tuple[Tiling, Choice]:
    """Tile sizes and knobs of a spec, and what the tile was weighed against; ScheduleError with the
    budget if what it asks cannot fit. ``spare``: registers that a thread shall have left over."""
    knobs = spec.schedule
    _check_supported(spec)
    overlap = knobs.overlap or 2
    persistence = _persistence(spec, bounds)
    stages = knobs.pipeline_depth or 2
    setting = Setting(
        stages,
        persistence,
        producer_needs(persistence, bounds, stages),
        overlap,
        p_shared=knobs.p_operand is POperand.SHARED,
        specialized=knobs.warp_specialized is not False,
        ctas=knobs.ctas_per_sm or 1,
        maxima=_maxima(spec, bounds),
        o_staging=knobs.o_staging,
        spare=spare,
    )
    choice = _weigh(spec, bounds, setting)
    block_m, block_n = choice.candidates[0].tile
    warpgroups = block_m // HOPPER.wgmma_rows
    pingpong = warpgroups >= 2 and overlap == 2 if knobs.pingpong is None else knobs.pingpong
    tiling = Tiling(
        block_m,
        block_n,
        warpgroups,
        setting.stages,
        overlap,
        pingpong,
        persistence,
        setting.producer,
        setting.p_shared,
        setting.specialized,
        o_over(spec, (block_m, block_n), setting),
        setting.ctas,
        setting.maxima,
    )
    return tiling, choice


def _weigh(spec: AttentionSpec, bounds: KeyBounds, setting: Setting) -> Choice:
    """The tiles of (query rows, keys) that fit, the chosen one first."""
    tile = spec.schedule.tile
    most = _LISTED_KEYS if bounds.listed else _KEYS[-1]
    units = [n for n in _KEYS if n <= most and not n % key_unit(spec)]
    keys = [tile.n] if tile and tile.n else units
    dims = (product_dim(spec.head_dim.qk), product_dim(spec.head_dim.v))
    pace = rates_of(setting.maxima)
    biased = _BIASED_CLOSE if kernel_score(spec)[1] else 1.0
    for rows in _query_rows(spec):  # a second list only where nothing of the first fits
        tiles = list(itertools.product(rows, keys))
        problems = {shape: over_budget(spec, shape, setting) for shape in tiles}
        fitting = [shape for shape in tiles if not problems[shape]]
        if fitting:
            overlap = setting.overlap
            costs = {
                shape: estimate(dims, shape, overlap, bounds, o_over(spec, shape, setting), pace)
                for shape in fitting
            }
            candidates = [Candidate(shape, cost) for shape, cost in costs.items()]
            candidates.sort(key=lambda c: (c.cost.cycles_per_row, -c.tile[1]))
            close = max(pace.close, _LISTED_CLOSE if bounds.listed else 1.0, biased)
            enough = candidates[0].cost.cycles_per_row * close
            whole = [c for c in candidates if not c.tile[1] % _WHOLE_KEYS]
            best = next((c for c in whole if c.cost.cycles_per_row < enough), candidates[0])
            others = [candidate for candidate in candidates if candidate is not best]
            return Choice((best, *others), len(tiles) - len(fitting))
    block_m, block_n = tiles[0]
    raise ScheduleError(f"tile {block_m}x{block_n} does not fit: {problems[tiles[0]]}")


def _query_rows(spec: AttentionSpec) -> tuple[tuple[int, ...], ...]:
    """Query tiles to try: as asked, or of two and three consumer warpgroups, then of one."""
    knobs = spec.schedule
    rows = knobs.tile.m if knobs.tile else None
    if knobs.warpgroups and rows and rows != HOPPER.wgmma_rows * knobs.warpgroups:
        raise ScheduleError(
            "schedule.tile.m: must be 64 x warpgroups "
            f"(got m {rows}, warpgroups {knobs.warpgroups})"
        )
    if rows or knobs.warpgroups:
        return ((rows or HOPPER.wgmma_rows * (knobs.warpgroups or 0),),)
    wanted = ((2, 3),) if knobs.pingpong else ((2, 3), (1,))
    return tuple(tuple(HOPPER.wgmma_rows * count for count in group) for group in wanted)


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
    claimed = uneven and spec.schedule.warp_specialized is not False
    return Persistence.DYNAMIC if claimed else Persistence.STATIC


def _maxima(spec: AttentionSpec, bounds: KeyBounds) -> Maxima:
    """As asked; else speculative where enough KV tiles need no mask and there is a Program; else
    lazy where the products of a score outweigh its share of the softmax."""
    knobs = spec.schedule
    if knobs.maxima is not None:
        return knobs.maxima
    able = knobs.overlap != 3 and knobs.p_operand is not POperand.SHARED
    if kernel_score(spec)[0].rises:  # each guess would fail
        return Maxima.LAZY
    some_whole = row_pattern(spec.mask_expr) is None  # else each tile needs the mask
    if able and some_whole and whole_share(bounds) > _MOSTLY:
        return Maxima.SPECULATIVE
    large = spec.head_dim.qk + spec.head_dim.v >= _LAZY_DIMS
    return Maxima.LAZY if large else Maxima.EXACT


def _check_speculative(spec: AttentionSpec) -> None:
    """Refuse what has no Program with speculation."""
    knobs = spec.schedule
    if knobs.overlap == 3 or knobs.p_operand is POperand.SHARED:
        raise UnsupportedError(
            "schedule.maxima: speculative needs overlap 1 or 2 and P in registers; use exact or "
            "lazy, or leave out overlap and p_operand"
        )


def _check_supported(spec: AttentionSpec) -> None:
    """Refuse combinations of knobs that have no Program, each for its reason."""
    knobs = spec.schedule
    if knobs.pingpong and knobs.overlap == 1:
        raise UnsupportedError(
            "schedule.pingpong: with overlap 1 the two products of a step have no common turn; "
            "use overlap 2 or 3, or pingpong false"
        )
    if knobs.overlap == 3 and knobs.pipeline_depth == 1:
        raise UnsupportedError(
            "schedule.pipeline_depth: with overlap 3 a product is issued before the one before has "
            "released its K, so that K needs 2 stages or more (got 1)"
        )
    if knobs.maxima is Maxima.SPECULATIVE:
        _check_speculative(spec)
    claims = knobs.persistent is not None and knobs.persistent.value == "dynamic"
    if knobs.warp_specialized is False and claims:
        raise UnsupportedError(
            "schedule.persistent: work tiles are claimed by the producer, which warp_specialized "
            "false leaves out; use static or false"
        )
