"""The model of unit occupancy: what it must show of the schedules it is drawn for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from fa3gen.errors import GraphError
from fa3gen.ir.ops import Unit
from fa3gen.schedule import Schedule, make_schedule
from fa3gen.schedule.lower import lower
from fa3gen.schedule.program import Arrive, EachWork, Node, Role
from fa3gen.spec import load_spec
from fa3gen.timeline import Timeline, simulate


def schedule(**knobs: Any) -> Schedule:
    tile = knobs.pop("tile", {"n": 128})
    return make_schedule(load_spec({"head_dim": 128, "schedule": {"tile": tile, **knobs}}))


def timeline(tiles: int = 6, **knobs: Any) -> Timeline:
    made = schedule(**knobs)
    return simulate(lower(made), made.graph, tiles)


def test_every_operation_runs_as_often_as_its_scope_says() -> None:
    found = timeline(tiles=5, maxima="exact")
    consumers = [role for role in found.roles if role.startswith("consumer")]
    assert len(consumers) == 2
    for role in consumers:
        for op in ("GemmQK", "GemmPV", "Exp"):
            tiles = [span.tile for span in found.spans if (span.role, span.op) == (role, op)]
            assert tiles == [0, 1, 2, 3, 4], (role, op)
        assert [s.tile for s in found.spans if (s.role, s.op) == (role, "Normalize")] == [None]
    for op in ("LoadK", "LoadV"):
        assert sorted(s.tile or 0 for s in found.spans if s.op == op) == [0, 1, 2, 3, 4]


def test_speculation_is_timed_as_exponentials_and_sums() -> None:
    found = timeline(tiles=4, maxima="speculative")
    for op in ("Exp", "RowSum"):
        spans = [s.tile for s in found.spans if (s.role, s.op) == ("consumer 0", op)]
        assert spans == [0, 1, 2, 3], op
    maxima = [s.tile for s in found.spans if (s.role, s.op) == ("consumer 0", "RowMax")]
    assert maxima == [0], "of the first tile alone"


def test_a_unit_serves_one_operation_at_a_time() -> None:
    spans = timeline().spans
    for unit in Unit:
        times = sorted((span.begin, span.end) for span in spans if span.unit is unit)
        for (_, end), (begin, _) in itertools.pairwise(times):
            assert end <= begin, unit


def test_what_a_tile_needs_comes_before_it() -> None:
    found = timeline()
    ends = {(span.op, span.tile): span.end for span in found.spans if span.role == "producer"}
    for role in ("consumer 0", "consumer 1"):
        own = {(span.op, span.tile): span for span in found.spans if span.role == role}
        for tile in range(6):
            assert own["GemmQK", tile].begin >= ends["LoadK", tile]
            assert own["Exp", tile].begin >= own["GemmQK", tile].end
            assert own["GemmPV", tile].begin >= own["Exp", tile].end
            assert own["GemmPV", tile].begin >= ends["LoadV", tile]


def test_work_is_divided_among_the_warpgroups() -> None:
    made = schedule(maxima="exact")
    found = simulate(lower(made), made.graph)
    cycles = {op.name: op.cycles for op in made.graph.ops}
    for span in found.spans:
        share = 1 if span.op.startswith("Load") else 2
        assert span.end - span.begin == -(-cycles[span.op] // share), span


def test_the_parts_of_a_tile_add_up() -> None:
    made = schedule(maxima="lazy")
    found = simulate(lower(made), made.graph)
    for op in ("RowMax", "Exp"):
        parts = [s for s in found.spans if (s.op, s.role, s.tile) == (op, "consumer 0", 1)]
        assert len(parts) == 2
        (cycles,) = (known.cycles for known in made.graph.ops if known.name == op)
        assert sum(s.end - s.begin for s in parts) == cycles // 2


def test_overlap_hides_the_softmax() -> None:
    sequence = timeline(maxima="exact", overlap=1, pingpong=False, warpgroups=1, tile={"n": 64})
    overlapped = timeline(maxima="exact", overlap=2, pingpong=False, warpgroups=1, tile={"n": 64})
    assert overlapped.cycles < sequence.cycles

    def beside(found: Timeline) -> bool:
        """Whether a product runs while its own warpgroup is at a softmax."""
        products = [span for span in found.spans if span.op == "GemmPV"]
        maxima = [span for span in found.spans if span.op == "RowMax"]
        return any(p.begin < m.end and m.begin < p.end for p in products for m in maxima)

    assert beside(overlapped)
    assert not beside(sequence)


@pytest.mark.parametrize("tiles", [0, 1, 2])
def test_few_tiles(tiles: int) -> None:
    found = timeline(tiles)
    assert sum(span.op == "GemmQK" for span in found.spans) == 2 * tiles
    assert found.cycles > 0
    assert f"{tiles} KV tiles: {found.cycles} cycles" in str(found)


def test_busy_is_a_share() -> None:
    found = timeline()
    used = sum(span.end - span.begin for span in found.spans if span.unit is Unit.TENSOR)
    assert found.busy(Unit.TENSOR) == pytest.approx(used / found.cycles)
    assert all(0 < found.busy(unit) <= 1 for unit in Unit)


def test_roles_that_block_one_another() -> None:
    made = schedule()
    program = lower(made)

    def without_arrivals(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        kept: list[Node] = []
        for node in nodes:
            if isinstance(node, Arrive) and node.barrier == "K_empty":
                continue
            body = getattr(node, "body", None)
            kept.append(node if body is None else replace(node, body=without_arrivals(body)))
        return tuple(kept)

    def mute(role: Role) -> Role:
        return replace(role, body=without_arrivals(role.body))

    assert any(isinstance(node, EachWork) for node in program.roles[0].body)
    broken = replace(program, roles=tuple(mute(role) for role in program.roles))
    with pytest.raises(GraphError, match=r"producer.* wait for ever"):
        simulate(broken, made.graph)
