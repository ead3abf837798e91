"""Build gates: what ptxas says of a kernel that must not be shipped, though it compiles."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fa3gen.errors import BuildError, PressureError

__all__ = ["KernelUsage", "check_ptxas_log"]

# The C75xx messages are infos and warnings: wgmma serialized (C7510 and its like, "Potential
# Performance Loss"), setmaxnreg ignored (C7508). Each costs a large part of the speed. C7519 does
# not: ptxas adds a wgmma.fence of its own, one instruction, before a product that reads registers.
_PERFORMANCE = re.compile(r"Potential Performance Loss|\bC75(?!19)\d\d\b")
_LOCAL = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", re.ASCII
)
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class KernelUsage:
    """What a kernel uses, as ptxas reports it."""

    registers: int  # of a thread at entry
    spill_bytes: int  # stores and loads


def check_ptxas_log(log: str, symbol: str) -> KernelUsage:
    """Reads the log of ``nvcc -Xptxas -v``.

    Raises PressureError, quoting the line, on lost performance (wgmma serialized, setmaxnreg
    ignored) and on local memory and spills anywhere in the log; BuildError where kernel ``symbol``
    is absent.
    """
    registers: dict[str, int] = {}
    entry = ""
    spill_bytes = 0
    for line in log.splitlines():
        if _PERFORMANCE.search(line):
            raise PressureError(f"{symbol}: ptxas gives up performance: {line.strip()}")
        if local := _LOCAL.search(line):
            frame, stores, loads = map(int, local.groups())
            spill_bytes += stores + loads
            if frame or stores or loads:
                raise PressureError(
                    f"{symbol}: a kernel must keep its values in registers, without local memory: "
                    f"{line.strip()}"
                )
        if name := _ENTRY.search(line):
            entry = name[1]
        if used := _REGISTERS.search(line):
            registers.setdefault(entry, int(used[1]))
    if symbol not in registers:
        found = ", ".join(sorted(registers)) or "none"
        raise BuildError(f"the cubin must have the kernel {symbol} (got {found})")
    return KernelUsage(registers[symbol], spill_bytes)
