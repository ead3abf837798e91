from __future__ import annotations

import os
from pathlib import Path

import pytest
from owners import give_away
from test_toolchain import make_nvcc

from fa3gen.jit import known
from fa3gen.jit.known import known_toolchain
from fa3gen.jit.toolchain import Toolchain, find_toolchain


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA installation that ``CUDA_HOME`` names, and no other."""
    home = tmp_path / "cuda"
    make_nvcc(home / "bin/nvcc", "13.0", home)
    (home / "lib").mkdir()
    (home / "lib/libcudart_static.a").write_bytes(b"")
    for name in ("FA3GEN_NVCC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return home


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Toolchain]:
    """The toolchains that compilers were run for."""
    found: list[Toolchain] = []

    def find() -> Toolchain:
        found.append(find_toolchain())
        return found[-1]

    monkeypatch.setattr(known, "find_toolchain", find)
    return found


def test_found_once(tmp_path: Path, found: list[Toolchain]) -> None:
    first = known_toolchain(tmp_path)
    assert known_toolchain(tmp_path) == first
    assert found == [first]
    assert first == find_toolchain()


def test_a_new_compiler_is_noticed(tmp_path: Path, home: Path, found: list[Toolchain]) -> None:
    known_toolchain(tmp_path)
    make_nvcc(home / "bin/nvcc", "13.1", home)
    os.utime(home / "bin/nvcc", ns=(1, 1))
    assert known_toolchain(tmp_path).nvcc_version == "13.1.88"
    assert len(found) == 2


def test_a_new_runtime_is_noticed(tmp_path: Path, home: Path, found: list[Toolchain]) -> None:
    known_toolchain(tmp_path)
    (home / "lib/libcudart_static.a").write_bytes(b"newer")
    known_toolchain(tmp_path)
    assert len(found) == 2


def test_another_choice_is_another_question(
    tmp_path: Path, home: Path, found: list[Toolchain], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_toolchain(tmp_path)
    other = make_nvcc(tmp_path / "other/nvcc", "13.2", home)
    monkeypatch.setenv("FA3GEN_NVCC", str(other))
    assert known_toolchain(tmp_path).nvcc_version == "13.2.88"
    monkeypatch.delenv("FA3GEN_NVCC")
    assert known_toolchain(tmp_path).nvcc_version == "13.0.88"
    assert len(found) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"stamps": [], "toolchain": {}}', "[1]", "[" * 99_999])
def test_a_damaged_record_is_found_anew(tmp_path: Path, found: list[Toolchain], text: str) -> None:
    known_toolchain(tmp_path)
    (record,) = (tmp_path / "index").glob("toolchain-*.json")
    record.write_text(text)
    known_toolchain(tmp_path)
    assert len(found) == 2


@pytest.mark.parametrize("what", ["file", "folder", "link", "owner"])
def test_a_record_that_others_can_write_is_not_believed(
    tmp_path: Path, found: list[Toolchain], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names programs that are executed."""
    known_toolchain(tmp_path)
    (record,) = (tmp_path / "index").glob("toolchain-*.json")
    if what == "file":
        record.chmod(0o666)
    elif what == "folder":
        record.parent.chmod(0o777)
    elif what == "link":
        record.rename(tmp_path / "record.json")
        record.symlink_to(tmp_path / "record.json")
    else:
        give_away(record, monkeypatch)
    known_toolchain(tmp_path)
    assert len(found) == 2


def test_a_record_is_compared_for_equality_only(
    tmp_path: Path, home: Path, found: list[Toolchain]
) -> None:
    """Times ahead of the clock, or before all times, are times like others."""
    for index, moment in enumerate((4_000_000_000, 0, 1_000_000_000)):
        os.utime(home / "bin/nvcc", (moment, moment))
        known_toolchain(tmp_path)
        known_toolchain(tmp_path)
        assert len(found) == index + 1


def test_no_cache(found: list[Toolchain]) -> None:
    assert known_toolchain(None) == known_toolchain(None)
    assert len(found) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path, found: list[Toolchain]) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file/cache"
    assert known_toolchain(root) == known_toolchain(root)
    assert len(found) == 2
