"""Bundle: the variants of a bundle, loaded; it needs torch alone."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fa3gen.errors import InputError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.manifest import BundledOp, BundleManifest
from fa3gen.runtime.op import register

__all__ = ["Bundle", "load_bundle"]


class Bundle(Mapping[str, Attention]):
    """The variants of a bundle by their specs' names; read-only.

    Attributes: ``manifest`` (what ``bundle.json`` says of each).
    """

    def __init__(self, manifest: BundleManifest, variants: Mapping[str, Attention]) -> None:
        self.manifest = manifest
        self._variants = MappingProxyType(dict(variants))

    def __getitem__(self, name: str) -> Attention:
        return self._variants[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variants)

    def __len__(self) -> int:
        return len(self._variants)

    def __repr__(self) -> str:
        return f"<fa3gen.Bundle of {self.manifest.directory}: {', '.join(self) or 'empty'}>"


def load_bundle(directory: str | Path) -> Bundle:
    """The variants of a bundle made by ``fa3gen bundle``; needs torch alone.

    All ops are registered on return, so that programs which name them (compiled by AOTInductor,
    say) can be loaded. Before any is, every file is compared with the manifest, those too that are
    not opened. Raises InputError, naming file, rule and value, where one is missing, damaged or
    foreign, and where the bundle is of another format or machine, or needs a newer torch.
    """
    manifest = BundleManifest.read(directory)
    for op in manifest.ops:
        _check_abi(manifest, op)
    manifest.check_files()
    artifacts = [_artifact(manifest, op) for op in manifest.ops]
    variants = {
        op.name: Attention(register(artifact), spec=partial(_spec, op.spec), artifact=artifact)
        for op, artifact in zip(manifest.ops, artifacts, strict=True)
    }
    return Bundle(manifest, variants)


def _artifact(manifest: BundleManifest, op: BundledOp) -> Artifact:
    artifact = Artifact.read(manifest.directory / op.op_name)
    found = (artifact.name, artifact.op_name, artifact.library)
    if found != (op.name, op.op_name, op.library):
        raise InputError(
            f"{artifact.directory}: must be the artifact of {op.name}, {op.op_name}, {op.library} "
            f"(got {', '.join(found)}); make the bundle again"
        )
    return artifact


def _check_abi(manifest: BundleManifest, op: BundledOp) -> None:
    """Raises InputError unless this machine and this torch can load the op's library."""
    where = f"{manifest.directory}: {op.name}"
    if (machine := platform.machine()) != op.machine:
        raise InputError(
            f"{where}: the machine must be {op.machine} (got {machine}); make a bundle on one like "
            "this"
        )
    installed = str(torch.__version__)
    if _release(installed) < _release(op.torch_abi):
        raise InputError(
            f"{where}: torch must be {op.torch_abi} or newer (got {installed}); install a newer one"
        )


def _release(version: str) -> tuple[int, int]:
    """Major and minor of a version of torch, ``2.10.0a0+git1234`` too."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise InputError(f"torch: version must begin with numbers, like 2.10 (got {version})")
    return int(match[1]), int(match[2])


def _spec(text: str) -> Any:
    """The spec itself; this alone needs the compiler's packages."""
    import json

    from fa3gen.spec import AttentionSpec

    return AttentionSpec(**json.loads(text))
