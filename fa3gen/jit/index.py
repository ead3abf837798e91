"""The cache's index: from a spec as written to its kernel, without reading the spec.

The full key of a build covers the rendered source, and rendering means importing sympy, networkx,
pydantic and Jinja. The index is keyed by what all of that follows from: the spec's bytes, the
content of fa3gen's own files, the versions of the packages that render, and the toolchain. An entry
names a directory of the cache; what is found there is checked like any artifact.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fa3gen import paths
from fa3gen._version import __version__
from fa3gen.errors import InputError
from fa3gen.jit.entries import INDEX, entry_of, read_entry, write_whole
from fa3gen.jit.trust import check
from fa3gen.runtime.artifact import Artifact

if TYPE_CHECKING:
    from fa3gen.jit.toolchain import Toolchain
    from fa3gen.spec import AttentionSpec

__all__ = ["SpecSource", "find", "index_key", "package_fingerprint", "read_spec", "record"]

_RENDERERS = ("jinja2", "networkx", "ortools", "pydantic", "sympy", "yaml")


class SpecSource(NamedTuple):
    """A spec as it was given: ``kind`` is yaml, json or spec, ``data`` its bytes."""

    kind: str
    data: bytes

    def load(self) -> AttentionSpec:
        """The spec itself."""
        from fa3gen.spec import load_spec

        text = self.data.decode("utf-8-sig")
        return load_spec(text + "\n" if self.kind == "yaml" else json.loads(text))


def read_spec(spec: Any) -> SpecSource | None:
    """The bytes of a path, YAML text, mapping or AttentionSpec; None of anything unusual.

    It follows ``load_spec``: a str is text if it has a line break, or a colon and a blank but no
    file of that name; the bare name of a shipped spec is a path.
    """
    if isinstance(spec, Mapping):
        return _of_mapping(spec)
    model = sys.modules.get("fa3gen.spec.model")  # not there, so the spec is none
    if model is not None and isinstance(spec, model.AttentionSpec):
        return SpecSource("json", spec.canonical().encode())
    try:
        if not isinstance(spec, str):
            return SpecSource("yaml", Path(spec).read_bytes())
        if "\n" in spec or "\r" in spec:
            return SpecSource("yaml", spec.encode())
        if os.path.isfile(spec):
            return SpecSource("yaml", Path(spec).read_bytes())
        if ": " in spec and not spec.endswith((".yaml", ".yml")):
            return SpecSource("yaml", spec.encode())
        if spec.isidentifier():
            return SpecSource("yaml", (paths.SPECS / f"{spec}.yaml").read_bytes())
    except (OSError, TypeError, ValueError):
        pass  # load_spec says what is wrong
    return None


def index_key(source: SpecSource, toolchain: Toolchain, tuning: bytes = b"") -> str:
    """Hex SHA-256 over all that a spec's kernels follow from; ``tuning``: of this machine."""
    digest = hashlib.sha256()
    for part in (
        source.kind.encode(),
        source.data,
        package_fingerprint().encode(),
        repr(list(_renderers())).encode(),
        tuning,
        f"{toolchain.fingerprint}, {platform.machine()}".encode(),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def package_fingerprint() -> str:
    """Hex SHA-256 over fa3gen's version and the content of its modules and templates.

    Content rather than times: it takes 2 ms, and a developer's edit is never missed.
    """
    digest = hashlib.sha256(__version__.encode())
    package = os.path.dirname(os.path.abspath(__file__))
    for root in (os.path.dirname(package), str(paths.TEMPLATES)):
        for path in sorted(_files(root)):
            with open(path, "rb") as stream:
                data = stream.read()
            name = os.path.relpath(path, root).encode()
            digest.update(len(name).to_bytes(8, "little") + name)
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def find(root: Path, key: str) -> Artifact | None:
    """The kernel that the index of the opened cache ``root`` holds under ``key``.

    Nobody else can change it; its library is not opened, nor compared with its hash.
    """
    place = _place(root, key)
    try:
        check(place.parent)
        check(place)
        record = json.loads(place.read_text(encoding="utf-8"))
        name = record["entry"]
        return read_entry(root / name) if record["key"] == key and entry_of(name) == name else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, InputError):
        return None


def record(root: Path, key: str, artifact: Artifact) -> None:
    """Notes under ``key`` a kernel of the opened cache ``root``, where that can be written."""
    if artifact.directory.parent == root and find(root, key) != artifact:
        record = {"entry": artifact.directory.name, "key": key}
        write_whole(_place(root, key), json.dumps(record))


def _place(root: Path, key: str) -> Path:
    return root / INDEX / f"{key[:32]}.json"


def _of_mapping(spec: Mapping[str, Any]) -> SpecSource | None:
    try:
        text = json.dumps(_plain(spec), sort_keys=True)
    except TypeError:
        return None
    return SpecSource("json", text.encode())


def _plain(value: Any) -> Any:
    """The value, if JSON tells it from every other value; else TypeError."""
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError("keys are text")
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError("not plain data")


def _files(root: str) -> Iterator[str]:
    for entry in os.scandir(root):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _files(entry.path)
        elif not entry.name.endswith((".pyc", ".pyo")):
            yield entry.path


def _renderers() -> Iterator[tuple[str, int, int]]:
    """The packages that a rendering depends on, told apart by their first file."""
    for name in _RENDERERS:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            yield name, -1, -1
        else:
            status = os.stat(found.origin)
            yield name, status.st_mtime_ns, status.st_size
