"""What this machine has of all that fa3gen needs: each part found, or why not and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fa3gen.errors import ToolchainError
from fa3gen.jit import steps
from fa3gen.jit.entries import open_cache
from fa3gen.jit.toolchain import (
    CUTLASS,
    TORCH,
    Toolchain,
    cuda_paths,
    cxx_version,
    find_cudart,
    find_cxx,
    find_ninja,
    find_nvcc,
    find_package,
    find_toolchain,
)

__all__ = ["Finding", "examine"]

MINIMUM_TORCH = (2, 10)
MINIMUM_CXX = 10  # g++: designated initializers, C++20
_PACKAGES = {
    "filelock": "filelock",
    "jinja2": "jinja2",
    "networkx": "networkx",
    "ninja": "ninja",
    "platformdirs": "platformdirs",
    "pydantic": "pydantic",
    "rich": "rich",
    "sympy": "sympy",
    "typer": "typer",
    "yaml": "pyyaml",
}
_DEVICE_TRIAL = '#include <cutlass/numeric_types.h>\nextern "C" __global__ void trial() {}\n'
_HOST_TRIAL = "#include <cuda.h>\n#include <torch/csrc/stable/library.h>\n"


@dataclass(frozen=True)
class Finding:
    """One part. ``needed``: kernels cannot be built without it."""

    part: str
    works: bool
    detail: str  # what was found, or what is wrong and how to get it
    needed: bool = True

    @property
    def verdict(self) -> str:
        """ok, missing, or note where it can be done without."""
        return "ok" if self.works else "missing" if self.needed else "note"

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "verdict": self.verdict}


def examine() -> list[Finding]:
    """Every part, in the order of need. Compiles two small files to see the compilers work."""
    findings = [
        Finding("Python", True, platform.python_version()),
        _try("packages", _packages),
        _try("torch", _torch),
        _try("GPU", _gpu, needed=False),
        _try("nvcc", _nvcc),
        _try("CUDA headers", _cuda),
        _try("C++ compiler", _cxx),
        _try("CUTLASS headers", _cutlass),
        _try("ninja", lambda: str(find_ninja())),
        _try("cuobjdump", _cuobjdump, needed=False),
        _try("cache", _cache, needed=False),
    ]
    if all(finding.works for finding in findings if finding.needed):
        toolchain = find_toolchain()
        findings.append(_try("device code", lambda: _compile_device(toolchain)))
        findings.append(_try("host code", lambda: _compile_host(toolchain)))
    return findings


def _try(part: str, find: Callable[[], str], *, needed: bool = True) -> Finding:
    try:
        return Finding(part, True, find(), needed)
    except ToolchainError as error:
        return Finding(part, False, str(error), needed)


def _packages() -> str:
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ToolchainError(f"missing; `pip install {' '.join(missing)}`")
    return f"{len(_PACKAGES)} found"


def _torch() -> str:
    version = importlib.metadata.version("torch")
    folder = find_package(*TORCH)
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release < MINIMUM_TORCH:
        raise ToolchainError(f"must be 2.10 or newer (got {version}); `pip install '{TORCH[1]}'`")
    header = folder / "include/torch/csrc/stable/library.h"
    if not header.is_file():
        raise ToolchainError(f"{header} is missing; install torch again")
    return f"{version}, headers in {folder / 'include'}"


def _gpu() -> str:
    import torch

    from fa3gen.runtime.attention import CAPABILITY

    remedy = "kernels can be built here; they run on an H100, H200 or another Hopper GPU"
    if torch.version.cuda is None:
        raise ToolchainError(f"torch {torch.__version__} is built without CUDA; {remedy}")
    if not torch.cuda.is_available():
        raise ToolchainError(f"torch sees none; see that `nvidia-smi` does; {remedy}")
    names = []
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        names.append(f"{torch.cuda.get_device_name(device)} ({major}.{minor})")
        if (major, minor) == CAPABILITY:
            return f"{names[-1]}, torch's CUDA {torch.version.cuda}"
    raise ToolchainError(f"compute capability must be 9.0 (got {', '.join(names)}); {remedy}")


def _nvcc() -> str:
    nvcc, version = find_nvcc()
    return f"{version}, {nvcc}"


def _cuda() -> str:
    nvcc, _ = find_nvcc()
    include, libraries = cuda_paths(nvcc)
    for header in ("cuda.h", "cuda_runtime_api.h"):
        if not any((folder / header).is_file() for folder in include):
            raise ToolchainError(
                f"{header} is not in {include[0]}; install the CUDA toolkit's development files, "
                "or `pip install 'fa3gen[nvcc]'`"
            )
    return f"{include[0]}, {find_cudart(nvcc, libraries).name}"


def _cxx() -> str:
    cxx = find_cxx()
    version = cxx_version(cxx)
    if "clang" not in cxx.name and int(version.split(".")[0]) < MINIMUM_CXX:
        raise ToolchainError(f"g++ must be 10 or newer (got {version}, {cxx}); set CXX to one")
    return f"{version}, {cxx}"


def _cutlass() -> str:
    include = find_package(*CUTLASS) / "source/include"
    if not (include / "cute/tensor.hpp").is_file():
        raise ToolchainError(f"{include} has no cute/tensor.hpp; `pip install '{CUTLASS[1]}'`")
    return str(include)


def _cuobjdump() -> str:
    for place in _cuobjdumps():
        if place.is_file():
            return str(place)
    raise ToolchainError(
        "only for looking at machine code; it comes with the CUDA toolkit and with triton"
    )


def _cuobjdumps() -> Iterator[Path]:
    if on_path := shutil.which("cuobjdump"):
        yield Path(on_path)
    if triton := importlib.util.find_spec("triton"):
        for folder in triton.submodule_search_locations or []:
            yield Path(folder) / "backends/nvidia/bin/cuobjdump"


def _cache() -> str:
    try:
        root = open_cache()
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise ToolchainError(
            f"cannot be used ({error}): kernels are built anew in each process; set "
            "FA3GEN_CACHE_DIR to a directory of your own"
        ) from error
    return str(root)


def _compile_device(toolchain: Toolchain) -> str:
    include = [f"-I{toolchain.cutlass_include}", *(f"-I{path}" for path in toolchain.cuda_include)]
    nvcc = [str(toolchain.nvcc), "-ccbin", str(toolchain.cxx), *steps.DEVICE_FLAGS]
    _compile(nvcc + include, "trial.cu", _DEVICE_TRIAL, ["-o", "trial.cubin"])
    return "nvcc compiles CUTLASS's types for sm_90a"


def _compile_host(toolchain: Toolchain) -> str:
    folders = (toolchain.torch_include, *toolchain.cuda_include)
    include = [word for folder in folders for word in ("-isystem", str(folder))]
    command = [str(toolchain.cxx), *steps.HOST_FLAGS, *include, "-fsyntax-only"]
    _compile(command, "trial.cpp", _HOST_TRIAL, [])
    return "the C++ compiler takes torch's stable ABI"


def _compile(command: list[str], name: str, text: str, output: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fa3gen-") as folder:
        (Path(folder) / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [*command, name, *output], cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line.lower()), "no output")
        raise ToolchainError(f"{command[0]} fails on a small file: {first}")
