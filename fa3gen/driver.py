"""The compiler's driver: spec, schedule, proof, source, artifact, op.

What makes a kernel (``spec``, ``schedule``, ``codegen``, ``jit.compiler``) is imported when a
kernel must be made. A kernel that the cache's index finds needs none of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fa3gen import debug
from fa3gen.errors import BuildError, InputError, PressureError, ScheduleError, ToolchainError
from fa3gen.jit import index
from fa3gen.jit.entries import TUNED, cache_directory, look, open_cache
from fa3gen.jit.index import SpecSource
from fa3gen.jit.known import known_toolchain
from fa3gen.jit.trust import UntrustedError, check, check_directory
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import CAPABILITY, Attention
from fa3gen.runtime.op import register, register_interpreted

if TYPE_CHECKING:
    from fa3gen.codegen import OpSource
    from fa3gen.jit.toolchain import Toolchain
    from fa3gen.schedule import Schedule
    from fa3gen.schedule.interpret import Interpreter
    from fa3gen.schedule.schedule import Tiling
    from fa3gen.spec import AttentionSpec

__all__ = [
    "SpecLike",
    "build",
    "build_here",
    "compile",
    "empty_folder",
    "gpu_name",
    "interpreted",
    "own_table",
    "plan_of",
    "source_of",
]

SpecLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | AttentionSpec"
Progress = Callable[[str], None]

_SPARES = (0, 24, 56, 80, 112)  # registers of a consumer thread, until a kernel can be built
_TRIES = 4  # to take a kernel from the cache while others clear it
_GPUS = Path("/proc/driver/nvidia/gpus")
_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver: on Linux, and in WSL


def compile(spec: SpecLike, *, progress: Progress | None = None) -> Attention:
    """The attention op of a spec: a path, YAML text, a mapping or an AttentionSpec.

    With a Hopper GPU the kernel is built (or found in the cache) and runs on CUDA tensors. Without
    one the op runs the same Program on CPU tensors, tile by tile. ``progress`` receives a line as
    each step of a build starts. Raises SpecError, ScheduleError, UnsupportedError, ToolchainError
    or BuildError.
    """
    debug.set_up()
    if not _may_have_gpu():
        return interpreted(plan_of(spec))
    request = _Request.of(spec)
    artifact, refused = request.find(), None
    for _ in range(_TRIES):
        if artifact is None:
            if not has_hopper():
                return interpreted(plan_of(spec))
            artifact = request.build(progress)
        try:
            return Attention(register(artifact), spec=request.load, artifact=artifact)
        except InputError as error:  # damaged, or cleared meanwhile: it is built again
            artifact, refused = None, error
    assert refused is not None
    raise refused


def build(spec: SpecLike, directory: str | Path, *, progress: Progress | None = None) -> Artifact:
    """Build a spec's kernel into ``directory``, which must not exist or be empty.

    The artifact is self-contained: ``fa3gen.load(directory)`` needs torch alone. Raises what
    ``compile`` does, and InputError where ``directory`` cannot be written.
    """
    target = empty_folder(directory)
    for _ in range(_TRIES):
        artifact = build_here(spec, progress=progress)
        with contextlib.suppress(FileNotFoundError):  # the cache was cleared meanwhile
            return _copied(artifact, target)
    raise BuildError(f"{artifact.directory} was removed time and again; build when it is not")


def _copied(artifact: Artifact, target: Path) -> Artifact:
    """A copy in ``target``, with the modes that new files have there: all of it or nothing.

    Raises FileNotFoundError where the artifact is gone, InputError if ``target`` is at fault.
    """
    contents = {path.name: path.read_bytes() for path in sorted(artifact.directory.iterdir())}
    made: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            made.append(target / name)
            made[-1].write_bytes(data)
        copy = Artifact.read(target)
        copy.verify_library()
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise InputError(f"-o: {target} cannot be written ({reason})") from error
        raise
    return copy


def empty_folder(directory: str | Path) -> Path:
    """Where to write something new. Raises InputError where something is there."""
    target = Path(directory)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"-o: {target} must not exist, or be an empty folder")
    return target


def build_here(spec: SpecLike, *, progress: Progress | None = None) -> Artifact:
    """A spec's kernel in the cache, where it is built if it is not there; no GPU is needed.

    Raises what ``compile`` does.
    """
    debug.set_up()
    request = _Request.of(spec)
    artifact = request.find()
    if artifact is None or look(artifact.directory) is None:
        artifact = request.build(progress)
    return artifact


def source_of(plan: Sequence[Schedule]) -> OpSource:
    """The proved source of a launch plan: its Programs are verified before they are rendered."""
    from fa3gen.codegen import render
    from fa3gen.schedule import verify
    from fa3gen.schedule.lower import lower

    for schedule in plan:
        program = lower(schedule)
        _log("schedule", debug.PASSES, "the Program:\n%s", program)
        _log("schedule", debug.CHOICES, "%s", verify(program))
    source = render(plan)
    for kernel in source.kernels:
        _log("codegen", debug.SOURCE, "%s.cu:\n%s", kernel.meta.stem, kernel.text)
    _log("codegen", debug.SOURCE, "host.cpp:\n%s", source.host)
    return source


def interpreted(plan: Sequence[Schedule]) -> Attention:
    """An op that runs a launch plan's Programs on CPU tensors."""
    from fa3gen.schedule.interpret import Interpreter

    kernels = [(schedule.max_keys, Interpreter(schedule)) for schedule in plan]
    run = _Interpreted(kernels)
    return Attention(register_interpreted(source_of(plan).meta, run), spec=plan[0].spec)


class _Interpreted:
    """A launch plan's Programs as the implementation of an op."""

    def __init__(self, kernels: Sequence[tuple[int | None, Interpreter]]) -> None:
        self.kernels = kernels

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *more: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._kernel(k.shape[1])(q, k, v, scale, *more)

    def plan(
        self,
        batch: int,
        heads: int,
        heads_k: int,
        seqlen_q: int,
        seqlen_k: int,
        *inputs: Tensor,
    ) -> Tensor:
        """The lists of KV tiles that calls of these sizes visit."""
        sizes = (batch, heads, heads_k, seqlen_q, seqlen_k)
        return self._kernel(seqlen_k).plan(sizes, inputs)

    def _kernel(self, keys: int) -> Interpreter:
        return next(one for limit, one in self.kernels if limit is None or keys <= limit)


def has_hopper() -> bool:
    """Whether torch sees a GPU that can run sm_90a code."""
    return torch.cuda.is_available() and any(
        torch.cuda.get_device_capability(device) == CAPABILITY
        for device in range(torch.cuda.device_count())
    )


def gpu_name() -> str | None:
    """The model of this machine's first GPU, as NVIDIA's driver gives it; CUDA is not started.

    Where the driver does not tell, as torch has it, if CUDA is up.
    """
    for place in sorted(_GPUS.glob("*/information")):
        for line in place.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model" and value.strip():
                return value.strip()
    cuda: Any = torch.cuda
    return torch.cuda.get_device_name() if cuda.is_initialized() else None


def own_table() -> Path | None:
    """What ``fa3gen tune`` found on this machine; None if there is nothing.

    A table that others can change is none, with a RuntimeWarning.
    """
    try:
        table = Path(os.path.realpath(cache_directory())) / TUNED
        check_directory(table.parent)
        check(table)
    except UntrustedError as error:
        if os.path.exists(table):  # no, where it may not even be looked for
            message = f"{table} is not used: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    except OSError:
        return None
    return table


def _tuning() -> bytes:
    """What kernels follow from beside their spec: the GPU, and the table of this machine."""
    table = own_table()
    found = b"" if table is None else table.read_bytes()
    return f"{gpu_name()}\n".encode() + found


def _may_have_gpu() -> bool:
    """False where no GPU can be seen. To know more, CUDA must be started, which takes 0.2 s; a
    kernel in the cache says as much."""
    cuda: Any = torch.cuda  # torch declares no types for some of it
    if torch.version.cuda is None or cuda.is_initialized():
        return has_hopper()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(os.path.exists(device) for device in _DEVICES)


def plan_of(spec: SpecLike, spare: int = 0) -> tuple[Schedule, ...]:
    """The schedules of the kernels that ``compile`` builds here, for this GPU and its tables.

    ``spare``: registers a consumer thread that a kernel without measured knobs leaves over.
    """
    from fa3gen.schedule import make_plan
    from fa3gen.schedule.tuned import SHIPPED
    from fa3gen.spec import load_spec

    table = own_table()
    tables = (SHIPPED,) if table is None else (table, SHIPPED)
    plan = make_plan(load_spec(spec), gpu=gpu_name(), tables=tables, spare=spare)
    for schedule in plan:
        _log("schedule", debug.CHOICES, "%s: %s", schedule.spec.name, schedule.tiling)
    return plan


def _plans(spec: SpecLike) -> Iterator[tuple[Schedule, ...]]:
    """The plan of a spec, then others whose kernels leave more registers over."""
    before: list[Tiling] = []
    for spare in _SPARES:
        try:
            plan = plan_of(spec, spare)
        except ScheduleError:
            if not spare:
                raise
            return
        tilings = [schedule.tiling for schedule in plan]
        if tilings != before:
            yield plan
        before = tilings


def _log(package: str, level: int, message: str, *values: object) -> None:
    logging.getLogger(f"fa3gen.{package}").log(level, message, *values)


class _Request(NamedTuple):
    """A spec as it was given, and its key in the cache's index (None: it has none).

    ``root``: the opened cache; None where there is none, and the build says why.
    """

    spec: SpecLike
    root: Path | None
    toolchain: Toolchain | None
    source: SpecSource | None
    key: str | None

    @staticmethod
    def of(spec: SpecLike) -> _Request:
        root = None
        with contextlib.suppress(OSError):
            root = open_cache()
        try:
            toolchain = known_toolchain(root)
        except ToolchainError:  # raised again by the build, after what is wrong with the spec
            return _Request(spec, root, None, None, None)
        source, key = _index_key(spec, toolchain)
        return _Request(spec, root, toolchain, source, key)

    def load(self) -> object:
        """The spec."""
        from fa3gen.spec import AttentionSpec, load_spec

        if isinstance(self.spec, AttentionSpec):
            return self.spec
        return load_spec(self.spec) if self.source is None else self.source.load()

    def find(self) -> Artifact | None:
        """What the index holds; nothing while ``FA3GEN_DEBUG`` asks for what a build would log."""
        if self.root is None or self.key is None or debug.debug_level():
            return None
        return index.find(self.root, self.key)

    def build(self, progress: Progress | None) -> Artifact:
        """The kernel, found under its full key or built, and then noted in the index.

        A formula may need more registers than its tile was chosen for: then a smaller one is taken.
        """
        from fa3gen.jit.cache import build_cached

        refused: PressureError | None = None
        for plan in _plans(self.spec):
            try:
                artifact = build_cached(
                    source_of(plan), toolchain=self.toolchain, progress=progress
                )
                break
            except PressureError as error:
                refused = refused or error
        else:
            assert refused is not None
            raise refused
        # What the key was made of may have changed since: the spec's file, fa3gen's own files.
        if self.toolchain is None or self.key != _index_key(self.spec, self.toolchain)[1]:
            return artifact
        if self.root is not None and self.key is not None:
            index.record(self.root, self.key, artifact)
        return artifact


def _index_key(spec: SpecLike, toolchain: Toolchain) -> tuple[SpecSource | None, str | None]:
    source = index.read_spec(spec)
    if source is None:
        return None, None
    try:
        return source, index.index_key(source, toolchain, _tuning())
    except OSError:  # a file of fa3gen's went away while it was read
        return source, None
