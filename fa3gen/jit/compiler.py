"""From OpSource to Artifact: nvcc and the C++ compiler side by side, then one link.

::

    kernel.cu --nvcc--> --finish--> kernel.cubin --as--> kernel.o ─┐
    host.cpp  --c++-------------------------------------> host.o ──┴─> <op>.so

Each kernel of a variant goes the way of kernel.cu. One with another spelling is compiled in both,
and its stall counts may be lowered (``fa3gen.jit.finish``). The same source gives the same bytes,
wherever it is built.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fa3gen.debug import COMPILER
from fa3gen.errors import BuildError
from fa3gen.jit.gates import KernelUsage, check_ptxas_log
from fa3gen.jit.steps import build_graph, intermediates_of, objects_of
from fa3gen.jit.toolchain import Toolchain
from fa3gen.paths import INCLUDE
from fa3gen.runtime.artifact import Artifact, KernelFacts, file_sha256

if TYPE_CHECKING:
    from fa3gen.codegen.source import KernelSource, OpSource

__all__ = ["Progress", "build"]

Progress = Callable[[str], None]

TORCH_ABI = "2.10"
JOBS = 2

_STATUS = "step "  # marks ninja's own lines
_FAILED = "FAILED: "  # begins its line on a step that failed, which ends with the step's output
_ERROR_LINE = re.compile(r"(?:\berror\b|\bfatal\b|undefined reference|undefined symbol)", re.I)
_MAX_ERRORS = 5
LOG = "build.log"
_TEMPORARY = ("build.ninja", ".ninja_log", ".ninja_deps", "cubin.S")


def build(
    source: OpSource,
    directory: str | Path,
    toolchain: Toolchain,
    progress: Progress | None = None,
) -> Artifact:
    """Builds ``source`` in ``directory``, which is made if missing.

    Leaves the sources, the cubin, the shared library, ``build.log`` and the manifest there; after
    a failure also what ninja needs to go on. ``progress`` is told at the start and after each
    step. Raises BuildError with the compiler's first errors, or with the line of its log that a
    gate refused, and OSError where the directory cannot be written.
    """
    started = time.monotonic()
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if progress:
        progress(f"{source.meta.op_name}: compiling with {toolchain.fingerprint}")
    _write_inputs(source, directory, toolchain)
    refused = _run_ninja(directory, toolchain, progress)
    succeeded = refused is None
    log = _collect_log(source, directory, refused)
    logging.getLogger("fa3gen.jit").log(COMPILER, "%s", log)
    if not succeeded:
        raise BuildError(_first_errors(log, directory / LOG))
    facts = tuple(
        _facts(kernel, check_ptxas_log(log, kernel.meta.symbol)) for kernel in source.kernels
    )
    if source.lists is not None:
        check_ptxas_log(log, source.lists.meta.symbol)
    for name in (*_TEMPORARY, *objects_of(source), *intermediates_of(source)):
        (directory / name).unlink(missing_ok=True)
    artifact = _artifact(source, directory, toolchain, facts, time.monotonic() - started)
    artifact.write()
    if progress:
        progress(
            f"{source.meta.op_name}: built in {artifact.build_seconds:.1f} s, "
            f"{' and '.join(str(kernel.registers) for kernel in facts)} registers, no spills"
        )
    return artifact


def _facts(kernel: KernelSource, usage: KernelUsage) -> KernelFacts:
    meta = kernel.meta
    return KernelFacts(
        symbol=meta.symbol,
        max_keys=meta.max_keys,
        block_m=meta.block_m,
        block_n=meta.block_n,
        threads=meta.threads,
        smem_bytes=meta.smem_bytes,
        registers=usage.registers,
        spill_bytes=usage.spill_bytes,
    )


def _artifact(
    source: OpSource,
    directory: Path,
    toolchain: Toolchain,
    kernels: tuple[KernelFacts, ...],
    seconds: float,
) -> Artifact:
    meta = source.meta
    library = _library_name(source)
    return Artifact(
        directory=directory,
        name=meta.name,
        op_name=meta.op_name,
        dtype=meta.dtype,
        head_dim_qk=meta.head_dim_qk,
        head_dim_v=meta.head_dim_v,
        inputs=meta.inputs,
        listed=meta.listed,
        kernels=kernels,
        build_seconds=round(seconds, 3),
        library=library,
        library_sha256=file_sha256(directory / library),
        nvcc=toolchain.nvcc_version,
        cxx=toolchain.cxx_version,
        cutlass=toolchain.cutlass_version,
        torch_abi=TORCH_ABI,
    )


def _library_name(source: OpSource) -> str:
    return f"{source.meta.op_name}.so"


def _write_inputs(source: OpSource, directory: Path, toolchain: Toolchain) -> None:
    for kernel in source.units:
        (directory / f"{kernel.meta.stem}.cu").write_text(kernel.text, encoding="utf-8")
    (directory / "host.cpp").write_text(source.host, encoding="utf-8")
    shutil.copyfile(INCLUDE / "fa3gen/host/cubin.S", directory / "cubin.S")
    ninja_file = build_graph(source, _library_name(source), toolchain)
    (directory / "build.ninja").write_text(ninja_file, encoding="utf-8")


def _run_ninja(directory: Path, toolchain: Toolchain, progress: Progress | None) -> str | None:
    """None if all steps succeeded, else what ninja and the shells of its steps said."""
    said = []
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
                if not line.startswith(_STATUS):
                    said.append(line)
                elif progress:
                    progress(line.rstrip())
        except BaseException:
            process.terminate()  # ninja ends the compilers it has started
            raise
    return None if process.returncode == 0 else "".join(said)


def _collect_log(source: OpSource, directory: Path, refused: str | None) -> str:
    """Joins ``refused`` and the steps' logs, of the failed last, into build.log and returns its
    text. A kernel's log has that of the spelling taken."""
    parts = [f"== ninja\n{refused}"] if refused else []
    unused = {f"{name}.log" for name in intermediates_of(source)} if refused is None else set()
    failed = {line.split()[-1] for line in (refused or "").splitlines() if line.startswith(_FAILED)}
    for path in sorted(directory.glob("*.log"), key=lambda log: (log.stem in failed, log.name)):
        if path.name != LOG and path.name not in unused:
            text = path.read_text(encoding="utf-8", errors="replace")
            parts.append(f"== {path.stem}\n{text}")
        path.unlink()
    log = "\n".join(parts)
    (directory / LOG).write_text(log, encoding="utf-8")
    return log


def _first_errors(log: str, path: Path) -> str:
    """The log's first errors, or its end where none can be told apart."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    shown = errors[:_MAX_ERRORS] or lines[-_MAX_ERRORS:] or ["no output"]
    more = len(errors) - len(shown)
    tail = f"\n  and {more} more" if more > 0 else ""
    return "the build failed:\n  " + "\n  ".join(shown) + f"{tail}\nall of it is in {path}"
