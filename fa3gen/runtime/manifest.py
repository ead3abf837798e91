"""BundleManifest: what a bundle holds, as ``bundle.json`` says it.

::

    bundle.json        for each variant its spec, op, schemas, kernels, ABI, compilers and files
    <op name>/         its artifact: artifact.json, the shared library, the sources of both sides
    dist/              wheels made of the bundle; no part of it

Reading one needs neither torch nor a compiler. The text follows from the specs and the compilers
alone: no clock, no place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa3gen.errors import InputError
from fa3gen.runtime.artifact import KernelFacts, check_values

__all__ = ["DIST", "MANIFEST", "BundleManifest", "BundledFile", "BundledOp"]

MANIFEST = "bundle.json"
DIST = "dist"  # the folder of wheels
FORMAT = 1
_PLAIN = re.compile(r"\w[\w.-]*")  # a name inside its folder
_AGAIN = "copy the bundle again, or make it again with `fa3gen bundle`"


@dataclass(frozen=True)
class BundledFile:
    """A file of a variant's folder."""

    name: str
    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> BundledFile:
        """The file as it is now."""
        data = path.read_bytes()
        return BundledFile(path.name, len(data), hashlib.sha256(data).hexdigest())

    def check(self, path: Path) -> None:
        """Raises InputError unless ``path`` has this size and content."""
        try:
            found = BundledFile.of(path)
        except OSError as error:
            raise InputError(
                f"{path}: must be readable, as {MANIFEST} names it (got {error.strerror}); {_AGAIN}"
            ) from error
        if found.bytes != self.bytes:
            raise InputError(
                f"{path}: must have {self.bytes} bytes, as {MANIFEST} says (got {found.bytes}); "
                f"it is cut off or was replaced: {_AGAIN}"
            )
        if found.sha256 != self.sha256:
            raise InputError(
                f"{path}: sha256 must be {self.sha256}, as {MANIFEST} says (got {found.sha256}); "
                f"it is damaged or was replaced: {_AGAIN}"
            )


@dataclass(frozen=True)
class BundledOp:
    """One variant of a bundle; its folder is named ``op_name``."""

    name: str  # the spec's name
    spec: str  # the spec's canonical JSON
    op_name: str  # torch op name inside the namespace fa3gen
    schemas: tuple[str, ...]  # of the op, its out form and what makes plans, as torch prints them
    kernels: tuple[KernelFacts, ...]
    library: str  # file name of the shared library
    torch_abi: str  # the oldest torch whose stable ABI the library needs, "2.10"
    machine: str  # the CPU's architecture, as platform.machine() has it
    gpu: str  # the architecture of the kernels
    nvcc: str  # compiler versions
    cxx: str
    cutlass: str
    files: tuple[BundledFile, ...]  # by name

    def __str__(self) -> str:
        registers = " and ".join(str(kernel.registers) for kernel in self.kernels)
        size = sum(file.bytes for file in self.files) / 2**20
        return f"{self.op_name}: {registers} registers, {size:.1f} MiB"


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle holds, and where it lies."""

    directory: Path
    fa3gen: str  # the version that made it
    ops: tuple[BundledOp, ...]  # by name

    @property
    def torch_abi(self) -> str:
        """The oldest torch whose stable ABI every library finds."""
        return max((op.torch_abi for op in self.ops), key=lambda one: [*map(int, one.split("."))])

    @staticmethod
    def read(directory: str | Path) -> BundleManifest:
        """The manifest in ``directory``; the files that it names are not opened.

        Raises InputError where there is none, or one of another format.
        """
        directory = Path(directory)
        where = directory / MANIFEST
        try:
            record = json.loads(where.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{directory}: no readable {MANIFEST}, so not a bundle ({error}); "
                "make one with `fa3gen bundle SPEC... -o DIR`"
            ) from error
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        if found != FORMAT:
            raise InputError(
                f"{where}: format must be {FORMAT} (got {found!r}); make the bundle again, or load "
                "it with the fa3gen that made it"
            )
        try:
            return _from_record(directory, record)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: is damaged ({error!r}); {_AGAIN}") from error

    def write(self) -> None:
        """Writes the manifest into the directory."""
        ops = [_to_record(op) for op in self.ops]
        record = {"format": FORMAT, "fa3gen": self.fa3gen, "ops": ops}
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        (self.directory / MANIFEST).write_text(text, encoding="utf-8")

    def check_files(self) -> None:
        """Raises InputError, naming the file, unless all files are there as they were written, and
        no other."""
        folders = {op.op_name for op in self.ops}
        _check_names(self.directory, {MANIFEST, *folders}, {DIST})
        for op in self.ops:
            folder = self.directory / op.op_name
            _check_names(folder, {file.name for file in op.files}, set())
            for file in op.files:
                file.check(folder / file.name)


def _check_names(folder: Path, expected: set[str], allowed: set[str]) -> None:
    """Raises InputError unless a folder holds what is expected, and else only what is allowed."""
    try:
        found = set(os.listdir(folder))
    except OSError as error:
        raise InputError(
            f"{folder}: must be a folder, as {MANIFEST} names it (got {error.strerror}); {_AGAIN}"
        ) from error
    for name in sorted(expected - found):
        raise InputError(f"{folder / name}: must be there, as {MANIFEST} names it; {_AGAIN}")
    for name in sorted(found - expected - allowed):
        raise InputError(f"{folder / name}: is no part of the bundle, by {MANIFEST}; remove it")


def _to_record(op: BundledOp) -> dict[str, Any]:
    fields = dataclasses.asdict(op)
    fields["spec"] = json.loads(op.spec)
    fields["files"] = {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in op.files}
    return fields


def _from_record(directory: Path, record: dict[str, Any]) -> BundleManifest:
    where = directory / MANIFEST
    values = {key: value for key, value in record.items() if key != "format"}
    check_values(where, values, BundleManifest, {"directory"})
    ops = tuple(_op(where, op) for op in values["ops"])
    for names in ([op.name for op in ops], [op.op_name for op in ops]):
        if len(set(names)) != len(names):
            raise ValueError(f"names must differ (got {', '.join(names)})")
    return BundleManifest(directory, values["fa3gen"], ops)


def _op(where: Path, found: Any) -> BundledOp:
    values = {**found, "spec": _canonical(found["spec"])}
    check_values(where, values, BundledOp, set())
    for kernel in values["kernels"]:
        check_values(where, kernel, KernelFacts, set())
    files = [{**file, "name": name} for name, file in values["files"].items()]
    for file in files:
        check_values(where, file, BundledFile, set())
    op = BundledOp(
        **{
            **values,
            "schemas": tuple(values["schemas"]),
            "kernels": tuple(KernelFacts(**kernel) for kernel in values["kernels"]),
            "files": tuple(BundledFile(**file) for file in files),
        }
    )
    for name in _places(op):
        if not _PLAIN.fullmatch(name):  # nothing outside the bundle is opened
            raise ValueError(f"file names must be plain (got {name!r})")
    return op


def _canonical(spec: Any) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def _places(op: BundledOp) -> Iterator[str]:
    yield op.op_name
    yield op.library
    yield from (file.name for file in op.files)
