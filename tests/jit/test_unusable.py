"""A cache that cannot be used: locks that are none, a directory that is none, a full disk."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
from conftest import rebuilt
from standin import standin_source

from fa3gen.errors import BuildError, InputError
from fa3gen.jit.cache import build_cached
from fa3gen.jit.entries import cache_directory, open_cache, write_whole
from fa3gen.jit.inventory import clear, take_stock
from fa3gen.runtime.artifact import Artifact

pytestmark = pytest.mark.usefixtures("root")


# --- locks ----------------------------------------------------------------------------------------


def lock_of(entry: Artifact) -> Path:
    return entry.directory.with_name(f"{entry.directory.name}.lock")


@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "pipe"])
def test_a_lock_that_is_none(scripted, root: Path, entry: Artifact, kind: str) -> None:
    """It is told, and ``cache clear`` repairs it."""
    entry.library_path.write_bytes(b"damaged")
    lock, victim = lock_of(entry), root.parent / "victim"
    lock.unlink()
    victim.write_text("mine")
    {
        "folder": lock.mkdir,
        "link": lambda: lock.symlink_to(victim),
        "dangling": lambda: lock.symlink_to(root.parent / "nowhere"),
        "pipe": lambda: os.mkfifo(lock),
    }[kind]()
    if kind == "pipe":  # can be locked as well as a file
        assert rebuilt(scripted).directory == entry.directory
    else:
        with pytest.warns(RuntimeWarning, match=rf"the cache {root} cannot be written"):
            assert root not in rebuilt(scripted).directory.parents
    assert clear(root) == (1, [], [])
    assert victim.read_text() == "mine"
    assert not (root.parent / "nowhere").exists()
    assert rebuilt(scripted).directory == entry.directory


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens any file")
def test_a_lock_that_cannot_be_opened(scripted, root: Path, entry: Artifact) -> None:
    entry.library_path.write_bytes(b"damaged")
    lock_of(entry).chmod(0)
    with pytest.warns(RuntimeWarning, match=r"cannot be written \(Permission denied\)"):
        rebuilt(scripted)
    assert clear(root) == (1, [], [])


def test_a_lock_is_nobody_elses_to_hold(entry: Artifact) -> None:
    assert lock_of(entry).stat().st_mode & 0o777 == 0o600


# --- the directory --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "below a file", "loop"])
def test_what_cannot_be_a_directory(
    scripted, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "loop":
        root.symlink_to(root)
    else:
        root.write_text("")
    if kind == "below a file":
        root /= "cache"
        monkeypatch.setenv("FA3GEN_CACHE_DIR", str(root))
    with pytest.warns(RuntimeWarning, match=rf"the cache {root} cannot be written.*Set FA3GEN"):
        rebuilt(scripted)
    for use in (take_stock, clear):
        with pytest.raises(InputError, match=f"the cache {root} must be a directory.*set FA3GEN"):
            use(root)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_directory(scripted, root: Path, tmp_path: Path, there: bool) -> None:
    target = tmp_path / "elsewhere"
    if there:
        target.mkdir(mode=0o700)
    root.symlink_to(target)
    artifact = rebuilt(scripted)
    assert artifact.directory.parent == target == open_cache()
    assert clear(root) == (1, [], [])
    target.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=f"{target} must not be writable"):
        rebuilt(scripted)


@pytest.mark.parametrize("old", [False, True])
def test_no_home(scripted, tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that was started with a number, with two releases of platformdirs."""

    def user_cache_path(*names: str, **options: object) -> Path:
        if not old:
            raise RuntimeError("could not determine the home directory")
        return Path("~/.cache/fa3gen")

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    monkeypatch.delenv("FA3GEN_CACHE_DIR")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.warns(RuntimeWarning, match="no cache .could not determine the home.*Set FA3GEN"):
        rebuilt(scripted)
    assert sorted(os.listdir(tmp_path)) == before


def test_no_such_home(scripted, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3GEN_CACHE_DIR", "~nobody-of-this-name/cache")
    with pytest.raises(FileNotFoundError, match="FA3GEN_CACHE_DIR=~nobody-of-this-name/cache"):
        cache_directory()
    with pytest.warns(RuntimeWarning, match="there is no cache .FA3GEN_CACHE_DIR=~nobody"):
        rebuilt(scripted)


# --- no room --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 100, 2000])
def test_no_room_anywhere(scripted, root: Path, limit: int) -> None:
    """Files beyond a size fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with (
            pytest.warns(RuntimeWarning, match="cannot be written"),
            pytest.raises(BuildError, match="make room, or set TMPDIR"),
        ):
            build_cached(standin_source(), toolchain=scripted.toolchain)
        assert not write_whole(root / "index/x.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    rebuilt(scripted)
    assert take_stock(root).leftovers == []
    assert list((root / "index").iterdir()) == []


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """The cache on a disk of 64 KiB."""
    root.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"only root can mount: {done.stderr.splitlines()[0]}")
    yield root
    subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("free", [0, 4096, 32768])
def test_a_full_disk(scripted, small_disk: Path, free: int) -> None:
    """Also where only the compilers notice it: they fail, and the build goes on elsewhere."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(64 * 1024 - 4096 - free))
    with pytest.warns(RuntimeWarning, match=rf"{small_disk} cannot be written \(No space left"):
        artifact = rebuilt(scripted)
    assert small_disk not in artifact.directory.parents
    assert clear(small_disk).stuck == []
    assert os.listdir(small_disk) == ["filler"]
    filler.unlink()
    assert rebuilt(scripted).directory.parent == small_disk
