"""The command line: show, schema, generate, verify, build, bundle, check, bench, tune, cache,
doctor.

Exit codes: 0, 1 (a check failed, or what was asked for cannot be had), 2 (bad use). An error is one
message; set ``FA3GEN_DEBUG`` for the traceback.
"""

from __future__ import annotations

import enum
import json
import shlex
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fa3gen import debug
from fa3gen.errors import CompilerError, Fa3genError
from fa3gen.progress import build_progress, check_progress

if TYPE_CHECKING:
    from fa3gen.runtime.examples import InputExample
    from fa3gen.spec import AttentionSpec

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
cache_app = typer.Typer(no_args_is_help=True, help="Built kernels kept on this machine.")
app.add_typer(cache_app, name="cache")

Spec = Annotated[str, typer.Argument(help="a spec file, or the name of a shipped spec")]
Specs = Annotated[list[str], typer.Argument(help="spec files, or names of shipped specs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


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
def show(
    spec: Spec,
    plot: Annotated[
        Path | None, typer.Option(help="draw graph and timeline here (.svg or .png)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a spec, its graph, schedule, budgets, modelled occupancy and Program."""
    from fa3gen.driver import plan_of
    from fa3gen.schedule.lower import lower
    from fa3gen.schedule.show import schedule_json, show_schedule
    from fa3gen.timeline import simulate

    made = [(schedule, lower(schedule)) for schedule in plan_of(spec)]
    timelines = [simulate(program, schedule.graph) for schedule, program in made]
    if plot is not None:
        from fa3gen.plot import draw

        draw(made[-1][0].graph, timelines[-1], plot)
    if as_json:
        _print_json([schedule_json(schedule, program) for schedule, program in made])
        return
    for (schedule, program), timeline in zip(made, timelines, strict=True):
        if schedule.max_keys is not None:
            print(f"==== the kernel of calls with up to {schedule.max_keys} keys\n")
        print(show_schedule(schedule))
        print(f"\n== units of one SM, modelled\n{timeline}\n\n{program}\n")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec."""
    from fa3gen.spec import AttentionSpec

    _print_json(AttentionSpec.json_schema())


@app.command()
def generate(
    specs: Annotated[list[str] | None, typer.Argument(help="specs (all shipped ones)")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder")] = Path("generated"),
    check: Annotated[bool, typer.Option(help="compare instead of writing")] = False,
) -> None:
    """Render specs to CUDA and C++ text, a folder each."""
    from fa3gen.driver import source_of
    from fa3gen.paths import SPECS
    from fa3gen.schedule import make_plan
    from fa3gen.spec import load_spec

    stale = []
    for spec in specs or sorted(path.stem for path in SPECS.glob("*.yaml")):
        source = source_of(make_plan(load_spec(spec)))
        folder = output / source.meta.name
        texts = {f"{kernel.meta.stem}.cu": kernel.text for kernel in source.units}
        for name, text in {**texts, "host.cpp": source.host}.items():
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
def verify(specs: Specs, as_json: Json = False) -> None:
    """Prove the Programs of specs free of deadlocks and races."""
    from fa3gen.driver import plan_of
    from fa3gen.schedule import verify as prove
    from fa3gen.schedule.lower import lower
    from fa3gen.schedule.show import plain

    proofs: list[Any] = []
    plans = ((spec, schedule) for spec in specs for schedule in plan_of(spec))
    for spec, schedule in plans:
        started = time.perf_counter()
        proof = prove(lower(schedule))
        seconds = round(time.perf_counter() - started, 3)
        if as_json:
            proofs.append({"spec": spec, "proof": plain(proof), "seconds": seconds})
        else:
            print(f"{proof} in {seconds:.2f} s")
    if as_json:
        _print_json(proofs)


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
        _print_json([result.to_json() for result in results])
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
        Path, typer.Option("-o", "--output", help="folder of report.md and report.json")
    ] = Path("test-report"),
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
    request = Request(
        specs=tuple(specs or ()),
        points=tuple(map(Point.parse, point or ())),
        matrix=None if chosen is None else chosen.value,
        where=parse_choices(where or ()),
        limit=limit,
    )
    if parts is not None:
        for folder in make_parts(request, parts, jobs=jobs, part_bytes=part_size * 10**6):
            print(folder)
        return
    summary = execute(
        request,
        output,
        case=None if call is None else parse_case(call),
        resume=resume,
        junit_file=junit,
        jobs=jobs,
    )
    print(f"{summary.verdict}; see {output / 'report.md'}")
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

    peers, sizes = _peers(against), _numbers(lengths)
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
        _print_json(results)
    else:
        print(render(results))


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

    sizes = _numbers(lengths) if lengths else list(LENGTHS)
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has to build and run kernels, and how to get what is missing."""
    from fa3gen.jit.doctor import examine

    findings = examine()
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.verdict:8s} {finding.part:16s} {finding.detail}")
    if not all(finding.works for finding in findings if finding.needed):
        raise typer.Exit(1)


@cache_app.command("path")
def cache_path() -> None:
    """Print where built kernels are kept."""
    from fa3gen.jit.entries import cache_directory

    print(cache_directory())


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List the built kernels, and what builds that failed or were killed have left."""
    from fa3gen.jit.entries import cache_directory
    from fa3gen.jit.inventory import take_stock

    found = take_stock(cache_directory())
    if as_json:
        _print_json(found.to_json())
    else:
        for line in found.lines(time.time()):
            print(line)


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove the built kernels; those that a process has loaded stay usable there."""
    from fa3gen.jit.entries import cache_directory
    from fa3gen.jit.inventory import clear

    cleared = clear(cache_directory())
    print(f"{cleared.kernels} kernels removed")
    if cleared.busy:
        print(f"fa3gen: being built, so left alone: {', '.join(cleared.busy)}", file=sys.stderr)
    if cleared.stuck:
        names = ", ".join(map(str, cleared.stuck))
        print(f"fa3gen: cannot be removed: {names}; remove them by hand", file=sys.stderr)
    if cleared.busy or cleared.stuck:
        raise typer.Exit(1)


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


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--lengths: positive integers joined by commas (got {text!r})")
    return [int(part) for part in parts]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _fail(message: str) -> None:
    if debug.debug_level():
        traceback.print_exc()
    print(f"fa3gen: {message}", file=sys.stderr)
    sys.exit(1)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"fa3gen: warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; an error is one message and exit code 1."""
    debug.set_up()
    warnings.showwarning = _show_warning
    try:
        app()
    except CompilerError as error:
        _fail(f"{type(error).__name__}, a fault of fa3gen's; please report it: {error}")
    except (Fa3genError, OSError) as error:
        _fail(str(error))
    except Exception as error:
        _fail(
            f"{type(error).__name__}, a fault of fa3gen's; please report it with the traceback, "
            f"which FA3GEN_DEBUG=1 shows: {error}"
        )


if __name__ == "__main__":
    main()
