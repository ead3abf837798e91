from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

from fa3gen.errors import ToolchainError
from fa3gen.jit import doctor
from fa3gen.jit.doctor import Finding, examine
from fa3gen.jit.toolchain import find_toolchain


def finding(part: str) -> Finding:
    (found,) = [found for found in examine() if found.part == part]
    return found


def test_a_machine_that_builds() -> None:
    try:
        find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))
    findings = examine()
    assert [found for found in findings if found.needed and not found.works] == []
    parts = [found.part for found in findings]
    assert parts[-2:] == ["device code", "host code"], "both compilers were tried"


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FA3GEN_NVCC", str(tmp_path / "nvcc"))
    found = finding("nvcc")
    assert (found.works, found.verdict) == (False, "missing")
    assert "does not run" in found.detail
    assert "host code" not in [found.part for found in examine()]


def test_no_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "install g++ 10 or newer" in finding("C++ compiler").detail


def test_old_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cxx_version", lambda cxx: "9.4.0")
    monkeypatch.setattr(doctor, "find_cxx", lambda: Path("/opt/bin/g++"))
    assert "must be 10 or newer (got 9.4.0" in finding("C++ compiler").detail


def test_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.1+cu128")
    found = finding("torch")
    assert not found.works
    assert "must be 2.10 or newer (got 2.9.1+cu128); `pip install" in found.detail


def test_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._PACKAGES, "no_such_module", "no-such-package")
    assert "`pip install no-such-package`" in finding("packages").detail


@pytest.mark.parametrize(
    ("cuda", "capability", "message"),
    [
        (None, None, "built without CUDA"),
        ("13.0", None, "`nvidia-smi`"),
        ("13.0", (8, 0), r"must be 9.0 (got NVIDIA A100 (8.0))"),
    ],
)
def test_no_hopper_is_a_note(
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    capability: tuple[int, int] | None,
    message: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    found = finding("GPU")
    assert found.verdict == "note"
    assert message in found.detail


def test_a_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert finding("GPU").detail == "NVIDIA H200 (9.0), torch's CUDA 13.0"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path / "file/cache"))
    found = finding("cache")
    assert found.verdict == "note"
    assert "set FA3GEN_CACHE_DIR" in found.detail


def test_a_cache_that_others_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path / "cache"))
    assert doctor._cache() == str(tmp_path / "cache")
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ToolchainError, match="must not be writable by group or others"):
        doctor._cache()
    monkeypatch.setenv("FA3GEN_CACHE_DIR", "~nobody-of-this-name")
    with pytest.raises(ToolchainError, match="~nobody-of-this-name"):
        doctor._cache()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_HOST_TRIAL", "#include <no/such/header.h>\n")
    try:
        toolchain = find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))
    with pytest.raises(ToolchainError, match=r"fails on a small file: .*no/such/header\.h"):
        doctor._compile_host(toolchain)
