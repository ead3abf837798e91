from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fa3gen.cli import app
from fa3gen.errors import InputError
from fa3gen.matrix.command import Request, make_parts
from fa3gen.matrix.parts import main
from fa3gen.paths import SPECS

ROOT = SPECS.parent

# A process in which nothing but torch, and what it brings, can be imported.
_ALONE = """
import runpy, sys
import torch
heavy = {"pydantic", "yaml", "ortools", "typer", "rich", "filelock", "platformdirs", "ninja"}
class Refuse:
    def find_spec(self, name, path, target=None):
        if name in heavy:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["parts", *sys.argv[1:]]
runpy.run_module("fa3gen.matrix.parts", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two points of the quick matrix, a part each."""
    folder = tmp_path_factory.mktemp("parts") / "quick"
    pick = ["--matrix", "quick", "--where", "mask=causal", "--where", "head_dim=64"]
    pick += ["--where", "mask=band", "--limit", "2", "--part-size", "1"]
    done = CliRunner().invoke(app, ["test", *pick, "--parts", str(folder)])
    assert done.exit_code == 0, done.output
    return [Path(line) for line in done.stdout.split()]


def test_parts_hold_bundles(parts: list[Path]) -> None:
    assert [folder.name for folder in parts] == ["part-1", "part-2"]
    for folder in parts:
        record = json.loads((folder / "points.json").read_text())
        (name,) = record["keys"]
        assert "head_dim=64" in record["keys"][name]
        (op,) = json.loads((folder / "bundle/bundle.json").read_text())["ops"]
        assert op["name"] == name
        assert record["impossible"]


def test_judging_needs_torch_alone(parts: list[Path], tmp_path: Path) -> None:
    """Here without a GPU, so that every call must be refused, each for that reason."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, *map(str, parts), "-o", str(tmp_path), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    record = json.loads((tmp_path / "report.json").read_text())
    assert len(record["outcomes"]) == 2
    for outcome in record["outcomes"]:
        assert outcome["calls"] > 60
        assert len(outcome["failures"]) == outcome["calls"]
        for failure in outcome["failures"]:
            assert "q: must be on a CUDA device" in failure["problems"][0]


def test_one_call_of_one_point(parts: list[Path], tmp_path: Path) -> None:
    (key,) = json.loads((parts[0] / "points.json").read_text())["keys"].values()
    call = "b1-h1/1-q3-k5"
    arguments = ["--point", key, "--call", call, "--device", "cpu", "-o", str(tmp_path)]
    assert main([*map(str, parts), *arguments]) == 1
    (outcome,) = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    assert outcome["key"] == key
    assert [failure["call"] for failure in outcome["failures"]] == [call]


def test_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no part of a matrix" in capsys.readouterr().err


def test_no_gpu(
    parts: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(parts[0]), "-o", str(tmp_path)]) == 1
    assert "torch sees none" in capsys.readouterr().err


def test_a_point_of_no_part(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--point", "head_dim=256", "--device", "cpu", "-o", str(tmp_path)]
    assert main([str(parts[0]), *arguments]) == 1
    assert "no part has the point head_dim=256" in capsys.readouterr().err


def test_a_damaged_part(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (library,) = parts[0].glob("bundle/*/*.so")
    whole = library.read_bytes()
    library.write_bytes(whole[:-1])
    try:
        assert main([str(parts[0]), "--device", "cpu", "-o", str(tmp_path)]) == 1
    finally:
        library.write_bytes(whole)
    assert library.name in capsys.readouterr().err


def test_parts_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--matrix quick or full"):
        make_parts(Request(specs=("causal_d64_bf16",)), tmp_path / "new", part_bytes=1)
    with pytest.raises(InputError, match="without specs and points"):
        make_parts(Request(specs=("causal",), matrix="quick"), tmp_path / "new", part_bytes=1)
    (tmp_path / "kept").write_text("")
    with pytest.raises(InputError, match="must not exist, or be an empty folder"):
        make_parts(Request(matrix="quick"), tmp_path, part_bytes=1)
