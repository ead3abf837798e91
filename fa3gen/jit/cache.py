"""The build cache: an artifact for each distinct build, shared by the user's processes.

Environment: ``FA3GEN_CACHE_DIR`` replaces the user's cache directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock

from fa3gen.codegen.source import KernelSource
from fa3gen.errors import InputError
from fa3gen.jit import compiler
from fa3gen.jit.compiler import Progress
from fa3gen.jit.toolchain import Toolchain, find_toolchain
from fa3gen.paths import INCLUDE
from fa3gen.runtime import artifact as artifact_module
from fa3gen.runtime.artifact import Artifact

__all__ = ["build_cached", "build_key", "cache_directory"]


def cache_directory() -> Path:
    """Where built kernels are kept; it may not exist yet."""
    override = os.environ.get("FA3GEN_CACHE_DIR")
    return Path(override) if override else platformdirs.user_cache_path("fa3gen", appauthor=False)


def build_key(source: KernelSource, toolchain: Toolchain) -> str:
    """Hex SHA-256 over all that the library's bytes depend on."""
    digest = hashlib.sha256()
    for part in _key_parts(source, toolchain):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _key_parts(source: KernelSource, toolchain: Toolchain) -> Iterator[bytes]:
    yield repr(source.meta).encode()
    yield source.device.encode()
    yield source.host.encode()
    for path in sorted(INCLUDE.rglob("*")):
        if path.is_file():
            yield path.relative_to(INCLUDE).as_posix().encode()
            yield path.read_bytes()
    yield toolchain.fingerprint.encode()
    flags = (
        compiler.DEVICE_FLAGS,
        compiler.HOST_FLAGS,
        compiler.LINK_FLAGS,
        compiler.LINK_LIBRARIES,
    )
    yield repr(flags).encode()
    yield f"{os.uname().machine} torch {compiler.TORCH_ABI} {artifact_module.FORMAT}".encode()


def build_cached(
    source: KernelSource, *, toolchain: Toolchain | None = None, progress: Progress | None = None
) -> Artifact:
    """The artifact of ``source``, from the cache or built into it.

    Safe among processes: one builds, the others wait for it. A damaged entry is built again.
    ``toolchain`` defaults to this machine's. Raises ToolchainError and BuildError.
    """
    toolchain = toolchain or find_toolchain()
    root = cache_directory()
    entry = root / f"{source.meta.op_name}-{build_key(source, toolchain)[:32]}"
    if found := _look(entry):
        return found
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{entry}.lock"):
        if found := _look(entry):
            return found
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as temporary:
            built = Path(temporary) / "artifact"
            compiler.build(source, built, toolchain, progress)
            _publish(built, entry)
    return Artifact.read(entry)


def _look(entry: Path) -> Artifact | None:
    """The entry, if it is there and whole."""
    if not entry.is_dir():
        return None
    try:
        artifact = Artifact.read(entry)
        artifact.verify_library()
    except InputError:
        return None
    return artifact


def _publish(built: Path, entry: Path) -> None:
    """Moves a finished build to its place, so that a reader sees all of it or nothing."""
    for path in sorted(built.iterdir()):
        _fsync(path)
    _fsync(built)
    if entry.exists():
        shutil.rmtree(entry)  # damaged: _look has refused it under the lock
    built.rename(entry)
    _fsync(entry.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
