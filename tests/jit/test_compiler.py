from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from standin import META, standin_source

from fa3gen.debug import COMPILER
from fa3gen.errors import BuildError
from fa3gen.jit.compiler import build
from fa3gen.jit.toolchain import find_toolchain
from fa3gen.runtime.artifact import Artifact


def test_real_build(standin_artifact: Artifact) -> None:
    names = {path.name for path in standin_artifact.directory.iterdir()}
    library = f"{META.op_name}.so"
    expected = {"artifact.json", "build.log", "host.cpp", "kernel.cu", "kernel.cubin", library}
    assert names == expected
    (kernel,) = standin_artifact.kernels
    assert 0 < kernel.registers <= 255
    assert kernel.spill_bytes == 0
    assert kernel.symbol.encode() in standin_artifact.library_path.read_bytes()
    standin_artifact.verify_library()


def test_the_bytes_do_not_depend_on_the_folder(standin_artifact: Artifact, tmp_path: Path) -> None:
    if "FA3GEN_STANDIN" in os.environ:
        pytest.skip("the stand-in was built elsewhere")
    again = build(standin_source(), tmp_path / "else where", find_toolchain())
    assert again.library_sha256 == standin_artifact.library_sha256


def test_real_build_with_inputs(inputs_artifact: Artifact) -> None:
    """The host's checks of inputs are compiled; the kernel takes them behind its parameters."""
    host = (inputs_artifact.directory / "host.cpp").read_text()
    assert "Tensor alpha_, Tensor relative_" in host
    assert [meta.name for meta in inputs_artifact.inputs] == ["alpha", "relative"]
    inputs_artifact.verify_library()


def test_manifest_says_what_was_built(scripted, tmp_path: Path) -> None:
    artifact = build(standin_source(), tmp_path / "out", scripted.toolchain)
    assert artifact == Artifact.read(tmp_path / "out")
    assert artifact.kernels[0].registers == 90
    assert (artifact.op_name, artifact.dtype) == (META.op_name, META.dtype)
    assert (artifact.nvcc, artifact.cxx, artifact.cutlass) == ("13.0.88", "12.2.0", "4.2.0.0")


def test_flags(scripted, tmp_path: Path) -> None:
    build(standin_source(), tmp_path / "out", scripted.toolchain)
    (nvcc,) = [call for call in scripted.calls if call.startswith("nvcc")]
    assert "-gencode=arch=compute_90a,code=sm_90a" in nvcc
    assert "use_fast_math" not in nvcc
    host, link = (call for call in scripted.calls if "host.o" in call)
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in host
    assert link.count("-ltorch") == link.count("-ltorch_cpu") == 1


def test_progress_starts_at_once_and_counts_the_steps(scripted, tmp_path: Path) -> None:
    lines: list[tuple[float, str]] = []
    started = time.monotonic()
    build(
        standin_source(),
        tmp_path / "out",
        scripted.toolchain,
        lambda line: lines.append((time.monotonic() - started, line)),
    )
    assert lines[0][0] < 1.0
    assert META.op_name in lines[0][1]
    steps = [line for _, line in lines if line.startswith("step ")]
    assert [step.split(":")[0] for step in steps] == [f"step {i}/5" for i in range(1, 6)]
    assert "90 registers" in lines[-1][1]


def test_compiler_errors_are_quoted_and_few(scripted, tmp_path: Path) -> None:
    notes = "\n".join(f'kernel.cu({n}): error: identifier "x{n}" is undefined' for n in range(90))
    scripted.script("nvcc", "In file included from kernel.cu\n" + notes, status=1)
    with pytest.raises(BuildError) as caught:
        build(standin_source(), tmp_path / "out", scripted.toolchain)
    message = str(caught.value)
    assert 'kernel.cu(0): error: identifier "x0" is undefined' in message
    assert "and 85 more" in message
    assert message.count("\n") < 10
    log = (tmp_path / "out/build.log").read_text()
    assert "x89" in log
    assert not (tmp_path / "out/artifact.json").exists()


def test_failure_without_an_error_line_shows_the_end(scripted, tmp_path: Path) -> None:
    scripted.script("cxx", "collect2: ld returned 1\n", status=1)
    with pytest.raises(BuildError, match="collect2: ld returned 1"):
        build(standin_source(), tmp_path / "out", scripted.toolchain)


def test_gate_refuses_a_build_that_compiles(scripted, tmp_path: Path) -> None:
    line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async are serialized"
    log = (scripted.folder / "nvcc.txt").read_text()
    scripted.script("nvcc", f"{log}{line}\n")
    with pytest.raises(BuildError, match="C7510"):
        build(standin_source(), tmp_path / "out", scripted.toolchain)
    assert not (tmp_path / "out/artifact.json").exists()


def test_rebuild_after_a_failure(scripted, tmp_path: Path) -> None:
    log = (scripted.folder / "nvcc.txt").read_text()
    scripted.script("nvcc", "nvcc fatal: no space left\n", status=1)
    with pytest.raises(BuildError, match="no space left"):
        build(standin_source(), tmp_path / "out", scripted.toolchain)
    scripted.script("nvcc", log)
    assert build(standin_source(), tmp_path / "out", scripted.toolchain).kernels[0].registers == 90


def test_compiler_output_is_logged(
    scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(COMPILER, logger="fa3gen.jit"):
        build(standin_source(), tmp_path / "out", scripted.toolchain)
    (record,) = [record for record in caplog.records if record.name == "fa3gen.jit"]
    assert record.levelno == COMPILER
    assert "Used 90 registers" in record.getMessage()
