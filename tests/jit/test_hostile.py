"""A cache that others can write, or that is damaged: the right kernel all the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import KEY, ScriptedToolchain, rebuilt
from owners import give_away
from standin import META, standin_source

from fa3gen.errors import BuildError, InputError
from fa3gen.jit import index
from fa3gen.jit.cache import build_cached
from fa3gen.jit.entries import look, open_cache, open_place
from fa3gen.jit.inventory import take_stock
from fa3gen.jit.trust import UntrustedError
from fa3gen.runtime.artifact import Artifact, file_sha256

_OTHER = replace(META, name="other", op_name="other_00000002")


pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def other(scripted: ScriptedToolchain, entry: Artifact) -> Artifact:
    """Another kernel there, with a library of its own."""
    (scripted.folder / "made").write_bytes(b"other")
    other = build_cached(replace(standin_source(), meta=_OTHER), toolchain=scripted.toolchain)
    (scripted.folder / "made").unlink()
    assert other.library_sha256 != entry.library_sha256
    return other


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


def test_a_manifest_edited_to_match_is_told_apart_by_its_op(entry: Artifact) -> None:
    """What this user could do; loading the library of a known op would end the process."""
    entry.library_path.write_bytes(b'm.def("another_op(Tensor q)')
    edit_manifest(entry, library_sha256=file_sha256(entry.library_path))
    changed = Artifact.read(entry.directory)
    changed.verify_library()
    with pytest.raises(InputError, match=f"must define the op {META.op_name}"):
        changed.verify_op()


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
