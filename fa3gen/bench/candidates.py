"""What ``fa3gen tune`` tries: for a spec, the knobs that may be the best, by the cycle model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fa3gen.errors import ScheduleError, UnsupportedError
from fa3gen.schedule.ranges import KeyBounds, key_bounds
from fa3gen.schedule.schedule import Tiling
from fa3gen.schedule.tiles import choose_tiling
from fa3gen.spec import AttentionSpec
from fa3gen.spec.model import Maxima

__all__ = ["DEFAULT", "candidates"]

DEFAULT = "default"  # the kernel without knobs

# Families of knobs, and how many of the model's best tiles are tried with each. Which family suits
# a problem the model does not say: its rates are those of one CTA an SM whose products overlap.
_FAMILIES: tuple[tuple[Mapping[str, Any], int], ...] = (
    ({}, 6),
    ({"warpgroups": 2}, 4),
    ({"warpgroups": 3}, 2),
    ({"pipeline_depth": 3}, 2),
    ({"pingpong": False}, 1),
    ({"o_staging": "over_v"}, 2),
    ({"ctas_per_sm": 2, "overlap": 1, "warpgroups": 2}, 3),
    ({"ctas_per_sm": 2, "overlap": 1, "warpgroups": 2, "persistent": "dynamic"}, 2),
    ({"ctas_per_sm": 2, "warpgroups": 1}, 3),
    ({"persistent": "dynamic"}, 1),
    ({"persistent": "static"}, 1),
)


def candidates(spec: AttentionSpec) -> dict[str, dict[str, Any]]:
    """Knobs of a spec without any, by name, each of another kernel; the first is the default.

    ScheduleError or UnsupportedError if not even the default can be had.
    """
    bounds = key_bounds(spec.mask_expr)
    default, _ = choose_tiling(spec, bounds)
    found: dict[str, dict[str, Any]] = {DEFAULT: {}}
    seen = {default}
    for knobs in _trials(spec, bounds, default):
        tried = spec.model_copy(update={"schedule": knobs})
        tiling, _ = choose_tiling(tried, bounds)
        if tiling not in seen:
            seen.add(tiling)
            found[_name(tiling, default)] = knobs
    return found


def _trials(spec: AttentionSpec, bounds: KeyBounds, default: Tiling) -> Iterator[dict[str, Any]]:
    """Knobs of every family, each with tiles that fit it, the model's best first; of the families
    with several tiles also one for each other way to follow the maxima."""
    ways = sorted(Maxima, key=lambda way: way is not default.maxima)
    for maxima, (family, count) in itertools.product(ways, _FAMILIES):
        if maxima is not default.maxima:
            count = min(count - 1, 1)
        if count:
            knobs = {"maxima": maxima.value, **family}
            try:
                asked = spec.model_copy(update={"schedule": knobs})
                _, choice = choose_tiling(asked, bounds)
            except (ScheduleError, UnsupportedError):
                continue
            for candidate in choice.candidates[:count]:
                rows, keys = candidate.tile
                yield {**knobs, "tile": {"m": rows, "n": keys}}


def _name(tiling: Tiling, default: Tiling) -> str:
    """A name that tells a candidate from the others."""
    parts = [f"{tiling.block_m}x{tiling.block_n}"]
    parts += [f"{tiling.ctas_per_sm}ctas"] if tiling.ctas_per_sm > 1 else []
    parts += [f"overlap{tiling.overlap}"] if tiling.overlap != default.overlap else []
    parts += [f"{tiling.stages}stages"] * (tiling.stages != default.stages)
    parts += ["o_over_v"] * (tiling.o_over == "V")
    parts += [tiling.maxima.value] * (tiling.maxima is not default.maxima)
    turns = tiling.pingpong != (tiling.warpgroups > 1 and tiling.overlap > 1)
    parts += ["turns" if tiling.pingpong else "free"] * turns
    parts += [tiling.persistence.name.lower()] * (tiling.persistence != default.persistence)
    return "_".join(parts)
