"""Patterns: masks that repeat along a row, inside the interval of keys that the row keeps.

::

    window(1023, 0) & ((q - k) % 4 == 0)      q - 1023 <= k <= q, every 4 keys alike

A thread's columns are 2 in each 8 keys, so that its bits of a row repeat as well: kernels tell one
period element by element, and copy it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import sympy

from fa3gen.schedule.key_sets import Interval
from fa3gen.schedule.ranges import row_keys
from fa3gen.spec import symbols
from fa3gen.spec.symbols import FloorMod

__all__ = ["Pattern", "row_pattern"]

_BLOCK = 8  # keys, of which a thread has 2
_MOST_BLOCKS = 8  # of a period: half of what a word of bits has


@dataclass(frozen=True)
class Pattern:
    """``keys``: a row keeps none outside; inside those where ``keep`` holds, which is so in each
    ``blocks`` times 8 keys alike."""

    keys: Interval
    keep: Any
    blocks: int


@functools.cache
def row_pattern(mask: sympy.Basic) -> Pattern | None:
    """The pattern of a mask whose rows do not keep an interval of keys; None if there is none."""
    parts = sympy.And.make_args(mask)
    intervals = [part for part in parts if row_keys(part) is not None]
    rest = sympy.And(*(part for part in parts if part not in intervals))
    keys, period = row_keys(sympy.And(*intervals)), _period(rest)
    if keys is None or period is None:
        return None
    blocks = math.lcm(_BLOCK, period) // _BLOCK
    return Pattern(keys, rest, blocks) if blocks <= _MOST_BLOCKS else None


def _period(keep: sympy.Basic) -> int | None:
    """The number of keys after which a condition repeats, if it depends on them by remainders."""
    periods, others = [1], {}
    for part in keep.atoms(FloorMod):
        dividend, divisor = part.args
        moving = [t for t in sympy.Add.make_args(dividend) if symbols.k in t.free_symbols]
        steps = [term.as_coeff_Mul() for term in moving]
        whole = all(step.is_Integer and rest == symbols.k for step, rest in steps)
        if whole and divisor.is_Integer and divisor > 0 and dividend.is_integer:
            step = sum(int(step) for step, _ in steps)
            periods.append(int(divisor) // math.gcd(int(divisor), step))
            others[part] = sympy.Dummy(integer=True)
    if len(periods) == 1 or symbols.k in keep.xreplace(others).free_symbols:
        return None
    return math.lcm(*periods)
