"""What is in the cache directory, and how it is emptied while others use it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fa3gen.errors import InputError
from fa3gen.jit.cache import locked
from fa3gen.jit.entries import BUILDING, FAILED, INDEX, building, entry_of, read_entry, remove
from fa3gen.jit.trust import UntrustedError, check_directory
from fa3gen.runtime.artifact import MANIFEST, Artifact

__all__ = ["Cleared", "Entry", "Inventory", "Leftover", "clear", "take_stock"]

_PATIENCE = 0.5  # seconds for another process that clears the cache, too
_AGES = (("d", 86400), ("h", 3600), ("min", 60))


class Entry(NamedTuple):
    """A kernel in the cache. ``fault``: why it will be built again; None if it is whole."""

    name: str
    op_name: str
    bytes: int  # of all its files
    built: float  # seconds since the epoch
    fault: str | None
    artifact: Artifact | None  # None if its manifest says nothing

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {**self._asdict(), "artifact": None, "whole": self.fault is None}
        if self.artifact is not None:
            facts = dataclasses.asdict(self.artifact)
            facts.update(directory=str(self.artifact.directory), dtype=self.artifact.dtype.value)
            facts["inputs"] = [{**one, "dtype": one["dtype"].value} for one in facts["inputs"]]
            values["artifact"] = facts
        return values


class Leftover(NamedTuple):
    """What a build has not made, or not yet: a log, or a directory where it is or was under way."""

    name: str
    bytes: int
    changed: float  # seconds since the epoch
    what: str


class Inventory(NamedTuple):
    """All that builds have put into a cache directory."""

    directory: Path
    fault: str | None  # why nothing in it is believed
    kernels: list[Entry]
    leftovers: list[Leftover]

    @property
    def bytes(self) -> int:
        """The size of it all."""
        return sum(one.bytes for one in self.kernels) + sum(one.bytes for one in self.leftovers)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "directory": str(self.directory),
            "fault": self.fault,
            "kernels": [entry.to_json() for entry in self.kernels],
            "leftovers": [left._asdict() for left in self.leftovers],
            "bytes": self.bytes,
        }

    def lines(self, now: float) -> Iterator[str]:
        """The text for a reader at ``now``, seconds since the epoch."""
        for entry in self.kernels:
            fault = f"  damaged, will be built again: {entry.fault}" if entry.fault else ""
            yield f"{entry.op_name:40s} {_size(entry.bytes)}  {_age(entry.built, now)}{fault}"
        for left in self.leftovers:
            yield f"{left.name:40s} {_size(left.bytes)}  {_age(left.changed, now)}  {left.what}"
        more = f", {len(self.leftovers)} leftovers" if self.leftovers else ""
        yield f"{len(self.kernels)} kernels{more}, {_size(self.bytes).strip()}"
        if self.fault:
            yield f"none of it is used: {self.fault}"


class Cleared(NamedTuple):
    """Kernels removed, names of those being built, and what cannot be removed."""

    kernels: int
    busy: list[str]
    stuck: list[Path]


def take_stock(root: Path) -> Inventory:
    """What is in the cache directory ``root``. Raises InputError where that is no directory."""
    root = Path(os.path.realpath(root))
    kernels, leftovers = [], []
    for name in _names(root):
        if entry_of(name) == name:
            kernels.append(_entry(root / name))
        elif name.startswith(BUILDING):
            what = "being built, or left by a build that was killed"
            leftovers.append(Leftover(name, *_measure(root / name), what))
    for log in sorted((root / FAILED).glob("*.log")):
        name = f"{FAILED}/{log.name}"
        leftovers.append(Leftover(name, *_measure(log), "log of a build that failed"))
    return Inventory(root, _distrust(root), kernels, leftovers)


def clear(root: Path) -> Cleared:
    """Removes from the cache directory ``root`` what builds have put there, and nothing else.

    Safe at any moment: a kernel that a process has loaded stays usable there, one that it is about
    to load is built again, and entries that are being built are left alone. Raises InputError where
    ``root`` is no directory.
    """
    root = Path(os.path.realpath(root))
    removed, busy, stuck = 0, [], []
    for name in sorted({entry for entry in map(entry_of, _names(root)) if entry}):
        try:
            was_there = os.path.lexists(root / name)
            stuck += _clear_entry(root / name)
            removed += was_there and not os.path.lexists(root / name)
        except TimeoutError:
            if os.path.lexists(root / name) or building(root / name):
                busy.append(name)
    stuck += [root / name for name in (INDEX, FAILED) if not remove(root / name)]
    return Cleared(removed, busy, stuck)


def _clear_entry(entry: Path) -> list[Path]:
    """Removes an entry with its builds and its lock: what stays. TimeoutError if it is locked."""
    lock = entry.with_name(f"{entry.name}.lock")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(lock).st_mode):
            remove(lock)  # no lock, and nobody can hold it
    try:
        with locked(entry, timeout=_PATIENCE):
            return _remove_all(entry, lock)
    except TimeoutError:
        raise
    except OSError:  # no lock can be had: it is another user's, or the disk is full
        return _remove_all(entry, lock)


def _remove_all(entry: Path, lock: Path) -> list[Path]:
    """The lock goes last, and once: who waits for it then finds that it is gone, and takes a new
    one, which is no longer ours to remove."""
    gone = entry.with_name(f"{BUILDING}{entry.name}.removed")
    remove(gone)
    try:
        entry.rename(gone)  # a reader sees all of it or nothing
    except OSError:
        remove(entry)
    stuck = [place for place in (*building(entry), entry) if not remove(place)]
    try:
        lock.unlink(missing_ok=True)
    except OSError:
        stuck.append(lock)
    return stuck


def _names(root: Path) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"the cache {root} must be a directory that can be read ({error.strerror or error}); "
            "set FA3GEN_CACHE_DIR to another"
        ) from error


def _entry(folder: Path) -> Entry:
    artifact, fault = None, None
    try:
        artifact = read_entry(folder)
        artifact.verify_library()
    except (InputError, UntrustedError) as error:
        fault = str(error)
    op_name = folder.name.rpartition("-")[0]
    return Entry(folder.name, op_name, *_measure(folder), fault, artifact)


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of a file, or of all files below a folder, and when it was made; 0 if it is gone."""
    total, changed = 0, 0.0
    try:
        changed = os.lstat(path).st_mtime
        if path.is_symlink() or not path.is_dir():
            return os.lstat(path).st_size, changed
        changed = os.lstat(path / MANIFEST).st_mtime
    except OSError:
        pass
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # just removed
                continue
    return total, changed


def _distrust(root: Path) -> str | None:
    try:
        check_directory(root)
    except UntrustedError as error:
        return str(error)
    except OSError:  # nothing is there
        return None
    return None


def _size(count: int) -> str:
    return f"{count / 2**20:5.1f} MiB"


def _age(changed: float, now: float) -> str:
    """As ``2026-01-31 12:00, 3 h ago``."""
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
    past = now - changed
    if past < 0:
        return f"{day}, ahead of the clock"
    for unit, seconds in _AGES:
        if past >= seconds:
            return f"{day}, {int(past / seconds)} {unit} ago"
    return f"{day}, just now"
