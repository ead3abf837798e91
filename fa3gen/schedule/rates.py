"""What the steps of compiled kernels take of a warpgroup: the rates of the steady loop's model.

``BARE`` is what the units can do, measured on an H200 by instructions alone: maximum, scale,
exponential, sum and half a conversion take 10.0 cycles an element and thread of one warpgroup, 8.24
where several share the special-function unit. Compiled kernels are slower. ``EXACT`` and ``LAZY``
follow stall samples of measured steps (benchmarks/NOTES.md) at 128x128, d 128, where a thread has
64 elements of S and 64 of O:

============================  ==============================  ===================================
cycles of a warpgroup's step  exact maxima                    lazy maxima
============================  ==============================  ===================================
until its turn and K come     260, at least 125               as exact
Q K^T, S ready                512 + 218                       as exact
maxima, or shift and vote     400: 4.6 an element, as FMNMX   1.5 instructions an element at 1.6
                              take beside products; shuffles  cycles each; the vote
exponentials, sum, P          1,000, O's rescaling included   935
the model's interval          2,152                           2,048, the tensor core's
measured                      2,396                           2,147
instructions                  457                             345
============================  ==============================  ===================================

Instructions: 4.5 an element of S and one of O; 4 of S and none of O where the shift is subtracted
with the scale and two elements share a VIMNMX3. The others are products, barriers, the loop. The
lazy latencies add to what ``cost.py`` fits to 47 tiles (587 cycles a step, with the whole wait for
the turn); the masks are the fitted ones there. The model is 5 to 10 % below the measured steps:
where the chain of a warpgroup and the tensor core are loaded alike, they get in each other's way.

Speculative maxima leave one run of exponentials, each with its scale, sum and half a conversion:
224 instructions a step, and the vote. At d 64, 192x128, stall samples have 1,580 cycles of them in
a step of 2,236, in which three warpgroups keep the special-function unit busy 70 % of the time; at
d 128 a step takes 2,105. ``SPECULATIVE`` lies between the two, 18 cycles an element.

Code that holds two tiles of scores is slower by far, for ptxas cannot pack their blocks: 1.3 to 1.6
times at d 64 (128x96 and 128x112, full and causal), 2.9 times at d 128 (128x80), overlap 3 all. The
factor in between and beyond follows the registers of O.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fa3gen.spec.model import Maxima

__all__ = ["BARE", "EXACT", "LAZY", "SPECULATIVE", "LoopRates", "Work", "loop_rates"]


@dataclass(frozen=True)
class Work:
    """An operation on an element by a thread: cycles of its warpgroup alone, issue slots, cycles of
    the ALU."""

    cycles: float
    issue: float
    alu: float = 0.0


@dataclass(frozen=True)
class LoopRates:
    """The operations of the softmax, and times in cycles."""

    mask: Work
    row_max: Work  # or the shift
    rescale: Work
    exp: Work  # with sum and conversion
    convert: Work  # where it stands apart
    turn: int  # a warpgroup waits before its products
    scores: int  # from the end of Q K^T until its registers can be read
    maxima: int  # from the last maximum to the first exponential
    beside: int  # issue slots of a step beside the softmax
    two_tiles: tuple[int, int]  # percent with two tiles of scores, O in 32 registers; more for each

    def slowed(self, registers_of_o: int) -> int:
        """Percent of its time that the softmax takes where two tiles of scores live."""
        least, more = self.two_tiles
        return least + more * max(registers_of_o - 32, 0)


_EXP = 14.0  # cycles
_CONVERT = Work(1.6, 0.5, 1.0)

BARE = LoopRates(
    mask=Work(4.0, 2.0, 4.0),
    row_max=Work(2.0, 1.0, 2.0),
    rescale=Work(1.0, 1.0),
    exp=Work(8.0, 3.5),
    convert=Work(1.0, 0.5, 1.0),
    turn=0,
    scores=64,
    maxima=64,
    beside=0,
    two_tiles=(100, 0),
)
EXACT = LoopRates(
    mask=Work(6.6, 2.0, 4.0),
    row_max=Work(4.6, 1.0, 2.0),
    rescale=Work(1.6, 1.0),
    exp=Work(_EXP, 3.5),
    convert=_CONVERT,
    turn=128,
    scores=216,
    maxima=104,
    beside=105,
    two_tiles=(160, 4),
)
LAZY = LoopRates(
    mask=Work(5.6, 2.0, 4.0),
    row_max=Work(2.4, 1.5, 1.0),
    rescale=Work(0.0, 0.0),
    exp=Work(_EXP, 2.5),
    convert=_CONVERT,
    turn=128,
    scores=216,
    maxima=104,
    beside=89,
    two_tiles=(160, 4),
)


SPECULATIVE = replace(LAZY, row_max=Work(0.0, 0.0), exp=Work(18.0, 3.5), maxima=64, beside=99)
_RATES = {Maxima.EXACT: EXACT, Maxima.LAZY: LAZY, Maxima.SPECULATIVE: SPECULATIVE}


def loop_rates(maxima: Maxima) -> LoopRates:
    """The rates of kernels that follow the row maxima in a way."""
    return _RATES[maxima]
