"""The kernels of ``quick`` and ``full``, as they were found, and the whole product.

A search asks the scheduler thousands of times, so its result is kept in ``sets.json``. Make it anew
after a change of factors, or where the scheduler now refuses a point::

    python -m fa3gen.matrix.sets --write [--build]

``--build`` compiles the points too; one whose registers do not suffice is noted and avoided.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fa3gen.errors import PressureError, UserError
from fa3gen.matrix.covering import Pair, Row, pairs_of, pairwise
from fa3gen.matrix.factors import QUICK, SPEC, Factors
from fa3gen.matrix.points import Point

__all__ = ["FACTORS", "PointSet", "Unbuildable", "product", "read"]

_BUILDS = 2  # that fail before a pair is tried with nothing else
_STORED = Path(__file__).with_name("sets.json")

FACTORS: Mapping[str, Factors] = {
    "quick": QUICK,
    "full": {factor: tuple(values) for factor, values in SPEC.items()},
}


@dataclass(frozen=True)
class Unbuildable:
    """What the scheduler allows and a build gate refuses, with its reason: ``points`` by their
    keys, and ``pairs`` by their texts, of which no point could be built."""

    points: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)

    def with_points(self, refused: Mapping[str, str], good: Sequence[Point]) -> Unbuildable:
        """The same with more points; ``good`` are built.

        A pair is given up after some refusals, if the point with that pair and defaults, the
        simplest there is, is among them or has no schedule.
        """
        points = Unbuildable(dict(sorted({**self.points, **refused}.items())))
        pairs = dict(self.pairs)
        for pair, reasons in points.doubtful(good).items():
            simplest = Point.of(dict(pair))
            if why := points.points.get(simplest.key) or refusal(simplest):
                tries = f"{len(reasons)} kernels were built, and refused"
                pairs[pair_text(pair)] = f"{tries}; without more choices: {why}"
        return Unbuildable(points.points, dict(sorted(pairs.items())))

    def knows(self, point: Point) -> bool:
        """Whether a point cannot be built, or has no schedule at all."""
        return point.key in self.points or bool(refusal(point))

    def doubtful(self, good: Sequence[Point]) -> dict[Pair, list[str]]:
        """Pairs of several of the points and of none that is good, with the reasons."""
        fine = {pair for point in good for pair in pairs_of(point.chosen)}
        tries: dict[Pair, list[str]] = {}
        for key, reason in self.points.items():
            for pair in pairs_of(Point.parse(key).chosen):
                tries.setdefault(pair, []).append(reason)
        return {
            pair: reasons
            for pair, reasons in tries.items()
            if pair not in fine and len(reasons) >= _BUILDS
        }


@dataclass(frozen=True)
class PointSet:
    """``points`` have every pair of their factors' values but the ``impossible`` ones, by their
    texts, which the scheduler refuses, or a build gate, with the reason."""

    points: tuple[Point, ...]
    impossible: Mapping[str, str] = field(default_factory=dict)
    unbuildable: Unbuildable = Unbuildable()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "points": [point.key for point in self.points]}


def read(name: str) -> PointSet:
    """The set ``quick`` or ``full``."""
    return _point_set(json.loads(_STORED.read_text(encoding="utf-8"))[name])


def _point_set(kept: Mapping[str, Any]) -> PointSet:
    points = tuple(Point.parse(key) for key in kept["points"])
    return PointSet(points, kept["impossible"], Unbuildable(**kept["unbuildable"]))


def product(where: Mapping[str, Sequence[str]]) -> Iterator[Point]:
    """Every point there is, one by one; ``where`` leaves a factor only some of its values."""
    values = (where.get(factor, tuple(known)) for factor, known in SPEC.items())
    return map(Point, itertools.product(*values))


def pair_text(pair: Pair) -> str:
    """A pair as ``depth=1 overlap=3``."""
    order = list(SPEC)
    items = sorted(pair, key=lambda item: order.index(item[0]))
    return " ".join(f"{factor}={value}" for factor, value in items)


# --- the search -----------------------------------------------------------------------------------


@functools.cache
def refusal(point: Point) -> str:
    """Why the scheduler refuses a point; nothing if it does not."""
    from fa3gen.schedule.passes import start_plan
    from fa3gen.spec import AttentionSpec

    try:
        start_plan(AttentionSpec(**point.spec()))
    except UserError as error:
        return str(error).splitlines()[0]
    return ""


def search(factors: Factors, unbuildable: Unbuildable, given: Sequence[Point] = ()) -> PointSet:
    """Points, those ``given`` first, with every pair that the scheduler allows and that is not
    known to be unbuildable."""

    def allowed(row: Row) -> bool:
        point = Point.of(row)
        if point.key in unbuildable.points:
            return False
        if any(pair_text(pair) in unbuildable.pairs for pair in pairs_of(row)):
            return False
        return not refusal(point)

    rows = [{factor: point.chosen[factor] for factor in factors} for point in given]
    found = pairwise(factors, allowed, rows)
    impossible = {}
    for pair in found.impossible:
        text = pair_text(pair)
        reason = unbuildable.pairs.get(text) or refusal(Point.of(dict(pair)))
        impossible[text] = reason or "refused with whatever else was tried"
    return PointSet(tuple(map(Point.of, found.rows)), dict(sorted(impossible.items())), unbuildable)


def built(factors: Factors, known: PointSet) -> PointSet:
    """The same, of points that pass the build gates; those that are ``known`` stay if they do.

    Where several points of a pair do not, the simplest with it is tried. Raises what a build raises
    beside.
    """
    from fa3gen.builds import build_many

    good = [point for point in known.points if not refusal(point)]
    unbuildable = known.unbuildable
    while True:
        found = search(factors, unbuildable, good)
        refused: dict[str, str] = {}
        for place, result in build_many([point.spec() for point in found.points], progress=_log):
            if isinstance(result, PressureError):
                refused[found.points[place].key] = str(result).splitlines()[0]
            elif isinstance(result, Exception):
                raise result
        if not refused:
            return found
        good = [point for point in found.points if point.key not in refused]
        unbuildable = unbuildable.with_points(refused, good)
        simplest = (Point.of(dict(pair)) for pair in unbuildable.doubtful(good))
        good += [one for one in dict.fromkeys(simplest) if not unbuildable.knows(one)]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search; print the numbers of points and impossible pairs; with ``--write`` keep the sets."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.matrix.sets", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep what is found")
    parser.add_argument("--build", action="store_true", help="compile the points too")
    parser.add_argument("sets", nargs="*", metavar="SET", help="quick, full (both)")
    options = parser.parse_args(arguments)
    if unknown := set(options.sets) - set(FACTORS):
        parser.error(f"{min(unknown)}: must be one of {', '.join(FACTORS)}")
    kept = json.loads(_STORED.read_text(encoding="utf-8")) if _STORED.is_file() else {}
    for name in options.sets or FACTORS:
        before = _point_set(kept[name]) if name in kept else PointSet(())
        if options.build:
            found = built(FACTORS[name], before)
        else:
            found = search(FACTORS[name], before.unbuildable)
        print(f"{name}: {len(found.points)} points, {len(found.impossible)} impossible pairs")
        kept[name] = found.to_json()
    if options.write:
        _STORED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
