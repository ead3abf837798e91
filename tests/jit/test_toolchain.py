from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fa3gen.errors import ToolchainError
from fa3gen.jit.toolchain import find_toolchain


def make_nvcc(path: Path, release: str, home: Path) -> Path:
    """A program that answers as an nvcc of ``release`` installed under ``home``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then\n'
        f"  echo 'Cuda compilation tools, release {release}, V{release}.88'\n"
        "else\n"
        f"  echo '#$ INCLUDES=\"-I{home}/include\"  ' >&2\n"
        f'  echo \'#$ SYSTEM_INCLUDES="-isystem" "{home}/include/cccl"  \' >&2\n'
        f'  echo \'#$ LIBRARIES=  "-L{home}/lib64/stubs" "-L{home}/lib64"\' >&2\n'
        "fi\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A CUDA installation laid out as in the pip wheels."""
    home = tmp_path / "nvidia/cu13"
    make_nvcc(home / "bin/nvcc", "13.0", home)
    (home / "lib").mkdir()
    (home / "lib/libcudart_static.a").write_bytes(b"")
    return home


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA but what a test offers. A C++ compiler stays where it is."""
    for name in ("FA3GEN_NVCC", "CUDA_HOME", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_explicit_nvcc(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3GEN_NVCC", str(home / "bin/nvcc"))
    toolchain = find_toolchain()
    assert toolchain.nvcc == home / "bin/nvcc"
    assert toolchain.nvcc_version == "13.0.88"
    assert toolchain.cuda_include == (home / "include", home / "include/cccl")
    assert toolchain.cudart_static == (home / "lib/libcudart_static.a").resolve()
    assert (toolchain.cutlass_include / "cute/tensor.hpp").is_file()
    assert (toolchain.torch_include / "torch/csrc/stable/library.h").is_file()
    assert "/" not in toolchain.fingerprint


def test_headers_are_located_and_not_imported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3GEN_NVCC", str(home / "bin/nvcc"))
    find_toolchain()
    assert "cutlass_library" not in sys.modules


def test_wheels(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_toolchain().nvcc == home / "bin/nvcc"


def test_old_nvcc_is_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_nvcc(tmp_path / "old/bin/nvcc", "12.4", tmp_path / "old")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    assert find_toolchain().nvcc == home / "bin/nvcc"


def test_only_an_old_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nvcc(tmp_path / "bin/nvcc", "12.4", tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"must be 12\.8 or newer \(got 12\.4\).*pip install"):
        find_toolchain()


def test_explicit_nvcc_is_not_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("FA3GEN_NVCC", str(tmp_path / "nowhere"))
    with pytest.raises(ToolchainError, match=r"FA3GEN_NVCC=.*nowhere.*does not run"):
        find_toolchain()


def test_no_static_runtime(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "lib/libcudart_static.a").unlink()
    monkeypatch.setenv("FA3GEN_NVCC", str(home / "bin/nvcc"))
    with pytest.raises(ToolchainError, match=r"libcudart_static\.a is not in .*pip install"):
        find_toolchain()


def test_no_cxx(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3GEN_NVCC", str(home / "bin/nvcc"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"CXX=no-such-compiler was not found.*set CXX"):
        find_toolchain()
