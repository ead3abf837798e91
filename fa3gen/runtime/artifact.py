"""Artifact: a built variant on disk, a directory with a shared library and its manifest.

Reading one needs neither torch nor a compiler. The directory may be moved, or copied to another
machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta

__all__ = ["Artifact", "KernelFacts", "check_keys", "file_sha256"]

MANIFEST = "artifact.json"
FORMAT = 3  # of the manifest and of the library's interface


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
        except (OSError, ValueError) as error:
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
        path = self.library_path
        if not path.is_file():
            raise InputError(f"{path}: the artifact's library is missing; build it again")
        found = file_sha256(path)
        if found != self.library_sha256:
            raise InputError(
                f"{path}: sha256 must be {self.library_sha256}, as {MANIFEST} says (got {found}); "
                "the library is damaged or was replaced: build it again"
            )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _from_manifest(directory: Path, manifest: object) -> Artifact:
    where = directory / MANIFEST
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{where}: format must be {FORMAT} (got {got!r}); build it again")
    values: dict[str, Any] = {key: value for key, value in manifest.items() if key != "format"}
    check_keys(where, values, Artifact, {"directory"})
    kernels = values["kernels"]
    if not isinstance(kernels, list) or not kernels:
        raise InputError(f"{where}: kernels must be a list, not empty (got {kernels!r})")
    for kernel in kernels:
        check_keys(where, kernel, KernelFacts, set())
    values["kernels"] = tuple(KernelFacts(**kernel) for kernel in kernels)
    values["inputs"] = _inputs(where, values["inputs"])
    library = values["library"]
    if not isinstance(library, str) or Path(library).name != library:
        raise InputError(f"{where}: library must be a plain file name (got {library!r})")
    values["dtype"] = DType(values["dtype"])
    return Artifact(directory=directory, **values)


def _inputs(where: Path, inputs: object) -> tuple[InputMeta, ...]:
    if not isinstance(inputs, list):
        raise InputError(f"{where}: inputs must be a list (got {inputs!r})")
    for one in inputs:
        check_keys(where, one, InputMeta, set())
    return tuple(
        InputMeta(**{**one, "dtype": DType(one["dtype"]), "shape": tuple(one["shape"])})
        for one in inputs
    )


def check_keys(where: Path, values: object, record: type, more: set[str]) -> None:
    """Raises InputError unless ``values`` is a mapping with a record's fields, all but ``more``."""
    found = set(values) if isinstance(values, dict) else set()
    expected = {field.name for field in dataclasses.fields(record)} - more
    if found != expected:
        differing = ", ".join(sorted(found ^ expected))
        raise InputError(f"{where}: keys missing or unknown: {differing}; build it again")
