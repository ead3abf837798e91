"""A cycle model of the steady loop, to choose tiles by.

Per KV tile and consumer warpgroup (64 rows, N keys; rates measured on an H200):

* the products keep the tensor core busy for ``N/2`` cycles a k block of 16;
* the softmax issues about 9 cycles an element and thread: maximum, scale and subtract, exponential,
  sum, half a conversion; the rescaling of O one cycle an element;
* a step costs a fixed latency besides: barriers, shuffles, the pipeline's fill.

With W warpgroups taking turns, a step takes at least W times the products; one warpgroup's own
chain, S = Q K^T, softmax and, without overlap, O += P V; and what the special-function unit and the
issue slots need. Units that are loaded alike get in each other's way, so the estimate is the 4-norm
of these bounds: near the largest where it stands alone, 1.4 times it where all four are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.ranges import KeyBounds, tile_range

__all__ = ["Cost", "estimate"]

_SOFTMAX_CYCLES = 9  # of a warp's issue slot, an element a thread
_STEP_LATENCY = 150
_WORK_LATENCY = 2500  # of a work tile: Q's arrival, the first step, the store of O
_REFERENCE = 4096  # seqlen_q and seqlen_k that the choice is made for


@dataclass(frozen=True)
class Cost:
    """The model's figures for one choice of tiles."""

    interval: float  # cycles of one KV tile for all consumers (initiation interval)
    tensor: float  # of which the tensor core is busy
    bound: str  # the unit that sets the interval
    cycles_per_row: float  # at the reference length, all included

    @property
    def utilisation(self) -> float:
        """Share of the steady loop in which the tensor core is busy."""
        return self.tensor / self.interval


def estimate(
    dims: tuple[int, int], rows_and_keys: tuple[int, int], overlap: int, bounds: KeyBounds
) -> Cost:
    """The cost of (query rows, keys) tiles for head dims (qk, v)."""
    dim_qk, dim_v = dims
    block_m, block_n = rows_and_keys
    warpgroups = block_m // HOPPER.wgmma_rows
    product_qk = dim_qk / 16 * block_n / 2
    product_v = block_n / 16 * dim_v / 2
    elements = block_n * HOPPER.wgmma_rows / HOPPER.warpgroup
    rescale = dim_v * HOPPER.wgmma_rows / HOPPER.warpgroup
    softmax = _SOFTMAX_CYCLES * elements + rescale
    tensor = warpgroups * (product_qk + product_v)
    chain = product_qk + softmax + _STEP_LATENCY
    if overlap == 1:
        chain += product_v
    candidates = {
        "tensor core": tensor,
        "one warpgroup's chain": chain,
        "MUFU": block_m * block_n / 16,
        "issue": warpgroups * softmax * 0.8,
    }
    bound = max(candidates, key=lambda name: candidates[name])
    interval = sum(x**4 for x in candidates.values()) ** 0.25
    return Cost(interval, tensor, bound, _cycles_per_row(block_m, block_n, interval, bounds))


def _cycles_per_row(block_m: int, block_n: int, interval: float, bounds: KeyBounds) -> float:
    """Cycles a query row at the reference length, for the KV tiles that the mask leaves."""
    lengths = (_REFERENCE, _REFERENCE)
    total = 0.0
    for first in range(0, _REFERENCE, block_m):
        last = min(first + block_m, _REFERENCE) - 1
        total += tile_range(bounds, first, last, lengths, block_n).tiles * interval + _WORK_LATENCY
    return total / _REFERENCE
