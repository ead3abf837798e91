"""What a Program may take of an SM: checked before it runs, for nothing in a run depends on it."""

from __future__ import annotations

import itertools

from fa3gen.errors import VerificationError
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.program import Program
from fa3gen.schedule.state import overlap

__all__ = ["check_budgets"]


def check_budgets(program: Program) -> None:
    """Threads, registers and the layout of shared memory; VerificationError for the first fault."""
    try:
        _check_threads(program)
        _check_registers(program)
        _check_layout(program)
    except VerificationError as error:
        raise VerificationError(f"{program.name}: {error}") from None


def _check_threads(program: Program) -> None:
    """Roles take the warpgroups of the CTA in order, each once."""
    at = 0
    for role in program.roles:
        if role.first_warpgroup != at:
            raise VerificationError(
                f"{role.name} starts at warpgroup {role.first_warpgroup}, the roles before end at "
                f"{at}"
            )
        at += role.instances
    if program.threads != at * HOPPER.warpgroup:
        raise VerificationError(f"{program.threads} threads for roles of {at} warpgroups")


def _check_registers(program: Program) -> None:
    """Each role holds what its tiles need, and all of them together fit the register file."""
    held = 0
    for role in program.roles:
        if role.needs > role.registers:
            raise VerificationError(
                f"register budget: {role.name} needs {role.needs} registers a thread, "
                f"holds {role.registers}"
            )
        held += role.registers * role.instances * HOPPER.warpgroup
    limit = HOPPER.share(program.ctas_per_sm).registers
    if held > limit:
        raise VerificationError(f"register budget: the roles hold {held} registers of {limit}")


def _check_layout(program: Program) -> None:
    """Buffers and mbarriers lie inside the CTA's shared memory, aligned, and barriers apart."""
    limit = HOPPER.share(program.ctas_per_sm).shared_bytes
    if program.shared_bytes > limit:
        raise VerificationError(f"shared-memory budget: {program.shared_bytes} bytes of {limit}")
    spans = {
        buffer.name: (buffer.offset, buffer.offset + buffer.bytes) for buffer in program.buffers
    }
    barriers = {
        barrier.name: (
            barrier.offset,
            barrier.offset + barrier.stages * HOPPER.mbarrier_bytes,
        )
        for barrier in program.barriers
    }
    for name, (start, end) in {**spans, **barriers}.items():
        unit = HOPPER.mbarrier_bytes if name in barriers else _alignment(program, name)
        if start % unit or start < 0 or end > program.shared_bytes:
            raise VerificationError(
                f"{name} lies at bytes {start} .. {end} of {program.shared_bytes}, "
                f"must start at a multiple of {unit} and end inside"
            )
    for barrier, other in itertools.product(barriers, {**spans, **barriers}):
        span = spans.get(other) or barriers[other]
        if barrier != other and overlap((barriers[barrier],), (span,)):
            raise VerificationError(f"{barrier} shares bytes with {other}")


def _alignment(program: Program, name: str) -> int:
    """Swizzled tiles start where the swizzle does; a word only needs its own alignment."""
    tile = program.buffer(name).stage_bytes >= HOPPER.tile_alignment
    return HOPPER.tile_alignment if tile else HOPPER.word_alignment
