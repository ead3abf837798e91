"""The cache directory: where it is, and what is in it.

::

    <op name>-<key>/        an artifact; the key covers everything its bytes depend on
    <op name>-<key>.lock    held while it is built
    .building-<...>/        a build under way
    failed/<...>.log        what the compilers said of a build that failed
    index/                  which artifact a spec has, and the toolchain found last

Environment: ``FA3GEN_CACHE_DIR`` replaces the user's cache directory.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from fa3gen.errors import InputError
from fa3gen.runtime.artifact import MANIFEST, Artifact

__all__ = ["BUILDING", "Entry", "cache_directory", "clear", "entries", "look", "write_whole"]

BUILDING = ".building-"  # begins the name of a directory where a build is under way


class Entry(NamedTuple):
    """An artifact in the cache. ``whole``: its library is the one that was built."""

    artifact: Artifact
    bytes: int  # of all its files
    built: float  # seconds since the epoch
    whole: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self.artifact)
        values.update(directory=str(self.artifact.directory), dtype=self.artifact.dtype.value)
        return {**values, "bytes": self.bytes, "built": self.built, "whole": self.whole}


def cache_directory() -> Path:
    """Where built kernels are kept; it may not exist yet."""
    if override := os.environ.get("FA3GEN_CACHE_DIR"):
        return Path(override).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("fa3gen", appauthor=False)


def look(entry: Path) -> Artifact | None:
    """The artifact in a directory of the cache, if it is there and whole."""
    try:
        artifact = Artifact.read(entry)
        artifact.verify_library()
    except InputError:
        return None
    return artifact


def entries(root: Path) -> list[Entry]:
    """The artifacts in the cache directory ``root``, by name."""
    found = []
    for manifest in sorted(root.glob(f"*/{MANIFEST}")):
        folder = manifest.parent
        try:
            artifact = Artifact.read(folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            built = manifest.stat().st_mtime
        except (InputError, OSError):  # of another version of fa3gen, or just removed
            continue
        found.append(Entry(artifact, size, built, look(folder) is not None))
    return found


def clear(root: Path) -> tuple[int, list[str]]:
    """Empties the cache directory ``root``: entries removed, and names of those being built.

    Kernels that a process has loaded stay usable there. Only what fa3gen has made is removed.
    """
    from filelock import FileLock, Timeout

    removed, busy = 0, []
    for lock_file in sorted(root.glob("*.lock")):
        entry = lock_file.with_suffix("")
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy.append(entry.name)
            continue
        try:
            removed += entry.is_dir()
            for place in (entry, *root.glob(f"{BUILDING}{entry.name}.*")):
                shutil.rmtree(place, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
        finally:
            lock.release()
    for folder in ("index", "failed"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return removed, busy


def write_whole(path: Path, text: str) -> bool:
    """Writes a small file so that a reader sees all of it or nothing; False if it cannot."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:  # a read-only or full cache: the next process finds out for itself again
        return False
    return True
