"""Kernels built ahead of time, and the knobs that suit this machine: build, bundle, tune."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fa3gen.commands.app import Spec, Specs, app, numbers
from fa3gen.progress import build_progress

__all__ = ["build", "bundle", "tune"]


@app.command()
def build(
    spec: Spec,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the artifact")],
) -> None:
    """Build a kernel ahead of time; fa3gen.load(FOLDER) then needs torch alone."""
    from fa3gen.driver import build as build_spec

    with build_progress() as progress:
        artifact = build_spec(spec, output, progress=progress)
    print(f"{artifact.op_name}: built in {artifact.build_seconds:.1f} s")
    for kernel in artifact.kernels:
        print(f"{kernel}, {kernel.registers} registers, {kernel.spill_bytes} bytes spilled")


@app.command()
def bundle(
    specs: Specs,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the bundle")],
    wheel: Annotated[bool, typer.Option("--wheel", help="also a wheel, in DIR/dist")] = False,
    name: Annotated[str | None, typer.Option(help="of the wheel (the folder's)")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="builds at a time (one a core)")] = None,
) -> None:
    """Build many kernels into one folder; fa3gen.load_bundle(FOLDER) then needs torch alone."""
    from fa3gen.bundle import build_bundle

    if name is not None and not wheel:
        raise typer.BadParameter("--name: is the project of a wheel; give --wheel too")
    project = (name or output.resolve().name) if wheel else None
    with build_progress() as progress:
        manifest = build_bundle(specs, output, jobs=jobs, progress=progress, wheel=project)
    for op in manifest.ops:
        print(op)


@app.command()
def tune(
    spec: Spec,
    folder: Annotated[
        Path | None, typer.Option(help="where candidates and times are kept (the cache)")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="the table to write to (this machine's, in the cache)")
    ] = None,
    lengths: Annotated[str, typer.Option(help="sequence lengths")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="builds at a time")] = 1,
) -> None:
    """Build the best candidates, time them on this GPU, and keep the winners for later compiles."""
    import torch

    from fa3gen.bench.tune import LENGTHS, decide, prepare, time_candidates
    from fa3gen.errors import ToolchainError
    from fa3gen.jit.entries import TUNE, TUNED, open_place
    from fa3gen.jit.trust import make_directory, protect
    from fa3gen.spec import load_spec

    sizes = numbers(lengths) if lengths else list(LENGTHS)
    loaded = load_spec(spec)
    if folder is None:
        folder = open_place(TUNE, f"{loaded.name}-{loaded.digest()[:8]}")
        make_directory(folder)
    with build_progress() as progress:
        prepare(loaded, folder, jobs=jobs, progress=progress)
    if not torch.cuda.is_available():
        raise ToolchainError(
            f"tune: the candidates are in {folder}, but torch sees no GPU to time them on; take "
            f"the folder to one and run `python -m fa3gen.bench.tune time {folder.name}` there"
        )
    command = shlex.join(["fa3gen", *sys.argv[1:]])
    with build_progress() as progress:
        time_candidates(folder, lengths=sizes, progress=progress, command=command)
    target = table or open_place(TUNED)
    for winner in decide(folder, target):
        print(winner)
    if table is None:
        protect(target)  # else the next compile may not believe it
    print(f"kept in {target}")
