"""A cache that others can write, that is damaged, or that is none: the right kernel, or a message
that names the place and the remedy."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from conftest import ScriptedToolchain
from owners import give_away
from standin import META, standin_source

from fa3gen.errors import BuildError, InputError
from fa3gen.jit import index
from fa3gen.jit.cache import build_cached
from fa3gen.jit.entries import cache_directory, look, open_cache, open_place, write_whole
from fa3gen.jit.inventory import clear, take_stock
from fa3gen.jit.trust import UntrustedError
from fa3gen.runtime.artifact import Artifact, file_sha256

KEY = "cd" * 32
_OTHER = replace(META, name="other", op_name="other_00000002")


pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def entry(scripted: ScriptedToolchain, root: Path) -> Artifact:
    """A kernel in the cache, which the index names."""
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    index.record(root, KEY, artifact)
    return artifact


@pytest.fixture
def other(scripted: ScriptedToolchain, entry: Artifact) -> Artifact:
    """Another kernel there, with a library of its own."""
    (scripted.folder / "made").write_bytes(b"other")
    other = build_cached(replace(standin_source(), meta=_OTHER), toolchain=scripted.toolchain)
    (scripted.folder / "made").unlink()
    assert other.library_sha256 != entry.library_sha256
    return other


def rebuilt(scripted: ScriptedToolchain) -> Artifact:
    """The kernel once more; it must be the right one."""
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    artifact.verify_library()
    assert artifact.op_name == META.op_name
    assert artifact.library_path.read_bytes() == b"made\n"
    return artifact


def replace_by_link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


# --- who may write --------------------------------------------------------------------------------


def distrusted(root: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "owner":
        give_away(root, monkeypatch)
    else:
        (root.parent if how == "ancestor" else root).chmod(0o777)


@pytest.mark.parametrize("how", ["owner", "mode", "ancestor"])
def test_a_cache_of_others_is_neither_read_nor_written(
    scripted, root: Path, entry: Artifact, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distrusted(root, monkeypatch, how)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in (root, *root.rglob("*")))
    message = rf"the cache {root} is not trusted: {root.parent}.* must (not be|belong).*Set FA3GEN"
    with pytest.warns(RuntimeWarning, match=message):
        artifact = rebuilt(scripted)
    assert root not in artifact.directory.parents
    assert artifact.directory.parent.stat().st_mode & 0o777 == 0o700
    assert rebuilt(scripted) == artifact  # this process's, without another warning or build
    assert sum(call.startswith("nvcc") for call in scripted.calls) == 2
    after = sorted((str(path), path.stat().st_mtime_ns) for path in (root, *root.rglob("*")))
    assert after == before
    with pytest.raises(UntrustedError):
        open_cache()
    assert "must " in str(take_stock(root).fault)


@pytest.mark.parametrize("what", ["", "artifact.json", f"{META.op_name}.so"])
@pytest.mark.parametrize("how", ["owner", "mode"])
def test_an_entry_that_others_can_write_is_built_again(
    scripted, root: Path, entry: Artifact, what: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = entry.directory / what
    with monkeypatch.context() as patch:
        give_away(place, patch) if how == "owner" else place.chmod(0o777)
        assert index.find(root, KEY) is None
        if how == "owner" and os.geteuid() != 0:
            return  # it cannot be made another user's, and lstat tells only this test that it is
        with pytest.warns(RuntimeWarning, match=rf"{place} must .*is built again"):
            assert rebuilt(scripted).directory == entry.directory
    assert look(entry.directory) is not None
    assert index.find(root, KEY) is not None


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_what_is_built_is_trusted_whatever_the_umask(scripted, root: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
        index.record(root, KEY, artifact)
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        assert path.stat().st_mode & 0o022 == 0, path
        assert not path.is_dir() or path.stat().st_mode & 0o777 == 0o700, path
    assert index.find(root, KEY) == artifact == look(artifact.directory)


def test_no_private_place_for_a_build_aside(
    scripted, root: Path, entry: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.chmod(0o777)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with (
        pytest.warns(RuntimeWarning, match="not trusted"),
        pytest.raises(BuildError, match=f"{tmp_path}/tmp must not be writable.*set TMPDIR"),
    ):
        build_cached(standin_source(), toolchain=scripted.toolchain)


def test_places_in_the_cache(root: Path) -> None:
    """As ``fa3gen tune`` has them."""
    assert open_place("tune", "causal") == root / "tune/causal"
    (root / "tune").mkdir()
    (root / "tune").chmod(0o777)
    with pytest.raises(UntrustedError, match=f"{root}/tune must not be writable"):
        open_place("tune", "causal")


# --- damage ---------------------------------------------------------------------------------------


def edit_manifest(entry: Artifact, **changes: object) -> None:
    path = entry.directory / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swap_library(entry: Artifact, other: Artifact) -> None:
    shutil.copyfile(other.library_path, entry.library_path)


def swap_library_and_manifest(entry: Artifact, other: Artifact) -> None:
    shutil.rmtree(entry.directory)
    shutil.copytree(other.directory, entry.directory)


def truncate(entry: Artifact, other: Artifact) -> None:
    os.truncate(entry.library_path, 2)


def link_library(entry: Artifact, other: Artifact) -> None:
    replace_by_link(entry.library_path, other.library_path)


def link_entry(entry: Artifact, other: Artifact) -> None:
    replace_by_link(entry.directory, other.directory)


def dangle(entry: Artifact, other: Artifact) -> None:
    replace_by_link(entry.directory, entry.directory.with_name("nowhere"))


def be_a_file(entry: Artifact, other: Artifact) -> None:
    shutil.rmtree(entry.directory)
    entry.directory.write_text("file")


def be_a_pipe(entry: Artifact, other: Artifact) -> None:
    (entry.directory / "artifact.json").unlink()
    os.mkfifo(entry.directory / "artifact.json")


def name_another_file(entry: Artifact, other: Artifact) -> None:
    edit_manifest(entry, library="../x.so")


def name_no_file(entry: Artifact, other: Artifact) -> None:
    edit_manifest(entry, library="a\0b")


def nest(entry: Artifact, other: Artifact) -> None:
    (entry.directory / "artifact.json").write_text("[" * 100_000)


def not_text(entry: Artifact, other: Artifact) -> None:
    (entry.directory / "artifact.json").write_bytes(b"\xff\xfe\x00")


def wrong_types(entry: Artifact, other: Artifact) -> None:
    edit_manifest(entry, op_name=7, dtype=[], listed="no")


@pytest.mark.filterwarnings("ignore:.*is built again:RuntimeWarning")
@pytest.mark.parametrize(
    "damage",
    [
        swap_library,
        swap_library_and_manifest,
        truncate,
        link_library,
        link_entry,
        dangle,
        be_a_file,
        be_a_pipe,
        name_another_file,
        name_no_file,
        nest,
        not_text,
        wrong_types,
    ],
)
def test_a_damaged_entry(
    scripted,
    root: Path,
    entry: Artifact,
    other: Artifact,
    damage: Callable[[Artifact, Artifact], None],
) -> None:
    damage(entry, other)
    found = index.find(root, KEY)  # the library is compared when it is loaded
    assert found is None or look(found.directory) is None
    stock = {one.name: one.fault for one in take_stock(root).kernels}
    assert stock[entry.directory.name] is not None
    assert rebuilt(scripted).directory == entry.directory
    assert index.find(root, KEY) == look(entry.directory) is not None
    other.verify_library()  # nothing was written through a link
    assert take_stock(root).leftovers == []


@pytest.mark.parametrize("age", [-3e9, 3e9], ids=["past", "future"])
def test_the_clock_does_not_matter(scripted, root: Path, entry: Artifact, age: float) -> None:
    for path in root.rglob("*"):
        now = path.stat().st_mtime
        os.utime(path, (max(now + age, 0), max(now + age, 0)))
    assert index.find(root, KEY) == entry
    calls = scripted.calls
    assert rebuilt(scripted) == entry
    assert scripted.calls == calls
    (line, _) = take_stock(root).lines(now)
    assert ("ahead of the clock" if age > 0 else " d ago") in line


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


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/etc", "../cache", "a\0b", "index", "\ud800", "x" * 300, None, ["x"]]
)
def test_an_index_that_points_elsewhere(root: Path, entry: Artifact, name: object) -> None:
    place = root / "index" / f"{KEY[:32]}.json"
    place.write_text(json.dumps({"entry": name, "key": KEY}))
    assert index.find(root, KEY) is None
    index.record(root, KEY, entry)
    assert index.find(root, KEY) == entry


def test_an_index_of_another_spec(root: Path, entry: Artifact) -> None:
    """A file of the index under another name."""
    other = "ef" * 32
    shutil.copy(root / "index" / f"{KEY[:32]}.json", root / "index" / f"{other[:32]}.json")
    assert index.find(root, other) is None
    assert index.find(root, KEY) == entry


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "mode", "nested", "folder mode"])
def test_an_index_that_is_not_believed(root: Path, entry: Artifact, kind: str) -> None:
    place = root / "index" / f"{KEY[:32]}.json"
    if kind == "link":
        shutil.move(place, root.parent / "index.json")
        place.symlink_to(root.parent / "index.json")
    elif kind == "mode":
        place.chmod(0o666)
    elif kind == "folder mode":
        place.parent.chmod(0o777)
    else:
        place.unlink()
        {
            "pipe": lambda: os.mkfifo(place),
            "folder": place.mkdir,
            "nested": lambda: place.write_text("[" * 100_000),
        }[kind]()
    assert index.find(root, KEY) is None
    index.record(root, KEY, entry)
    repaired = kind not in ("folder", "folder mode")
    assert (index.find(root, KEY) == entry) == repaired


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


def test_a_manifest_edited_to_match_is_told_apart_by_its_op(entry: Artifact) -> None:
    """What this user could do; loading the library of a known op would end the process."""
    entry.library_path.write_bytes(b'm.def("another_op(Tensor q)')
    edit_manifest(entry, library_sha256=file_sha256(entry.library_path))
    changed = Artifact.read(entry.directory)
    changed.verify_library()
    with pytest.raises(InputError, match=f"must define the op {META.op_name}"):
        changed.verify_op()
