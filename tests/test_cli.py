"""The command line: what it prints, its exit codes, one message for an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standin import META

from fa3gen.errors import ToolchainError
from fa3gen.jit.toolchain import find_toolchain
from fa3gen.jit.trust import protect
from fa3gen.runtime.artifact import Artifact

_KEPT = ("PATH", "PYTHONPATH", "CUDA_HOME")


def run(*arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """``fa3gen ARGUMENTS`` with a few variables of this environment and those given."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "fa3gen.cli", *arguments],
        capture_output=True,
        text=True,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", **variables},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_show_prints_every_record() -> None:
    text = run("show", "causal_d128_bf16").stdout
    for piece in ("== graph", "GemmQK", "== registers", "a consumer thread", "232448 B"):
        assert piece in text
    assert "role consumer x2" in text
    assert "tensor core" in text.split("== units of one SM, modelled")[1]


def test_show_as_json() -> None:
    record = json.loads(run("show", "causal_d128_bf16", "--json").stdout)[-1]
    assert record["max_keys"] is None
    assert record["spec"]["head_dim"] == {"qk": 128, "v": 128}
    assert {"GemmQK", "Exp"} <= {op["name"] for op in record["graph"]["ops"]}
    assert record["tiling"]["warpgroups"] == 2
    assert record["memory"]["bytes"] == record["program"]["shared_bytes"]
    roles = {role["name"]: role for role in record["program"]["roles"]}
    assert roles["consumer"]["instances"] == 2
    assert any(node["kind_of"] == "EachWork" for node in roles["consumer"]["body"])


def test_show_refuses_other_pictures(tmp_path: Path) -> None:
    plot = str(tmp_path / "plot.pdf")
    message = run("show", "causal_d128_bf16", "--plot", plot, code=1).stderr
    assert "must end in .svg or .png (got plot.pdf)" in message


def test_show_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("show", "causal_d128_bf16", "--plot", str(tmp_path / "plot.svg"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_schema_is_a_json_schema() -> None:
    schema = json.loads(run("schema").stdout)
    assert "head_dim" in schema["properties"]


def test_verify() -> None:
    assert "free of deadlocks and races" in run("verify", "full_d128_bf16").stdout
    (proof,) = json.loads(run("verify", "full_d128_bf16", "--json").stdout)
    assert proof["spec"] == "full_d128_bf16"
    assert proof["seconds"] > 0
    assert proof["proof"]


def test_generate_and_check(tmp_path: Path) -> None:
    run("generate", "full_d128_bf16", "-o", str(tmp_path))
    run("generate", "full_d128_bf16", "-o", str(tmp_path), "--check")
    kernel = tmp_path / "full_d128_bf16" / "kernel.cu"
    kernel.write_text(kernel.read_text() + "\n")
    assert (
        "differs"
        in run("generate", "full_d128_bf16", "-o", str(tmp_path), "--check", code=1).stderr
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("head_dim: 128\nmask: causl\n", ":2: mask"),
        ("head_dim: 128\nschedule: {tile: {n: 100}}\n", ":2: schedule.tile.n"),
        ("head_dim: 128\ndtype: e4m3\n", "dtype: e4m3"),
    ],
)
def test_an_error_is_one_message(tmp_path: Path, text: str, place: str) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text(text)
    message = run("show", str(spec), code=1).stderr
    assert message.startswith("fa3gen: ")
    assert place in message
    assert "Traceback" not in message
    assert "Traceback" in run("show", str(spec), code=1, FA3GEN_DEBUG="1").stderr


def test_a_fault_of_the_system_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = run("generate", "-o", str(tmp_path / "file/out"), code=1).stderr
    assert message.startswith("fa3gen: ")
    assert "Not a directory" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--no-such-option"),
        ("no-such-command",),
        ("show",),
        ("check", "causal_d128_bf16", "--sizes", "medium"),
        ("bench", "causal_d128_bf16", "--against", "fa3,fa9"),
        ("bench", "causal_d128_bf16", "--lengths", "4k"),
        ("bench", "causal_d128_bf16", "--lengths", ""),
        ("bundle", "-o", "out"),
        ("bundle", "causal_d128_bf16", "-o", "out", "--jobs", "0"),
        ("bundle", "causal_d128_bf16", "-o", "out", "--name", "kernels"),
    ],
)
def test_bad_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert "Traceback" not in run(*arguments, code=2).stderr


def test_check_on_the_interpreter(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("head_dim: 64\nmask: causal\nschedule: {tile: {n: 64}}\n")
    results = json.loads(run("check", str(spec), "--sizes", "small", "--json").stdout)
    assert len(results) > 10
    assert all(result["ok"] for result in results)


def test_check_draws_the_inputs_of_a_spec(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "head_dim: 64\nmask: causal & document(doc)\nscore: score + slopes[h] * (k - q)\n"
        "inputs:\n"
        "  doc: {shape: [b, k], dtype: int32, example: segments, size: 40}\n"
        "  slopes: {shape: [h], dtype: fp32}\n"
    )
    results = json.loads(run("check", str(spec), "--sizes", "small", "--json").stdout)
    assert all(result["ok"] for result in results)


def test_check_refuses_what_nobody_has_written_by_hand(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("head_dim: 64\nmask: k % 3 == 0\n")
    assert "no hand-written reference" in run("check", str(spec), code=1).stderr


def test_bench_needs_a_gpu() -> None:
    message = run("bench", "causal_d128_bf16", code=1).stderr
    assert "needs a Hopper GPU" in message


@pytest.mark.parametrize("spec", ["softcap", "document_causal"])
def test_bench_is_of_plain_specs(spec: str) -> None:
    assert "peers are called without formulas" in run("bench", spec, code=1).stderr


class TestMachine:
    """Commands about this machine: doctor, build, cache."""

    @pytest.fixture(autouse=True)
    def _needs_a_compiler(self) -> None:
        try:
            find_toolchain()
        except ToolchainError as error:
            pytest.skip(str(error))

    def test_doctor(self) -> None:
        lines = run("doctor").stdout.splitlines()
        verdicts = {line.split()[1]: line.split()[0] for line in lines}
        assert verdicts["nvcc"] == "ok"
        assert verdicts["GPU"] == "note"

    def test_doctor_names_what_is_missing(self, tmp_path: Path) -> None:
        nvcc = str(tmp_path / "nvcc")
        findings = json.loads(run("doctor", "--json", code=1, FA3GEN_NVCC=nvcc).stdout)
        missing = [found for found in findings if found["verdict"] == "missing"]
        assert [found["part"] for found in missing] == ["nvcc", "CUDA headers"]

    def test_no_compiler_is_one_message(self, tmp_path: Path) -> None:
        out, nvcc = str(tmp_path / "out"), str(tmp_path / "nvcc")
        done = run("build", "causal_d128_bf16", "-o", out, code=1, FA3GEN_NVCC=nvcc)
        assert done.stderr.startswith(f"fa3gen: FA3GEN_NVCC={nvcc}")
        assert len(done.stderr.splitlines()) == 1


def test_cache(tmp_path: Path, standin_artifact: Artifact) -> None:
    root = tmp_path / "cache"
    variables = {"FA3GEN_CACHE_DIR": str(root)}
    assert run("cache", "path", **variables).stdout == f"{root}\n"
    assert json.loads(run("cache", "list", "--json", **variables).stdout)["kernels"] == []
    assert run("cache", "clear", **variables).stdout == "0 kernels removed\n"

    entry = root / f"{META.op_name}-{'0123' * 8}"
    shutil.copytree(standin_artifact.directory, entry)
    (root / f"{META.op_name}-{'0123' * 8}.lock").touch()
    protect(root, entry, *entry.iterdir())
    (listed,) = json.loads(run("cache", "list", "--json", **variables).stdout)["kernels"]
    assert (listed["op_name"], listed["whole"]) == (META.op_name, True)
    kernel, total = run("cache", "list", **variables).stdout.splitlines()
    assert re.fullmatch(rf"{META.op_name} +\d\.\d MiB  [-\d]+ [:\d]+, (just now|.* ago)", kernel)
    assert total.startswith("1 kernels, ")
    assert run("cache", "clear", **variables).stdout == "1 kernels removed\n"
    assert list(root.iterdir()) == []
