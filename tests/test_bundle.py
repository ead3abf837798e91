"""Bundles built: one folder, whole or not at all, whose bytes follow from the specs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import renamed
from typer.testing import CliRunner

from fa3gen import builds
from fa3gen.bundle import build_bundle
from fa3gen.cli import app
from fa3gen.errors import BuildError, InputError, SpecError, UnsupportedError
from fa3gen.progress import build_progress
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.manifest import BundleManifest
from fa3gen.spec import load_spec


@pytest.fixture
def built(
    standin_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Builds stand-ins instead of kernels, at once; the names of the specs that were built."""
    names: list[str] = []

    def build_here(spec: Any, **options: Any) -> Artifact:
        loaded = load_spec(spec)
        names.append(loaded.name)
        if loaded.name == "broken":
            raise BuildError("the build failed:\n  kernel.cu(1): error")
        number = int(loaded.digest()[:8], 16)
        folder = tmp_path / f"built/{loaded.name}_{len(names)}"
        return renamed(standin_artifact, folder, loaded.name, number)

    monkeypatch.setattr(builds, "build_here", build_here)
    return names


def spec(name: str, mask: str = "causal") -> dict[str, Any]:
    return {"name": name, "head_dim": 128, "mask": mask}


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_shipped_specs_and_files(built: list[str], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nhead_dim: 64\n")
    manifest = build_bundle(["softcap", own, spec("third")], tmp_path / "new/bundle")
    assert [op.name for op in manifest.ops] == ["own", "softcap", "third"]
    assert sorted(built) == ["own", "softcap", "third"]
    assert manifest == BundleManifest.read(tmp_path / "new/bundle")
    manifest.check_files()
    for op in manifest.ops:
        files = [file.name for file in op.files]
        assert files == ["artifact.json", "host.cpp", op.library], "no log: it has clocks"
        assert (op.torch_abi, op.gpu, op.cutlass) == ("2.10", "sm_90a", "4.2.0.0")
        assert op.kernels[0].registers > 0
    assert json.loads(manifest.ops[0].spec)["head_dim"] == {"qk": 64, "v": 64}


def test_the_same_specs_give_the_same_bytes(built: list[str], tmp_path: Path) -> None:
    build_bundle([spec("one"), spec("two"), "tree"], tmp_path / "a")
    build_bundle(["tree", spec("two"), spec("one")], tmp_path / "elsewhere/b", jobs=1)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "elsewhere/b")
    assert first == second
    assert str(tmp_path).encode() not in first["bundle.json"]


def test_a_variant_given_twice_is_one(built: list[str], tmp_path: Path) -> None:
    specs = [spec("one", "causal"), spec("one", "k <= q"), spec("one", "q >= k")]
    assert len(build_bundle(specs, tmp_path / "a").ops) == 1
    assert built == ["one"]


def test_two_variants_of_one_name(built: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one: .*must have different names \(got two\); rename"):
        build_bundle([spec("one"), spec("one", "full")], tmp_path / "a")
    assert built == [], "it is seen before anything is built"


def test_no_spec(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one spec"):
        build_bundle([], tmp_path / "a")


@pytest.mark.parametrize(
    ("last", "error", "message"),
    [
        (spec("broken"), BuildError, r"^broken: the build failed:\n  kernel\.cu"),
        (spec("bad", "causl"), SpecError, r"^spec 3: mask: "),
        ("no_such_spec", SpecError, r"no_such_spec"),
    ],
    ids=["build", "spec", "name"],
)
def test_an_error_names_the_spec_and_leaves_nothing(
    built: list[str], tmp_path: Path, last: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_bundle([spec("one"), spec("two"), last], tmp_path / "new/a", jobs=1)
    assert not (tmp_path / "new").exists()


def test_what_this_release_cannot_compile_is_named(tmp_path: Path) -> None:
    fp8 = {**spec("small"), "dtype": "e4m3"}
    with pytest.raises(UnsupportedError, match=r"^small: "):
        build_bundle([fp8], tmp_path / "a")


def test_a_fault_in_the_copy_leaves_nothing(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Artifact) -> None:
        raise InputError("damaged")

    monkeypatch.setattr(Artifact, "verify_library", fail)
    with pytest.raises(InputError, match="damaged"):
        build_bundle([spec("one")], tmp_path / "new/a")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_written(built: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^-o: .*file/a cannot be written \((File|Not)"):
        build_bundle([spec("one")], tmp_path / "file/a")


def test_a_cache_that_is_cleared_meanwhile(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = builds.build_here

    def cleared(spec: Any, **options: Any) -> Artifact:
        artifact = inner(spec, **options)
        shutil.rmtree(artifact.directory)
        return artifact

    monkeypatch.setattr(builds, "build_here", cleared)
    with pytest.raises(BuildError, match=r"^one: the cache was cleared meanwhile; build .* again"):
        build_bundle([spec("one")], tmp_path / "new/a")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_folder_may_be_a_link(built: list[str], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    build_bundle([spec("one")], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    BundleManifest.read(tmp_path / "real").check_files()


def test_the_current_folder_is_left_alone(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (".", tmp_path):
        with pytest.raises(InputError, match=r"-o: must not be the current folder"):
            build_bundle([spec("one")], target)


def test_an_empty_folder_is_taken_and_a_full_one_is_not(built: list[str], tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.mkdir()
    build_bundle([spec("one")], target)
    before = contents(target)
    with pytest.raises(InputError, match=r"must not exist, or be an empty folder"):
        build_bundle([spec("two")], target)
    assert contents(target) == before
    assert built == ["one"]


def test_with_a_wheel(built: list[str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    build_bundle([spec("one")], tmp_path / "a", wheel="kernels")
    (wheel,) = (tmp_path / "a/dist").iterdir()
    assert wheel.name.startswith("kernels-")
    BundleManifest.read(tmp_path / "a").check_files()


def test_a_bad_name_of_a_wheel_is_seen_first(built: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--name"):
        build_bundle([spec("one")], tmp_path / "a", wheel="my kernels")
    assert built == []


def test_the_command(built: list[str], tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    folder = tmp_path / "my-kernels"
    arguments = ["bundle", "softcap", "tree", "-o", str(folder), "--jobs", "1", "--wheel"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    ops = BundleManifest.read(folder).ops
    lines = [line for line in done.stdout.splitlines() if "registers" in line]
    assert lines == [str(op) for op in ops]
    assert lines[0].startswith(ops[0].op_name)
    (wheel,) = (folder / "dist").iterdir()
    assert wheel.name.startswith("my_kernels-")


def test_progress_counts_kernels(
    built: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with build_progress() as progress:
        build_bundle([spec("one"), spec("two")], tmp_path / "a", jobs=1, progress=progress)
    first, *steps = capsys.readouterr().err.splitlines()
    assert first == "a: 2 kernels, 1 at a time"
    assert [line.partition(":")[0] for line in steps] == ["step 0/2", "step 1/2", "step 2/2"]
