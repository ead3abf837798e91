"""The verifier: what it proves, what it covers, and what it says."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from variants import SHIPPED, VARIANTS, program, schedule

from fa3gen.errors import VerificationError
from fa3gen.schedule.edit import Site, sites, splice
from fa3gen.schedule.flatten import visits
from fa3gen.schedule.mutate import Mutant, alterations, deletions, misplacements
from fa3gen.schedule.program import (
    Arrive,
    Calc,
    CalcKind,
    Executor,
    InitBarrier,
    Instruction,
    NamedBarrier,
    NamedSync,
    Node,
    OnInstance,
    Program,
    Segment,
    WgmmaFence,
)
from fa3gen.schedule.ranges import TileRange
from fa3gen.schedule.verify import trip_counts, verify, verify_run

CAUSAL, FULL = "causal_d128_bf16", "full_d128_bf16"
EXACT = "rescale each step"
LAZY, FORMULA = "lazy", "formula"


def complaint(faulty: Program) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(faulty)
    return str(caught.value)


def mutant(name: str, words: str) -> Program:
    """The first fault of a Program whose description matches."""
    right = program(name)
    faults: list[Mutant] = [*deletions(right), *alterations(right), *misplacements(right)]
    return next(m.program for m in faults if re.search(words, m.description))


def edited(name: str, chosen: Callable[[Instruction], bool], *nodes: Node) -> Program:
    """A Program with nodes in place of the first instruction chosen."""
    right = program(name)
    site: Site = next(site for site in sites(right) if chosen(site.instruction))
    return splice(right, site.path, 1, nodes)


# --- proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SHIPPED, *VARIANTS])
def test_scheduled_programs_are_right(name: str) -> None:
    proof = verify(program(name))
    assert proof.runs == sum(1 for _ in trip_counts(program(name)))
    assert f"{proof.runs} trip-count cases" in str(proof)
    assert proof.steps > 100 * proof.runs


@pytest.mark.parametrize("name", SHIPPED)
def test_a_proof_takes_well_under_a_second(name: str) -> None:
    start = time.process_time()
    verify(program(name))
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("name", [CAUSAL, FULL, "two-sided window", "one stage"])
def test_trip_counts_cover_every_pair_and_every_segment(name: str) -> None:
    cases = list(trip_counts(program(name)))
    stages = max(buffer.stages for buffer in program(name).buffers)
    least = max(program(name).peeled, 1)
    counts = {tuple(tiles.tiles for tiles in case) for case in cases}
    visited = (0, *range(least, 2 * stages + least + 2))
    assert set(itertools.product(visited, repeat=2)) <= counts
    assert any(len(count) > 2 for count in counts)
    present = {s for s in Segment if f"for {s.value}:" in str(program(name).role("consumer"))}
    met: set[Segment] = set()
    for tiles in itertools.chain(*cases):
        assert 0 == tiles.begin <= tiles.full_begin <= tiles.full_end <= tiles.end
        lengths = {s: len(visits(program(name), tiles, s)) for s in Segment}
        assert lengths[Segment.ALL] == sum(
            lengths[s] for s in (Segment.RIGHT, Segment.FULL, Segment.LEFT, Segment.REST)
        )
        met |= {segment for segment, length in lengths.items() if length > 1}
    assert present <= met | {Segment.FIRST, Segment.REST, Segment.DRAIN}


def test_three_work_tiles_in_one_run() -> None:
    tiles = TileRange(0, 0, 3, 4)
    assert verify_run(program(CAUSAL), (tiles, tiles, tiles)) > 0


# --- what it says ---------------------------------------------------------------------------------

_COMPLAINTS = [
    # program, fault, the instruction blamed, the hazard
    (CAUSAL, r"Arrive K_empty K deleted", "", r"deadlock: producer at Wait K_empty.*consumer 0 at"),
    (FULL, r"with bytes=32752", "", r"deadlock: .*consumer 0 at Wait K_full"),
    (CAUSAL, r"Wait K_full K deleted", "Gemm QK S", r"reads bytes before the load has landed: pro"),
    (FULL, r"Wait Q_full Q deleted", "Gemm QK S", r"reads bytes before the load has landed: produ"),
    (
        CAUSAL,
        r"Wait V_empty V deleted",
        "Load V_full V",
        r"overwrites bytes before their last read",
    ),
    (
        "O over Q",
        r"Arrive Q_empty Q moved before",
        "Load Q_full Q",
        r"overwrites bytes before their last read has ended: consumer 0, TmaStore O",
    ),
    (CAUSAL, r" TmaStoreWait deleted", "StageOut O", r"overwrites bytes before their last read"),
    (CAUSAL, r"ProxyFence deleted", "TmaStore O", r"no fence.proxy.async after the generic access"),
    (CAUSAL, r"WgmmaWait S deleted", "", r"S before the wait for its product"),
    (CAUSAL, r"WgmmaFence deleted", "Gemm QK S", r"no wgmma.fence since S was touched"),
    (CAUSAL, r"Wait K_full K with flip", "", r"phase error|deadlock"),
    (CAUSAL, r"consumer .*Advance V deleted", "Gemm PV O", r"reads bytes before the load has land"),
    (CAUSAL, r"producer .*Advance V deleted", "Expect V_full V", r"unbalanced arrivals: 2 of 1 on"),
    (
        CAUSAL,
        r"Expect K_full K moved before",
        "Expect K_full K",
        r"phase error: arrives at K_full\[0\] phase 0, meant phase 1",
    ),
    (CAUSAL, r"InitBarrier K_empty with arrivals=7", "", r"unbalanced arrivals: 8 of 7 on K_empty"),
    (CAUSAL, r"InitBarrier V_full deleted", "", r"V_full\[0\] is not initialised"),
    (CAUSAL, r"SyncCta deleted", "", r"before its initialisation: no CTA sync"),
    (CAUSAL, r"FenceBarrierInit deleted", "", r"not fenced for the async proxy"),
    (CAUSAL, r"NamedArrive turn deleted", "", r"deadlock: .*NamedSync turn"),
    (CAUSAL, r"NamedSync store with threads=160", "NamedSync store", r"for 128 threads, not 160"),
    (CAUSAL, r"named barrier turn from id 1$", "", r"named barrier 1 serves both store\[0\] and"),
    (CAUSAL, r"named barrier turn from id 0", "", r"too many named barriers: turn\[0\].* id 0"),
    (CAUSAL, r"WgmmaWait S with pending=0", "WgmmaWait", r"retires S, O, meant for S"),
    (CAUSAL, r"Load V_full V with skew=0", "Gemm PV O", r"wants V of work 0, tile 0; finds V"),
    (EXACT, r"Calc RESCALE deleted", "Gemm PV O", r"O is scaled to the maximum of . tiles, P to"),
    (EXACT, r"Calc MASK deleted", "Calc ROW_MAX", r"KV tile \d needs the mask and has none"),
    (CAUSAL, r"Calc MASK deleted", "Calc ROW_MAX", r"KV tile \d needs the mask and has none"),
    (FULL, r"Calc SPECULATE deleted", "Calc REDO", r"wants guess of work 0, tile 1; finds S"),
    (FULL, r"Calc REDO deleted", "Gemm PV O", r"wants P of work 0, tile 1; finds guess"),
    (FORMULA, r"Calc SCORE deleted", "Calc MASK", r"masks scores before their formula"),
    (FORMULA, r"Calc MASK deleted", "Calc ROW_MAX", r"KV tile \d needs the mask and has none"),
    (LAZY, r"Calc RESCALE_GROWN deleted", "Gemm PV O", r"O is scaled to the maximum of . tile"),
    (LAZY, r"Calc SHIFT deleted", "Calc EXP2", r"raises keys 0 to 32 of S, of which 0 are shif"),
    (LAZY, r"Calc SHIFT with keys=0,24", "Calc EXP2", r"raises keys 0 to 32 of S, of which"),
    (LAZY, r"Calc ADD_SUM deleted", "Calc SHIFT", r"wants row_sum of work 0, tile 1; finds row"),
    (CAUSAL, r"StoreRows deleted", "", r"consumer 0 stores lse of work tile 0 0 times"),
    (CAUSAL, r"producer 0 SetRegisters deleted", "", r"deadlock: .*consumer 0 at SetRegisters"),
    (CAUSAL, r"SetRegisters with grows=", "SetRegisters", r"setmaxnreg in the wrong direction"),
]


@pytest.mark.parametrize(("name", "fault", "instruction", "hazard"), _COMPLAINTS)
def test_a_fault_is_told_in_words(name: str, fault: str, instruction: str, hazard: str) -> None:
    said = complaint(mutant(name, fault))
    assert re.match(rf"{program(name).name}(, KV tiles \d+, \d+)?: ", said), said
    assert re.search(hazard, said), said
    if instruction:  # the role and the instruction that find it, and where in the work they stand
        place = r"\(work -?\d+, tile -?\d+\)"
        blamed = rf"(producer|consumer \d), {re.escape(instruction)}[^:]* {place}: "
        assert re.search(blamed, said), said


def test_an_overwritten_operand_is_told() -> None:
    """P is converted while the product before still reads it."""

    def is_wait(i: Instruction) -> bool:
        return getattr(i, "retires", ()) == ("O",)

    said = complaint(edited(FULL, is_wait, Calc(CalcKind.CONVERT, ("S",), ("P",))))
    assert re.search(r"Calc CONVERT.*overwrites P while a product in flight reads it", said), said


def test_an_elected_arrival_speaks_for_no_other_warp() -> None:
    """With counts to match, one thread's arrival would free K while other warps' products read."""
    right = program(FULL)
    faulty = right
    for site in sites(right):
        instruction = site.instruction
        if isinstance(instruction, Arrive) and instruction.cursor == "K":
            alone = replace(instruction, by=Executor.ELECTED)
            faulty = splice(faulty, site.path, 1, (alone,))
        if isinstance(instruction, InitBarrier) and instruction.barrier == "K_empty":
            faulty = splice(faulty, site.path, 1, (InitBarrier("K_empty", 2),))
    said = complaint(faulty)
    assert re.search(r"Load K_full K.*before their last read has ended: .*Gemm QK S", said), said


def test_a_store_wait_tells_its_own_thread_alone() -> None:
    """The warpgroup may not stage O before a barrier after the elected thread's wait."""
    said = complaint(mutant(CAUSAL, r"TmaStoreWait moved behind .*NamedSync store"))
    assert re.search(r"StageOut O.*overwrites bytes before their last read .*TmaStore O", said)


def test_a_fence_must_name_the_registers_it_orders() -> None:
    def is_fence(i: Instruction) -> bool:
        return isinstance(i, WgmmaFence)

    said = complaint(edited(FULL, is_fence, WgmmaFence(("O", "P"))))
    assert re.search(r"Gemm QK S.*no wgmma.fence since S was touched", said), said


def test_the_turn_is_as_it_was_before_the_first_work_tile() -> None:
    """One more turn taken at the end: every arrival is matched, but the next turn is not open."""
    right = program(CAUSAL)
    role = right.role("consumer")
    taken = OnInstance(0, (NamedSync("turn", 256),))
    body = (*role.body, taken)
    roles = tuple(replace(r, body=body) if r is role else r for r in right.roles)
    said = complaint(replace(right, roles=roles))
    assert re.search(r"unbalanced arrivals: turn\[0\].* left with 0 threads, had 128", said), said


def test_a_computation_must_follow_its_inputs() -> None:
    def is_exp(i: Instruction) -> bool:
        return isinstance(i, Calc) and i.kind is CalcKind.EXP

    said = complaint(edited(EXACT, is_exp))
    assert "wants E of work 0, tile 0; finds S of work 0, tile 0" in said


# --- budgets --------------------------------------------------------------------------------------


def test_too_many_named_barriers() -> None:
    right = program(CAUSAL)
    named = (*right.named, *(NamedBarrier(f"b{i}", i, 1, 128) for i in range(5, 17)))
    assert "too many named barriers: b16[0] would have id 16" in complaint(
        replace(right, named=named)
    )


def test_register_budget() -> None:
    right = program(CAUSAL)
    greedy = tuple(replace(role, needs=role.registers + 1) for role in right.roles)
    assert re.search(
        r"register budget: producer needs 41 registers a thread, holds 40",
        complaint(replace(right, roles=greedy)),
    )
    fat = tuple(replace(role, registers=248) for role in right.roles)
    assert re.search(
        r"register budget: the roles hold 95232 registers of 65536",
        complaint(replace(right, roles=fat)),
    )


def test_shared_memory_budget() -> None:
    right = program(CAUSAL)
    said = complaint(replace(right, shared_bytes=232_449))
    assert "shared-memory budget: 232449 bytes of 232448" in said
    assert "end inside" in complaint(replace(right, shared_bytes=right.shared_bytes - 8))


def test_barriers_lie_apart() -> None:
    right = program(CAUSAL)
    first, *others = right.barriers
    moved = replace(right, barriers=(replace(first, offset=8), *others))
    assert "Q_full shares bytes with Q" in complaint(moved)
    doubled = replace(right, barriers=(replace(first, offset=others[0].offset), *others))
    assert f"Q_full shares bytes with {others[0].name}" in complaint(doubled)


def test_buffers_are_aligned_and_apart() -> None:
    right = program(CAUSAL)
    q, k, *others = right.buffers
    assert f"K lies at bytes {k.offset + 16}" in complaint(
        replace(right, buffers=(q, replace(k, offset=k.offset + 16), *others))
    )
    said = complaint(replace(right, buffers=(q, replace(k, offset=q.offset), *others)))
    assert re.search(r"Load Q_full Q.*overwrites bytes before the load has landed", said), said


def test_roles_fill_the_cta() -> None:
    right = program(CAUSAL)
    assert "512 threads for roles of 3 warpgroups" in complaint(replace(right, threads=512))
    producer, consumer = right.roles
    swapped = replace(right, roles=(consumer, producer))
    assert "starts at warpgroup" in complaint(swapped)


def test_the_schedule_of_a_variant_is_what_its_name_says() -> None:
    assert schedule("overlap 1").depth == 0
    assert schedule("three stages").tiling.stages == 3
    assert not schedule("no ping-pong").tiling.pingpong
    memory = schedule("overlap 1, O over Q").memory
    assert memory is not None
    assert memory.buffer("O").over == "Q"
