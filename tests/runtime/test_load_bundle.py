"""Bundles loaded: what is there, what is refused, what is imported, and how long it takes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from standin import renamed

import fa3gen
from fa3gen.bundle import Variant, write_bundle
from fa3gen.errors import InputError
from fa3gen.runtime.artifact import Artifact
from fa3gen.spec import AttentionSpec

_numbers = itertools.count(0xB0000000)
_LIMIT_S = 1.0  # of the CPU, to load 50 variants on top of torch's import


def spec_of(name: str) -> AttentionSpec:
    return AttentionSpec(name=name, head_dim=128, mask="causal")


def bundle_of(artifact: Artifact, place: Path, count: int) -> Path:
    """A bundle of stand-ins, each an op of its own, of no other bundle."""
    variants = []
    for index in range(count):
        spec = spec_of(f"variant_{index}")
        made = renamed(artifact, place / f"built_{index}", spec.name, next(_numbers))
        variants.append(Variant(spec.canonical(), made))
    folder = place / "bundle"
    folder.mkdir()
    write_bundle(variants, folder)
    return folder


@pytest.fixture
def bundle(standin_artifact: Artifact, tmp_path: Path) -> Path:
    return bundle_of(standin_artifact, tmp_path, 2)


def op_names(folder: Path) -> list[str]:
    return [op["op_name"] for op in json.loads((folder / "bundle.json").read_text())["ops"]]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest."""
    path = folder / "bundle.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_mapping_from_names_to_variants(bundle: Path) -> None:
    loaded = fa3gen.load_bundle(bundle)
    assert isinstance(loaded, fa3gen.Bundle)
    assert list(loaded) == ["variant_0", "variant_1"]
    assert len(loaded) == 2
    assert "variant_2" not in loaded
    with pytest.raises(KeyError, match="variant_2"):
        loaded["variant_2"]
    with pytest.raises(TypeError):
        loaded["variant_0"] = loaded["variant_1"]  # type: ignore[index]
    assert repr(loaded) == f"<fa3gen.Bundle of {bundle}: variant_0, variant_1>"
    for name, attention in loaded.items():
        assert attention.name == name
        assert attention.spec.digest() == spec_of(name).digest()
        assert attention.artifact is not None
        assert attention.artifact.directory.parent == bundle


def test_the_manifest_has_the_schemas_that_torch_has(bundle: Path) -> None:
    loaded = fa3gen.load_bundle(str(bundle))
    for op in loaded.manifest.ops:
        names = (op.op_name, f"{op.op_name}_out")
        found = [str(getattr(torch.ops.fa3gen, name).default._schema) for name in names]
        assert found == list(op.schemas)


def test_loading_twice_and_after_a_move(bundle: Path) -> None:
    first = fa3gen.load_bundle(bundle)
    moved = bundle.with_name("moved")
    bundle.rename(moved)
    second = fa3gen.load_bundle(moved)
    assert [one.op for one in first.values()] == [one.op for one in second.values()]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (_flip, r"sha256 must be [0-9a-f]{64}, as bundle\.json says \(got .*copy the bundle again"),
        (_cut, r"must have \d+ bytes, as bundle\.json says \(got 10\).*copy the bundle again"),
        (Path.unlink, r"must be there, as bundle\.json names it.*copy the bundle again"),
        (lambda path: (path.unlink(), path.mkdir()), r"must be readable.*\(got Is a directory\)"),
    ],
    ids=["changed", "truncated", "missing", "folder"],
)
@pytest.mark.parametrize("file", ["library", "artifact.json", "host.cpp"])
def test_a_damaged_file_is_refused_by_name(
    bundle: Path, damage: Callable[[Path], object], rule: str, file: str
) -> None:
    first, last = op_names(bundle)
    path = bundle / last / (f"{last}.so" if file == "library" else file)
    damage(path)
    with pytest.raises(InputError, match=rf"{path.name}: {rule}"):
        fa3gen.load_bundle(bundle)
    assert not hasattr(torch.ops.fa3gen, first), "nothing is loaded of a damaged bundle"


@pytest.mark.parametrize("place", ["more.so", "{op}/more.so", "more/", "{op}/more/"])
def test_a_foreign_file_is_refused_by_name(bundle: Path, place: str) -> None:
    path = bundle / place.format(op=op_names(bundle)[0])
    path.mkdir() if place.endswith("/") else path.write_bytes(b"")
    with pytest.raises(InputError, match=r"more[^/]*: is no part of the bundle.*remove it"):
        fa3gen.load_bundle(bundle)


def test_a_missing_variant_is_refused_by_name(bundle: Path) -> None:
    name = op_names(bundle)[1]
    shutil.rmtree(bundle / name)
    with pytest.raises(InputError, match=rf"{name}: must be there"):
        fa3gen.load_bundle(bundle)


def test_wheels_are_no_part_of_it(bundle: Path) -> None:
    (bundle / "dist").mkdir()
    (bundle / "dist/some.whl").write_bytes(b"")
    assert len(fa3gen.load_bundle(bundle)) == 2


def test_no_bundle(tmp_path: Path) -> None:
    for text in (None, "[" * 100_000):
        if text:
            (tmp_path / "bundle.json").write_text(text)
        with pytest.raises(InputError, match=r"not a bundle.*fa3gen bundle"):
            fa3gen.load_bundle(tmp_path)


def _first(record: dict[str, Any], **changes: Any) -> None:
    record["ops"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda record: record.update(format=0), r"format must be 1 \(got 0\).*again"),
        (lambda record: record.update(colour="red"), "keys missing or unknown: colour"),
        (lambda record: record.update(ops=5), r"is damaged"),
        (lambda record: record["ops"].append(record["ops"][0]), r"names must differ"),
        (lambda record: _first(record, colour="red"), "keys missing or unknown: colour"),
        (lambda record: _first(record, op_name="../x"), r"names must be plain \(got '\.\./x'\)"),
        (lambda record: _first(record, op_name=".."), r"names must be plain \(got '\.\.'\)"),
        (lambda record: _first(record, op_name=""), r"names must be plain \(got ''\)"),
        (lambda record: _first(record, library="/x.so"), r"names must be plain \(got '/x.so'\)"),
        (lambda record: _first(record, files={"a/b": {"bytes": 0, "sha256": ""}}), "plain"),
        (lambda record: _first(record, files={"a": {}}), "keys missing or unknown: bytes, sha256"),
        (lambda record: _first(record, files={"a": 5}), "is damaged"),
        (lambda record: _first(record, torch_abi=2.1), r"torch_abi must be str \(got 2\.1\)"),
        (lambda record: _first(record, kernels=[{}]), "keys missing or unknown: block_m"),
        (lambda record: _first(record, name="other"), r"must be the artifact of other"),
        (lambda record: _first(record, machine="riscv64"), r"machine must be riscv64 \(got "),
        (lambda record: _first(record, torch_abi="99.1"), r"torch must be 99\.1 or newer \(got "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_does_not_fit(
    bundle: Path, change: Callable[[dict[str, Any]], object], rule: str
) -> None:
    edit(bundle, change)
    with pytest.raises(InputError, match=rule):
        fa3gen.load_bundle(bundle)


@pytest.mark.parametrize(("version", "fits"), [("2.9.1", False), ("2.10.0a0+git12", True)])
def test_torch_is_compared_by_numbers(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if fits:
        assert len(fa3gen.load_bundle(bundle)) == 2
    else:
        with pytest.raises(InputError, match=r"torch must be 2\.10 or newer \(got 2\.9\.1\)"):
            fa3gen.load_bundle(bundle)


def run_python(program: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Whoever imports them: also a module that torch has imported before is refused to fa3gen.
_GUARD = """
import builtins, importlib, sys
import torch

PACKAGES = set(
    "pydantic yaml ortools typer rich sympy networkx jinja2 filelock platformdirs ninja".split()
)
refused = []

def guarded(inner):
    def call(name, *more, **options):
        importer = sys._getframe(1).f_globals["__name__"]
        if importer.partition(".")[0] == "fa3gen" and name.partition(".")[0] in PACKAGES:
            refused.append(name)
            raise ImportError(f"{importer} imports {name}")
        return inner(name, *more, **options)
    return call

builtins.__import__ = guarded(builtins.__import__)
importlib.import_module = guarded(importlib.import_module)

processes = []
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
sys.addaudithook(lambda event, more: processes.append(event) if event in STARTS else None)
"""


def test_loading_needs_torch_alone(bundle: Path) -> None:
    program = f"""{_GUARD}
import fa3gen
bundle = fa3gen.load_bundle(sys.argv[1])
q = torch.empty(2, 9, 4, 128, dtype=torch.bfloat16, device="meta")
assert all(attention(q, q, q).shape == q.shape for attention in bundle.values())
print(len(bundle), refused, processes)
try:
    bundle["variant_0"].spec
except ImportError:
    print(*refused)
"""
    count, imported, started, *by_the_compiler = run_python(program, str(bundle))
    assert (count, imported, started) == ("2", "[]", "[]")
    assert by_the_compiler, "the guard sees what the compiler imports"


def test_fifty_variants_load_in_no_time(standin_artifact: Artifact, tmp_path: Path) -> None:
    program = """
import sys, time
import torch
started = time.process_time()
import fa3gen
bundle = fa3gen.load_bundle(sys.argv[1])
print(len(bundle), time.process_time() - started)
"""
    folder = bundle_of(standin_artifact, tmp_path, 50)
    count, seconds = run_python(program, str(folder))
    assert count == "50"
    assert float(seconds) < _LIMIT_S
