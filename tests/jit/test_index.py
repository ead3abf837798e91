from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ScriptedToolchain
from standin import standin_source

from fa3gen import paths
from fa3gen.jit import index
from fa3gen.jit.cache import build_cached
from fa3gen.spec import AttentionSpec, load_spec

TEXT = "head_dim: 128\nmask: causal\n"


def source(spec: Any) -> index.SpecSource:
    found = index.read_spec(spec)
    assert found is not None, spec
    return found


def test_a_file_and_its_text_are_one(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(TEXT)
    assert source(path) == source(str(path)) == source(TEXT)
    path.write_text(TEXT + "# a comment\n")
    assert source(path) != source(TEXT)


def test_text_in_one_line() -> None:
    assert source("head_dim: 64").data == b"head_dim: 64"


def test_shipped_name() -> None:
    name = "causal_d128_bf16"
    assert source(name) == source(paths.SPECS / f"{name}.yaml")


def test_mapping_in_any_order() -> None:
    spec = {"head_dim": {"qk": 192, "v": 128}, "passes": ("forward",)}
    turned = {"passes": ["forward"], "head_dim": {"v": 128, "qk": 192}}
    assert source(spec) == source(turned)
    assert source({"head_dim": 1}) != source({"head_dim": True})
    assert source({"head_dim": 1}) != source({"head_dim": 1.0})


def test_spec_record() -> None:
    assert source(AttentionSpec(head_dim=128, mask="k <= q")) == source(
        AttentionSpec(head_dim=128, mask="causal")
    )


@pytest.mark.parametrize(
    "spec",
    [
        "no_such_spec",
        "nowhere/spec.yaml",
        Path("nowhere.yaml"),
        {1: 2},
        {"inputs": {None: {}}},
        {"head_dim": object()},
        7,
        None,
        "",
    ],
)
def test_what_is_unusual_has_no_key(spec: Any) -> None:
    assert index.read_spec(spec) is None


@pytest.mark.parametrize("spec", [TEXT, "head_dim: 64", {"head_dim": 64}, "causal_d128_bf16"])
def test_what_is_read_loads_as_the_spec(spec: Any) -> None:
    assert source(spec).load() == load_spec(spec)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of fa3gen that the index takes for the package."""
    package = tmp_path / "fa3gen"
    shutil.copytree(Path(index.__file__).parents[1], package)
    templates = tmp_path / "templates"
    shutil.copytree(paths.TEMPLATES, templates)
    monkeypatch.setattr(index, "__file__", str(package / "jit/index.py"))
    monkeypatch.setattr(paths, "TEMPLATES", templates)
    return package


def test_an_edit_of_the_package_changes_the_key(package: Path, scripted: ScriptedToolchain) -> None:
    def key() -> str:
        return index.index_key(source(TEXT), scripted.toolchain)

    keys = [key()]
    for path in (
        package / "schedule/tiles.py",
        package / "spec/masks.py",
        package.parent / "templates/kernel.cu.j2",
        package.parent / "templates/include/fa3gen/params.h",
    ):
        times = path.stat()
        text = path.read_text()
        path.write_text(text.replace("a", "b", 1))  # as long as before
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # and as old
        keys.append(key())
    assert len(set(keys)) == len(keys)
    new = package / "schedule/new_pass.py"
    new.write_text("")
    assert key() not in keys
    new.unlink()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__/junk.pyc").write_bytes(b"junk")
    assert key() == keys[-1]


def test_key_covers_spec_and_toolchain(scripted: ScriptedToolchain) -> None:
    other = dataclasses.replace(scripted.toolchain, nvcc_version="13.1.0")
    keys = {
        index.index_key(source(TEXT), scripted.toolchain),
        index.index_key(source(TEXT + "\n"), scripted.toolchain),
        index.index_key(source(TEXT), other),
    }
    assert len(keys) == 3


@pytest.mark.usefixtures("root")
class TestEntries:
    def test_recorded_and_found(self, scripted: ScriptedToolchain, root: Path) -> None:
        artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
        key = "0123" * 16
        assert index.find(root, key) is None
        index.record(root, key, artifact)
        assert index.find(root, key) == artifact
        shutil.rmtree(artifact.directory)
        assert index.find(root, key) is None

    def test_what_is_not_in_the_cache_is_not_recorded(
        self, scripted: ScriptedToolchain, root: Path, tmp_path: Path
    ) -> None:
        artifact = build_cached(standin_source(), toolchain=scripted.toolchain)
        index.record(tmp_path / "elsewhere", "00" * 32, artifact)
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"entry": 7}', '{"entry": "../outside"}', '{"entry": "gone"}']
    )
    def test_a_damaged_index_finds_nothing(self, root: Path, text: str) -> None:
        (root / "index").mkdir(parents=True)
        (root / "index" / f"{'ab' * 16}.json").write_text(text)
        assert index.find(root, "ab" * 32) is None
