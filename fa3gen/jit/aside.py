"""Builds for one process alone, where the cache cannot be used."""

from __future__ import annotations

import atexit
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fa3gen.errors import BuildError
from fa3gen.jit import compiler
from fa3gen.jit.compiler import Progress
from fa3gen.jit.entries import cache_directory, look, remove
from fa3gen.jit.toolchain import Toolchain
from fa3gen.jit.trust import UntrustedError, check_directory, make_directory, protect
from fa3gen.runtime.artifact import Artifact

if TYPE_CHECKING:
    from fa3gen.codegen.source import OpSource

__all__ = ["build_aside"]

_built: dict[str, Path] = {}  # by entry name


def build_aside(
    name: str,
    source: OpSource,
    toolchain: Toolchain,
    progress: Progress | None,
    reason: OSError,
) -> Artifact:
    """The artifact that would be the cache's entry ``name``, in a folder of this process.

    A RuntimeWarning tells ``reason``, which keeps it out of the cache, once for each kernel. Raises
    BuildError, also where no such folder can be written or others can write there.
    """
    if name in _built and (found := look(_built[name])):
        return found
    warnings.warn(
        f"{_told(reason)}; {source.meta.name} is built for this process alone. "
        "Set FA3GEN_CACHE_DIR to a directory of your own",
        RuntimeWarning,
        stacklevel=3,
    )
    try:
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="fa3gen-")))
        atexit.register(_remove, folder, os.getpid())
        check_directory(folder)
        make_directory(folder / name)
        artifact = compiler.build(source, folder / name, toolchain, progress)
        protect(*artifact.directory.iterdir(), artifact.directory)
    except BrokenPipeError:  # of who reads the progress
        raise
    except OSError as error:
        raise BuildError(
            f"{source.meta.name} cannot be built outside the cache either ({error}); make room, or "
            "set TMPDIR to a directory of your own"
        ) from error
    _built[name] = artifact.directory
    return artifact


def _told(reason: OSError) -> str:
    try:
        cache = cache_directory()
    except FileNotFoundError as error:
        return f"there is no cache ({error.strerror})"
    if isinstance(reason, UntrustedError):
        return f"the cache {cache} is not trusted: {reason}"
    return f"the cache {cache} cannot be written ({reason.strerror or reason})"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        remove(folder)
