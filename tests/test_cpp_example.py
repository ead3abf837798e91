"""The C++ example: it is built with g++, and finds the op of a bundle without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standin import renamed

from fa3gen.bundle import Variant, write_bundle
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.manifest import BundleManifest
from fa3gen.spec import AttentionSpec

_EXAMPLE = Path(__file__).parents[1] / "examples/cpp"
_PLAIN = {"head_dim": 128, "mask": "causal"}
_WITH_INPUT = {
    "head_dim": 128,
    "score": "score + slopes[h] * (k - q)",
    "inputs": {"slopes": {"shape": ["h"], "dtype": "fp32"}},
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("make", os.environ.get("CXX", "g++")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    build = tmp_path_factory.mktemp("cpp")
    words = ["make", "-C", str(_EXAMPLE), f"BUILD={build}", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ".cpp:" not in done.stderr, "the compiler warns of nothing"
    return build / "attention"


@pytest.fixture(scope="module")
def bundle(standin_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundle")
    variants = []
    for index, (name, fields) in enumerate({"biased": _WITH_INPUT, "plain": _PLAIN}.items()):
        spec = AttentionSpec(name=name, **fields)
        made = renamed(standin_artifact, place / name, name, 0xD0000000 + index)
        variants.append(Variant(spec.canonical(), made))
    folder = place / "bundle"
    folder.mkdir()
    write_bundle(variants, folder)
    return folder


def arguments(bundle: Path, *name: str, code: int = 0) -> list[str]:
    """What variant.py says of a bundle."""
    done = subprocess.run(
        [sys.executable, _EXAMPLE / "variant.py", bundle, *name], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return (done.stdout or done.stderr).split()


def run(
    program: Path, *words: str, code: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_op_is_found_without_python(program: Path, bundle: Path, tmp_path: Path) -> None:
    traced = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(tmp_path / "loaded")}
    lines = run(program, *arguments(bundle), code=3, **traced).stdout.splitlines()
    (plain,) = [op for op in BundleManifest.read(bundle).ops if op.name == "plain"]
    assert lines[0] == plain.schemas[0]
    assert lines[1].startswith("no GPU")
    (trace,) = tmp_path.glob("loaded.*")
    text = trace.read_text()
    loaded = {
        Path(line.split("calling init: ")[1]).name
        for line in text.splitlines()
        if "calling init: " in line
    }
    assert {plain.library, "libtorch_cpu.so", "libc10.so"} <= loaded
    assert not [name for name in loaded if "python" in name]


def test_what_it_is_linked_with(program: Path) -> None:
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    names = {Path(line.split()[0]).name for line in linked.splitlines()}
    assert {"libtorch_cpu.so", "libc10.so"} <= names
    assert not [name for name in names if "python" in name]


def test_an_op_that_the_library_does_not_define(program: Path, bundle: Path) -> None:
    library, _, *more = arguments(bundle)
    stderr = run(program, library, "fa3gen::other", *more, code=1).stderr
    assert stderr.strip() == f"attention: {library} does not define fa3gen::other"


def test_no_library(program: Path, bundle: Path, tmp_path: Path) -> None:
    _, *more = arguments(bundle)
    assert "cannot open shared object" in run(program, f"{tmp_path}/x.so", *more, code=1).stderr


def test_bad_use(program: Path, bundle: Path) -> None:
    *words, _ = arguments(bundle)
    assert run(program, code=2).stderr.startswith("use: ")
    assert run(program, *words, "window", code=2).stderr.startswith("use: ")
    library, op, *_ = words
    wide = run(program, library, op, "wide", "128", "bf16", "full", code=2)
    assert wide.stderr.startswith("use: ")


def test_the_first_plain_variant_is_taken(bundle: Path) -> None:
    library, *more = arguments(bundle)
    op = Path(library).stem
    assert Path(library).parent.parent == bundle
    assert more == [f"fa3gen::{op}", "128", "128", "bf16", "causal"]
    assert arguments(bundle, "plain") == [library, *more]
    refused = " ".join(arguments(bundle, "biased", code=1))
    assert refused.startswith(f"{bundle} has no variant biased of plain attention")
