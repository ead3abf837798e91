from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.artifact import Artifact, KernelFacts, file_sha256


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    (tmp_path / "kernel.so").write_bytes(b"library")
    artifact = Artifact(
        directory=tmp_path,
        name="causal",
        op_name="causal_0123abcd",
        dtype=DType.FP16,
        head_dim_qk=192,
        head_dim_v=128,
        inputs=(
            InputMeta("alpha", DType.FP32, ()),
            InputMeta("relative", DType.BF16, ("h", 255)),
            InputMeta("segments", DType.INT32, ("b", "k"), masks=True),
        ),
        listed=True,
        kernels=(
            KernelFacts("causal_kernel_to_512", 512, 128, 64, 384, 82_000, 80, 0),
            KernelFacts("causal_kernel", None, 128, 112, 384, 200_000, 168, 0),
        ),
        build_seconds=12.5,
        library="kernel.so",
        library_sha256=file_sha256(tmp_path / "kernel.so"),
        nvcc="13.0.88",
        cxx="12.2.0",
        cutlass="4.2.0.0",
        torch_abi="2.10",
    )
    artifact.write()
    return artifact


def edit(artifact: Artifact, **changes: Any) -> None:
    path = artifact.directory / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(artifact: Artifact) -> None:
    assert Artifact.read(artifact.directory) == artifact
    assert Artifact.read(str(artifact.directory)) == artifact
    artifact.verify_library()


def test_may_be_moved(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("moved") / "kernel"
    shutil.move(artifact.directory, elsewhere)
    assert str(artifact.directory) not in (elsewhere / "artifact.json").read_text()
    Artifact.read(elsewhere).verify_library()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an artifact.*fa3gen build"):
        Artifact.read(tmp_path / "nowhere")


def test_other_format(artifact: Artifact) -> None:
    edit(artifact, format=0)
    with pytest.raises(InputError, match=r"format must be 3 \(got 0\)"):
        Artifact.read(artifact.directory)


def test_unknown_key(artifact: Artifact) -> None:
    edit(artifact, colour="red")
    with pytest.raises(InputError, match="keys missing or unknown: colour"):
        Artifact.read(artifact.directory)


def test_inputs_are_written_out(artifact: Artifact) -> None:
    manifest = json.loads((artifact.directory / "artifact.json").read_text())
    assert manifest["inputs"] == [
        {"name": "alpha", "dtype": "fp32", "shape": [], "masks": False},
        {"name": "relative", "dtype": "bf16", "shape": ["h", 255], "masks": False},
        {"name": "segments", "dtype": "int32", "shape": ["b", "k"], "masks": True},
    ]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs must be a list \(got \{\}\)"),
        ([{"name": "alpha", "shape": []}], "keys missing or unknown: dtype"),
        (["alpha"], "keys missing or unknown: dtype, masks, name, shape"),
    ],
    ids=str,
)
def test_damaged_inputs(artifact: Artifact, inputs: Any, message: str) -> None:
    edit(artifact, inputs=inputs)
    with pytest.raises(InputError, match=message):
        Artifact.read(artifact.directory)


def test_library_stays_inside(artifact: Artifact) -> None:
    edit(artifact, library="../kernel.so")
    with pytest.raises(InputError, match="library must be a plain file name"):
        Artifact.read(artifact.directory)


@pytest.mark.parametrize("library", ["..", "", "a/b", "a\0b", "\ud800", 7, None])
def test_library_has_a_plain_name(artifact: Artifact, library: object) -> None:
    edit(artifact, library=library)
    with pytest.raises(InputError, match="library must be"):
        Artifact.read(artifact.directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bf17"},
        {"dtype": []},
        {"op_name": 7},
        {"listed": "no"},
        {"head_dim_qk": True},
        {"build_seconds": "long"},
        {"kernels": []},
        {"kernels": [7]},
    ],
    ids=str,
)
def test_values_of_other_types(artifact: Artifact, changes: dict[str, Any]) -> None:
    edit(artifact, **changes)
    with pytest.raises(InputError, match=f"{artifact.directory}.*{next(iter(changes))}|keys"):
        Artifact.read(artifact.directory)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"7", b""], ids=len)
def test_what_is_no_manifest(artifact: Artifact, text: bytes) -> None:
    (artifact.directory / "artifact.json").write_bytes(text)
    with pytest.raises(InputError, match=str(artifact.directory)):
        Artifact.read(artifact.directory)


def test_replaced_library(artifact: Artifact) -> None:
    artifact.library_path.write_bytes(b"another")
    with pytest.raises(InputError, match=r"sha256 must be .* build it again"):
        artifact.verify_library()


def test_missing_library(artifact: Artifact) -> None:
    artifact.library_path.unlink()
    with pytest.raises(InputError, match="library is missing"):
        artifact.verify_library()


def test_library_that_is_a_pipe(artifact: Artifact) -> None:
    artifact.library_path.unlink()
    os.mkfifo(artifact.library_path)
    with pytest.raises(InputError, match="library is missing"):
        artifact.verify_library()


def run_python(program: str, *arguments: str) -> str:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_needs_torch_alone(standin_artifact: Artifact) -> None:
    program = """
import sys
from fa3gen.runtime.attention import load
attention = load(sys.argv[1])
assert load(sys.argv[1]).op is attention.op
heavy = {"pydantic", "sympy", "jinja2", "yaml", "networkx", "ninja", "filelock", "platformdirs"}
print(attention.op._schema, sorted(heavy & set(sys.modules)))
"""
    shown = run_python(program, str(standin_artifact.directory))
    assert shown.strip().endswith("-> (Tensor, Tensor) []")


def test_library_takes_over_from_the_interpreter(standin_artifact: Artifact) -> None:
    program = """
import sys
import torch
from torch.utils.flop_counter import FlopCounterMode
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention, load
from fa3gen.runtime.op import register_interpreted

def interpret(q, k, v, scale):
    return q * scale, q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)

artifact = Artifact.read(sys.argv[1])
early = Attention(register_interpreted(artifact, interpret))
q = torch.ones(1, 2, 3, 128, dtype=torch.bfloat16)
expected = early(q, q, q, scale=2.0)
compiled = torch.compile(lambda q: early(q, q, q, scale=2.0), fullgraph=True, backend="eager")
assert torch.equal(compiled(q), expected)
late = load(sys.argv[1])
assert late.op is early.op is getattr(torch.ops.fa3gen, artifact.op_name).default
assert torch.equal(early(q, q, q, scale=2.0), expected)
assert torch.equal(late(q, q, q, scale=2.0), expected)
assert torch.equal(compiled(q), expected)
with FlopCounterMode(display=False) as counter:
    late(q, q, q)
print(counter.get_total_flops(), late)
"""
    shown = run_python(program, str(standin_artifact.directory))
    assert shown.startswith(f"{4 * 3 * 2 * 2 * 128} ")
    assert "on CUDA and the interpreter" in shown


def test_a_library_that_cannot_be_loaded_leaves_the_op_as_it_was(
    standin_artifact: Artifact, tmp_path: Path
) -> None:
    """Neither one of another op, which would end the process, nor one that is no library."""
    folders = [tmp_path / name for name in ("swapped", "garbage", "gone")]
    for folder in folders:
        shutil.copytree(standin_artifact.directory, folder)
    made = [Artifact.read(folder) for folder in folders]
    edit(made[0], op_name="another_00000001")
    made[1].library_path.write_bytes(f"{made[1].op_name}(".encode())
    edit(made[1], library_sha256=file_sha256(made[1].library_path))
    program = """
import sys
import torch
from fa3gen.errors import InputError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention, load
from fa3gen.runtime.op import register_interpreted

def refused(folder):
    try:
        load(folder)
    except InputError as error:
        return str(error)

def interpret(q, k, v, scale):
    return q * scale, q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)

good, swapped, garbage, gone = sys.argv[1:]
op = Attention(register_interpreted(Artifact.read(good), interpret))
q = torch.ones(1, 2, 3, 128, dtype=torch.bfloat16)
expected = op(q, q, q, scale=2.0)
print(refused(garbage))
assert torch.equal(op(q, q, q, scale=2.0), expected)
verify = Artifact.verify_op
Artifact.verify_op = lambda artifact: (verify(artifact), artifact.library_path.unlink())
print(refused(gone))
Artifact.verify_op = verify
assert torch.equal(op(q, q, q, scale=2.0), expected)
load(good)
assert torch.equal(op(q, q, q, scale=2.0), expected)
print(refused(swapped))
"""
    shown = run_python(program, str(standin_artifact.directory), *map(str, folders))
    garbage, gone, swapped = shown.splitlines()
    assert "cannot be loaded" in garbage
    assert "build it again" in garbage
    assert "No such file" in gone
    assert "must define the op another_00000001" in swapped


def test_flops_are_counted_by_a_counter_that_comes_later(standin_artifact: Artifact) -> None:
    program = """
import sys
import torch
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.op import register_interpreted

def interpret(q, k, v, scale):
    return q * scale, q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)

attention = Attention(register_interpreted(Artifact.read(sys.argv[1]), interpret))
assert "torch.utils.flop_counter" not in sys.modules, "it brings in triton"
from torch.utils.flop_counter import FlopCounterMode
q = torch.ones(1, 2, 3, 128, dtype=torch.bfloat16)
with FlopCounterMode(display=False) as counter:
    attention(q, q, q)
print(counter.get_total_flops(), sum("CounterImport" in str(finder) for finder in sys.meta_path))
"""
    shown = run_python(program, str(standin_artifact.directory))
    assert shown.split() == [str(4 * 3 * 2 * 2 * 128), "0"]
