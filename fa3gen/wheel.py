"""A wheel of a bundle: ``pip install`` it, and ``import NAME; NAME.load()`` gives the variants.

setuptools makes it, without a network. It depends on torch and on fa3gen, whose registry of ops a
process must have once: a copy of the runtime in each wheel would define an op twice where two of
them, or one and fa3gen itself, have the same variant, and torch aborts the process then. What
fa3gen depends on is not imported, so ``pip install --no-deps`` of both does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import keyword
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jinja2

from fa3gen.errors import BuildError, InputError, ToolchainError
from fa3gen.paths import TEMPLATES
from fa3gen.runtime.manifest import DIST, MANIFEST, BundleManifest

__all__ = ["build_wheel", "check_project"]

_PROJECT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")  # as PyPA's names are
_TAKEN = {"fa3gen", "setuptools", "torch"}
_EPOCH = "315532800"  # 1980, the first year of a zip file: the same bundle, the same wheel
_HOOK = """\
import sys
sys.path = [place for place in sys.path if place]  # the project may be named like a package
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""


@dataclass(frozen=True)
class _WheelView:
    """What the template of pyproject.toml reads."""

    project: str
    module: str
    version: str
    fa3gen: str
    torch_abi: str
    platform: str
    variants: tuple[str, ...]


def check_project(project: str) -> str:
    """The package that a project's wheel installs.

    Raises InputError where it can have none, and ToolchainError where setuptools is missing.
    """
    module = re.sub(r"[-_.]+", "_", project).lower()
    if not _PROJECT.fullmatch(project) or not module.isidentifier() or keyword.iskeyword(module):
        raise InputError(
            "--name: must begin with a letter, of letters, digits, and - _ . between them, as "
            f"projects of Python are named (got {project!r}); give another"
        )
    if module in _TAKEN | sys.stdlib_module_names:
        raise InputError(f"--name: {module} is a package already (got {project!r}); give another")
    if importlib.util.find_spec("setuptools") is None:
        raise ToolchainError("a wheel needs setuptools; install it, or fa3gen[wheel]")
    return module


def build_wheel(directory: str | Path, project: str) -> Path:
    """A wheel of the bundle in ``directory``, in its folder ``dist``.

    ``project`` is its name; the version is fa3gen's and a hash of the bundle. Raises InputError,
    ToolchainError where setuptools is missing, and BuildError where it fails.
    """
    module = check_project(project)
    manifest = BundleManifest.read(directory)
    manifest.check_files()
    dist = manifest.directory.resolve() / DIST
    with tempfile.TemporaryDirectory(prefix="fa3gen-wheel-") as temporary:
        _write_project(Path(temporary), _view(manifest, project, module))
        unused = shutil.ignore_patterns(DIST)
        shutil.copytree(manifest.directory, Path(temporary) / module / "bundle", ignore=unused)
        return _run_setuptools(Path(temporary), dist)


def _view(manifest: BundleManifest, project: str, module: str) -> _WheelView:
    digest = hashlib.sha256((manifest.directory / MANIFEST).read_bytes()).hexdigest()
    return _WheelView(
        project=project,
        module=module,
        version=f"{manifest.fa3gen}+sha{digest[:8]}",
        fa3gen=manifest.fa3gen,
        torch_abi=manifest.torch_abi,
        platform=re.sub(r"[-.]", "_", sysconfig.get_platform()),
        variants=tuple(op.name for op in manifest.ops),
    )


def _write_project(folder: Path, view: _WheelView) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES / "wheel"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template("pyproject.toml.j2").render(wheel=view)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    package = folder / view.module
    package.mkdir()
    shutil.copyfile(TEMPLATES / "wheel/__init__.py", package / "__init__.py")
    (package / "py.typed").touch()


def _run_setuptools(folder: Path, dist: Path) -> Path:
    """Calls the standard hook of setuptools on a project; the wheel's path."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        done = subprocess.run(
            [sys.executable, "-c", _HOOK, made],
            cwd=folder,
            env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        wheels = list(Path(made).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = "\n  ".join((done.stdout + done.stderr).splitlines()[-5:])
            raise BuildError(f"setuptools made no wheel:\n  {last}")
        dist.mkdir(exist_ok=True)
        return Path(shutil.copy(wheels[0], dist))
