"""The export example on the CPU: compiled by AOTInductor, run where the bundle is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from standin import renamed

from fa3gen.bundle import Variant, write_bundle
from fa3gen.driver import plan_of, source_of
from fa3gen.runtime.artifact import Artifact
from fa3gen.spec import AttentionSpec

_ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(standin_artifact: Artifact, tmp_path: Path) -> Path:
    """A library of the op that the interpreter implements: on the GPU it would be the stand-in."""
    spec = AttentionSpec(name="standin", head_dim=128, mask="causal")
    digest = source_of(plan_of(spec)).meta.op_name.removeprefix("standin_")
    made = renamed(standin_artifact, tmp_path / "built", spec.name, int(digest, 16))
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle([Variant(spec.canonical(), made)], folder)
    return folder


def example(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, _ROOT / "examples/export.py", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_model_compiled_by_one_process_runs_in_another(bundle: Path, tmp_path: Path) -> None:
    package = tmp_path / "model.pt2"
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    compiled = example("compile", bundle, "standin", package, **variables)
    assert compiled.returncode == 0, compiled.stderr
    ran = example("run", bundle, package, **variables)
    assert ran.returncode == 0, ran.stderr
    *calls, largest = ran.stdout.splitlines()
    assert [call.partition(":")[0] for call in calls] == [
        "batch 2, length 160",
        "batch 1, length 33",
        "batch 3, length 130",
    ]
    assert largest.startswith("largest difference ")
