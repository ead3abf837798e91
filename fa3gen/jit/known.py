"""The toolchain found last, kept on disk: to ask the compilers again takes 20 ms and more.

What is kept holds as long as the same compilers are the first to be found and the files they were
found by (the programs, the CUDA runtime, CUTLASS's and torch's versions) have the same times and
sizes. It names programs that are executed, so it is believed only where nobody else can write.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from fa3gen.errors import ToolchainError
from fa3gen.jit.entries import INDEX, write_whole
from fa3gen.jit.toolchain import (
    CUTLASS,
    TORCH,
    Toolchain,
    find_cxx,
    find_package,
    find_toolchain,
    nvcc_candidates,
)
from fa3gen.jit.trust import check

__all__ = ["known_toolchain"]

_VARIABLES = ("FA3GEN_NVCC", "CUDA_HOME", "CXX")
_PATHS = ("nvcc", "cxx", "cudart_static", "cutlass_include", "torch_include", "torch_lib", "ninja")

Stamp = tuple[str, int, int]  # a file, its modification time in ns, its size


def known_toolchain(root: Path | None) -> Toolchain:
    """``find_toolchain()``, or what it found last, as kept in the opened cache ``root``, if any."""
    if root is None:
        return find_toolchain()
    place = root / INDEX / f"toolchain-{_question()}.json"
    if (kept := _read(place)) is not None:
        return kept
    found = find_toolchain()
    record = {"toolchain": _plain(found), "stamps": [_stamp(path) for path in _witnesses(found)]}
    write_whole(place, json.dumps(record))
    return found


def _question() -> str:
    """A short hash of all that decides which programs and packages are found."""
    asked: list[object] = [os.environ.get(name) for name in _VARIABLES]
    asked += [str(path) for path in nvcc_candidates()]
    for found in (find_cxx, lambda: find_package(*TORCH), lambda: find_package(*CUTLASS)):
        try:
            asked.append(str(found()))
        except ToolchainError:
            asked.append(None)
    asked.append(sys.prefix)
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def _witnesses(toolchain: Toolchain) -> list[Path]:
    """Files whose change means another toolchain."""
    return [
        toolchain.nvcc.resolve(),
        toolchain.cxx.resolve(),
        toolchain.ninja.resolve(),
        toolchain.cudart_static,
        *(folder / "cuda.h" for folder in toolchain.cuda_include[:1]),
        toolchain.cutlass_include / "cutlass/version.h",
        toolchain.torch_include.parent / "version.py",
    ]


def _stamp(path: Path) -> Stamp:
    """-1 of a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_mtime_ns, status.st_size


def _plain(toolchain: Toolchain) -> dict[str, Any]:
    values = dataclasses.asdict(toolchain)
    values.update({name: str(values[name]) for name in _PATHS})
    values["cuda_include"] = [str(path) for path in toolchain.cuda_include]
    return values


def _read(place: Path) -> Toolchain | None:
    """What is kept, if it still holds."""
    try:
        check(place.parent)
        check(place)
        record = json.loads(place.read_text(encoding="utf-8"))
        if any(_stamp(Path(path)) != (path, *rest) for path, *rest in record["stamps"]):
            return None
        values: dict[str, Any] = record["toolchain"]
        values.update({name: Path(values[name]) for name in _PATHS})
        values["cuda_include"] = tuple(map(Path, values["cuda_include"]))
        return Toolchain(**values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
