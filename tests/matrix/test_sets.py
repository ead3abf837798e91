from __future__ import annotations

import itertools

import pytest

from fa3gen.matrix import sets
from fa3gen.matrix.covering import pairs_of
from fa3gen.matrix.points import Point

REMEDY = "find the points anew: python -m fa3gen.matrix.sets --write --build"


@pytest.mark.parametrize("name", list(sets.FACTORS))
def test_every_pair_is_there_or_impossible(name: str) -> None:
    found = sets.read(name)
    factors = sets.FACTORS[name]
    covered = {sets.pair_text(pair) for point in found.points for pair in pairs_of(point.chosen)}
    for one, other in itertools.combinations(factors, 2):
        for values in itertools.product(factors[one], factors[other]):
            pair = sets.pair_text(frozenset(zip((one, other), values, strict=True)))
            assert (pair in covered) != (pair in found.impossible), (pair, REMEDY)


@pytest.mark.parametrize("name", list(sets.FACTORS))
def test_the_scheduler_takes_every_point(name: str) -> None:
    found = sets.read(name)
    refused = {point.key: sets.refusal(point) for point in found.points if sets.refusal(point)}
    assert not refused, REMEDY
    assert not set(found.unbuildable.points) & {point.key for point in found.points}


@pytest.mark.parametrize("name", list(sets.FACTORS))
def test_impossible_pairs_are_refused(name: str) -> None:
    found = sets.read(name)
    for pair, reason in found.impossible.items():
        point = Point.parse(pair.replace(" ", ","))
        refused = found.unbuildable.pairs.get(pair) or sets.refusal(point)
        assert refused == reason, (pair, REMEDY)


def test_full_is_small_enough_to_build() -> None:
    assert len(sets.read("full").points) <= 100


def test_pairs_are_given_up_after_some_builds() -> None:
    keys = [f"head_dim={dim},tile_n=176" for dim in ("64", "96", "256", "192x128")]
    fine = [Point.parse("tile_n=176"), Point.parse("mask=band")]
    some = sets.Unbuildable().with_points(dict.fromkeys(keys[:3], "spills"), fine)
    assert some.pairs == {}
    every = some.with_points({keys[3]: "spills"}, fine)
    assert every.pairs == {}, "a kernel with tile_n=176 and each of the other values was built"
    more = {f"head_dim={dim},tile_n=176,mask=band": "spills" for dim in ("64", "96", "256")}
    assert every.with_points(more, fine).pairs == {}
    more["tile_n=176,mask=band"] = "it spills"
    assert every.with_points(more, fine).pairs == {
        "mask=band tile_n=176": "4 kernels were built, and refused: it spills"
    }
