"""The compiler's driver: spec, schedule, proof, source, artifact, op."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fa3gen.codegen import KernelSource, render
from fa3gen.errors import InputError
from fa3gen.jit.cache import build_cached
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.op import register, register_interpreted
from fa3gen.schedule import Schedule, make_schedule, verify
from fa3gen.schedule.interpret import Interpreter
from fa3gen.schedule.lower import lower
from fa3gen.spec import AttentionSpec, load_spec

__all__ = ["SpecLike", "build", "compile", "interpreted", "source_of"]

SpecLike = str | os.PathLike[str] | Mapping[str, Any] | AttentionSpec


def compile(spec: SpecLike, *, progress: Callable[[str], None] | None = None) -> Attention:
    """The attention op of a spec: a path, YAML text, a mapping or an AttentionSpec.

    With a Hopper GPU the kernel is built (or found in the cache) and runs on CUDA tensors. Without
    one the op runs the same Program on CPU tensors, tile by tile. ``progress`` receives a line as
    each step of a build starts. Raises SpecError, ScheduleError, UnsupportedError, ToolchainError
    or BuildError.
    """
    loaded = load_spec(spec)
    schedule = make_schedule(loaded)
    if not _has_hopper():
        return interpreted(schedule)
    artifact = build_cached(source_of(schedule), progress=progress)
    return Attention(register(artifact), spec=loaded, artifact=artifact)


def build(
    spec: SpecLike, directory: str | Path, *, progress: Callable[[str], None] | None = None
) -> Artifact:
    """Build a spec's kernel into ``directory``, which must not exist or be empty.

    The artifact is self-contained: ``fa3gen.load(directory)`` needs torch alone.
    """
    target = Path(directory)
    if target.exists() and any(target.iterdir()):
        raise InputError(f"-o: {target} must not exist or be empty")
    cached = build_cached(source_of(make_schedule(load_spec(spec))), progress=progress)
    shutil.copytree(cached.directory, target, dirs_exist_ok=True)
    return Artifact.read(target)


def source_of(schedule: Schedule) -> KernelSource:
    """The proved source of a schedule: its Program is verified before it is rendered."""
    verify(lower(schedule))
    return render(schedule)


def interpreted(schedule: Schedule) -> Attention:
    """An op that runs a schedule's Program on CPU tensors."""
    meta = source_of(schedule).meta
    return Attention(register_interpreted(meta, Interpreter(schedule)), spec=schedule.spec)


def _has_hopper() -> bool:
    """Whether the current CUDA device can run sm_90a code."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
