"""The command line: what it prints, its exit codes, one message for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str, code: int = 0, debug: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **({"FA3GEN_DEBUG": "1"} if debug else {})}
    done = subprocess.run(
        [sys.executable, "-m", "fa3gen.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_show_prints_every_record() -> None:
    text = run("show", "causal_d128_bf16").stdout
    for piece in ("== graph", "GemmQK", "== registers", "of 240 a consumer thread", "232448 B"):
        assert piece in text
    assert "role consumer x2" in text


def test_schema_is_a_json_schema() -> None:
    schema = json.loads(run("schema").stdout)
    assert "head_dim" in schema["properties"]


def test_verify() -> None:
    assert "free of deadlocks and races" in run("verify", "full_d128_bf16").stdout


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
    assert "Traceback" in run("show", str(spec), code=1, debug=True).stderr


def test_bad_use_is_exit_code_2() -> None:
    run("verify", "--no-such-option", code=2)
