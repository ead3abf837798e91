"""Random knob sets: each verifies, builds without spills and interprets right, or is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from fa3gen.driver import source_of
from fa3gen.errors import ScheduleError, UnsupportedError
from fa3gen.jit.compiler import build
from fa3gen.jit.toolchain import find_toolchain
from fa3gen.runtime.reference import check_error, reference_mask
from fa3gen.schedule import make_schedule, verify
from fa3gen.schedule.interpret import Interpreter
from fa3gen.schedule.lower import lower
from fa3gen.schedule.schedule import Schedule
from fa3gen.spec import AttentionSpec

MASKS = ("full", "causal", "window(37, 0)", "window(20, 11)", "chunk(48)", "causal | prefix(33)")


def draw(seed: int) -> AttentionSpec:
    """A spec with some knobs set at random."""
    pick = random.Random(seed)
    dims = [pick.randrange(8, 257, 8) for _ in range(2)]
    knobs: dict[str, Any] = {}
    warpgroups = pick.choice((None, 1, 2, 3))
    if warpgroups:
        knobs["warpgroups"] = warpgroups
    if pick.random() < 0.5:
        knobs["tile"] = {"n": pick.randrange(16, 257, 16)}
    for key, values in (
        ("pipeline_depth", (1, 2, 3, 4)),
        ("overlap", (1, 2, 2, 3)),
        ("p_operand", ("registers", "registers", "shared")),
        ("persistent", (False, "static", "dynamic")),
    ):
        if pick.random() < 0.6:
            knobs[key] = pick.choice(values)
    if pick.random() < 0.3:
        knobs["pingpong"] = warpgroups != 1 and knobs.get("overlap", 2) > 1 and pick.random() < 0.5
    if pick.random() < 0.2:
        knobs["warp_specialized"] = False
        if knobs.get("persistent") == "dynamic":  # work tiles are claimed by the producer
            del knobs["persistent"]
    waits = knobs.get("overlap") != 3 and "warp_specialized" not in knobs
    if waits and pick.random() < 0.15:
        knobs["o_staging"] = "over_v"
    if max(dims) <= 96 and pick.random() < 0.5:
        knobs["ctas_per_sm"] = 2
    if pick.random() < 0.6:
        alone = knobs.get("overlap") == 3 or knobs.get("p_operand") == "shared"
        knobs["maxima"] = pick.choice(("exact", "lazy", *(() if alone else ("speculative",))))
    return AttentionSpec(
        head_dim={"qk": dims[0], "v": pick.choice((dims[0], dims[1]))},
        dtype=pick.choice(("bf16", "fp16")),
        mask=pick.choice(MASKS),
        schedule=knobs,
    )


def scheduled(seed: int) -> Schedule | None:
    """The schedule of a drawn spec; None if it is refused, with a budget or a reason."""
    try:
        return make_schedule(draw(seed))
    except (ScheduleError, UnsupportedError) as error:
        reason = str(error)
    stated = ("does not fit: ", "neither fits", "schedule.")
    assert any(part in reason for part in stated), (draw(seed), reason)
    return None


def test_most_draws_can_be_scheduled() -> None:
    assert sum(scheduled(seed) is not None for seed in range(100)) > 60


@pytest.mark.parametrize("seed", range(40))
def test_a_random_schedule_is_right(seed: int) -> None:
    schedule = scheduled(seed)
    if schedule is None:
        return
    verify(lower(schedule))
    spec = schedule.spec
    torch.manual_seed(seed)
    dtype = getattr(torch, spec.dtype.torch_name)
    q = torch.randn(1, 75, 2, spec.head_dim.qk, dtype=dtype)
    k = torch.randn(1, 141, 1, spec.head_dim.qk, dtype=dtype)
    v = torch.randn(1, 141, 1, spec.head_dim.v, dtype=dtype)
    out, lse = Interpreter(schedule)(q, k, v, 0.1)
    report = check_error(out, lse, q, k, v, reference_mask(spec.mask), 0.1)
    assert report.ok, (spec, report)


def check_build(seed: int, folder: Any) -> None:
    """A drawn spec passes the build gates: no spills, no serialised products."""
    schedule = scheduled(seed)
    if schedule is not None:
        build(source_of((schedule,)), folder / str(seed), find_toolchain())


@pytest.mark.parametrize("seed", range(3))
def test_a_random_schedule_builds(seed: int, tmp_path: Any) -> None:
    check_build(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 120))
def test_many_random_schedules_build(seed: int, tmp_path: Any) -> None:
    check_build(seed, tmp_path)
