"""The whole chain on a causal spec, with a real nvcc build and its gates; the warm start."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fa3gen
from fa3gen import driver
from fa3gen.errors import InputError, ScheduleError, SpecError, ToolchainError, UnsupportedError
from fa3gen.jit.toolchain import find_toolchain
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.reference import check_error, reference_mask
from fa3gen.schedule import tuned

SPEC = {"head_dim": 128, "dtype": "bf16", "mask": "causal", "name": "driver_causal"}
_BUILD_LIMIT_S = 20.0  # cold, on two cores
_WARM_LIMIT_S = 0.030  # fa3gen.compile of a kernel in the cache
_IMPORT_LIMIT_S = 0.3  # over torch's import


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The causal kernel, built from scratch."""
    root = tmp_path_factory.mktemp("driver")
    (root / "spec.yaml").write_text(json.dumps(SPEC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FA3GEN_CACHE_DIR", str(root / "cache"))
        lines: list[str] = []
        built = fa3gen.build(root / "spec.yaml", root / "artifact", progress=lines.append)
    assert lines, "a build tells its progress"
    return built


def test_a_build_passes_its_gates_in_time(artifact: Artifact) -> None:
    assert artifact.kernels[-1].spill_bytes == 0
    assert artifact.kernels[-1].registers == 168  # at entry: setmaxnreg moves them later
    assert artifact.build_seconds < 2 * _BUILD_LIMIT_S, "twice the limit: another test may run"


def test_a_build_does_not_overwrite(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="must not exist, or be an empty folder"):
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


# --- the warm start -------------------------------------------------------------------------------

_WARM = """
import json, sys, time
import torch
started = time.process_time()
import fa3gen
imported = time.process_time()
from fa3gen import driver
driver.has_hopper = lambda: True
op = fa3gen.compile(sys.argv[1])
compiled = time.process_time()
heavy = {"filelock", "jinja2", "networkx", "ninja", "ortools", "pydantic", "sympy", "yaml"}
found = sorted(heavy & set(sys.modules))
torch_own = ["torch.utils.flop_counter"] if "torch.utils.flop_counter" in sys.modules else []
times = {"import": imported - started, "compile": compiled - imported}
facts = {"heavy": found + torch_own, "spec": op.spec.name, "on_cuda": op.artifact is not None}
print(json.dumps({**times, **facts}))
"""


def warm_start(
    artifact: Artifact, spec: object = None, cache: Path | None = None
) -> dict[str, object]:
    """A process of its own that compiles what the fixture has built, as on a GPU's host."""
    root = artifact.directory.parent
    environment = {**os.environ, "FA3GEN_CACHE_DIR": str(cache or root / "cache")}
    argument = str(root / "spec.yaml") if spec is None else str(spec)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WARM, argument],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def test_a_warm_start_is_short_and_light(artifact: Artifact) -> None:
    starts = [warm_start(artifact) for _ in range(3)]
    for facts in starts:
        assert facts["heavy"] == []
        assert facts["spec"] == "driver_causal"
        assert facts["on_cuda"]
    # Twice the limits: another test may run on the same cores.
    assert min(float(str(facts["compile"])) for facts in starts) < 2 * _WARM_LIMIT_S
    assert min(float(str(facts["import"])) for facts in starts) < 2 * _IMPORT_LIMIT_S


def test_a_warm_start_writes_nothing(artifact: Artifact) -> None:
    cache = artifact.directory.parent / "cache"

    def state() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in cache.rglob("*"))

    before = state()
    warm_start(artifact)
    assert state() == before


def test_the_text_of_a_spec_is_its_file(artifact: Artifact) -> None:
    text = (artifact.directory.parent / "spec.yaml").read_text()
    assert warm_start(artifact, text + "\n")["on_cuda"]


@pytest.fixture
def gpu_host(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if this machine had a Hopper GPU; returns the fixture's cache directory, in use."""
    cache = artifact.directory.parent / "cache"
    monkeypatch.setattr(driver, "has_hopper", lambda: True)
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(cache))
    return cache


def test_every_spelling_of_a_spec_has_one_kernel(gpu_host: Path, artifact: Artifact) -> None:
    text = json.dumps(SPEC)
    forms = [SPEC, text, text + "\n", fa3gen.AttentionSpec(**SPEC)]
    artifacts = {fa3gen.compile(form).artifact for form in forms}
    assert {found.op_name for found in artifacts if found} == {artifact.op_name}


def test_a_damaged_kernel_is_built_again(artifact: Artifact, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(artifact.directory.parent / "cache", cache)
    (library,) = cache.glob(f"{artifact.op_name}-*/*.so")
    library.write_bytes(b"damaged")
    facts = warm_start(artifact, cache=cache)
    assert facts["on_cuda"]
    assert "sympy" in str(facts["heavy"])
    assert library.stat().st_size > 100_000
    assert warm_start(artifact, cache=cache)["heavy"] == []


def test_a_kernel_that_is_cleared_before_it_is_loaded(
    gpu_host: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken from the cache, or built, until it can be loaded, but not for ever."""
    tries: list[Artifact] = []

    def register(found: Artifact) -> object:
        tries.append(found)
        if len(tries) < limit:
            raise InputError("gone")
        return real(found)

    real, limit = driver.register, 3
    monkeypatch.setattr(driver, "register", register)
    (manifest,) = gpu_host.glob(f"{artifact.op_name}-*/artifact.json")
    built = Artifact.read(manifest.parent)
    monkeypatch.setattr(driver._Request, "build", lambda self, progress: built)
    assert fa3gen.compile(SPEC).artifact == tries[-1]
    assert len(tries) == limit
    tries.clear()
    limit = 1000
    with pytest.raises(InputError, match="gone"):
        fa3gen.compile(SPEC)
    assert len(tries) < 10


def test_a_kernel_that_is_cleared_while_it_is_copied(
    gpu_host: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = driver.build_here, []

    def build_here(*arguments: object, **options: object) -> Artifact:
        calls.append(arguments)
        found = real(*arguments, **options)  # type: ignore[arg-type]
        gone = found.directory.with_name("gone")
        return dataclasses.replace(found, directory=gone) if len(calls) == 1 else found

    monkeypatch.setattr(driver, "build_here", build_here)
    before = os.umask(0o027)
    try:
        built = fa3gen.build(SPEC, tmp_path / "out")
    finally:
        os.umask(before)
    assert len(calls) == 2
    built.verify_library()
    modes = {path.stat().st_mode & 0o777 for path in built.directory.iterdir()}
    assert (built.directory.stat().st_mode & 0o777, modes) == (0o750, {0o640})


def test_a_copy_that_cannot_be_written(gpu_host: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"-o: .*file/out cannot be written \(Not a directory\)"):
        fa3gen.build(SPEC, tmp_path / "file/out")


_ORDER = """
import json, os, sys
import torch, fa3gen
from fa3gen import driver
driver.has_hopper = lambda: True
root, seen, lstat = os.environ["FA3GEN_CACHE_DIR"], [], os.lstat

def note(event, arguments):
    if event in ("open", "ctypes.dlopen") and str(arguments[0]).startswith(root):
        seen.append((event, os.fsdecode(arguments[0])))

def noted_lstat(path, **options):
    seen.append(("checked", os.fsdecode(path)))
    return lstat(path, **options)

os.lstat = noted_lstat
sys.addaudithook(note)
fa3gen.compile(sys.argv[1])
print(json.dumps(seen))
"""


def test_nothing_is_opened_before_it_is_checked(gpu_host: Path, artifact: Artifact) -> None:
    """Who may write to a file and to all folders above it; of the library also its hash."""
    spec = str(artifact.directory.parent / "spec.yaml")
    done = subprocess.run(
        [sys.executable, "-c", _ORDER, spec], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    checked, opened = set(), []
    for event, name in seen:
        if event == "checked":
            checked.add(Path(name))
        else:
            assert {Path(name), *Path(name).parents} <= checked, (name, seen)
            opened.append((event, Path(name).name))
    library = f"{artifact.op_name}.so"
    assert opened[-3:] == [("open", "artifact.json"), ("open", library), ("ctypes.dlopen", library)]
    assert sum("index" in name for event, name in seen if event == "open") == 2


# --- what cannot be had ---------------------------------------------------------------------------


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(driver, "has_hopper", lambda: True)
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FA3GEN_NVCC", str(tmp_path / "nvcc"))
    with pytest.raises(ToolchainError, match=r"FA3GEN_NVCC=.*nvcc.* does not run"):
        fa3gen.compile(SPEC)
    monkeypatch.delenv("FA3GEN_NVCC")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"no-such-compiler was not found; install g\+\+"):
        fa3gen.build(SPEC, tmp_path / "out")
    with pytest.raises(SpecError, match="head_dim"):  # the spec's fault is told first
        fa3gen.build({"head_dim": 100}, tmp_path / "out")


def test_another_gpu_leaves_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert not driver.has_hopper()
    assert fa3gen.compile(SPEC).artifact is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: (8 + device, 0))
    assert driver.has_hopper()


def test_a_tile_that_cannot_fit_shows_its_budget() -> None:
    spec = {"head_dim": 256, "schedule": {"tile": {"m": 128, "n": 256}}}
    with pytest.raises(ScheduleError, match=r"does not fit: \d+ of \d+ ") as caught:
        fa3gen.compile(spec)
    assert len(str(caught.value).splitlines()) > 3, "one line for each part of the budget"


def test_bad_specs_name_key_rule_and_remedy() -> None:
    with pytest.raises(SpecError, match=r"head_dim.*multiple of 8"):
        fa3gen.compile({"head_dim": 100, "mask": "causal"})
    with pytest.raises(SpecError, match="mask"):
        fa3gen.compile({"head_dim": 128, "msk": "causal"})


# --- tuned kernels --------------------------------------------------------------------------------


def test_the_gpu_is_named_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_GPUS", tmp_path)
    if not torch.cuda.is_available():
        assert driver.gpu_name() is None
    for slot, model in (("0000:65:00.0", "NVIDIA H200"), ("0000:66:00.0", "NVIDIA H100 PCIe")):
        (tmp_path / slot).mkdir()
        text = f"Model: \t\t {model}\nIRQ:   \t\t 18\n"
        (tmp_path / slot / "information").write_text(text)
    assert driver.gpu_name() == "NVIDIA H200"


def test_this_machines_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path))
    spec = {"head_dim": 128, "mask": "full"}
    loaded = fa3gen.AttentionSpec(**spec)
    assert [schedule.tiling.block_n for schedule in driver.plan_of(spec)] == [128]
    before = driver._tuning()
    knobs = loaded.model_copy(update={"schedule": {"tile": {"m": 128, "n": 96}}}).schedule
    entry = tuned.Entry.of(loaded, "H200", [tuned.TunedKernel(None, knobs)], {})
    tuned.write(tmp_path / "tuned.json", [entry])
    assert [schedule.tiling.block_n for schedule in driver.plan_of(spec)] == [96]
    assert driver._tuning() != before, "the index must not find the kernel of the table before"


def test_a_table_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path))
    assert driver.own_table() is None
    table = tmp_path / "tuned.json"
    table.write_text("no table")
    assert driver.own_table() == table
    for place in (table, tmp_path):
        mode = place.stat().st_mode
        place.chmod(0o777)
        with pytest.warns(RuntimeWarning, match=f"{table} is not used: {place} must not"):
            assert driver.own_table() is None
        with pytest.warns(RuntimeWarning, match="is not used"):
            driver.plan_of(SPEC)  # it would refuse to read the table
        place.chmod(mode)


def test_a_table_that_may_not_be_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another user's cache, made for him alone."""
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if path == tmp_path / "tuned.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert driver.own_table() is None


def test_nothing_is_found_in_a_cache_of_others(
    gpu_host: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kernels nor the compilers that the kept toolchain names."""
    cache = tmp_path / "cache"
    shutil.copytree(gpu_host, cache)
    cache.chmod(0o700)
    monkeypatch.setenv("FA3GEN_CACHE_DIR", str(cache))
    spec = artifact.directory.parent / "spec.yaml"
    found = driver._Request.of(spec)
    assert found.root == cache
    assert found.find() is not None
    cache.chmod(0o777)
    found = driver._Request.of(spec)
    assert (found.root, found.find()) == (None, None)
    assert found.toolchain == find_toolchain()
