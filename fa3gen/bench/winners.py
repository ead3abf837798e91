"""Which of many timed kernels to keep: one for each class of lengths, as few as serve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Winner", "speedup", "winners"]

Times = Mapping[int, Mapping[str, float]]  # milliseconds by length and name

_MOST = 3  # kernels of a plan: each takes seconds to build
_GAIN = 1.005  # that each kernel more must bring, in the geometric mean over the lengths
_LENGTHS = 2  # measured, at least, of a class: one says little of the lengths beside it
_NOISE = 1.005  # kernels whose times differ by less count as equal
_STEP = 64  # limits are multiples of as many keys


@dataclass(frozen=True)
class Winner:
    """A kernel, and the most keys of a call that it is for; None: any number."""

    name: str
    max_keys: int | None

    def __str__(self) -> str:
        return self.name if self.max_keys is None else f"{self.name} up to {self.max_keys} keys"


def winners(times: Times, default: str) -> list[Winner]:
    """The plan of the least geometric mean, of those nowhere slower than ``default``.

    A class has another kernel than ``default`` only where that is better by more than noise, and a
    plan more kernels only where each brings half a percent or more; a class has two lengths or
    more. Two classes meet at the geometric mean of the lengths beside. ``times`` has every kernel
    at every length.
    """
    lengths = sorted(times)
    best = min(_plans(times, lengths, default, 1), key=lambda plan: _mean(times, plan))
    for count in range(2, min(_MOST, len(lengths)) + 1):
        plans = _plans(times, lengths, default, count)
        more = min(plans, key=lambda plan: _mean(times, plan), default=best)
        added = count - len(list(_classes(best)))
        if _mean(times, best) > _GAIN**added * _mean(times, more):
            best = more
    return list(_classes(best))


def speedup(row: Mapping[str, float], length: int, won: Sequence[Winner], default: str) -> float:
    """The default's time over that of the kernel which takes calls of this length."""
    taken = next(w for w in won if w.max_keys is None or length <= w.max_keys)
    return row[default] / row[taken.name]


_Plan = dict[int, str]  # length to kernel


def _plans(times: Times, lengths: Sequence[int], default: str, count: int) -> Iterator[_Plan]:
    """The plans of so many classes, each with the best kernel of those nowhere slower."""
    for cuts in itertools.combinations(range(1, len(lengths)), count - 1):
        ends = (0, *cuts, len(lengths))
        if count > 1 and min(b - a for a, b in itertools.pairwise(ends)) < _LENGTHS:
            continue
        plan: _Plan = {}
        for begin, end in itertools.pairwise(ends):
            part = lengths[begin:end]
            uniform = [dict.fromkeys(part, name) for name in times[part[0]]]
            allowed: list[_Plan] = [
                alike
                for alike in uniform
                if all(times[s][alike[s]] <= _NOISE * times[s][default] for s in part)
            ]
            best: _Plan = min(allowed, key=lambda alike: _mean(times, alike))
            usual = dict.fromkeys(part, default)
            plan |= best if _mean(times, usual) > _NOISE * _mean(times, best) else usual
        if all(_is_clear(times, plan, lengths[cut - 1], lengths[cut]) for cut in cuts):
            yield plan


def _is_clear(times: Times, plan: _Plan, last: int, following: int) -> bool:
    """Whether a class ends at a length where its kernel is clearly better than the one behind: up
    to the limit there are lengths that nobody measured."""
    row = times[last]
    return row[plan[following]] > _NOISE * row[plan[last]] or plan[following] == plan[last]


def _mean(times: Times, plan: _Plan) -> float:
    """The geometric mean of a plan's times."""
    logs = [math.log(times[length][name]) for length, name in plan.items()]
    return math.exp(sum(logs) / len(logs))


def _classes(plan: _Plan) -> Iterator[Winner]:
    for (length, name), (following, other) in itertools.pairwise(plan.items()):
        if name != other:
            limit = round(math.sqrt(length * following) / _STEP) * _STEP
            yield Winner(name, limit if length <= limit < following else length)
    yield Winner(list(plan.values())[-1], None)
