from __future__ import annotations

import pytest

from fa3gen.errors import BuildError
from fa3gen.jit.gates import KernelUsage, check_ptxas_log

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers
ptxas info    : Compile time = 25.608 ms
"""


def test_clean_log() -> None:
    assert check_ptxas_log(CLEAN, "kernel") == KernelUsage(registers=168, spill_bytes=0)


INJECTED = (
    "ptxas info    : (C7519) warpgroup.arrive is injected in around line 3114 by compiler to allow "
    "use of registers in GMMA in function 'kernel'\n"
)


def test_an_injected_fence_passes() -> None:
    assert check_ptxas_log(INJECTED + CLEAN + INJECTED, "kernel").registers == 168


@pytest.mark.parametrize(
    "line",
    [
        INJECTED.replace("C7519", "C7517"),  # an injected wait, which ends the overlap
        INJECTED.replace("C7519", "C7518"),
        INJECTED.replace("warpgroup", "Potential Performance Loss: warpgroup"),
        INJECTED.strip() + " (C7510)\n",
    ],
)
def test_no_other_message_passes_with_it(line: str) -> None:
    with pytest.raises(BuildError, match="gives up performance"):
        check_ptxas_log(CLEAN + INJECTED + line, "kernel")


def test_registers_are_those_of_the_named_kernel() -> None:
    other = CLEAN.replace("'kernel'", "'other'").replace("168", "32")
    assert check_ptxas_log(other + CLEAN, "kernel").registers == 168


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources for the wgmma pipeline in 'kernel'",
        "ptxas info    : Potential Performance Loss: 'setmaxnreg' ignored",
        "ptxas warning : (C7508) setmaxnreg ignored; unable to determine register count at entry",
        "ptxas info    : (C7517) wgmma pipeline crosses function boundary",
        "ptxas info    : (C7599) some later message of the family",
    ],
)
def test_lost_performance_fails(line: str) -> None:
    with pytest.raises(BuildError) as caught:
        check_ptxas_log(CLEAN + line + "\n", "kernel")
    assert line in str(caught.value)


@pytest.mark.parametrize("numbers", [(8, 0, 0), (0, 4, 0), (0, 0, 12), (1032, 64, 96)])
def test_local_memory_fails(numbers: tuple[int, int, int]) -> None:
    line = "{} bytes stack frame, {} bytes spill stores, {} bytes spill loads".format(*numbers)
    log = CLEAN.replace("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", line)
    with pytest.raises(BuildError, match="registers, without local memory") as caught:
        check_ptxas_log(log, "kernel")
    assert line in str(caught.value)


def test_missing_kernel_fails() -> None:
    with pytest.raises(BuildError, match=r"must have the kernel other \(got kernel\)"):
        check_ptxas_log(CLEAN, "other")
