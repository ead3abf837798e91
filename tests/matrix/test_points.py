from __future__ import annotations

import itertools

import pytest

from fa3gen.errors import InputError
from fa3gen.matrix import sets
from fa3gen.matrix.factors import SPEC
from fa3gen.matrix.points import Point, parse_choices
from fa3gen.runtime.reference import reference_mask, reference_score
from fa3gen.spec import AttentionSpec


def test_key_and_back() -> None:
    point = Point.of({"head_dim": "192x128", "overlap": "3"})
    assert point.key == "head_dim=192x128,overlap=3"
    assert Point.parse(point.key) == point
    assert Point.parse(Point.of({}).key) == Point.of({})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("mask=causla", r"'mask=causla': mask has no such value; did you mean causal\?"),
        ("headdim=64", r"no factor of that name; did you mean head_dim\?"),
        ("mask=zzz", "mask has no such value; there are full, causal"),
        ("", "no factor of that name"),
        ("mask=full,mask=causal", "mask: a point has one value of a factor"),
    ],
)
def test_bad_keys(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Point.parse(key)


def test_many_values_of_a_factor() -> None:
    assert parse_choices(["mask=full", "dtype=fp16", "mask=causal"]) == {
        "mask": ("full", "causal"),
        "dtype": ("fp16",),
    }


def test_pieces_are_joined() -> None:
    chosen = {"mask": "document", "score": "alibi", "sink": "sink", "tile_n": "80", "depth": "1"}
    spec = Point.of(chosen).spec()
    assert set(spec["inputs"]) == {"doc", "slopes", "sinks"}
    assert spec["schedule"] == {"tile": {"n": 80}, "pipeline_depth": 1}
    spec["inputs"]["doc"]["shape"] = []
    assert Point.of(chosen).spec()["inputs"]["doc"]["shape"] == ["b", "k"]


def test_names_differ() -> None:
    points = [*sets.read("quick").points, *sets.read("full").points]
    assert len({point.name for point in points}) == len(set(points))


@pytest.mark.parametrize(
    ("factor", "value"), [(factor, value) for factor in SPEC for value in SPEC[factor]]
)
def test_every_value_is_a_spec_with_a_reference(factor: str, value: str) -> None:
    spec = AttentionSpec(**Point.of({factor: value}).spec())
    reference_mask(spec.mask)
    reference_score(spec.score)


def test_product_of_some_values() -> None:
    where = {factor: (next(iter(SPEC[factor])),) for factor in SPEC}
    where |= {"head_dim": ("64", "96"), "mask": ("full", "causal", "band")}
    found = list(sets.product(where))
    assert [(p.chosen["head_dim"], p.chosen["mask"]) for p in found] == list(
        itertools.product(where["head_dim"], where["mask"])
    )
    assert next(sets.product({})) == Point.of({})
