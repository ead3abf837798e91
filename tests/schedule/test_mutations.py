"""The verifier's own test: every fault of a Program is caught, and nothing in one is redundant."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from variants import SHIPPED, VARIANTS, program

from fa3gen.errors import VerificationError
from fa3gen.schedule.edit import sites
from fa3gen.schedule.mutate import (
    Mutant,
    alterations,
    deletions,
    harmless,
    misplacements,
    swaps,
)
from fa3gen.schedule.program import NamedBarrier, Program, instructions
from fa3gen.schedule.verify import verify

PROGRAMS = (*SHIPPED, *VARIANTS)
each_program = pytest.mark.parametrize("name", PROGRAMS)
# Where loops are unrolled, neighbours in the text need not be neighbours in time.
ROLLED = [name for name in PROGRAMS if program(name).unroll == 1]


def fault(mutant: Mutant) -> str | None:
    """What the verifier says of a mutant; None if it passes."""
    try:
        verify(mutant.program)
    except VerificationError as error:
        return str(error)
    return None


def is_caught(mutant: Mutant) -> bool:
    return fault(mutant) is not None


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        *itertools.product(PROGRAMS, (deletions, alterations)),
        *((name, misplacements) for name in ROLLED),
    ],
)
def test_every_fault_is_caught(name: str, faults: Callable[[Program], Iterator[Mutant]]) -> None:
    survivors = [mutant.description for mutant in faults(program(name)) if not is_caught(mutant)]
    assert not survivors, f"{name}: {survivors}"


@pytest.mark.parametrize("name", ROLLED)
def test_every_other_displacement_is_caught_or_harmless(name: str) -> None:
    right = program(name)
    judged = {mutant.program for mutant in misplacements(right)}
    survivors = [
        swap.description
        for swap in swaps(right)
        if swap.program not in judged and harmless(right, swap) is None and not is_caught(swap)
    ]
    assert not survivors, f"{name}: {survivors}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ROLLED)
def test_harmless_displacements_pass(name: str) -> None:
    """What ``harmless`` excuses is a right Program, unless a wait moved to where it blocks."""
    right = program(name)
    for swap in swaps(right):
        found = fault(swap) if harmless(right, swap) is not None else None
        assert found is None or "deadlock" in found, f"{swap.description}: {found}"


@pytest.mark.parametrize("name", SHIPPED)
def test_mutants_are_different_programs(name: str) -> None:
    right = program(name)
    for faults in (deletions, alterations, misplacements, swaps):
        programs = [mutant.program for mutant in faults(right)]
        assert right not in programs
    assert len({mutant.description for mutant in alterations(right)}) == sum(
        1 for _ in alterations(right)
    )


@each_program
def test_every_instruction_is_deleted_once(name: str) -> None:
    right = program(name)
    total = len(right.setup) + sum(len(tuple(instructions(r.body))) for r in right.roles)
    assert sum(1 for _ in deletions(right)) == total == sum(1 for _ in sites(right))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_kind_of_synchronisation_is_altered_and_displaced(name: str) -> None:
    kinds = {type(site.instruction).__name__ for site in sites(program(name))}
    displaced = " ".join(mutant.description for mutant in misplacements(program(name)))
    waits = {"Wait", "WgmmaWait", "NamedSync", "TmaStoreWait"}
    releases = {"Arrive", "Expect", "NamedArrive"}
    groups = {"WgmmaCommit", "WgmmaFence", "ProxyFence", "TmaStoreCommit"}
    for kind in (waits | releases | groups) & kinds:
        assert f" {kind} " in f" {displaced} ", f"{kind} is never displaced"
    altered = " ".join(mutant.description for mutant in alterations(program(name)))
    for field in ("flip", "empty", "shift", "bytes", "arrivals", "by", "threads", "barrier",
                  "pending", "skew", "count", "from id"):  # fmt: skip
        assert f" {field}" in altered, f"{field} is never altered"


def test_a_right_program_is_no_mutant() -> None:
    right = program(SHIPPED[0])
    assert not is_caught(Mutant("nothing", right))
    named = (*right.named, NamedBarrier("spare", 15, 1, 128))
    assert not is_caught(Mutant("a barrier that nobody uses", _with_named(right, named)))


def _with_named(right: Program, named: tuple[NamedBarrier, ...]) -> Program:
    return replace(right, named=named)
