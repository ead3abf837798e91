from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ScriptedToolchain
from filelock import FileLock
from standin import META, standin_source

from fa3gen.errors import BuildError
from fa3gen.jit.cache import build_cached
from fa3gen.jit.entries import entry_of, remove
from fa3gen.jit.inventory import clear, take_stock
from fa3gen.runtime.artifact import Artifact

NAME = f"{META.op_name}-{'0123' * 8}"


@pytest.fixture
def entry(scripted: ScriptedToolchain, root: Path) -> Artifact:
    return build_cached(standin_source(), toolchain=scripted.toolchain)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (NAME, NAME),
        (f"{NAME}.lock", NAME),
        (f".building-{NAME}.x7_a", NAME),
        (f".building-{NAME}.x7_a.damaged", NAME),
        (f".building-{NAME}", None),
        (f"{NAME}.txt", None),
        (f"{NAME}0", None),
        ("index", None),
        ("tuned.json", None),
        (".building-notes.txt", None),
    ],
)
def test_names(name: str, entry: str | None) -> None:
    assert entry_of(name) == entry


def test_nothing_is_there(root: Path) -> None:
    assert list(take_stock(root).lines(0)) == ["0 kernels, 0.0 MiB"]
    assert not root.exists()


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3 * 3600 + 100, "3 h ago"),
        (2 * 86400, "2 d ago"),
        (-5, "ahead of the clock"),
    ],
)
def test_age(root: Path, entry: Artifact, seconds: float, age: str) -> None:
    manifest = entry.directory / "artifact.json"
    os.utime(manifest, (1e9, 1e9))
    line, _ = take_stock(root).lines(1e9 + seconds)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(1e9))
    assert line == f"{META.op_name:40s}   0.0 MiB  {day}, {age}"


def test_everything_is_listed_with_its_size(scripted, root: Path, entry: Artifact) -> None:
    entry.library_path.write_bytes(bytes(2 << 20))
    left = root / f".building-{NAME}.killed/below"
    left.mkdir(parents=True)
    (left / "kernel.cu").write_bytes(bytes(1 << 20))
    scripted.script("nvcc", "error: no\n", status=1)
    with pytest.raises(BuildError):
        build_cached(standin_source(), toolchain=scripted.toolchain)
    stock = take_stock(root)
    lines = list(stock.lines(time.time()))
    assert "2.0 MiB" in lines[0]
    assert "damaged, will be built again" in lines[0]
    assert "1.0 MiB" in lines[1]
    assert lines[1].endswith("being built, or left by a build that was killed")
    assert lines[2].startswith("failed/standin")
    assert lines[2].endswith("log of a build that failed")
    assert lines[3] == "1 kernels, 2 leftovers, 3.0 MiB"
    found = json.loads(json.dumps(stock.to_json()))
    assert [one["whole"] for one in found["kernels"]] == [False]
    assert found["leftovers"][0]["bytes"] == 1 << 20
    assert found["bytes"] == sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_a_manifest_that_says_nothing(root: Path, entry: Artifact) -> None:
    (entry.directory / "artifact.json").write_text("half")
    (found,) = take_stock(root).kernels
    assert found.op_name == META.op_name
    assert found.artifact is None
    assert "no readable artifact.json" in str(found.fault)


def test_leftovers_without_a_lock_are_removed(root: Path, entry: Artifact) -> None:
    """And an entry without one, and locks without entries; nothing that is not fa3gen's."""
    (root / f"{entry.directory.name}.lock").unlink()
    (root / f".building-{NAME}.killed").mkdir()
    (root / f".building-{NAME}.killed/kernel.cu").write_text("half")
    (root / f"{NAME[:-1]}4.lock").touch()
    kept = {"tuned.json": "{}", "mine.txt": "mine", ".building-mine": "mine", f"{NAME}.txt": "mine"}
    for name, text in kept.items():
        (root / name).write_text(text)
    (root / "tune").mkdir()
    assert clear(root) == (1, [], [])
    assert sorted(os.listdir(root)) == sorted([*kept, "tune"])


def test_links_are_removed_and_not_followed(root: Path, entry: Artifact, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    (root / NAME).symlink_to(tmp_path / "mine")
    (root / f".building-{NAME}.killed").symlink_to(tmp_path / "mine")
    (root / "index").symlink_to(tmp_path / "mine")
    assert clear(root) == (2, [], [])
    assert os.listdir(root) == []
    assert (tmp_path / "mine/file").read_text() == "mine"


def test_a_folder_where_a_compiler_still_writes(tmp_path: Path) -> None:
    """One that a killed build has started."""
    folder = tmp_path / "folder"
    folder.mkdir()
    script = "i=0; while echo > $i; do i=$((i+1)); sleep 0.001; done 2>/dev/null"
    writer = subprocess.Popen(["/bin/sh", "-c", script], cwd=folder)
    while not list(folder.iterdir()):
        time.sleep(0.01)
    assert remove(folder)
    writer.wait(timeout=30)  # it can write nowhere
    assert list(tmp_path.iterdir()) == []


def test_two_clear_at_once(scripted, root: Path) -> None:
    """Neither takes the other for a build."""
    for _ in range(5):
        build_cached(standin_source(), toolchain=scripted.toolchain)
        with ThreadPoolExecutor(2) as pool:
            done = [job.result() for job in [pool.submit(clear, root) for _ in range(2)]]
        assert [one.busy for one in done] == [[], []]
        assert [one.stuck for one in done] == [[], []]
        assert os.listdir(root) == []


def test_what_is_locked_is_left_alone(root: Path, entry: Artifact) -> None:
    program = f"""
import sys
from filelock import FileLock
with FileLock({str(entry.directory)!r} + ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert clear(root) == (0, [entry.directory.name], [])
    entry.verify_library()
    holder.communicate("", timeout=30)
    assert clear(root) == (1, [], [])


def test_a_lock_file_that_is_gone_is_not_held(root: Path) -> None:
    """What ``clear`` relies on, and older releases of filelock did not do: who waits for a lock
    whose file is removed takes a new one."""
    root.mkdir()
    first, second = (FileLock(root / "x.lock", thread_local=False) for _ in range(2))
    first.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.acquire, timeout=20)
        time.sleep(0.2)
        (root / "x.lock").unlink()
        first.release()
        waiting.result()
    third = FileLock(root / "x.lock")
    with pytest.raises(TimeoutError):
        third.acquire(timeout=0)
    second.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_what_cannot_be_removed_is_told(root: Path, entry: Artifact) -> None:
    root.chmod(0o500)
    try:
        cleared = clear(root)
    finally:
        root.chmod(0o700)
    assert entry.directory in cleared.stuck
    assert cleared.kernels == 0
