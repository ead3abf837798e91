"""Toolchain: the compilers and headers of a build, and where each was found.

Nothing that is only looked for is imported: a wheel with headers is located, not executed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fa3gen.errors import ToolchainError

__all__ = [
    "CUTLASS",
    "TORCH",
    "Toolchain",
    "cuda_paths",
    "cxx_version",
    "find_cudart",
    "find_cxx",
    "find_ninja",
    "find_nvcc",
    "find_package",
    "find_toolchain",
    "nvcc_candidates",
    "run",
]

TORCH = ("torch", "torch>=2.10")  # package, and the requirement that gets it
CUTLASS = ("cutlass_library", "nvidia-cutlass==4.2.*")

MINIMUM_NVCC = (12, 8)
_NVCC_REMEDY = (
    "install the CUDA toolkit 12.8 or newer, or `pip install 'fa3gen[nvcc]'`, "
    "or set FA3GEN_NVCC to an nvcc"
)


@dataclass(frozen=True)
class Toolchain:
    """Everything outside fa3gen that a build reads."""

    nvcc: Path
    nvcc_version: str  # "13.0.88"
    cxx: Path
    cxx_version: str  # "12.2.0"
    cuda_include: tuple[Path, ...]
    cudart_static: Path
    cutlass_include: Path
    cutlass_version: str
    torch_include: Path
    torch_lib: Path
    ninja: Path

    @property
    def fingerprint(self) -> str:
        """What of the toolchain a kernel depends on: versions, no paths."""
        return f"nvcc {self.nvcc_version}, c++ {self.cxx_version}, cutlass {self.cutlass_version}"


def find_toolchain() -> Toolchain:
    """The toolchain of this machine.

    nvcc comes from ``FA3GEN_NVCC``, else the first usable of ``CUDA_HOME``, ``PATH`` and the pip
    wheels; the C++ compiler from ``CXX``, else ``PATH``. Raises ToolchainError with what is
    missing and how to get it.
    """
    nvcc, version = find_nvcc()
    include, libraries = cuda_paths(nvcc)
    cxx = find_cxx()
    torch = find_package(*TORCH)
    return Toolchain(
        nvcc=nvcc,
        nvcc_version=version,
        cxx=cxx,
        cxx_version=cxx_version(cxx),
        cuda_include=include,
        cudart_static=find_cudart(nvcc, libraries),
        cutlass_include=find_package(*CUTLASS) / "source/include",
        cutlass_version=_cutlass_version(),
        torch_include=torch / "include",
        torch_lib=torch / "lib",
        ninja=find_ninja(),
    )


def find_nvcc() -> tuple[Path, str]:
    """nvcc and its version; ToolchainError where there is none that can be used."""
    explicit = os.environ.get("FA3GEN_NVCC")
    if explicit:
        try:
            return Path(explicit), _usable_version(Path(explicit))
        except ToolchainError as error:
            raise ToolchainError(f"FA3GEN_NVCC={explicit}: {error}") from error
    refused = []
    for nvcc in nvcc_candidates():
        try:
            return nvcc, _usable_version(nvcc)
        except ToolchainError as error:
            refused.append(f"{nvcc}: {error}")
    found = "; ".join(refused) or "none in CUDA_HOME, PATH or the pip wheels"
    raise ToolchainError(f"no usable nvcc ({found}); {_NVCC_REMEDY}")


def nvcc_candidates() -> Iterator[Path]:
    """Where nvcc may be, the first choice first; ``FA3GEN_NVCC`` is not among them."""
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin/nvcc"
    if on_path := shutil.which("nvcc"):
        yield Path(on_path)
    wheels = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's wheels share
    for folder in (wheels.submodule_search_locations or []) if wheels else []:
        nvcc = Path(folder) / "cu13/bin/nvcc"
        if nvcc.is_file():
            yield nvcc


def _usable_version(nvcc: Path) -> str:
    """Its version, "13.0.88"; raises ToolchainError where it is too old or does not run."""
    text = run(nvcc, "--version")
    found = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", text)
    if not found:
        raise ToolchainError("`nvcc --version` shows no version")
    if (int(found[1]), int(found[2])) < MINIMUM_NVCC:
        raise ToolchainError(
            f"nvcc must be 12.8 or newer (got {found[1]}.{found[2]}): "
            "older ones serialize the kernels' wgmma instructions or cannot compile CUTLASS 4.2"
        )
    return ".".join(found.groups())


def cuda_paths(nvcc: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Include and library folders as nvcc itself passes them: its own path may be a wrapper."""
    output = run(nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull)
    settings = dict(re.findall(r"^#\$ (INCLUDES|SYSTEM_INCLUDES|LIBRARIES)=(.*)$", output, re.M))
    words = {key: shlex.split(value) for key, value in settings.items()}
    include = [word[2:] for word in words.get("INCLUDES", []) if word.startswith("-I")]
    include += [word for word in words.get("SYSTEM_INCLUDES", []) if word != "-isystem"]
    libraries = [word[2:] for word in words.get("LIBRARIES", []) if word.startswith("-L")]
    if not include or not libraries:
        raise ToolchainError(f"{nvcc}: `nvcc --dryrun` shows no include or library folder")
    return tuple(map(Path, include)), tuple(map(Path, libraries))


def find_cudart(nvcc: Path, libraries: tuple[Path, ...]) -> Path:
    """The static CUDA runtime among the library folders of an nvcc."""
    for folder in libraries:
        # The wheels keep in lib what nvcc looks for in lib64.
        for place in (folder, folder.parent / "lib64", folder.parent / "lib"):
            if (place / "libcudart_static.a").is_file():
                return (place / "libcudart_static.a").resolve()
    raise ToolchainError(
        f"libcudart_static.a is not in the libraries of {nvcc} ({', '.join(map(str, libraries))}); "
        "install the CUDA runtime's development files, or `pip install 'fa3gen[nvcc]'`"
    )


def find_cxx() -> Path:
    """The C++ compiler, from CXX or PATH."""
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++", "clang++"]:
        if found := shutil.which(name):
            return Path(found)
    what = f"CXX={asked} was not found" if asked else "no C++ compiler on PATH"
    raise ToolchainError(f"{what}; install g++ 10 or newer, or set CXX")


def cxx_version(cxx: Path) -> str:
    """A C++ compiler's version, "12.2.0"."""
    return run(cxx, "-dumpfullversion", "-dumpversion").strip()


def find_ninja() -> Path:
    """The ninja program of the package, else of PATH."""
    import ninja

    for folder in (ninja.BIN_DIR, ""):
        if found := shutil.which(os.path.join(folder, "ninja")):
            return Path(found)
    raise ToolchainError("the ninja program is missing; `pip install ninja`")


def find_package(name: str, requirement: str) -> Path:
    """A package's folder, without importing it; ToolchainError names ``requirement``."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ToolchainError(f"package {name} is missing; `pip install '{requirement}'`")
    return Path(next(iter(spec.submodule_search_locations)))


def _cutlass_version() -> str:
    try:
        return importlib.metadata.version("nvidia-cutlass")
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainError(
            f"cutlass_library is there without its package; `pip install '{CUTLASS[1]}'`"
        ) from None


def run(program: Path, *arguments: str) -> str:
    """Standard output and error of a program that should succeed, ToolchainError if not."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{program} does not run ({error})") from error
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ToolchainError(f"{shlex.join([str(program), *arguments])} failed: {reason[-1]}")
    return done.stdout + done.stderr
