from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import LOG, ScriptedToolchain
from standin import META, standin_source

from fa3gen.errors import BuildError
from fa3gen.jit import cache
from fa3gen.jit.cache import build_cached, build_key
from fa3gen.jit.entries import cache_directory, look
from fa3gen.jit.inventory import clear, take_stock
from fa3gen.paths import INCLUDE

pytestmark = pytest.mark.usefixtures("root")


def test_directory_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FA3GEN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "fa3gen"


def test_second_call_builds_nothing(scripted, root: Path) -> None:
    lines: list[str] = []
    first = build_cached(standin_source(), toolchain=scripted.toolchain, progress=lines.append)
    assert first.directory.parent == root
    assert lines
    calls = scripted.calls
    lines.clear()
    assert build_cached(standin_source(), toolchain=scripted.toolchain) == first
    assert scripted.calls == calls
    assert lines == []


def test_one_build_among_many_callers(scripted) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(build_cached, standin_source(), toolchain=scripted.toolchain)
            for _ in range(4)
        ]
        artifacts = {job.result().directory for job in jobs}
    assert len(artifacts) == 1
    assert sum(call.startswith("nvcc") for call in scripted.calls) == 1


def test_damaged_entry_is_built_again(scripted) -> None:
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    artifact.library_path.write_bytes(b"damaged")
    again = build_cached(standin_source(), toolchain=scripted.toolchain)
    again.verify_library()
    assert again.directory == artifact.directory


def test_failed_build_leaves_no_entry(scripted, root: Path) -> None:
    scripted.script("nvcc", "error: no\n", status=1)
    with pytest.raises(BuildError, match="error: no") as caught:
        build_cached(standin_source(), toolchain=scripted.toolchain)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["failed"]
    (log,) = (root / "failed").iterdir()
    assert str(caught.value).endswith(f"all of it is in {log}")
    assert "error: no" in log.read_text()


def test_log_of_a_refused_build_is_kept(scripted, root: Path) -> None:
    scripted.script("nvcc", LOG + "ptxas info    : (C7510) Potential Performance Loss\n")
    with pytest.raises(BuildError, match=r"C7510(.|\n)*all of it is in .*\.log$"):
        build_cached(standin_source(), toolchain=scripted.toolchain)
    (log,) = (root / "failed").iterdir()
    assert "C7510" in log.read_text()


def test_key_covers_source_and_toolchain(scripted) -> None:
    source, toolchain = standin_source(), scripted.toolchain
    (kernel,) = source.kernels
    longer = dataclasses.replace(kernel, text=kernel.text + "\n")
    fewer = dataclasses.replace(kernel, meta=dataclasses.replace(kernel.meta, threads=7))
    spelled = dataclasses.replace(kernel, alternative="SWAP")
    named = dataclasses.replace(source.meta, op_name="standin_00000002")
    variants = [
        (source, toolchain),
        (dataclasses.replace(source, kernels=(longer,)), toolchain),
        (dataclasses.replace(source, kernels=(kernel, kernel)), toolchain),
        (dataclasses.replace(source, host=source.host + "\n"), toolchain),
        (dataclasses.replace(source, kernels=(fewer,)), toolchain),
        (dataclasses.replace(source, kernels=(spelled,)), toolchain),
        (dataclasses.replace(source, meta=named), toolchain),
        (source, dataclasses.replace(toolchain, nvcc_version="13.1.0")),
        (source, dataclasses.replace(toolchain, cutlass_version="4.2.1")),
    ]
    keys = {build_key(*variant) for variant in variants}
    assert len(keys) == len(variants)


def test_key_covers_headers(scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = build_key(standin_source(), scripted.toolchain)
    copy = tmp_path / "include"
    shutil.copytree(INCLUDE, copy)
    monkeypatch.setattr(cache, "INCLUDE", copy)
    assert build_key(standin_source(), scripted.toolchain) == key  # the place does not matter
    header = copy / "fa3gen/params.h"
    header.write_text(header.read_text() + "// changed\n")
    assert build_key(standin_source(), scripted.toolchain) != key


def test_key_does_not_depend_on_paths(scripted, tmp_path: Path) -> None:
    moved = dataclasses.replace(scripted.toolchain, nvcc=tmp_path / "elsewhere/nvcc")
    assert build_key(standin_source(), moved) == build_key(standin_source(), scripted.toolchain)


# --- other processes ------------------------------------------------------------------------------

_BUILD = """
import sys
from pathlib import Path
from conftest import ScriptedToolchain
from standin import standin_source
from fa3gen.jit.cache import build_cached

scripted = ScriptedToolchain.__new__(ScriptedToolchain)  # its scripts are written already
scripted.folder = Path(sys.argv[1])
print(build_cached(standin_source(), toolchain=scripted.toolchain).directory)
"""


def start_build(scripted: ScriptedToolchain) -> subprocess.Popen[str]:
    """A process that builds the stand-in with the scripted compilers."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, str(scripted.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within a minute"
        time.sleep(0.02)


def test_a_killed_build_is_built_again(scripted, root: Path) -> None:
    scripted.script("nvcc", LOG, seconds=1)
    victim = start_build(scripted)
    wait_for(lambda: any(call.startswith("nvcc") for call in scripted.calls), "start of nvcc")
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    assert list(root.glob(".building-*")), "what the killed build leaves behind"
    assert not list(root.glob("*/artifact.json"))

    scripted.script("nvcc", LOG)
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    assert not list(root.glob(".building-*"))
    time.sleep(1.2)  # the compiler that the killed build had started ends too
    assert look(artifact.directory) == artifact
    assert not list(root.glob(".building-*"))


# --- a cache that cannot be written ---------------------------------------------------------------


def test_a_read_only_cache_serves_what_it_has(scripted, root: Path) -> None:
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)

    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in (root, *root.rglob("*")))

    before = state()
    for path in (root, artifact.directory):
        path.chmod(0o555)
    try:
        assert build_cached(standin_source(), toolchain=scripted.toolchain) == artifact
    finally:
        for path in (root, artifact.directory):
            path.chmod(0o755)
    assert state() == before  # root could have written in spite of the modes


def test_without_a_cache_the_build_serves_its_process(
    scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path / "file/cache"))
    with pytest.warns(RuntimeWarning, match=r"cannot be written.*Set FA3GEN_CACHE_DIR"):
        artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    assert look(artifact.directory) == artifact


def test_a_cache_that_turns_read_only(scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    make = tempfile.mkdtemp

    def mkdtemp(*arguments: object, dir: object = None, **options: object) -> str:
        if dir is not None:
            raise PermissionError(13, "Permission denied")
        return str(make(*arguments, **options))

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with pytest.warns(RuntimeWarning, match=r"cannot be written \(Permission denied\)"):
        artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    assert look(artifact.directory) == artifact


# --- what is in it --------------------------------------------------------------------------------


def test_entries_and_clear(scripted, root: Path) -> None:
    assert take_stock(root).kernels == []
    assert clear(root) == (0, [], [])
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    (entry,) = take_stock(root).kernels
    assert entry.artifact == artifact
    assert entry.fault is None
    assert entry.bytes == sum(path.stat().st_size for path in artifact.directory.iterdir())
    assert entry.to_json()["op_name"] == META.op_name
    artifact.library_path.write_bytes(b"damaged")
    assert "damaged" in str(take_stock(root).kernels[0].fault)
    (root / "mine.txt").write_text("not fa3gen's")
    assert clear(root) == (1, [], [])
    assert [path.name for path in root.iterdir()] == ["mine.txt"]


def test_clear_leaves_a_build_alone(scripted, root: Path) -> None:
    scripted.script("nvcc", LOG, seconds=1.5)
    builder = start_build(scripted)
    wait_for(lambda: any(call.startswith("nvcc") for call in scripted.calls), "start of nvcc")
    removed, busy, _ = clear(root)
    assert removed == 0
    assert [name.split("-")[0] for name in busy] == [META.op_name]
    out, err = builder.communicate(timeout=60)
    assert builder.returncode == 0, err
    assert look(Path(out.strip())) is not None
