"""Lowered stall counts, from instructions written by hand and at random."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import standin_source
from test_pick import elf

from fa3gen.jit.compiler import build
from fa3gen.jit.finish import paced, paced_cubin

MUFU, FADD, FFMA, F2FP, ISETP, HGMMA, BRA = 0x308, 0x221, 0xC23, 0x23E, 0x20C, 0x9F0, 0x947
ARITHMETIC = {MUFU & 0x1FF, FADD & 0x1FF, FFMA & 0x1FF, F2FP & 0x1FF}
NONE = 255


def instruction(
    operation: int, stall: int, written: int = NONE, *read: int, more: int = 0
) -> tuple[int, int]:
    a, b, c = (*read, NONE, NONE, NONE)[:3]
    low = operation | written << 16 | a << 24 | b << 32 | more << 40
    return low, c | stall << 41 | 7 << 46


def operands(word: tuple[int, int]) -> set[int]:
    return {word[0] >> 24 & 0xFF, word[0] >> 32 & 0xFF, word[1] & 0xFF} - {NONE}


def spaced(stalls: list[int]) -> list[int]:
    """When each instruction issues."""
    return [0, *itertools.accumulate(max(stall, 1) for stall in stalls)]


def test_exponentials_are_not_paced() -> None:
    code = []
    for i in range(8):
        code += [instruction(MUFU, 1, 10 + i, 10 + i), instruction(FADD, 7, 100 + i, 10 + i)]
    assert paced(code) == [1] * 14 + [1, 7]


def test_a_conversion_takes_two_cycles() -> None:
    code = [instruction(F2FP, 6, 1, 2, 3), instruction(MUFU, 1, 4, 4)]
    assert paced(code) == [2, 1]


def test_a_result_that_is_read_stays_away() -> None:
    code = [
        instruction(FADD, 7, 1, 2, 3),
        instruction(MUFU, 1, 4, 4),
        instruction(FADD, 1, 5, 1, 6),
    ]
    assert paced(code) == [5, 1, 1]  # 6 cycles after its operand
    assert paced([instruction(FADD, 3, 1, 2, 3), *code[1:]]) == [3, 1, 1]  # never further than was


def test_all_results_stay_away_from_what_reads_registers_unseen() -> None:
    code = [
        instruction(FADD, 7, 1, 2, 3),
        instruction(MUFU, 1, 4, 4),
        instruction(HGMMA, 1, 24, 88),
    ]
    assert paced(code) == [5, 1, 1]


def branch(stall: int, by: int) -> tuple[int, int]:
    """To so many instructions behind the next."""
    quarters = by * 4
    blocks = quarters >> 8 & (1 << 48) - 1
    low = BRA | (quarters & 0xFF) << 16 | (blocks & (1 << 30) - 1) << 34
    return low, blocks >> 30 | stall << 41


def test_a_pending_operand_is_not_overwritten_sooner() -> None:
    code = [instruction(MUFU, 8, 10 + i, 2 + i) for i in range(3)]
    code.append(instruction(FADD, 1, 2, 8, 9))  # writes what the first one reads
    assert spaced(paced(code))[3] == 20  # of 24


@pytest.mark.parametrize("by", [-22, 300])
def test_nothing_is_lowered_behind_a_branch_target(by: int) -> None:
    loop = []
    for i in range(10):
        loop += [instruction(FADD, 7, 10 + i, 2, 3), instruction(MUFU, 1, 20 + i, 20 + i)]
    tail = [instruction(ISETP, 1, NONE, 1, 2), branch(5, by)]
    code = loop + tail
    assert code[-1][0] & 0xFFF == BRA
    first = 7 if by < 0 else 1
    assert paced(code)[:4] == [first, 1] * 2
    assert paced(code)[8] == 1


def test_other_instructions_stay_ahead_of_everything() -> None:
    code = [instruction(ISETP, 1, NONE, 1, 2)]  # writes a predicate
    for i in range(5):
        code += [instruction(FADD, 7, 10 + i, 2, 3), instruction(MUFU, 1, 20 + i, 20 + i)]
    assert paced(code) == [1, 7, 1, 7, 1, 3, 1, 1, 1, 1, 1]  # up to 20 cycles behind it


operations = st.sampled_from([MUFU, FADD, FFMA, F2FP, ISETP, HGMMA])
registers = st.integers(0, 9)
codes = st.lists(
    st.builds(instruction, operations, st.integers(0, 15), registers, registers, registers),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(codes)
def test_no_latency_is_undercut(code: list[tuple[int, int]]) -> None:
    old = [high >> 41 & 15 for _, high in code]
    new = paced(code)
    assert all(a <= b for a, b in zip(new, old, strict=True))
    was, now = spaced(old), spaced(new)
    for i, j in itertools.combinations(range(len(code)), 2):
        first, second = code[i][0], code[j][0]
        if first & 0x1FF not in ARITHMETIC or (
            first & 0x1FF == MUFU & 0x1FF
            and (second & 0x1FF not in ARITHMETIC or second >> 16 & 0xFF in operands(code[i]))
        ):
            need = 20
        else:
            written = first >> 16 & 0xFF
            fields = {second >> 24 & 0xFF, second >> 32 & 0xFF, second >> 16 & 0xFF}
            need = 6 if written in fields or second & 0x1FF not in ARITHMETIC else 0
        assert now[j] - now[i] >= min(was[j] - was[i], need)
    for index, (a, b) in enumerate(zip(new, old, strict=True)):
        if a != b:
            assert code[index + 1][0] & 0x1FF == MUFU & 0x1FF
    lowered = zip(code, new, strict=True)
    assert paced([(low, high & ~(15 << 41) | stall << 41) for (low, high), stall in lowered]) == new


def test_only_stall_counts_of_code_change() -> None:
    words = [instruction(FADD, 7, 1, 2, 3, more=5), instruction(MUFU, 1, 4, 4, more=9)]
    code = b"".join(struct.pack("<QQ", *word) for word in words)
    cubin, changed, saved = paced_cubin(elf(code))
    assert (changed, saved) == (1, 6)
    different = [i for i, (a, b) in enumerate(zip(cubin, elf(code), strict=True)) if a != b]
    assert len(different) == 1
    assert paced_cubin(elf(code, b".rodata")) == (elf(code, b".rodata"), 0, 0)


@pytest.mark.parametrize("two", [False, True])
def test_a_build_paces_the_kernel(scripted, tmp_path: Path, two: bool) -> None:
    words = [instruction(FADD, 7, 1, 2, 3), instruction(MUFU, 1, 4, 4)]
    assembled = elf(b"".join(struct.pack("<QQ", *word) for word in words))
    (scripted.folder / "made").write_bytes(assembled)
    source = standin_source()
    kernel = replace(source.kernels[0], paced=True, alternative="SWAP" if two else None)
    artifact = build(replace(source, kernels=(kernel,)), tmp_path / "out", scripted.toolchain)
    assert (tmp_path / "out/kernel.cubin").read_bytes() == paced_cubin(assembled)[0] != assembled
    log = (tmp_path / "out/build.log").read_text()
    assert log.count("Used 90 registers") == 1
    assert "1 stall counts lowered, by 6 cycles together" in log
    assert artifact.kernels[0].registers == 90
    left = {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".cubin"}
    assert left == {"kernel.cubin"}
