from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from standin import standin_source

from fa3gen.errors import BuildError
from fa3gen.jit import cache
from fa3gen.jit.cache import build_cached, build_key, cache_directory
from fa3gen.paths import INCLUDE


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(root))
    return root


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
    with pytest.raises(BuildError):
        build_cached(standin_source(), toolchain=scripted.toolchain)
    assert [path for path in root.iterdir() if path.is_dir()] == []


def test_key_covers_source_and_toolchain(scripted) -> None:
    source, toolchain = standin_source(), scripted.toolchain
    variants = [
        (source, toolchain),
        (dataclasses.replace(source, device=source.device + "\n"), toolchain),
        (dataclasses.replace(source, host=source.host + "\n"), toolchain),
        (dataclasses.replace(source, meta=dataclasses.replace(source.meta, threads=7)), toolchain),
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
