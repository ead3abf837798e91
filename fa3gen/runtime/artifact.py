"""Artifact: a built variant on disk, a directory with a shared library and its manifest.

Reading one needs neither torch nor a compiler. The directory may be moved, or copied to another
machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta

__all__ = ["Artifact", "KernelFacts", "check_values", "file_sha256"]

MANIFEST = "artifact.json"
FORMAT = 3  # of the manifest and of the library's interface
_PLAIN: dict[str, tuple[type, ...]] = {  # by a field's annotation
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "float": (float, int),
}


@dataclass(frozen=True)
class KernelFacts:
    """What the manifest says of one kernel."""

    symbol: str  # its name in its cubin
    max_keys: int | None  # the most keys of a call that takes it; None: any number
    block_m: int  # query rows of a work tile
    block_n: int  # keys of a KV tile
    threads: int  # of a CTA
    smem_bytes: int  # dynamic shared memory of a CTA
    registers: int  # of a thread at entry
    spill_bytes: int

    def __str__(self) -> str:
        keys = "" if self.max_keys is None else f" up to {self.max_keys} keys"
        return (
            f"tile {self.block_m}x{self.block_n}{keys}, {self.threads} threads, "
            f"{self.smem_bytes} bytes of shared memory"
        )


@dataclass(frozen=True)
class Artifact:
    """A built variant: where it lies and what the manifest says of it.

    ``kernels``: a call takes the first whose ``max_keys`` is not below its keys.
    """

    directory: Path
    name: str  # the spec's name
    op_name: str  # torch op name inside the namespace fa3gen
    dtype: DType  # of q, k, v and out
    head_dim_qk: int
    head_dim_v: int
    inputs: tuple[InputMeta, ...]  # in the order of the op's arguments
    listed: bool  # calls take a plan: lists of KV tiles
    kernels: tuple[KernelFacts, ...]
    build_seconds: float
    library: str  # file name of the shared library inside the directory
    library_sha256: str
    nvcc: str  # compiler versions
    cxx: str
    cutlass: str
    torch_abi: str  # the oldest torch whose stable ABI the library needs, "2.10"

    @property
    def library_path(self) -> Path:
        """The shared library."""
        return self.directory / self.library

    @staticmethod
    def read(directory: str | Path) -> Artifact:
        """The artifact in ``directory``; its library is not opened.

        Raises InputError where there is none, or one of another format.
        """
        directory = Path(directory)
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{directory}: no readable {MANIFEST}, so not an artifact ({error}); "
                "make one with `fa3gen build SPEC -o DIR`"
            ) from error
        return _from_manifest(directory, manifest)

    def write(self) -> None:
        """Writes the manifest into the directory, whole or not at all."""
        fields = dataclasses.asdict(self)
        del fields["directory"]
        fields["dtype"] = self.dtype.value
        fields["inputs"] = [
            {**dataclasses.asdict(one), "dtype": one.dtype.value, "shape": list(one.shape)}
            for one in self.inputs
        ]
        text = json.dumps({"format": FORMAT, **fields}, indent=2, sort_keys=True) + "\n"
        temporary = self.directory / f"{MANIFEST}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.directory / MANIFEST)

    def verify_library(self) -> None:
        """Raises InputError unless the library is the one that the manifest was written for."""
        self._verified()

    def verify_op(self) -> None:
        """Raises InputError unless the library is the manifest's, and of the op that it names.

        To load a library that defines an op once more would end the process.
        """
        if f"{self.op_name}(".encode() not in self._verified():
            raise InputError(
                f"{self.library_path}: must define the op {self.op_name}, as {MANIFEST} says "
                "(it does not); build it again"
            )

    def _verified(self) -> bytes:
        path = self.library_path
        if not path.is_file():
            raise InputError(f"{path}: the artifact's library is missing; build it again")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.library_sha256:
            raise InputError(
                f"{path}: sha256 must be {self.library_sha256}, as {MANIFEST} says (got {found}); "
                "the library is damaged or was replaced: build it again"
            )
        return data


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _from_manifest(directory: Path, manifest: object) -> Artifact:
    where = directory / MANIFEST
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{where}: format must be {FORMAT} (got {got!r}); build it again")
    values: dict[str, Any] = {key: value for key, value in manifest.items() if key != "format"}
    check_values(where, values, Artifact, {"directory"})
    kernels = values["kernels"]
    if not isinstance(kernels, list) or not kernels:
        raise InputError(f"{where}: kernels must be a list, not empty (got {kernels!r})")
    for kernel in kernels:
        check_values(where, kernel, KernelFacts, set())
    values["kernels"] = tuple(KernelFacts(**kernel) for kernel in kernels)
    values["inputs"] = _inputs(where, values["inputs"])
    library = values["library"]
    if not re.fullmatch(r"\w[\w.-]*", library):
        raise InputError(f"{where}: library must be a plain file name (got {library!r})")
    values["dtype"] = _dtype(where, values["dtype"])
    return Artifact(directory=directory, **values)


def _inputs(where: Path, inputs: object) -> tuple[InputMeta, ...]:
    if not isinstance(inputs, list):
        raise InputError(f"{where}: inputs must be a list (got {inputs!r})")
    for one in inputs:
        check_values(where, one, InputMeta, set())
        if not isinstance(one["shape"], list):
            raise InputError(f"{where}: shape must be a list (got {one['shape']!r})")
    return tuple(
        InputMeta(**{**one, "dtype": _dtype(where, one["dtype"]), "shape": tuple(one["shape"])})
        for one in inputs
    )


def _dtype(where: Path, value: object) -> DType:
    try:
        return DType(value)
    except ValueError as error:
        raise InputError(f"{where}: dtype must be one of fa3gen's (got {value!r})") from error


def check_values(where: Path, values: Any, record: type, more: set[str]) -> None:
    """Raises InputError unless ``values`` is a mapping with a record's fields, all but ``more``, of
    which texts and numbers are such."""
    _check_keys(where, values, record, more)
    for field in dataclasses.fields(record):
        types = _PLAIN.get(str(field.type))
        if types and type(values[field.name]) not in types:
            raise InputError(
                f"{where}: {field.name} must be {field.type} (got {values[field.name]!r}); "
                "build it again"
            )


def _check_keys(where: Path, values: object, record: type, more: set[str]) -> None:
    """Raises InputError unless ``values`` is a mapping with a record's fields, all but ``more``."""
    found = set(values) if isinstance(values, dict) else set()
    expected = {field.name for field in dataclasses.fields(record)} - more
    if found != expected:
        differing = ", ".join(sorted(found ^ expected))
        raise InputError(f"{where}: keys missing or unknown: {differing}; build it again")
