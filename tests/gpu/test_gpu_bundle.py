"""Bundles on the GPU: loaded, called from C++, and in a model that AOTInductor has compiled.

``FA3GEN_BUNDLE`` names one built elsewhere of the specs below; without it, it is built on the spot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fa3gen
from fa3gen.check import Case, cases, run_case

_ROOT = Path(__file__).parents[2]
MASKS = {"causal_d128_bf16": "causal", "full_d128_bf16": "full"}  # by the specs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("FA3GEN_BUNDLE"):
        return Path(built).resolve()
    from fa3gen.bundle import build_bundle

    return build_bundle(list(MASKS), tmp_path_factory.mktemp("gpu") / "bundle").directory


def run(*words: object, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), **variables}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("case", cases("small"), ids=lambda case: case.name)
def test_against_the_reference(bundle: Path, name: str, case: Case) -> None:
    attention = fa3gen.load_bundle(bundle)[name]
    head_dims = (128, 128)
    result = run_case(
        attention, MASKS[name], case, device="cuda", dtype=torch.bfloat16, head_dims=head_dims
    )
    assert result.ok, result


@pytest.mark.parametrize("name", MASKS)
def test_without_python(bundle: Path, tmp_path: Path, name: str) -> None:
    make = ("make", "-C", _ROOT / "examples/cpp", "run", f"BUILD={tmp_path}")
    said = run(*make, f"PYTHON={sys.executable}", f"BUNDLE={bundle}", f"VARIANT={name}")
    assert f"fa3gen::{name}_" in said
    assert ": right" in said


@pytest.mark.parametrize("name", MASKS)
def test_a_compiled_model_in_a_fresh_process(bundle: Path, tmp_path: Path, name: str) -> None:
    example, package = _ROOT / "examples/export.py", tmp_path / "model.pt2"
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    run(sys.executable, example, "compile", bundle, name, package, **variables)
    said = run(sys.executable, example, "run", bundle, package, **variables)
    assert said.count("as without a compiler") == 3
