"""Many variants built into one folder, which ``fa3gen.load_bundle`` loads with torch alone.

A variant's folder has what is loaded and what it was compiled from. Not kept: the build's log and
its duration, which no two builds share, and the cubins, which the library embeds.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fa3gen._version import __version__
from fa3gen.builds import build_many, default_jobs
from fa3gen.driver import SpecLike, empty_folder
from fa3gen.errors import BuildError, Fa3genError, InputError, SpecError
from fa3gen.inputs import op_schemas
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.manifest import BundledFile, BundledOp, BundleManifest
from fa3gen.wheel import build_wheel, check_project

if TYPE_CHECKING:
    from fa3gen.spec import AttentionSpec

__all__ = ["Variant", "build_bundle", "write_bundle"]

GPU = "sm_90a"
_KEPT = (".so", ".cu", ".cpp")  # files of an artifact, beside its manifest


class Variant(NamedTuple):
    """What a bundle holds of one variant."""

    spec: str  # canonical JSON
    artifact: Artifact


def build_bundle(
    specs: Sequence[SpecLike],
    directory: str | Path,
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    wheel: str | None = None,
) -> BundleManifest:
    """Build the kernels of ``specs``, ``jobs`` at a time, into ``directory``; with ``wheel``, the
    name of a project, also a wheel of them in its folder ``dist``.

    The directory must not exist or be empty, and is written whole or not at all; what was built
    before an error stays in the cache. The same variant given twice is one; two variants must have
    two names. ``progress`` receives a line as kernels are done. Raises InputError, and what
    ``compile`` does, with the name of the spec.
    """
    target = empty_folder(directory).resolve()
    if target == Path.cwd():
        raise InputError(f"-o: must not be the current folder, as it is replaced (got {directory})")
    if wheel is not None:
        check_project(wheel)
    wanted = _distinct(specs)
    if progress:
        at_once = min(jobs or default_jobs(), len(wanted))
        progress(f"{target.name}: {len(wanted)} kernels, {at_once} at a time")
        progress(f"step 0/{len(wanted)}: building")
    variants: list[Variant] = []
    for place, result in build_many(wanted, jobs=jobs, progress=progress):
        if isinstance(result, Fa3genError):
            raise _named(result, wanted[place].name)
        variants.append(Variant(wanted[place].canonical(), result))
    with _whole(target) as folder:
        write_bundle(variants, folder)
        if wheel is not None:
            build_wheel(folder, wheel)
    return BundleManifest.read(target)


def write_bundle(variants: Sequence[Variant], directory: Path) -> BundleManifest:
    """Copies built variants into ``directory``, an empty folder, and writes the manifest there.

    Raises InputError where two have one name, or a library is not the one that was built.
    """
    ordered = {variant.artifact.name: variant for variant in variants}
    if len(ordered) < len(variants):
        twice = Counter(variant.artifact.name for variant in variants).most_common(1)
        raise InputError(_same_name(twice[0][0]))
    ops = tuple(_add(ordered[name], directory) for name in sorted(ordered))
    manifest = BundleManifest(directory, __version__, ops)
    manifest.write()
    return manifest


def _distinct(specs: Sequence[SpecLike]) -> list[AttentionSpec]:
    """The specs, each once, in order of their names; no two of one name."""
    from fa3gen.spec import load_spec

    found: dict[str, AttentionSpec] = {}
    for place, source in enumerate(specs, 1):
        try:
            spec = load_spec(source)
        except SpecError as error:
            raise error.at(f"spec {place}", None) from None  # its file, where it has one
        known = found.setdefault(spec.name, spec)
        if known.canonical() != spec.canonical():
            raise InputError(_same_name(spec.name))
    if not found:
        raise InputError("a bundle has at least one spec (got none); name some")
    return [found[name] for name in sorted(found)]


def _same_name(name: str) -> str:
    return f"{name}: the variants of a bundle must have different names (got two); rename one"


def _named(error: Fa3genError, name: str) -> Fa3genError:
    """The error of a build with its spec's name."""
    if isinstance(error, SpecError):
        return error.at(name, None)
    return type(error)(f"{name}: {error}")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` at the end, and is removed after an error.

    Raises InputError where ``target`` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            folder = Path(temporary) / target.name  # with the permissions that a folder usually has
            folder.mkdir()
            yield folder
            folder.rename(target)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"-o: {target} cannot be written ({reason})") from error


def _add(variant: Variant, directory: Path) -> BundledOp:
    """Copies a variant's artifact into a folder of its own, and says what it is."""
    folder = directory / variant.artifact.op_name
    folder.mkdir()
    try:
        for path in sorted(variant.artifact.directory.iterdir()):
            if path.suffix in _KEPT:
                shutil.copyfile(path, folder / path.name)  # with the mode of a new file
    except FileNotFoundError as error:
        name = variant.artifact.name
        raise BuildError(
            f"{name}: the cache was cleared meanwhile; build the bundle again"
        ) from error
    artifact = dataclasses.replace(variant.artifact, directory=folder, build_seconds=0.0)
    artifact.verify_library()
    artifact.write()
    schemas = op_schemas(artifact.op_name, artifact.inputs, artifact.listed)
    return BundledOp(
        name=artifact.name,
        spec=variant.spec,
        op_name=artifact.op_name,
        schemas=tuple(f"fa3gen::{schema}" for schema in schemas),
        kernels=artifact.kernels,
        library=artifact.library,
        torch_abi=artifact.torch_abi,
        machine=platform.machine(),
        gpu=GPU,
        nvcc=artifact.nvcc,
        cxx=artifact.cxx,
        cutlass=artifact.cutlass,
        files=tuple(BundledFile.of(folder / name) for name in sorted(os.listdir(folder))),
    )
