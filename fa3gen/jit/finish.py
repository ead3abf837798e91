"""From the assembler's cubins to the one that is embedded: the better of two, and paced.

A step of the build, run as a program of its own: ``python finish.py OUT [--pace] CUBIN...`` takes
the cubin whose instructions fetch the fewest operands anew, lowers stall counts before exponentials
if asked, takes the build's folder out of it, and prints the log beside it.

*Operands at hand.* An SM's register file has two banks, even and odd registers, and the tensor core
takes a large part of what they deliver. The assembler keeps an operand at hand for the next
instructions (``.reuse``), but it loses it where an instruction in between reads a register of the
same bank in the same place. Whether that happens in the loop that scales scores and compares them
(``lazy_softmax.cuh``) depends on the register that the row's shift is given, and costs up to 8 % of
a kernel. The source cannot name registers, so it is compiled with both orders of the compared
columns.

*Stall counts.* Every instruction carries the number of cycles after which its warp may issue the
next one. The assembler uses it to space MUFU instructions 8 cycles apart, which is what the unit
takes for a warp that has it alone. But the unit's queue holds a warp back by itself, and where
several warps and a running product compete for issue slots and register ports, each delay adds to
the fixed 8 cycles instead of going into them: a block of 64 exponentials takes 900 cycles and more,
not 512.

What a count must still do, beside pacing, is to keep an instruction of fixed latency ahead of those
that read its result, and a MUFU, which reads its operand some time after its issue, ahead of those
that write there. So the following come no closer than they were, if they were closer than such
latencies: ``_NEAR`` cycles from the arithmetic between exponentials to whatever may read its
result; ``_FAR`` cycles from any other instruction to all that follow, and from a MUFU to whatever
may write its operand. ``_FAR`` cycles behind a place that is branched to no count is lowered, for
what came before is not what stands before. Results of MUFU and memory are waited for by
scoreboards, which stay as they are. The fields of an instruction are those that public
disassemblers print; a field that is no register at worst keeps a count higher than need be.

*The folder.* In the names of what is internal to a file, nvcc has a hash of the file's whole path,
which ``-frandom-seed`` leaves alone. Zeros in its place make a kernel's bytes follow from its text.
"""

from __future__ import annotations

import itertools
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["main", "operand_reuse", "paced", "paced_cubin", "placeless"]

# Instructions of sm_90, 16 bytes each: the operation without its operands' kinds is in the lowest 9
# bits, registers in bits 16-23 (written), 24-31, 32-39 and 64-71, the stall count in bits 105-108.
_MUFU = 0x108
_BRANCH = 0x147  # to 4 * (bits 34-81, bits 16-23) bytes behind the next instruction
_NOP = 0x118
_CONVERT = 0x03E  # F2FP: two cycles an issue
_ARITHMETIC = frozenset({_MUFU, _CONVERT, 0x020, 0x021, 0x023, 0x024, 0x002})  # FMUL FADD FFMA ..
_STALL_BIT = 105 - 64
_ZERO = 255  # reads as 0, and takes no result
_NEAR = 6  # no latency of _ARITHMETIC is longer
_FAR = 20  # nor of any other instruction of fixed latency
_FFMA_UNIFORM = 0xC23  # register times uniform register plus register, all 12 bits
_REUSE_BIT = 124 - 64  # of the third operand
_INTERNAL = re.compile(rb"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}(?=_)")
_SECTION = struct.Struct("<IIQQQQIIQQ")  # of a 64-bit ELF file


def operand_reuse(cubin: bytes) -> tuple[int, int]:
    """How many FFMAs by a uniform register have their addend at hand, and how many there are."""
    kept = total = 0
    for begin, end in _code(cubin):
        for low, high in struct.iter_unpack("<QQ", cubin[begin:end]):
            if low & 0xFFF == _FFMA_UNIFORM and high & 0xFF != _ZERO:
                total += 1
                kept += high >> _REUSE_BIT & 1
    return kept, total


def _code(cubin: bytes) -> Iterator[tuple[int, int]]:
    """Where the sections of an ELF file that hold instructions begin and end."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [_SECTION.unpack_from(cubin, table + size * i) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length, *_ in sections:
        if cubin[strings + name :].startswith(b".text."):
            yield offset, offset + length


# --- stall counts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Instruction:
    """What matters of an instruction."""

    operation: int
    written: int
    read: frozenset[int]
    stall: int

    @staticmethod
    def of(low: int, high: int) -> _Instruction:
        fields = (low >> 24 & 0xFF, low >> 32 & 0xFF, high & 0xFF)
        return _Instruction(
            low & 0x1FF, low >> 16 & 0xFF, frozenset(fields) - {_ZERO}, high >> _STALL_BIT & 15
        )

    @property
    def is_arithmetic(self) -> bool:
        return self.operation in _ARITHMETIC

    @property
    def least(self) -> int:
        """The count that its own issue needs."""
        return 2 if self.operation in (_MUFU, _CONVERT) else 1

    def distance(self, later: _Instruction) -> int:
        """Cycles that keep a later instruction behind this one, if they were as many."""
        if self.operation == _NOP:
            return 0
        if not self.is_arithmetic:
            return _FAR
        if self.operation == _MUFU and (not later.is_arithmetic or later.written in self.read):
            return _FAR
        reads = not later.is_arithmetic or self.written in later.read
        return _NEAR if reads or self.written == later.written else 0


def paced(words: Sequence[tuple[int, int]]) -> list[int]:
    """The stall counts of a straight run of instructions, (low, high) 64-bit words each."""
    code = [_Instruction.of(*word) for word in words]
    stalls = [one.stall for one in code]
    kept = _behind_branches(code, words)
    for index, (one, following) in enumerate(itertools.pairwise(code)):
        if following.operation == _MUFU and one.is_arithmetic and index not in kept:
            stalls[index] = min(one.stall, one.least)
    for index in range(len(code)):
        _keep_behind(code, stalls, index)
    return stalls


def _behind_branches(code: Sequence[_Instruction], words: Sequence[tuple[int, int]]) -> set[int]:
    """The instructions less than ``_FAR`` cycles behind one that is branched to."""
    found: set[int] = set()
    for index, (one, (low, high)) in enumerate(zip(code, words, strict=True)):
        if one.operation != _BRANCH:
            continue
        blocks = (low >> 34 | high << 30) & (1 << 48) - 1
        blocks -= blocks >> 47 << 48
        at = index + 1 + (blocks << 8 | low >> 16 & 0xFF) * 4 // 16
        passed = 0
        while 0 <= at < len(code) and passed < _FAR:
            found.add(at)
            passed += max(code[at].stall, 1)
            at += 1
    return found


def _keep_behind(code: Sequence[_Instruction], stalls: list[int], index: int) -> None:
    """Raise lowered counts until an instruction is as far behind the ones before as it must be."""
    was = now = 0
    for earlier in range(index - 1, -1, -1):
        was += max(code[earlier].stall, 1)
        now += max(stalls[earlier], 1)
        missing = min(was, code[earlier].distance(code[index])) - now
        for place in range(index - 1, earlier - 1, -1):
            if missing <= 0:
                break
            raised = min(missing, code[place].stall - stalls[place])
            stalls[place] += raised
            now += raised
            missing -= raised
        if now >= _FAR:
            break


def paced_cubin(cubin: bytes) -> tuple[bytes, int, int]:
    """A cubin with lower counts, how many of them, and the cycles that they have less."""
    result, changed, saved = bytearray(cubin), 0, 0
    for begin, end in _code(cubin):
        words = list(struct.iter_unpack("<QQ", cubin[begin:end]))
        for index, ((low, high), stall) in enumerate(zip(words, paced(words), strict=True)):
            before = high >> _STALL_BIT & 15
            changed += stall != before
            saved += before - stall
            high += (stall - before) << _STALL_BIT
            struct.pack_into("<QQ", result, begin + 16 * index, low, high)
    return bytes(result), changed, saved


def placeless(cubin: bytes) -> bytes:
    """A cubin that does not tell the folder of its source."""
    return _INTERNAL.sub(rb"\g<1>00000000", cubin)


def main(arguments: list[str]) -> None:
    """Write the best of the cubins ``arguments[1:]``, the first of equals, to ``arguments[0]``;
    paced if a word among them is ``--pace``."""
    target, *paths = (Path(word) for word in arguments if word != "--pace")
    best, counts = paths[0], {}
    if len(paths) > 1:
        counts = {path: operand_reuse(path.read_bytes()) for path in paths}
        best = max(paths, key=lambda path: counts[path][0])
    cubin = best.read_bytes()
    print(best.with_name(f"{best.name}.log").read_text(encoding="utf-8", errors="replace"), end="")
    for path, (kept, total) in counts.items():
        taken = ", taken" if path == best else ""
        print(f"{path.name}: {kept} of {total} addends at hand{taken}")
    if "--pace" in arguments:
        cubin, changed, saved = paced_cubin(cubin)
        print(f"{target.name}: {changed} stall counts lowered, by {saved} cycles together")
    target.write_bytes(placeless(cubin))


if __name__ == "__main__":
    main(sys.argv[1:])
