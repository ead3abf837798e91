"""The cache directory: where it is, and how what is in it is named, read and written.

::

    <op name>-<key>/        an artifact; the key covers everything its bytes depend on
    <op name>-<key>.lock    held while it is built
    .building-<...>/        a build under way
    failed/<...>.log        what the compilers said of a build that failed
    index/                  which artifact a spec has, and the toolchain found last
    tuned.json, tune/       what ``fa3gen tune`` has found on this machine

Nothing of it is believed that others can change (``fa3gen.jit.trust``), and nothing decides by
time.

Environment: ``FA3GEN_CACHE_DIR`` replaces the user's cache directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

from fa3gen.errors import InputError
from fa3gen.jit.trust import UntrustedError, check, check_directory, make_directory
from fa3gen.runtime.artifact import MANIFEST, Artifact

__all__ = [
    "BUILDING",
    "FAILED",
    "INDEX",
    "TUNE",
    "TUNED",
    "building",
    "cache_directory",
    "entry_of",
    "look",
    "open_cache",
    "open_place",
    "read_entry",
    "remove",
    "write_whole",
]

BUILDING = ".building-"  # begins the name of a directory where a build is under way
FAILED = "failed"
INDEX = "index"
TUNE = "tune"
TUNED = "tuned.json"

_NAME = re.compile(rf"(?:{re.escape(BUILDING)})?(?P<entry>\w+-[0-9a-f]{{32}})(?P<more>\..+)?")
_TRIES = 20  # a compiler that outlives a killed build may still write where its files are removed


def cache_directory() -> Path:
    """Where built kernels are kept; it may not exist yet.

    Raises FileNotFoundError where it would be in a home directory and there is none.
    """
    override = os.environ.get("FA3GEN_CACHE_DIR")
    try:
        if override:
            return Path(override).expanduser()
        import platformdirs

        found = platformdirs.user_cache_path("fa3gen", appauthor=False)
    except RuntimeError as error:
        message = f"FA3GEN_CACHE_DIR={override}: {error}" if override else str(error)
        raise FileNotFoundError(errno.ENOENT, message) from error
    if found.parts[0] == "~":  # as older releases of platformdirs say it
        raise FileNotFoundError(errno.ENOENT, "could not determine the home directory")
    return found


def open_cache() -> Path:
    """The cache directory to work in: free of links, made if missing, and nobody else's.

    Raises UntrustedError if others can change it, OSError if there is none and none can be made.
    """
    root = Path(os.path.realpath(cache_directory()))
    try:
        check_directory(root)
    except FileNotFoundError:
        make_directory(root)
        check_directory(root)
    return root


def open_place(*parts: str) -> Path:
    """A file or folder in the opened cache that need not exist; raises as ``open_cache`` does."""
    place = open_cache()
    for part in parts:
        place /= part
        if os.path.lexists(place):
            check(place)
    return place


def entry_of(name: str) -> str | None:
    """The entry that a name in the cache directory belongs to: its own, its lock's, its builds'."""
    found = _NAME.fullmatch(name)
    if found is None or found["more"] is None:
        return name if found and not name.startswith(BUILDING) else None
    if name.startswith(BUILDING):
        return found["entry"]
    return found["entry"] if found["more"] == ".lock" else None


def building(entry: Path) -> list[Path]:
    """The directories of an entry's builds: of one under way, or left by those that were killed."""
    return sorted(entry.parent.glob(f"{BUILDING}{entry.name}.*"))


def read_entry(entry: Path) -> Artifact:
    """The artifact in a directory of the opened cache; its library is not read.

    Raises InputError where there is none, and UntrustedError where others can change it.
    """
    try:
        check(entry)
        check(entry / MANIFEST)
        artifact = Artifact.read(entry)
        check(artifact.library_path)
    except UntrustedError:
        raise
    except OSError as error:
        raise InputError(f"{entry}: no artifact ({error.strerror or error})") from error
    if not entry.name.startswith(f"{artifact.op_name}-"):
        raise InputError(f"{entry}: holds another op's artifact, {artifact.op_name}")
    return artifact


def look(entry: Path) -> Artifact | None:
    """The artifact in a directory of the opened cache, if it is there and whole.

    One that others can change is none, with a RuntimeWarning.
    """
    try:
        artifact = read_entry(entry)
        artifact.verify_library()
    except InputError:
        return None
    except UntrustedError as error:
        message = f"{error}; {entry.name} is built again"
        warnings.warn(message, RuntimeWarning, stacklevel=1)  # from one place, so that it is one
        return None
    return artifact


def remove(path: Path) -> bool:
    """Removes a file, a link or a folder with all that is in it; False if something stays."""
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                shutil.rmtree(path)
        if not os.path.lexists(path):
            return True
    return False


def write_whole(path: Path, text: str) -> bool:
    """Writes a small file in a folder of the cache, both for this user alone.

    A reader sees all of it or nothing. False if it cannot be written: the cache is full or may only
    be read, and the next process finds out for itself again.
    """
    temporary = ""
    try:
        make_directory(path.parent)
        check(path.parent)
        for left in path.parent.glob(f".{path.name}.*"):  # by writers that were killed
            left.unlink(missing_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
        temporary = ""
    except OSError:
        return False
    finally:
        if temporary:
            remove(Path(temporary))
    return True
