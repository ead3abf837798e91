"""A toolchain of shell scripts: the whole build runs, but nothing is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
from standin import META, standin_source

from fa3gen.jit import aside, index
from fa3gen.jit.cache import build_cached
from fa3gen.jit.toolchain import Toolchain, find_ninja
from fa3gen.runtime.artifact import Artifact

KEY = "cd" * 32  # in the index
LOG = """\
ptxas info    : Compiling entry function 'standin_kernel' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers
"""


class ScriptedToolchain:
    """Compilers that print what they are told, note each call, and write an output file: a copy of
    the file ``made`` beside them, if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script("nvcc", LOG)
        self.script("cxx", "")

    def script(self, name: str, output: str, status: int = 0, seconds: float = 0) -> None:
        """Makes ``name`` print ``output`` and end with ``status`` after ``seconds``."""
        (self.folder / f"{name}.txt").write_text(output)
        new = self.folder / f"{name}.new"
        new.write_text(
            "#!/bin/sh\n"
            f"echo \"{name} $*\" >> '{self.folder}/calls'\n"
            f"cat '{self.folder}/{name}.txt'\n"
            f"sleep {seconds}\n"
            f"[ {status} = 0 ] || exit {status}\n"
            'while [ "$1" != -o ]; do shift; done\n'
            f"if [ -f '{self.folder}/made' ]; then cp '{self.folder}/made' \"$2\"\n"
            'else echo made > "$2"; fi\n'
        )
        new.chmod(0o755)
        new.replace(self.folder / name)  # a shell that runs the old script goes on with it

    @property
    def calls(self) -> list[str]:
        """The command lines so far."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def toolchain(self) -> Toolchain:
        return Toolchain(
            nvcc=self.folder / "nvcc",
            nvcc_version="13.0.88",
            cxx=self.folder / "cxx",
            cxx_version="12.2.0",
            cuda_include=(self.folder / "include",),
            cudart_static=self.folder / "libcudart_static.a",
            cutlass_include=self.folder / "cutlass",
            cutlass_version="4.2.0.0",
            torch_include=self.folder / "torch",
            torch_lib=self.folder,
            ninja=find_ninja(),
        )


@pytest.fixture
def scripted(tmp_path: Path) -> ScriptedToolchain:
    folder = tmp_path / "tool $chain"  # a blank and a dollar, to be quoted
    folder.mkdir()
    return ScriptedToolchain(folder)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache is; nothing is there yet."""
    root = tmp_path / "cache"
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(root))
    monkeypatch.setattr(aside, "_built", {})  # another test may have built the same
    return root


@pytest.fixture
def entry(scripted: ScriptedToolchain, root: Path) -> Artifact:
    """A kernel in the cache, which the index names."""
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    index.record(root, KEY, artifact)
    return artifact


def rebuilt(scripted: ScriptedToolchain) -> Artifact:
    """The kernel once more; it must be the right one."""
    artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
    artifact.verify_library()
    assert artifact.op_name == META.op_name
    assert artifact.library_path.read_bytes() == b"made\n"
    return artifact
