from __future__ import annotations

import itertools

import pytest
import torch

from fa3gen.cases import Case, Layout, draw_inputs
from fa3gen.errors import InputError
from fa3gen.matrix.calls import Tile, all_calls, few_calls, parse_case, tiles_of

TILE = Tile(128, 80)


def test_lengths_follow_the_tile() -> None:
    calls = [case for case in all_calls((TILE,)) if case.seqlen_q and case.seqlen_k]
    assert {case.seqlen_q for case in calls} >= {1, 127, 128, 129, 289, 384}
    assert {case.seqlen_k for case in calls} >= {1, 79, 80, 81, 168, 240, 247, 464}


def test_every_length_meets_every_other_choice() -> None:
    calls = all_calls((TILE,))
    rows = [(c.seqlen_q, c.seqlen_k, c.heads / max(1, c.kv_heads), c.layout) for c in calls]
    full = [row for row in rows if row[0] and row[1] and row[2]]
    for one, other in itertools.combinations(range(4), 2):
        met = {(row[one], row[other]) for row in full}
        values = [{row[place] for row in full} for place in (one, other)]
        # 1/1 and 4/4 are one ratio; the lengths of the empty calls' other side come on top
        assert met >= set(itertools.product(*values)) - {
            (length, layout) for length in (129, 81) for layout in Layout
        }


def test_every_way_to_be_empty_in_every_layout() -> None:
    calls = all_calls((TILE,))
    for layout in Layout:
        of = [case for case in calls if case.layout is layout]
        assert any(case.batch == 0 for case in of)
        assert any(case.heads == 0 for case in of)
        assert any(case.seqlen_q == 0 < case.batch * case.heads for case in of)
        assert any(case.seqlen_k == 0 < case.batch * case.heads for case in of)


def test_many_work_tiles() -> None:
    assert any(c.batch * c.heads * -(-c.seqlen_q // 128) >= 400 for c in all_calls((TILE,)))


def test_both_kernels_of_a_plan_and_where_they_meet() -> None:
    tiles = tiles_of([(128, 64, 512), (192, 128, None)])
    assert tiles == (Tile(128, 64), Tile(192, 128, 513))
    keys = {case.seqlen_k for case in all_calls(tiles)}
    assert {512, 513, 512 + 128, 512 + 391, 64, 199} <= keys
    assert not any(512 < keys < 513 for keys in keys)


def test_names_repeat_calls() -> None:
    calls = all_calls((TILE, Tile(192, 128, 2881)))
    assert len({case.name for case in calls}) == len(calls)
    assert [parse_case(case.name) for case in calls] == list(calls)
    assert len({case.seed for case in calls}) == len(calls)


def test_bad_name() -> None:
    with pytest.raises(InputError, match="a call is named like b2-h4/2-q129-k337"):
        parse_case("b2-h4-q129")


def test_few_calls_are_shared_out() -> None:
    kernels = [({"kernel": str(place)}, (TILE,)) for place in range(10)]
    calls = few_calls(kernels)
    assert len(calls) == 10
    assert all(calls)
    every = [case for some in calls for case in some]
    assert {case.layout for case in every if case.seqlen_q == 0} == set(Layout)
    assert {case.layout for case in every if case.batch == 0} == set(Layout)
    sizes = {(case.seqlen_q, case.seqlen_k) for case in every}
    assert sizes >= set(itertools.product((1, 127, 128, 129, 289), (1, 79, 80, 81, 168, 247)))


def test_every_kernel_is_called() -> None:
    """There are fewer calls to be shared out than kernels."""
    calls = few_calls([({"a": str(n % 8), "b": str(n // 8)}, (TILE,)) for n in range(64)])
    assert all(any(case.seqlen_k and case.batch for case in some) for some in calls)
    assert few_calls([]) == []


def test_packed_of_other_lengths_and_dims() -> None:
    case = Case(2, 4, 2, 7, 9, Layout.PACKED)
    q, k, v = draw_inputs(case, device="cpu", dtype=torch.bfloat16, head_dims=(40, 72))
    assert q.shape == (2, 7, 4, 40)
    assert k.shape == (2, 9, 2, 40)
    assert v.shape == (2, 9, 2, 72)
    assert k.stride() == v.stride() == (9 * 2 * 112, 2 * 112, 112, 1)
