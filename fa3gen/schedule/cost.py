"""A cycle model of the steady loop, to choose tiles by.

Per KV tile and consumer warpgroup (64 rows, N keys; rates measured on an H200):

* the products keep the tensor core busy for ``N/2`` cycles a k block of 16, and it idles a fixed
  time between the products of two steps;
* the softmax issues about 9 cycles an element and thread: maximum, scale and subtract, exponential,
  sum, half a conversion; a mask 3 more; the rescaling of O one;
* alone a warpgroup issues more slowly, and a step has a fixed latency: barriers, shuffles.

The constants are fitted to measured tiles (benchmarks/NOTES.md) at five lengths each: to 40 of head
dims 64, 128, 256 where O is rescaled in each step; to 47 of head dims 96 to 256 where it is
rescaled lazily, which hides most of the softmax but for its latency. Relative to one another the
estimates of a head dim's tiles are good to 5 %, and to 2 % (root mean square). The latter's terms
for O over Q, odd keys and three warpgroups were then moved within the fit's error, so that the best
tile measured comes first; it does, but for head dims 192/128. Kernels with speculative maxima have
the lazy ones' constants: a fit to 99 of them picked no better tiles.

With W warpgroups taking turns, a step takes at least W times the products; one warpgroup's own
chain, S = Q K^T, softmax and, without overlap, O += P V; and what the special-function unit and the
issue slots need. Units that are loaded alike get in each other's way, so the estimate is the 4-norm
of these bounds: near the largest where it stands alone, 1.4 times it where all four are equal.
A work tile starts with a first step and ends with a last product that nothing overlaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.ranges import KeyBounds, tile_range
from fa3gen.spec.model import Maxima

__all__ = ["Cost", "Rates", "estimate", "rates_of", "whole_share"]

_LENGTHS = (1024, 2048, 4096, 8192, 16384)  # seqlen_q and seqlen_k that the choice is made for
_SAMPLES = 12  # query tiles looked at for each length


@dataclass(frozen=True)
class Rates:
    """What a kernel's steps take, in cycles."""

    softmax: float  # of a warp's issue slot, an element a thread
    mask: float
    tensor_gap: float  # of the tensor core, a step and warpgroup
    chain: float  # more an element where one warpgroup issues alone
    step: float
    work: float  # of a work tile: Q's arrival, the store of O
    store: float  # more where the next Q, or V, waits for the store of O, staged over it
    odd: float = 0.0  # the part more that Q K^T takes of keys that are no multiple of 64
    trio: float = 0.0  # and a step of three warpgroups
    close: float = 1.05  # tiles of 128 keys are preferred if not so many times slower


_EACH_STEP = Rates(6.7, 6.6, 240, 18, 90, 3600, 1200)
_LAZY = Rates(3.5, 5.6, 0, 0, 587, 3550, 2600, 0.08, 0.02, 1.005)
_SPECULATIVE = _LAZY


_RATES = {Maxima.EXACT: _EACH_STEP, Maxima.LAZY: _LAZY, Maxima.SPECULATIVE: _SPECULATIVE}


def rates_of(maxima: Maxima) -> Rates:
    """The rates of kernels that follow the row maxima in a way."""
    return _RATES[maxima]


@dataclass(frozen=True)
class Cost:
    """The model's figures for one choice of tiles."""

    interval: float  # cycles of one KV tile for all consumers (initiation interval)
    tensor: float  # of which the tensor core is busy
    bound: str  # the unit that sets the interval
    cycles_per_row: float  # the mean over the usual lengths, all included

    @property
    def utilisation(self) -> float:
        """Share of the steady loop in which the tensor core is busy."""
        return self.tensor / self.interval


def estimate(
    dims: tuple[int, int],
    rows_and_keys: tuple[int, int],
    overlap: int,
    bounds: KeyBounds,
    o_over: str | None,
    rates: Rates,
) -> Cost:
    """The cost of (query rows, keys) tiles for head dims (qk, v); ``o_over``: the buffer that O
    is staged over."""
    step = _Step(*dims, *rows_and_keys, overlap, rates)
    limits = step.limits(rates.softmax)
    bound = max(limits, key=lambda name: limits[name])
    cycles = _cycles_per_row(step, bounds, rates.work + rates.store * (o_over is not None))
    return Cost(step.interval(rates.softmax), step.products * step.warpgroups, bound, cycles)


@dataclass(frozen=True)
class _Step:
    """One KV tile of all consumers."""

    dim_qk: int
    dim_v: int
    block_m: int
    block_n: int
    overlap: int
    rates: Rates

    @property
    def warpgroups(self) -> int:
        return self.block_m // HOPPER.wgmma_rows

    @property
    def product_qk(self) -> float:
        odd = self.rates.odd if self.block_n % 64 else 0.0
        return self.dim_qk / 16 * self.block_n / 2 * (1 + odd)

    @property
    def product_v(self) -> float:
        return self.block_n / 16 * self.dim_v / 2

    @property
    def products(self) -> float:
        """Tensor core cycles of one warpgroup."""
        return self.product_qk + self.product_v

    def softmax(self, cycles: float) -> float:
        """Issue cycles of one warpgroup's warps."""
        return (cycles * self.block_n + self.dim_v) * HOPPER.wgmma_rows / HOPPER.warpgroup

    def limits(self, cycles: float) -> dict[str, float]:
        """Lower bounds of a step, by what sets them."""
        chain = self.product_qk + self.softmax(cycles + self.rates.chain) + self.rates.step
        return {
            "tensor core": self.warpgroups * (self.products + self.rates.tensor_gap),
            "one warpgroup's chain": chain + (self.product_v if self.overlap == 1 else 0),
            "MUFU": self.block_m * self.block_n / 16,
            "issue": self.warpgroups * self.softmax(cycles) * 0.8,
        }

    def interval(self, cycles: float) -> float:
        """Cycles of a step in the steady loop."""
        norm = float(sum(x**4 for x in self.limits(cycles).values()) ** 0.25)
        return norm * (1 + self.rates.trio) if self.warpgroups == 3 else norm


def whole_share(bounds: KeyBounds, length: int = 4096, block: int = 128) -> float:
    """The part of the KV tiles visited that need no mask, for square tiles and one length."""
    visited = whole = 0
    for first in range(0, length, block):
        tiles = tile_range(bounds, first, first + block - 1, (length, length), block)
        visited += tiles.tiles
        whole += tiles.full_end - tiles.full_begin
    return whole / max(visited, 1)


def _cycles_per_row(step: _Step, bounds: KeyBounds, latency: float) -> float:
    """Cycles a query row for the KV tiles that the mask leaves: the mean over the usual lengths."""
    logs = [math.log(_at_length(step, bounds, latency, length)) for length in _LENGTHS]
    return math.exp(sum(logs) / len(logs))


def _at_length(step: _Step, bounds: KeyBounds, latency: float, length: int) -> float:
    """Cycles a query row at one seqlen_q = seqlen_k, over some of the query tiles."""
    rates = step.rates
    full, masked = step.interval(rates.softmax), step.interval(rates.softmax + rates.mask)
    edges = step.product_qk + step.softmax(rates.softmax + rates.mask) + step.product_v
    blocks = -(-length // step.block_m)
    chosen = range(0, blocks, -(-blocks // _SAMPLES))
    total = 0.0
    for block in chosen:
        first = block * step.block_m
        last = min(first + step.block_m, length) - 1
        tiles = tile_range(bounds, first, last, (length, length), step.block_n)
        whole = tiles.full_end - tiles.full_begin
        total += whole * full + max(tiles.tiles - whole - 1, 0) * masked + edges + latency
    return total / len(chosen) * blocks / length
