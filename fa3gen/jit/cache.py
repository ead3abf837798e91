"""The build cache: an artifact for each distinct build, shared by the user's processes."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fa3gen.errors import BuildError
from fa3gen.jit import compiler, finish, steps
from fa3gen.jit.compiler import Progress
from fa3gen.jit.entries import BUILDING, cache_directory, look
from fa3gen.jit.toolchain import Toolchain, find_toolchain
from fa3gen.paths import INCLUDE
from fa3gen.runtime import artifact as artifact_module
from fa3gen.runtime.artifact import Artifact

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from fa3gen.codegen.source import OpSource

__all__ = ["build_cached", "build_key"]


def build_key(source: OpSource, toolchain: Toolchain) -> str:
    """Hex SHA-256 over all that the library's bytes depend on."""
    digest = hashlib.sha256()
    for part in _key_parts(source, toolchain):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _key_parts(source: OpSource, toolchain: Toolchain) -> Iterator[bytes]:
    yield repr(source.meta).encode()
    for kernel in source.units:
        yield repr((kernel.meta, kernel.alternative, kernel.paced)).encode()
        yield kernel.text.encode()
    yield source.host.encode()
    yield Path(str(finish.__file__)).read_bytes()
    for path in sorted(INCLUDE.rglob("*")):
        if path.is_file():
            yield path.relative_to(INCLUDE).as_posix().encode()
            yield path.read_bytes()
    yield toolchain.fingerprint.encode()
    flags = (steps.DEVICE_FLAGS, steps.HOST_FLAGS, steps.LINK_FLAGS, steps.LINK_LIBRARIES)
    yield repr(flags).encode()
    yield f"{os.uname().machine} torch {compiler.TORCH_ABI} {artifact_module.FORMAT}".encode()


def build_cached(
    source: OpSource, *, toolchain: Toolchain | None = None, progress: Progress | None = None
) -> Artifact:
    """The artifact of ``source``, from the cache or built into it.

    Safe among processes: one builds, the others wait for it; what a killed build left behind is
    removed. A damaged entry is built again. Where the cache cannot be written the kernel is built
    for this process alone, with a RuntimeWarning. ``toolchain`` defaults to this machine's. Raises
    ToolchainError and BuildError.
    """
    toolchain = toolchain or find_toolchain()
    root = cache_directory()
    entry = root / f"{source.meta.op_name}-{build_key(source, toolchain)[:32]}"
    if found := look(entry):
        return found
    try:
        lock = _acquire(entry, progress)
    except OSError as error:
        return _build_aside(source, toolchain, progress, _reason(root, error))
    try:
        if found := look(entry):
            return found
        for left in root.glob(f"{BUILDING}{entry.name}.*"):  # by a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f"{BUILDING}{entry.name}.", dir=root))
        except OSError as error:
            return _build_aside(source, toolchain, progress, _reason(root, error))
        try:
            compiler.build(source, temporary / "artifact", toolchain, progress)
            return _publish(temporary / "artifact", entry)
        except BuildError as error:
            raise _with_log(error, temporary, root / "failed" / f"{entry.name}.log") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        lock.release()


def _acquire(entry: Path, progress: Progress | None) -> BaseFileLock:
    """The entry's lock, held; the system releases it when its process ends, however it ends."""
    from filelock import FileLock, Timeout

    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{entry}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            progress(f"{entry.name}: another process builds it; waiting")
        lock.acquire()
    return lock


def _publish(built: Path, entry: Path) -> Artifact:
    """Moves a finished build to its place, so that a reader sees all of it or nothing."""
    for path in sorted(built.iterdir()):
        _fsync(path)
    _fsync(built)
    if entry.exists():
        if found := look(entry):  # built meanwhile, after the lock file was removed
            return found
        entry.rename(built.with_name("damaged"))
    built.rename(entry)
    _fsync(entry.parent)
    return Artifact.read(entry)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _build_aside(
    source: OpSource, toolchain: Toolchain, progress: Progress | None, reason: str
) -> Artifact:
    """A build that lives as long as this process."""
    warnings.warn(
        f"{reason}; {source.meta.name} is built for this process alone. "
        "Set FA3GEN_CACHE_DIR to a directory that can be written",
        RuntimeWarning,
        stacklevel=3,
    )
    temporary = tempfile.mkdtemp(prefix="fa3gen-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return compiler.build(source, Path(temporary) / "artifact", toolchain, progress)


def _reason(root: Path, error: OSError) -> str:
    return f"the cache {root} cannot be written ({error.strerror or error})"


def _with_log(error: BuildError, temporary: Path, kept: Path) -> BuildError:
    """The error, its build's log moved to a place that outlives the build."""
    log = temporary.resolve() / "artifact/build.log"
    try:
        kept.parent.mkdir(exist_ok=True)
        log.replace(kept)
    except OSError:
        return error
    message = str(error).replace(str(log), str(kept))
    text = message if str(kept) in message else f"{message}\nall of it is in {kept}"
    return type(error)(text)
