"""Pick the better of two cubins of one kernel, by what the assembler made of its operands.

A step of the build, run as a program of its own: ``python pick.py OUT CUBIN...`` copies the cubin
whose instructions fetch the fewest operands anew, and prints the log beside it.

An SM's register file has two banks, even and odd registers, and the tensor core takes a large part
of what they deliver. The assembler keeps an operand at hand for the next instructions (``.reuse``),
but it loses it where an instruction in between reads a register of the same bank in the same place.
Whether that happens in the loop that scales scores and compares them (``lazy_softmax.cuh``) depends
on the register that the row's shift is given, and costs up to 8 % of a kernel. The source cannot
name registers, so it is compiled with both orders of the compared columns.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main", "operand_reuse"]

# Instructions of sm_90, 16 bytes each: the operation is in the lowest 12 bits, the third operand's
# register in bits 64-71, whether it is kept at hand in bit 124.
_FFMA_UNIFORM = 0xC23  # register times uniform register plus register
_ZERO = 255
_SECTION = struct.Struct("<IIQQQQIIQQ")  # of a 64-bit ELF file


def operand_reuse(cubin: bytes) -> tuple[int, int]:
    """How many FFMAs by a uniform register have their addend at hand, and how many there are."""
    kept = total = 0
    for text in _code(cubin):
        for low, high in struct.iter_unpack("<QQ", text):
            if low & 0xFFF == _FFMA_UNIFORM and high & 0xFF != _ZERO:
                total += 1
                kept += high >> 60 & 1
    return kept, total


def _code(cubin: bytes) -> Iterator[bytes]:
    """The sections of an ELF file that hold instructions."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [_SECTION.unpack_from(cubin, table + size * i) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length, *_ in sections:
        if cubin[strings + name :].startswith(b".text."):
            yield cubin[offset : offset + length]


def main(arguments: list[str]) -> None:
    """Copy the best of the cubins ``arguments[1:]`` to ``arguments[0]``; the first of equals."""
    target, *paths = map(Path, arguments)
    counts = {path: operand_reuse(path.read_bytes()) for path in paths}
    best = max(paths, key=lambda path: counts[path][0])
    shutil.copyfile(best, target)
    print(best.with_name(f"{best.name}.log").read_text(encoding="utf-8", errors="replace"), end="")
    for path, (kept, total) in counts.items():
        print(f"{path.name}: {kept} of {total} addends at hand{', taken' if path == best else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
