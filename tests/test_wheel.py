"""Wheels of bundles: made without a network, installed beside torch, imported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from standin import renamed

from fa3gen._version import __version__
from fa3gen.bundle import Variant, write_bundle
from fa3gen.errors import InputError, ToolchainError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.manifest import BundleManifest
from fa3gen.spec import AttentionSpec
from fa3gen.wheel import build_wheel, check_project

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(standin_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    variants = []
    for index in range(2):
        spec = AttentionSpec(name=f"variant_{index}", head_dim=128)
        made = renamed(standin_artifact, place / str(index), spec.name, 0xC0000000 + index)
        variants.append(Variant(spec.canonical(), made))
    folder = place / "bundle"
    folder.mkdir()
    write_bundle(variants, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(bundle: Path) -> Path:
    pytest.importorskip("setuptools")
    return build_wheel(bundle, "My-kernels")


def test_a_project_named_like_a_package_of_setuptools(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    copy = tmp_path / "wheel"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("dist"))
    for project in ("wheel", "packaging"):
        assert build_wheel(copy, project).name.startswith(f"{project}-")


def test_contents(bundle: Path, wheel: Path) -> None:
    digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()[:8]
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel == bundle / f"dist/my_kernels-{__version__}+sha{digest}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert needs == [f"Requires-Dist: fa3gen>={__version__}", "Requires-Dist: torch>=2.10"]
    inside = {name for name in names if ".dist-info/" not in name}
    listed = {
        f"my_kernels/bundle/{op.op_name}/{file.name}"
        for op in BundleManifest.read(bundle).ops
        for file in op.files
    }
    own = {f"my_kernels/{name}" for name in ("__init__.py", "py.typed", "bundle/bundle.json")}
    assert inside == listed | own


def test_the_same_bundle_gives_the_same_wheel(bundle: Path, wheel: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    shutil.rmtree(copy / "dist")
    assert build_wheel(copy, "My-kernels").read_bytes() == wheel.read_bytes()


def test_installed_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([*install, *options], check=True, capture_output=True)
    program = """
import my_kernels
bundle = my_kernels.load()
assert my_kernels.load() is bundle
print(my_kernels.__file__, *bundle)
"""
    paths = os.pathsep.join([str(_ROOT), str(Path(torch.__file__).parents[1])])
    done = subprocess.run(
        [python, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, *names = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path / "venv")
    assert names == ["variant_0", "variant_1"]


@pytest.mark.parametrize(
    "name", ["", "-kernels", "my kernels", "1st", "kernels.", "../x", "class", "json", "torch"]
)
def test_names_that_no_project_can_have(name: str) -> None:
    with pytest.raises(InputError, match=r"^--name: .*give another"):
        check_project(name)


def test_names_of_packages() -> None:
    pytest.importorskip("setuptools")
    assert check_project("My-attention.kernels_2") == "my_attention_kernels_2"


def test_no_setuptools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"needs setuptools.*fa3gen\[wheel\]"):
        check_project("kernels")
