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


def test_a_pair_is_given_up_if_its_simplest_point_is_refused() -> None:
    pair = frozenset({("mask", "band"), ("tile_n", "176")})
    fine = [Point.parse("tile_n=176"), Point.parse("mask=band")]
    keys = [f"head_dim={dim},mask=band,tile_n=176" for dim in ("64", "96")]
    once = sets.Unbuildable().with_points({keys[0]: "spills"}, fine)
    assert pair not in once.doubtful(fine)
    twice = once.with_points({keys[1]: "spills"}, fine)
    assert list(twice.doubtful(fine)) == [pair]
    assert twice.pairs == {}, "its simplest point was not tried"
    simplest = Point.of(dict(pair))
    assert not twice.knows(simplest)
    assert twice.doubtful([*fine, simplest]) == {}
    thrice = twice.with_points({simplest.key: "it spills"}, fine)
    assert thrice.pairs == {
        "mask=band tile_n=176": "3 kernels were built, and refused; without more choices: it spills"
    }


def test_a_pair_is_given_up_if_its_simplest_point_has_no_schedule() -> None:
    keys = [f"head_dim=256,tile_n=176,mask={mask}" for mask in ("band", "chunk")]
    fine = [Point.parse("head_dim=256"), Point.parse("tile_n=176")]
    found = sets.Unbuildable().with_points(dict.fromkeys(keys, "spills"), fine)
    assert list(found.pairs) == ["head_dim=256 tile_n=176"]
    assert "tile 64x176 does not fit" in found.pairs["head_dim=256 tile_n=176"]
