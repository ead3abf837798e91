"""The command line: ``fa3gen show | schema | generate | verify | build | check | bench``.

Exit codes: 0, 1 (a check failed, or the spec is bad), 2 (bad use). An error is one message; set
``FA3GEN_DEBUG`` for the traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fa3gen.errors import Fa3genError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Spec = Annotated[str, typer.Argument(help="a spec file, or the name of a shipped spec")]
Specs = Annotated[list[str], typer.Argument(help="spec files, or names of shipped specs")]


@app.command()
def show(spec: Spec) -> None:
    """Print a spec, its graph, schedule, budgets and Program."""
    from fa3gen.schedule import make_schedule
    from fa3gen.schedule.lower import lower
    from fa3gen.schedule.show import show_schedule
    from fa3gen.spec import load_spec

    schedule = make_schedule(load_spec(spec))
    print(show_schedule(schedule))
    print(f"\n{lower(schedule)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec."""
    from fa3gen.spec import AttentionSpec

    print(json.dumps(AttentionSpec.json_schema(), indent=2))


@app.command()
def generate(
    specs: Annotated[list[str] | None, typer.Argument(help="specs (all shipped ones)")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder")] = Path("generated"),
    check: Annotated[bool, typer.Option(help="compare instead of writing")] = False,
) -> None:
    """Render specs to CUDA and C++ text, a folder each."""
    from fa3gen.driver import source_of
    from fa3gen.paths import SPECS
    from fa3gen.schedule import make_schedule
    from fa3gen.spec import load_spec

    stale = []
    for spec in specs or sorted(path.stem for path in SPECS.glob("*.yaml")):
        source = source_of(make_schedule(load_spec(spec)))
        folder = output / source.meta.name
        for name, text in (("kernel.cu", source.device), ("host.cpp", source.host)):
            path = folder / name
            if check and (not path.is_file() or path.read_text() != text):
                stale.append(str(path))
            if not check:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(path)
    if stale:
        print("differs from what the compiler renders: " + ", ".join(stale), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def verify(specs: Specs) -> None:
    """Prove the Programs of specs free of deadlocks and races."""
    from fa3gen.schedule import make_program
    from fa3gen.schedule import verify as prove
    from fa3gen.spec import load_spec

    for spec in specs:
        started = time.perf_counter()
        proof = prove(make_program(load_spec(spec)))
        print(f"{proof} in {time.perf_counter() - started:.2f} s")


@app.command()
def build(
    spec: Spec,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the artifact")],
) -> None:
    """Build a kernel ahead of time; fa3gen.load(FOLDER) then needs torch alone."""
    from fa3gen.driver import build as build_spec

    artifact = build_spec(spec, output, progress=_progress)
    print(
        f"{artifact.op_name}: {artifact.registers} registers, "
        f"{artifact.spill_bytes} bytes spilled, built in {artifact.build_seconds:.1f} s"
    )


@app.command()
def check(
    spec: Spec,
    sizes: Annotated[str, typer.Option(help="small or large (large on a GPU)")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compare a variant with an fp64 reference, on the GPU or on the interpreter."""
    import torch

    from fa3gen.check import check as run_check
    from fa3gen.check import render_table
    from fa3gen.driver import compile as compile_spec
    from fa3gen.spec import load_spec

    loaded = load_spec(spec)
    op = compile_spec(loaded, progress=_progress)
    device = "cuda" if op.artifact is not None else "cpu"
    results = run_check(
        op,
        loaded.mask,
        device=device,
        sizes=sizes or ("large" if device == "cuda" else "small"),
        dtype=getattr(torch, loaded.dtype.torch_name),
        head_dims=(loaded.head_dim.qk, loaded.head_dim.v),
    )
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=1))
    else:
        render_table(results)
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def bench(
    spec: Spec,
    against: Annotated[str, typer.Option(help="fa3,cudnn,fa2,flex,fa4")] = "fa3,cudnn",
    lengths: Annotated[str, typer.Option(help="sequence lengths")] = "4096,8192,16384",
    output: Annotated[Path | None, typer.Option("--json", help="write the results here")] = None,
) -> None:
    """Time a variant against its peers, interleaved in one run on this GPU."""
    from fa3gen.bench.problem import SpecFacts
    from fa3gen.bench.report import render
    from fa3gen.bench.run import run_bench
    from fa3gen.driver import compile as compile_spec
    from fa3gen.errors import ToolchainError
    from fa3gen.spec import load_spec

    loaded = load_spec(spec)
    op = compile_spec(loaded, progress=_progress)
    if op.artifact is None:
        raise ToolchainError("bench: needs a Hopper GPU; there is none here")
    facts = SpecFacts(
        mask=loaded.mask,
        dtype=loaded.dtype.value,
        head_dim_qk=loaded.head_dim.qk,
        head_dim_v=loaded.head_dim.v,
        variant="plain",
    )
    results = run_bench(
        {"fa3gen": op},
        facts,
        [name for name in against.split(",") if name],
        [int(length) for length in lengths.split(",")],
        command=shlex.join(["fa3gen", *sys.argv[1:]]),
    )
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n")
    print(render(results))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line; an expected error is one line and exit code 1."""
    try:
        app()
    except Fa3genError as error:
        if os.environ.get("FA3GEN_DEBUG"):
            raise
        print(f"fa3gen: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
