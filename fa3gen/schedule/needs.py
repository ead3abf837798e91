"""What tiles take of an SM: registers of a consumer thread, bytes of shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from fa3gen.dtypes import DType
from fa3gen.ir.bias import kernel_score
from fa3gen.ir.staging import Rate, Staged, stage_mask, stage_score
from fa3gen.schedule.arch import HOPPER, Arch
from fa3gen.schedule.ranges import KeyBounds, key_bounds, row_keys
from fa3gen.schedule.schedule import Persistence, Tiling
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import Maxima, OStaging
from fa3gen.spec.symbols import FloorDiv, FloorMod

__all__ = [
    "TWO_SCORES_REGISTERS",
    "Setting",
    "consumer_limit",
    "key_unit",
    "launch_registers",
    "o_over",
    "over_budget",
    "padded_dim",
    "producer_needs",
    "product_dim",
    "register_needs",
    "shared_needs",
]

# Row statistics, addresses, loop counters, ring cursors and softmax's temporaries: the least counts
# at which ptxas compiled every tile tried without a spill.
_WORKING_REGISTERS = 26
_CLAIM_REGISTERS = 4  # more where work tiles are claimed
_FIXED_STAGE_REGISTERS = 20  # more with one stage: ptxas keeps its descriptors through the loop
TWO_SCORES_REGISTERS = 32  # more with two tiles of scores: ptxas cannot pack all its blocks
_STAGING_REGISTERS = 6  # more where P is written to shared memory
_LOADING_REGISTERS = 16  # more where a consumer loads
_KEYS_PER_REGISTER = 64  # one more for as many keys of a KV tile
_PRODUCT_REGISTERS = 30  # of one wgmma beside its accumulator, all within those at entry
_SERIAL_LAZY_KEYS = 64  # of a KV tile with lazy maxima and no product in flight beside the softmax
_FEW_KEYS = (
    "lazy maxima with overlap 1 need 64 keys or more a KV tile: with fewer, ptxas serializes the "
    "products (C7511)"
)
_O_OVER = {OStaging.APART: None, OStaging.OVER_Q: "Q", OStaging.OVER_V: "V"}
_NO_PLACE = (
    "O cannot be staged there: over Q it needs head dims with v <= qk; over V a producer, overlap "
    "1 or 2, and stages that together have as many keys as the tile has rows"
)
_CUT_CHUNK = "tiles of {} are loaded in chunks of 64 keys: take a multiple of as many"
_REDO_O, _REDO_KEYS = 64, 64  # registers of O beside which fewer keys' P leaves too few
_BIAS_REGISTERS = 8  # addresses and temporaries of a bias that is loaded
_POSITION_REGISTERS = 2  # of a bias that depends on positions
_ELEMENT_REGISTERS = 6  # temporaries of masks by elements
_DIVISION_REGISTERS = 24  # more where the mask divides by other than a power of two


@dataclass(frozen=True)
class Setting:
    """What bears on the budgets of a tile besides its size."""

    stages: int
    persistence: Persistence
    producer: int  # registers of a producer thread
    overlap: int = 2
    p_shared: bool = False
    specialized: bool = True
    ctas: int = 1  # that share an SM
    maxima: Maxima = Maxima.EXACT
    o_staging: OStaging | None = None  # as asked
    spare: int = 0  # registers left over, for a build that needed more than is accounted for

    @staticmethod
    def of(tiling: Tiling, overlap: int | None = None) -> Setting:
        """That of a tiling, or of another overlap with the same knobs."""
        return Setting(
            stages=tiling.stages,
            persistence=tiling.persistence,
            producer=tiling.producer_registers,
            overlap=overlap or tiling.overlap,
            p_shared=tiling.p_shared,
            specialized=tiling.specialized,
            ctas=tiling.ctas_per_sm,
            maxima=tiling.maxima,
            o_staging=next(place for place, over in _O_OVER.items() if over == tiling.o_over),
        )

    @property
    def score_tiles(self) -> int:
        """Tiles of scores that live at a time."""
        return max(self.overlap - 1, 1)

    @property
    def limits(self) -> Arch:
        """What a CTA may use."""
        return HOPPER.share(self.ctas)


def padded_dim(dim: int, dtype: DType) -> int:
    """A head dim padded in shared memory to whole 128-byte column chunks."""
    chunk = HOPPER.swizzle_bytes // dtype.bytes
    return -(-dim // chunk) * chunk


def key_unit(spec: AttentionSpec) -> int:
    """What the keys of a KV tile are a multiple of: a bias is loaded in whole chunks of them."""
    _, bias = kernel_score(spec)
    return HOPPER.product_block if bias is None else padded_dim(1, bias.meta.dtype)


def product_dim(dim: int) -> int:
    """A head dim as products see it: whole k blocks of Q K^T, whole 16-column blocks of O."""
    return -(-dim // HOPPER.product_block) * HOPPER.product_block


def register_needs(spec: AttentionSpec, block_n: int, setting: Setting) -> dict[str, int]:
    """Registers of a consumer thread by tile value, for 64 rows a warpgroup."""
    extra = block_n // _KEYS_PER_REGISTER
    extra += _CLAIM_REGISTERS if setting.persistence is Persistence.DYNAMIC else 0
    extra += _FIXED_STAGE_REGISTERS if setting.stages == 1 else 0
    extra += TWO_SCORES_REGISTERS * (setting.score_tiles - 1)
    extra += max(product_dim(spec.head_dim.qk) - 128, 0) // 16  # descriptors of more k blocks
    extra += _STAGING_REGISTERS if setting.p_shared else 0
    extra += 0 if setting.specialized else _LOADING_REGISTERS
    rows_per_register = HOPPER.warpgroup // HOPPER.wgmma_rows
    guesses = setting.maxima is Maxima.SPECULATIVE
    extra += _redo_registers(spec, block_n) if guesses else 0
    extra += _BIAS_REGISTERS if kernel_score(spec)[1] else 0
    p = block_n // rows_per_register * spec.dtype.bytes // 4
    if setting.overlap == 1:  # as scores turn into it, for no others are in flight
        p = p // 2 if guesses else 0  # half of it before scores are free, in builds tried
    return {
        "S": block_n // rows_per_register * setting.score_tiles,
        "P": 0 if setting.p_shared else p,
        "O": product_dim(spec.head_dim.v) // rows_per_register,
        "mask": _DIVISION_REGISTERS if _divides(spec.mask_expr) else 0,
        "score": _formula_registers(spec),
        "working": _WORKING_REGISTERS + extra + setting.spare,
    }


def _formula_registers(spec: AttentionSpec) -> int:
    """Registers of a score formula and of a mask that is told element by element: what they keep
    of a work tile and its rows. A build that needs more takes a smaller tile."""
    form, _ = kernel_score(spec)
    found = 0
    if not form.plain:
        staged = stage_score(form)
        found += _kept_registers(staged) - (not form.scales_products)  # in the scale's place
        found += _POSITION_REGISTERS * bool(staged.of(Rate.BASE) and form.bias != 0)
    if row_keys(spec.mask_expr) is None:
        found += _ELEMENT_REGISTERS + _kept_registers(stage_mask(spec.mask_expr))
    return max(found, 0)


def _kept_registers(staged: Staged) -> int:
    """Of what a work tile and its rows share, and a KV tile beside the base of a bias."""
    rows = HOPPER.warpgroup // HOPPER.wgmma_rows
    bases = len(staged.of(Rate.BASE)) - (staged.base is not None)
    return len(staged.of(Rate.WORK)) + rows * (len(staged.of(Rate.ROW)) + bases)


def _redo_registers(spec: AttentionSpec, block_n: int) -> int:
    """Registers more where scores may be computed again: the least with which no build of a sweep
    over head dims, masks, tiles and warpgroups spilled."""
    qk, o = product_dim(spec.head_dim.qk), product_dim(spec.head_dim.v) // 2
    more = 4 if qk & (qk - 1) else 0
    more += block_n // 32 if key_bounds(spec.mask_expr).masks_left else 0
    more += 4 if block_n < 32 else 0
    more += max(qk - 128, 0) // 16
    return more + (16 if o > _REDO_O and block_n < _REDO_KEYS else 0)


def _divides(mask: sympy.Basic) -> bool:
    """Whether a mask takes quotients or remainders that are no shifts."""
    divisors = [part.args[1] for part in mask.atoms(FloorDiv, FloorMod)]
    return any(not d.is_Integer or d <= 0 or int(d) & (int(d) - 1) for d in divisors)


def shared_needs(
    spec: AttentionSpec, block_m: int, block_n: int, setting: Setting
) -> dict[str, int]:
    """Bytes of shared memory by tile value, O apart from the rest."""
    qk, v = (padded_dim(dim, spec.dtype) for dim in (spec.head_dim.qk, spec.head_dim.v))
    size, stages = spec.dtype.bytes, setting.stages
    p = {"P": block_m * padded_dim(block_n, spec.dtype) * size} if setting.p_shared else {}
    _, found = kernel_score(spec)
    bias = {"Bias": stages * block_m * block_n * found.meta.dtype.bytes} if found else {}
    return {
        "Q": block_m * qk * size,
        "K": stages * block_n * qk * size,
        "V": stages * block_n * v * size,
        **bias,
        **p,
        "O": block_m * v * size,
        "barriers": HOPPER.tile_alignment,
    }


def producer_needs(persistence: Persistence, bounds: KeyBounds, stages: int) -> int:
    """Registers of the producer: addresses and cursors, its claim (ptxas keeps more beside rings of
    one stage), bounds beyond affine ones."""
    ends = (bounds.some_begin, bounds.every_begin, bounds.every_end, bounds.some_end)
    hard = any(end is not None and end.has(FloorDiv, sympy.Min, sympy.Max) for end in ends)
    claims = persistence is Persistence.DYNAMIC
    return HOPPER.min_registers + HOPPER.register_step * (claims + (claims and stages == 1) + hard)


def launch_registers(warpgroups: int, ctas: int) -> int:
    """Registers a thread at entry, of so many CTAs of so many warpgroups that share an SM."""
    lanes = HOPPER.share(ctas).registers // HOPPER.warpgroup
    step = HOPPER.register_step
    return min(lanes // warpgroups // step * step, HOPPER.max_registers)


def consumer_limit(consumers: int, setting: Setting) -> int:
    """The registers of each consumer thread: all there are without a producer, else those that
    setmaxnreg can grant beside it."""
    if not setting.specialized:
        return launch_registers(consumers, setting.ctas)
    granted = launch_registers(consumers + 1, setting.ctas) * (consumers + 1)
    share = (granted - setting.producer) // consumers
    return min(share // HOPPER.register_step * HOPPER.register_step, HOPPER.max_registers)


def over_budget(
    spec: AttentionSpec, rows_and_keys: tuple[int, int], setting: Setting
) -> str | None:
    """The first budget that a (query rows, keys) tile breaks, line by line; None if it fits."""
    block_m, block_n = rows_and_keys
    consumers = block_m // HOPPER.wgmma_rows
    limit = min(consumer_limit(consumers, setting), HOPPER.compiled_registers)
    needs = register_needs(spec, block_n, setting)
    if sum(needs.values()) > limit:
        return _lines(needs, limit, "registers a consumer thread")
    launch = launch_registers(consumers + setting.specialized, setting.ctas)
    widest = max(needs["S"] // setting.score_tiles, needs["O"])
    product = {"accumulator": widest, "operands": _PRODUCT_REGISTERS}
    if sum(product.values()) > launch:
        return _lines(product, launch, "registers at entry, that one product may take")
    places = _o_places(spec, rows_and_keys, setting)
    if not places:
        return _NO_PLACE
    _, found = kernel_score(spec)
    if found and block_n % key_unit(spec):
        return _CUT_CHUNK.format(found.meta.name)
    if setting.maxima is Maxima.LAZY and setting.overlap == 1 and block_n < _SERIAL_LAZY_KEYS:
        return _FEW_KEYS
    if _o_staging(spec, rows_and_keys, setting) is None:
        shared = shared_needs(spec, block_m, block_n, setting)
        if places != [OStaging.APART]:
            shared = {tile: size for tile, size in shared.items() if tile != "O"}
        return _lines(shared, setting.limits.shared_bytes, "bytes of shared memory")
    return None


def o_over(spec: AttentionSpec, rows_and_keys: tuple[int, int], setting: Setting) -> str | None:
    """The buffer that O of a fitting tile is staged over; None if it lies apart."""
    return _O_OVER[_o_staging(spec, rows_and_keys, setting) or OStaging.APART]


def _o_staging(
    spec: AttentionSpec, rows_and_keys: tuple[int, int], setting: Setting
) -> OStaging | None:
    """Where O is staged: as asked, else apart, or over Q where there is no room; None where what is
    left fits nowhere."""
    shared = shared_needs(spec, *rows_and_keys, setting)
    total, limit = sum(shared.values()), setting.limits.shared_bytes
    for place in _o_places(spec, rows_and_keys, setting):
        if total - shared["O"] * (place is not OStaging.APART) <= limit:
            return place
    return None


def _o_places(
    spec: AttentionSpec, rows_and_keys: tuple[int, int], setting: Setting
) -> list[OStaging]:
    """Where O may be staged. Over V all its stages are free for it only once every consumer has
    done its last product, and with a producer that waits for the store."""
    block_m, block_n = rows_and_keys
    places = [OStaging.APART]
    places += [OStaging.OVER_Q] * (spec.head_dim.v <= spec.head_dim.qk)
    waits = setting.specialized and setting.overlap < 3
    places += [OStaging.OVER_V] * (waits and block_m <= setting.stages * block_n)
    if setting.o_staging is not None:
        return [place for place in places if place is setting.o_staging]
    return [place for place in places if place is not OStaging.OVER_V]


def _lines(needs: dict[str, int], limit: int, unit: str) -> str:
    listed = "".join(f"\n  {tile:8s} {amount:7d}" for tile, amount in needs.items())
    return f"{sum(needs.values())} of {limit} {unit}{listed}"
