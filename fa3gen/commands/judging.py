"""Whether kernels are right and how fast they are: check, test, bench."""

from __future__ import annotations

import enum
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fa3gen.commands.app import Json, Spec, app, numbers, print_json
from fa3gen.progress import build_progress, check_progress

if TYPE_CHECKING:
    from fa3gen.runtime.examples import InputExample
    from fa3gen.spec import AttentionSpec

__all__ = ["bench", "check", "run_matrix"]


class Sizes(enum.Enum):
    """The sets of cases of ``check``."""

    SMALL = "small"
    LARGE = "large"


class Matrix(enum.Enum):
    """The sets of points of ``test``."""

    QUICK = "quick"
    FULL = "full"
    PRODUCT = "product"


@app.command()
def check(
    spec: Spec,
    sizes: Annotated[
        Sizes | None, typer.Option(help="the set of cases (large on a GPU, else small)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a variant with an fp64 reference, on the GPU or on the interpreter."""
    import torch

    from fa3gen.check import Variant, cases, limits_of, render_table
    from fa3gen.check import check as run_check

    loaded, op = _compiled(spec)
    on_gpu = op.artifact is not None
    chosen = (sizes or (Sizes.LARGE if on_gpu else Sizes.SMALL)).value
    with check_progress(len(cases(chosen, limits_of(op)))) as progress:
        results = run_check(
            op,
            Variant(loaded.mask, loaded.score, _examples(loaded), loaded.sink),
            device="cuda" if on_gpu else "cpu",
            sizes=chosen,
            dtype=getattr(torch, loaded.dtype.torch_name),
            head_dims=(loaded.head_dim.qk, loaded.head_dim.v),
            progress=progress,
        )
    if as_json:
        print_json([result.to_json() for result in results])
    else:
        render_table(results)
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command("test")
def run_matrix(
    specs: Annotated[list[str] | None, typer.Argument(help="specs, in place of points")] = None,
    matrix: Annotated[
        Matrix | None, typer.Option(help="the set of points (quick, if no specs are given)")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="FACTOR=VALUE", help="only points that have it")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only so many points")] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="this point alone, as a report has it")
    ] = None,
    call: Annotated[
        str | None, typer.Option(metavar="NAME", help="this call alone, as a report has it")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="folder of report.md and report.json (test-report; test-report/again for --point "
            "and --call)",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="write JUnit's XML here")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep what the report's folder has and was right")
    ] = False,
    parts: Annotated[
        Path | None, typer.Option(help="build the points into this folder, to be carried to a GPU")
    ] = None,
    part_size: Annotated[int, typer.Option(min=1, help="MB of a part")] = 60,
    jobs: Annotated[int | None, typer.Option(min=1, help="builds at a time")] = None,
) -> None:
    """Judge kernels over pairs of all choices, on the GPU or on the interpreter."""
    from fa3gen.matrix.calls import parse_case
    from fa3gen.matrix.command import Request, execute, make_parts
    from fa3gen.matrix.points import Point, parse_choices

    chosen = matrix or (None if specs or point else Matrix.QUICK)
    if chosen is None and (where or limit):
        raise typer.BadParameter("--where and --limit: are of a set; give --matrix too")
    request = Request(
        specs=tuple(specs or ()),
        points=tuple(map(Point.parse, point or ())),
        matrix=None if chosen is None else chosen.value,
        where=parse_choices(where or ()),
        limit=limit,
    )
    if parts is not None:
        for part in make_parts(request, parts, jobs=jobs, part_bytes=part_size * 10**6):
            print(part)
        return
    # What repeats a failure must not replace the report that names it.
    folder = output or Path("test-report", *(["again"] if point or call else []))
    summary = execute(
        request,
        folder,
        case=None if call is None else parse_case(call),
        resume=resume,
        junit_file=junit,
        jobs=jobs,
    )
    print(f"{summary.verdict}; see {folder / 'report.md'}")
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def bench(
    spec: Spec,
    against: Annotated[str, typer.Option(help="fa3,cudnn,fa2,flex,fa4")] = "fa3,cudnn",
    lengths: Annotated[str, typer.Option(help="sequence lengths")] = "4096,8192,16384",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the results here, as JSON")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a variant against its peers, interleaved in one run on this GPU."""
    from fa3gen.bench.problem import SpecFacts
    from fa3gen.bench.report import render
    from fa3gen.bench.run import run_bench
    from fa3gen.errors import ToolchainError, UnsupportedError

    peers, sizes = _peers(against), numbers(lengths)
    loaded, op = _compiled(spec)
    if loaded.score != "score" or loaded.inputs or loaded.sink:
        raise UnsupportedError(
            "bench: peers are called without formulas and inputs; give a plain spec, or see "
            "`python -m fa3gen.bench.variants`"
        )
    if op.artifact is None:
        raise ToolchainError("bench: needs a Hopper GPU, and torch sees none; see `fa3gen doctor`")
    facts = SpecFacts(
        mask=loaded.mask,
        dtype=loaded.dtype.value,
        head_dim_qk=loaded.head_dim.qk,
        head_dim_v=loaded.head_dim.v,
        variant="plain",
    )
    command = shlex.join(["fa3gen", *sys.argv[1:]])
    results = run_bench({"fa3gen": op}, facts, peers, sizes, command=command)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n")
    if as_json:
        print_json(results)
    else:
        print(render(results))


def _compiled(spec: str) -> tuple[AttentionSpec, Any]:
    """A spec and its op, with progress."""
    from fa3gen.driver import compile as compile_spec
    from fa3gen.spec import load_spec

    loaded = load_spec(spec)
    with build_progress() as progress:
        return loaded, compile_spec(loaded, progress=progress)


def _examples(spec: AttentionSpec) -> tuple[InputExample, ...]:
    """How the spec's inputs are drawn."""
    from fa3gen.runtime.examples import InputExample

    declared = ((meta, spec.inputs[meta.name]) for meta in spec.input_metas)
    return tuple(InputExample(meta, one.example, one.size) for meta, one in declared)


def _peers(text: str) -> list[str]:
    from fa3gen.bench.contenders import PEERS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PEERS]:
        raise typer.BadParameter(f"--against: {unknown[0]} is none of {', '.join(PEERS)}")
    return names
