"""The package as pip builds it: what kernels are made from lies inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from fa3gen.paths import SPECS

_ROOT = SPECS.parent
_TREE = ("fa3gen", "templates", "specs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _run(*words: str, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_has_templates_and_specs(tmp_path: Path) -> None:
    tree, installed = tmp_path / "tree", tmp_path / "installed"
    tree.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _TREE:
        if (_ROOT / name).is_dir():
            shutil.copytree(_ROOT / name, tree / name, ignore=skipped)
        else:
            shutil.copy(_ROOT / name, tree)
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    _run("-m", "pip", "wheel", *options, "-w", str(tmp_path), ".", folder=tree)
    (wheel,) = tmp_path.glob("fa3gen-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for name in ("templates", "specs"):
        assert _files(installed / "fa3gen/_data" / name) == _files(tree / name)
    modules = {name for name in _files(tree / "fa3gen") if name.endswith((".py", ".json"))}
    assert modules <= _files(installed / "fa3gen")
    shown = _run("-m", "fa3gen.cli", "generate", "softcap", "-o", "out", folder=installed)
    assert (installed / "out/softcap/host.cpp").is_file(), shown
    rendered = (installed / "out/softcap/kernel.cu").read_text()
    assert rendered == (_ROOT / "generated/softcap/kernel.cu").read_text()
