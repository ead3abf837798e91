"""The choice between two spellings of a kernel, from cubins written by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from standin import standin_source

from fa3gen.codegen.source import OpSource
from fa3gen.errors import BuildError
from fa3gen.jit import finish
from fa3gen.jit.compiler import build

FFMA = 0x0000000A6A6A7C23  # FFMA R106, R106, UR10, ...
MUFU = 0x0000005800587308


def instruction(low: int, addend: int, kept: bool) -> bytes:
    return struct.pack("<QQ", low, addend | kept << 60)


def elf(code: bytes, name: bytes = b".text.kernel") -> bytes:
    """An ELF file of three sections: none, names, and one of ``code``."""
    names = b"\0.names\0" + name + b"\0"
    header = struct.Struct("<16sHHIQQQIHHHHHH")
    section = struct.Struct("<IIQQQQIIQQ")
    at_names, at_code = header.size, header.size + len(names)
    table = at_code + len(code)
    head = header.pack(
        b"\x7fELF\2", 2, 190, 1, 0, 0, table, 0, header.size, 0, 0, section.size, 3, 1
    )
    sections = [
        (0,) * 10,
        (1, 3, 0, 0, at_names, len(names), 0, 0, 1, 0),
        (8, 1, 0, 0, at_code, len(code), 0, 0, 1, 0),
    ]
    return head + names + code + b"".join(section.pack(*fields) for fields in sections)


def test_addends_are_counted() -> None:
    code = b"".join(
        [
            instruction(FFMA, 19, True),
            instruction(FFMA, 19, True),
            instruction(FFMA, 20, False),
            instruction(FFMA, 255, True),  # the zero register is no operand
            instruction(MUFU, 19, True),
        ]
    )
    assert finish.operand_reuse(elf(code)) == (2, 3)
    assert finish.operand_reuse(elf(code, b".rodata")) == (0, 0)


def test_names_do_not_tell_the_folder() -> None:
    names = b"\0_ZN39_INTERNAL_%b_9_kernel_cu_62aa7ad5_GLOBAL__N__%b_9_kernel_cu_62aa7ad5E\0"
    here, there, nowhere = ((one,) * 2 for one in (b"ca9c3789", b"0123abcd", b"00000000"))
    assert finish.placeless(names % here) == finish.placeless(names % there) == names % nowhere
    assert finish.placeless(b"other_INTERNAL_nothex01_") == b"other_INTERNAL_nothex01_"


@pytest.mark.parametrize("better", [0, 1])
def test_the_better_cubin_is_taken(better: int, tmp_path: Path) -> None:
    paths = [tmp_path / "first.cubin", tmp_path / "second.cubin"]
    for index, path in enumerate(paths):
        path.write_bytes(elf(instruction(FFMA, 19, index == better)))
        path.with_name(f"{path.name}.log").write_text(f"ptxas on {index}\n")
    command = [sys.executable, "-I", finish.__file__, tmp_path / "kernel.cubin", *paths]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (tmp_path / "kernel.cubin").read_bytes() == paths[better].read_bytes()
    assert said.startswith(f"ptxas on {better}\n")
    assert f"{paths[better].name}: 1 of 1 addends at hand, taken" in said


def two_spellings() -> OpSource:
    source = standin_source()
    return replace(source, kernels=(replace(source.kernels[0], alternative="SWAP"),))


def test_a_build_compiles_both_spellings(scripted, tmp_path: Path) -> None:
    cubin = elf(instruction(FFMA, 19, True))
    (scripted.folder / "made").write_bytes(cubin)
    source = two_spellings()
    artifact = build(source, tmp_path / "out", scripted.toolchain)
    calls = [call for call in scripted.calls if call.startswith("nvcc")]
    assert sorted(word for call in calls for word in call.split() if "SWAP" in word) == [
        "-DSWAP=0",
        "-DSWAP=1",
    ]
    assert (tmp_path / "out/kernel.cubin").read_bytes() == cubin
    log = (tmp_path / "out/build.log").read_text()
    assert log.count("Used 90 registers") == 1
    assert artifact.kernels[0].registers == 90
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {name for name in left if "first" in name or "second" in name}


def test_an_error_in_either_spelling_is_told(scripted, tmp_path: Path) -> None:
    scripted.script("nvcc", "kernel.cu(3): error: no such thing\n", status=1)
    source = two_spellings()
    with pytest.raises(BuildError, match="no such thing"):
        build(source, tmp_path / "out", scripted.toolchain)
