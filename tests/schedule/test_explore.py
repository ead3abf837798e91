"""Random schedules against the happens-before argument: one run must have spoken for all."""

from __future__ import annotations

import itertools

import pytest
from variants import SHIPPED, VARIANTS, program

from fa3gen.errors import VerificationError
from fa3gen.schedule.explore import explore
from fa3gen.schedule.mutate import alterations, deletions, harmless, misplacements, swaps
from fa3gen.schedule.program import Program, ProxyFence, instructions
from fa3gen.schedule.ranges import TileRange
from fa3gen.schedule.verify import trip_counts, verify_run

Work = tuple[TileRange, ...]

SCHEDULES = 7
SAMPLE = 12  # trip counts of each mutant, and every so many mutants


def verdict(faulty: Program, work: Work) -> str | None:
    try:
        verify_run(faulty, work)
    except VerificationError as error:
        return str(error)
    return None


def works(right: Program, count: int) -> list[Work]:
    return list(itertools.islice(trip_counts(right), count))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_right_program_never_fails(name: str) -> None:
    for work in works(program(name), 3):
        for seed, monitored in itertools.product(range(3), (False, True)):
            assert explore(program(name), work, seed, monitored) is None, f"{work}, seed {seed}"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_missing_wait_shows_in_some_schedule(name: str) -> None:
    mutants = [m for m in deletions(program(name)) if "Wait K_full" in m.description]
    assert mutants
    for mutant in mutants:
        tries = itertools.product(works(program(name), 3), range(200))
        assert any(explore(mutant.program, work, seed, False) for work, seed in tries)


def test_a_schedule_is_repeatable() -> None:
    mutant = next(m for m in deletions(program(SHIPPED[0])) if "Arrive K_empty" in m.description)
    (work,) = works(program(SHIPPED[0]), 1)
    first = explore(mutant.program, work, 5, True)
    assert first is not None
    assert first == explore(mutant.program, work, 5, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHIPPED, *VARIANTS])
def test_right_programs_never_fail(name: str) -> None:
    for work in trip_counts(program(name)):
        for seed, monitored in itertools.product(range(SCHEDULES), (False, True)):
            assert explore(program(name), work, seed, monitored) is None, f"{work}, seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHIPPED, *VARIANTS])
def test_the_monitor_judges_every_schedule_alike(name: str) -> None:
    """A mutant that one run condemns for some trip counts, every schedule of them condemns."""
    right = program(name)
    every = 1 if name in SHIPPED else SAMPLE
    mutants = [*deletions(right), *alterations(right), *misplacements(right), *swaps(right)]
    for mutant in mutants[::every]:
        for work in works(right, SAMPLE):
            expected = verdict(mutant.program, work)
            for seed in range(SCHEDULES):
                found = explore(mutant.program, work, seed, True)
                assert (found is None) == (expected is None), (
                    f"{mutant.description}, {work}, seed {seed}: {found}; one run: {expected}"
                )
            if expected is not None:
                break


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_harmless_displacements_never_fail(name: str) -> None:
    right = program(name)
    for swap in swaps(right):
        if harmless(right, swap) is None or verdict(swap.program, works(right, 1)[0]):
            continue
        for work, seed in itertools.product(works(right, SAMPLE), range(SCHEDULES)):
            assert explore(swap.program, work, seed, False) is None, swap.description


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_most_faults_show_without_the_monitor(name: str) -> None:
    """Nine faults of ten go wrong outright in some schedule; the rest are of the memory model."""
    right = program(name)
    faults = [*deletions(right), *misplacements(right)]
    silent = []
    for mutant in faults:
        tries = itertools.product(works(right, SAMPLE), range(SCHEDULES))
        if not any(explore(mutant.program, work, seed, False) for work, seed in tries):
            silent.append(mutant)
    assert len(silent) < len(faults) / 10, [mutant.description for mutant in silent]
    fences = [m for m in silent if "ProxyFence" in m.description]
    assert fences, "no run of values can tell that a proxy fence is missing"
    assert any(isinstance(i, ProxyFence) for role in right.roles for i in instructions(role.body))
