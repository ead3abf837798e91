"""The whole chain on the shipped causal spec, with a real nvcc build and its gates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fa3gen
from fa3gen.errors import InputError, SpecError, UnsupportedError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.reference import check_error, reference_mask

SPEC = {"head_dim": 128, "dtype": "bf16", "mask": "causal", "name": "driver_causal"}
_BUILD_LIMIT_S = 20.0  # cold, on two cores


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The causal kernel, built from scratch."""
    root = tmp_path_factory.mktemp("driver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FA3GEN_CACHE_DIR", str(root / "cache"))
        lines: list[str] = []
        built = fa3gen.build(SPEC, root / "artifact", progress=lines.append)
    assert lines, "a build tells its progress"
    return built


def test_a_build_passes_its_gates_in_time(artifact: Artifact) -> None:
    assert artifact.spill_bytes == 0
    assert artifact.registers == 168  # at entry: setmaxnreg moves them later
    assert artifact.build_seconds < 2 * _BUILD_LIMIT_S, "twice the limit: another test may run"


def test_a_build_does_not_overwrite(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="must not exist or be empty"):
        fa3gen.build(SPEC, artifact.directory)


def test_loading_needs_torch_alone(artifact: Artifact) -> None:
    script = f"""
import sys, torch, fa3gen
op = fa3gen.load({str(artifact.directory)!r})
heavy = {{"jinja2", "networkx", "ninja", "pydantic", "sympy", "typer", "yaml"}}
with torch._subclasses.FakeTensorMode():
    q = torch.empty(2, 5, 4, 128, dtype=torch.bfloat16, device="cuda")
    k = torch.empty(2, 7, 2, 128, dtype=torch.bfloat16, device="cuda")
    out, lse = op.op(q, k, k, 1.0)
assert out.shape == (2, 5, 4, 128) and lse.shape == (2, 4, 5), (out.shape, lse.shape)
own = {{name for name in sys.modules if name.startswith("fa3gen")}}
assert not any(part in name for name in own for part in (".spec", ".schedule", ".codegen", ".jit"))
loaded_by_torch = {{"jinja2", "networkx", "sympy"}} | ({{"yaml"}} & set(sys.modules))
assert not (heavy - loaded_by_torch) & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernel instead")
class TestInterpreted:
    """Without a GPU the op runs its Program on CPU tensors."""

    def test_every_form_of_a_spec(self, tmp_path: Path) -> None:
        text = "head_dim: 128\ndtype: bf16\nmask: causal\nname: driver_causal\n"
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        ops = {
            fa3gen.compile(form).op
            for form in (SPEC, text, path, str(path), fa3gen.AttentionSpec(**SPEC))
        }
        assert len(ops) == 1

    def test_numbers(self) -> None:
        torch.manual_seed(0)
        op = fa3gen.compile(SPEC)
        q = torch.randn(2, 70, 4, 128, dtype=torch.bfloat16)
        k, v = (torch.randn(2, 150, 2, 128, dtype=torch.bfloat16) for _ in range(2))
        out, lse = op(q, k, v, return_lse=True, scale=0.2)
        report = check_error(out, lse, q, k, v, reference_mask("causal"), 0.2)
        assert report.ok, report
        assert torch.equal(op(q, k, v, scale=0.2), out)

    def test_torch_compile(self) -> None:
        op = fa3gen.compile(SPEC)
        q, k, v = (torch.randn(1, 9, 2, 128, dtype=torch.bfloat16) for _ in range(3))
        compiled = torch.compile(
            lambda q, k, v: op(q, k, v) * 2, fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(q, k, v), op(q, k, v) * 2)

    def test_a_gradient_is_a_clear_error(self) -> None:
        q, k, v = (
            torch.randn(1, 4, 1, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
        )
        out = fa3gen.compile(SPEC)(q, k, v)
        with pytest.raises(UnsupportedError, match="forward"):
            out.sum().backward()


def test_bad_specs_name_key_rule_and_remedy() -> None:
    with pytest.raises(SpecError, match=r"head_dim.*multiple of 8"):
        fa3gen.compile({"head_dim": 100, "mask": "causal"})
    with pytest.raises(SpecError, match="mask"):
        fa3gen.compile({"head_dim": 128, "msk": "causal"})
