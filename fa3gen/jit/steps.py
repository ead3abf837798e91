"""The steps of a build, as ninja reads them; each has a log beside what it makes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fa3gen.jit import finish
from fa3gen.jit.toolchain import Toolchain
from fa3gen.paths import INCLUDE

if TYPE_CHECKING:
    from fa3gen.codegen.source import KernelSource, OpSource

__all__ = [
    "DEVICE_FLAGS",
    "HOST_FLAGS",
    "LINK_FLAGS",
    "LINK_LIBRARIES",
    "build_graph",
    "intermediates_of",
    "objects_of",
]

DEVICE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-cubin",
    "-frandom-seed=0",  # internal names without the compiler's process id
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

Words: TypeAlias = "Sequence[str | Path]"
_HOST_OBJECT = "host.o"


def build_graph(source: OpSource, library: str, toolchain: Toolchain) -> str:
    """The text of build.ninja, from the kernels' and the host's sources to ``library``."""
    cxx, ours = toolchain.cxx, f"-I{INCLUDE}"
    cuda = [f"-I{path}" for path in toolchain.cuda_include]
    system = [flag for path in toolchain.cuda_include for flag in ("-isystem", str(path))]
    device: list[str | Path] = [toolchain.nvcc, "-ccbin", cxx, *DEVICE_FLAGS, ours]
    device += [f"-I{toolchain.cutlass_include}"]
    host: list[str | Path] = [cxx, *HOST_FLAGS, ours, "-isystem", toolchain.torch_include]
    host += system
    link: list[str | Path] = [cxx, *LINK_FLAGS, *objects_of(source), toolchain.cudart_static]
    steps = [
        *(step for kernel in source.units for step in _cubin(kernel, device)),
        *(_embedded(kernel, [cxx, *cuda, "-c", "cubin.S"]) for kernel in source.units),
        _step("host", [*host, "-c", "host.cpp", "-o", _HOST_OBJECT], _HOST_OBJECT, "host.cpp"),
        _step(
            "link",
            [*link, f"-L{toolchain.torch_lib}", *LINK_LIBRARIES, "-o", library],
            library,
            " ".join(objects_of(source)),
        ),
    ]
    return "ninja_required_version = 1.5\n\n" + "\n".join(steps)


def objects_of(source: OpSource) -> tuple[str, ...]:
    """What is linked."""
    return (_HOST_OBJECT, *(f"{kernel.meta.stem}.o" for kernel in source.units))


def intermediates_of(source: OpSource) -> tuple[str, ...]:
    """The cubins on the way to those that are embedded."""
    return tuple(cubin for kernel in source.units for cubin in _assembled(kernel))


def _assembled(kernel: KernelSource) -> tuple[str, ...]:
    """What the assembler makes of a kernel."""
    if kernel.alternative is not None:
        return (f"{kernel.meta.stem}.first.cubin", f"{kernel.meta.stem}.second.cubin")
    return (f"{kernel.meta.stem}.assembled.cubin",)


def _cubin(kernel: KernelSource, command: Words) -> list[str]:
    """A kernel's cubin, finished: from one compilation or the better of two, and paced or not."""
    stem = kernel.meta.stem
    text, cubin, assembled = f"{stem}.cu", f"{stem}.cubin", _assembled(kernel)
    steps = []
    for index, made in enumerate(assembled):
        spelling = [] if kernel.alternative is None else [f"-D{kernel.alternative}={index}"]
        words = [*command, *spelling, text, "-o", made]
        steps.append(_step(f"{stem}_{index}", words, made, text))
    pace = ["--pace"] * kernel.paced
    words = [sys.executable, "-I", finish.__file__, cubin, *pace, *assembled]
    return [*steps, _step(f"{stem}_finish", words, cubin, " ".join(assembled))]


def _embedded(kernel: KernelSource, command: Words) -> str:
    stem = kernel.meta.stem
    macros = [f"-DFA3GEN_SYMBOL=fa3gen_{stem}", f'-DFA3GEN_FILE="{stem}.cubin"']
    output = f"{stem}.o"
    words = [*command, *macros, "-o", output]
    return _step(f"{stem}_embed", words, output, f"cubin.S | {stem}.cubin")


def _step(rule: str, command: Words, output: str, inputs: str) -> str:
    words = shlex.join(map(str, command)).replace("$", "$$")
    return (
        f"rule {rule}\n"
        f"  command = {words} > {output}.log 2>&1\n"
        f"  description = {inputs.split(' | ')[0]} -> {output}\n"
        f"build {output}: {rule} {inputs}\n"
    )
