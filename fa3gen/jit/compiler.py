"""From KernelSource to Artifact: nvcc and the C++ compiler side by side, then one link.

::

    kernel.cu --nvcc--> kernel.cubin --as--> cubin.o ─┐
    host.cpp  --c++-------------------------> host.o ─┴─> <op>.so

A kernel with another spelling is compiled in both, and the better cubin becomes kernel.cubin
(``fa3gen.jit.pick``).
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fa3gen.debug import COMPILER
from fa3gen.errors import BuildError
from fa3gen.jit import pick
from fa3gen.jit.gates import KernelUsage, check_ptxas_log
from fa3gen.jit.toolchain import Toolchain
from fa3gen.paths import INCLUDE
from fa3gen.runtime.artifact import Artifact, file_sha256

if TYPE_CHECKING:
    from fa3gen.codegen.source import KernelSource

__all__ = ["DEVICE_FLAGS", "HOST_FLAGS", "LINK_FLAGS", "Progress", "build"]

Progress = Callable[[str], None]

TORCH_ABI = "2.10"
JOBS = 2

DEVICE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-cubin",
    "--expt-relaxed-constexpr",
    "-Xptxas",
    "-v",
)
HOST_FLAGS = (
    "-std=c++20",  # designated initializers
    "-O2",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",  # two kernels in one process must not share the headers' state
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
LINK_FLAGS = ("-shared", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL")
LINK_LIBRARIES = ("-ltorch_cpu", "-ldl", "-lpthread", "-lrt")

_STATUS = "step "  # marks ninja's own lines
_ERROR_LINE = re.compile(r"(?:\berror\b|\bfatal\b|undefined reference|undefined symbol)", re.I)
_MAX_ERRORS = 5
_SPELLINGS = ("first.cubin", "second.cubin")
_TEMPORARY = ("build.ninja", ".ninja_log", ".ninja_deps", "cubin.S", "cubin.o", "host.o")


def build(
    source: KernelSource,
    directory: str | Path,
    toolchain: Toolchain,
    progress: Progress | None = None,
) -> Artifact:
    """Builds ``source`` in ``directory``, which is made if missing.

    Leaves the sources, the cubin, the shared library, ``build.log`` and the manifest there; after
    a failure also what ninja needs to go on. ``progress`` is told at the start and after each
    step. Raises BuildError with the compiler's first errors, or with the line of its log that a
    gate refused.
    """
    started = time.monotonic()
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if progress:
        progress(f"{source.meta.op_name}: compiling with {toolchain.fingerprint}")
    _write_inputs(source, directory, toolchain)
    succeeded = _run_ninja(directory, toolchain, progress)
    log = _collect_log(directory, succeeded)
    logging.getLogger("fa3gen.jit").log(COMPILER, "%s", log)
    if not succeeded:
        raise BuildError(_first_errors(log, directory / "build.log"))
    usage = check_ptxas_log(log, source.meta.symbol)
    for name in (*_TEMPORARY, *_SPELLINGS, *(f"{cubin}.log" for cubin in _SPELLINGS)):
        (directory / name).unlink(missing_ok=True)
    artifact = _artifact(source, directory, toolchain, usage, time.monotonic() - started)
    artifact.write()
    if progress:
        progress(
            f"{source.meta.op_name}: built in {artifact.build_seconds:.1f} s, "
            f"{usage.registers} registers, no spills"
        )
    return artifact


def _artifact(
    source: KernelSource, directory: Path, toolchain: Toolchain, usage: KernelUsage, seconds: float
) -> Artifact:
    meta = source.meta
    library = _library_name(source)
    return Artifact(
        directory=directory,
        name=meta.name,
        op_name=meta.op_name,
        symbol=meta.symbol,
        dtype=meta.dtype,
        head_dim_qk=meta.head_dim_qk,
        head_dim_v=meta.head_dim_v,
        block_m=meta.block_m,
        block_n=meta.block_n,
        threads=meta.threads,
        smem_bytes=meta.smem_bytes,
        registers=usage.registers,
        spill_bytes=usage.spill_bytes,
        build_seconds=round(seconds, 3),
        library=library,
        library_sha256=file_sha256(directory / library),
        nvcc=toolchain.nvcc_version,
        cxx=toolchain.cxx_version,
        cutlass=toolchain.cutlass_version,
        torch_abi=TORCH_ABI,
    )


def _library_name(source: KernelSource) -> str:
    return f"{source.meta.op_name}.so"


def _write_inputs(source: KernelSource, directory: Path, toolchain: Toolchain) -> None:
    (directory / "kernel.cu").write_text(source.device, encoding="utf-8")
    (directory / "host.cpp").write_text(source.host, encoding="utf-8")
    shutil.copyfile(INCLUDE / "fa3gen/host/cubin.S", directory / "cubin.S")
    ninja_file = _ninja_file(source, toolchain)
    (directory / "build.ninja").write_text(ninja_file, encoding="utf-8")


def _ninja_file(source: KernelSource, toolchain: Toolchain) -> str:
    """The build graph. Each step's output goes to a log of its own beside what it makes."""
    library = _library_name(source)
    cuda = [f"-I{path}" for path in toolchain.cuda_include]
    ours = f"-I{INCLUDE}"
    system = [flag for path in toolchain.cuda_include for flag in ("-isystem", str(path))]
    device: list[str | Path] = [toolchain.nvcc, "-ccbin", toolchain.cxx, *DEVICE_FLAGS, ours]
    device += [f"-I{toolchain.cutlass_include}", "kernel.cu"]
    host: list[str | Path] = [toolchain.cxx, *HOST_FLAGS, ours, "-isystem", toolchain.torch_include]
    host += [*system, "-c", "host.cpp", "-o", "host.o"]
    assemble: list[str | Path] = [toolchain.cxx, *cuda, "-c", "cubin.S", "-o", "cubin.o"]
    link: list[str | Path] = [toolchain.cxx, *LINK_FLAGS, "host.o", "cubin.o"]
    link += [toolchain.cudart_static, f"-L{toolchain.torch_lib}", *LINK_LIBRARIES, "-o", library]
    steps = [
        *_device_steps(device, source.alternative),
        _ninja_step("host", host, "host.o", "host.cpp"),
        _ninja_step("assemble", assemble, "cubin.o", "cubin.S | kernel.cubin"),
        _ninja_step("link", link, library, "host.o cubin.o"),
    ]
    return "ninja_required_version = 1.5\n\n" + "\n".join(steps)


def _device_steps(command: list[str | Path], alternative: str | None) -> list[str]:
    """kernel.cubin, from one compilation or the better of two."""
    if alternative is None:
        return [
            _ninja_step("device", [*command, "-o", "kernel.cubin"], "kernel.cubin", "kernel.cu")
        ]
    steps = [
        _ninja_step(
            f"device{index}",
            [*command, f"-D{alternative}={index}", "-o", cubin],
            cubin,
            "kernel.cu",
        )
        for index, cubin in enumerate(_SPELLINGS)
    ]
    choose = [sys.executable, "-I", pick.__file__, "kernel.cubin", *_SPELLINGS]
    return [*steps, _ninja_step("pick", choose, "kernel.cubin", " ".join(_SPELLINGS))]


def _ninja_step(rule: str, command: Sequence[str | Path], output: str, inputs: str) -> str:
    words = shlex.join(map(str, command)).replace("$", "$$")
    return (
        f"rule {rule}\n"
        f"  command = {words} > {output}.log 2>&1\n"
        f"  description = {inputs.split(' | ')[0]} -> {output}\n"
        f"build {output}: {rule} {inputs}\n"
    )


def _run_ninja(directory: Path, toolchain: Toolchain, progress: Progress | None) -> bool:
    environment = {**os.environ, "NINJA_STATUS": f"{_STATUS}%f/%t: "}
    command = [str(toolchain.ninja), "-C", str(directory), "-j", str(JOBS)]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if progress and line.startswith(_STATUS):
                    progress(line.rstrip())
        except BaseException:
            process.terminate()  # ninja ends the compilers it has started
            raise
    return process.returncode == 0


def _collect_log(directory: Path, succeeded: bool) -> str:
    """Joins the steps' logs into build.log and returns its text. Of two spellings the log of the
    kernel has that of the one taken."""
    parts = []
    spellings = () if succeeded else _SPELLINGS
    for output in (*spellings, "kernel.cubin", "host.o", "cubin.o", "*.so"):
        for path in sorted(directory.glob(f"{output}.log")):
            parts.append(f"== {path.stem}\n" + path.read_text(encoding="utf-8", errors="replace"))
            path.unlink()
    log = "\n".join(parts)
    (directory / "build.log").write_text(log, encoding="utf-8")
    return log


def _first_errors(log: str, path: Path) -> str:
    """The log's first errors, or its end where none can be told apart."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    shown = errors[:_MAX_ERRORS] or lines[-_MAX_ERRORS:] or ["no output"]
    more = len(errors) - len(shown)
    tail = f"\n  and {more} more" if more > 0 else ""
    return "the build failed:\n  " + "\n  ".join(shown) + f"{tail}\nall of it is in {path}"
