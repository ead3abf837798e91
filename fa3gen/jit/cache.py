"""The build cache: an artifact for each distinct build, shared by the user's processes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fa3gen.errors import BuildError
from fa3gen.jit import compiler, finish, steps
from fa3gen.jit.aside import build_aside
from fa3gen.jit.compiler import Progress
from fa3gen.jit.entries import BUILDING, FAILED, building, look, open_cache, remove
from fa3gen.jit.toolchain import Toolchain, find_toolchain
from fa3gen.jit.trust import make_directory, protect
from fa3gen.paths import INCLUDE
from fa3gen.runtime import artifact as artifact_module
from fa3gen.runtime.artifact import Artifact

if TYPE_CHECKING:
    from fa3gen.codegen.source import OpSource

__all__ = ["build_cached", "build_key", "locked"]


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
    removed. A damaged entry is built again. Where the cache cannot be written, or others can write
    there, the kernel is built for this process alone, with a RuntimeWarning. ``toolchain`` defaults
    to this machine's. Raises ToolchainError and BuildError.
    """
    toolchain = toolchain or find_toolchain()
    name = f"{source.meta.op_name}-{build_key(source, toolchain)[:32]}"
    try:
        entry = open_cache() / name
        if found := look(entry):
            return found
        with locked(entry, progress):
            if found := look(entry):
                return found
            for left in building(entry):  # by a build that was killed
                remove(left)
            return _build_into(entry, source, toolchain, progress)
    except BrokenPipeError:  # of who reads the progress
        raise
    except OSError as error:
        return build_aside(name, source, toolchain, progress, error)


@contextlib.contextmanager
def locked(entry: Path, progress: Progress | None = None, timeout: float = -1) -> Iterator[None]:
    """Holds an entry's lock; the system releases it when its process ends, however it ends.

    Raises OSError where it cannot be had, filelock's Timeout where it is not had in time.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{entry}.lock", mode=0o600)  # so that nobody else can hold it
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            progress(f"{entry.name}: another process builds it; waiting")
        lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # what was done under it is done
            lock.release()


def _build_into(
    entry: Path, source: OpSource, toolchain: Toolchain, progress: Progress | None
) -> Artifact:
    """A build at its place in the cache; OSError if that is full or may only be read."""
    root = entry.parent
    temporary = Path(tempfile.mkdtemp(prefix=f"{BUILDING}{entry.name}.", dir=root))
    try:
        return _publish(compiler.build(source, temporary, toolchain, progress), entry)
    except BuildError as error:
        _try_writing(temporary)  # the compilers may have failed at that
        raise _with_log(error, temporary, root / FAILED / f"{entry.name}.log") from None
    finally:
        remove(temporary)


def _publish(built: Artifact, entry: Path) -> Artifact:
    """Moves a finished build to its place, so that a reader sees all of it or nothing."""
    files = sorted(built.directory.iterdir())
    protect(*files, built.directory)
    for path in (*files, built.directory):
        _fsync(path)
    if os.path.lexists(entry):
        if found := look(entry):  # built meanwhile: someone has removed the lock file
            return found
        damaged = entry.with_name(f"{built.directory.name}.damaged")
        entry.rename(damaged)  # inside its folder: more may not be allowed
        remove(damaged)
    built.directory.rename(entry)
    _fsync(entry.parent)
    return dataclasses.replace(built, directory=entry)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a folder on a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def _try_writing(folder: Path) -> None:
    """Raises OSError where there is no room for a library."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(4 << 20))


def _with_log(error: BuildError, temporary: Path, kept: Path) -> BuildError:
    """The error, its build's log moved to a place that outlives the build."""
    log = temporary / compiler.LOG
    try:
        make_directory(kept.parent)
        log.replace(kept)
    except OSError:
        return error
    message = str(error).replace(str(log), str(kept))
    text = message if str(kept) in message else f"{message}\nall of it is in {kept}"
    return type(error)(text)
