"""The forward table: fa3gen and its peers at every head dim, mask and length, in one run.

::

    python -m fa3gen.bench.forward --prepare DIR        # build all kernels; needs no GPU
    python -m fa3gen.bench.forward --artifacts DIR      # time; needs torch and a Hopper GPU
    python -m fa3gen.bench.forward --render FILE.json   # write FILE.md and FILE.png again

Writes ``benchmarks/results/forward.json`` after each problem, so that ``--resume`` can go on from
a run that was cut off, and the page and the picture beside it at the end. Without ``--artifacts``
the kernels are compiled where they are timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch

from fa3gen._version import __version__
from fa3gen.bench import forward_table
from fa3gen.bench.contenders import PEERS, Contender, UnavailableError, own_contender
from fa3gen.bench.forward_plan import (
    Cell,
    Section,
    kernels,
    plan,
    row_key,
    select,
    spec_of,
    variant_name,
)
from fa3gen.bench.problem import DTYPES, SpecFacts
from fa3gen.bench.report import is_right, speed, tflops
from fa3gen.bench.run import OURS, load_contenders, names, numbers, schedule_text, time_problem
from fa3gen.bench.timing import ClockSampler, CudaTimer, Timer, gpu_facts
from fa3gen.errors import Fa3genError, InputError, ToolchainError
from fa3gen.runtime.artifact import MANIFEST

__all__ = [
    "Bench",
    "build_all",
    "build_spec",
    "log",
    "main",
    "merged_clocks",
    "positive",
    "prepare",
    "read_results",
    "render_files",
    "resume",
    "run_cells",
    "save_results",
]

FOLDER = Path("benchmarks/results")
FLEX = "flex"
SAME = ("gpu", "driver", "cuda", "torch", "cudnn", "fa3gen", "dtype", "repeats")  # to resume

LoadOp = Callable[[SpecFacts], Callable[..., Any]]
Results = dict[str, Any]  # {"meta": .., "rows": ..}, as the JSON holds them


# --- a run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Who is timed, and how."""

    load_op: LoadOp  # fa3gen's op of a variant; Fa3genError leaves a gap
    peers: Sequence[Contender]
    timer: Timer
    flex_lengths: frozenset[int] = frozenset()
    device: str = "cuda"

    def peers_of(self, cell: Cell) -> list[Contender]:
        """The peers to time on a cell: FlexAttention, slow to set up, on a few only."""
        flex = cell.section is not Section.RAGGED and cell.problem.seqlen_k in self.flex_lengths
        return [peer for peer in self.peers if flex or peer.name != FLEX]


@dataclass(frozen=True)
class _Kernel:
    """fa3gen as a contender for one variant."""

    contender: Contender
    schedule: str | None = None
    identity: str | None = None  # of the library


def run_cells(
    bench: Bench, cells: Sequence[Cell], results: Results, save: Callable[[Results], None]
) -> None:
    """Time the cells that ``results`` lacks, and save it after each.

    A row that is there stays if the same kernel made it and it has every contender, or the reason
    why not. Rows end up in the plan's order.
    """
    rows = {row_key(row): row for row in results["rows"]}
    order = {cell.key: place for place, cell in enumerate(plan(results["meta"]["dtype"]))}
    kernel_of = functools.cache(functools.partial(_load_kernel, bench.load_op))
    for count, cell in enumerate(cells, 1):
        kernel = kernel_of(cell.problem.facts)
        contenders = [kernel.contender, *bench.peers_of(cell)]
        if _is_done(rows.get(cell.key), contenders, kernel):
            continue
        if any(one.name == FLEX for one in contenders):
            # Compiled for this shape: after a few shapes it would be for any, then not at all.
            torch.compiler.reset()
        started = time.monotonic()
        rows[cell.key] = row = _time_cell(bench, cell, contenders)
        row |= {"schedule": kernel.schedule, "kernel": kernel.identity}
        results["rows"] = [rows[key] for key in sorted(rows, key=lambda key: order.get(key, 0))]
        results["meta"]["clocks"] = merged_clocks(results["rows"])
        save(results)
        log(f"[{count}/{len(cells)}] {cell}: {_speeds(row)}, {time.monotonic() - started:.1f} s")


def _load_kernel(load_op: LoadOp, facts: SpecFacts) -> _Kernel:
    try:
        op = load_op(facts)
    except Fa3genError as error:
        reason = str(error).splitlines()[0]

        def refuse(*_: object) -> NoReturn:
            raise UnavailableError(reason)

        return _Kernel(Contender(OURS, refuse))
    artifact = getattr(op, "artifact", None)
    identity = None if artifact is None else artifact.library_sha256
    # ``ours`` would end the run at a failure; here it is a gap, which the exit code tells.
    contender = dataclasses.replace(own_contender(OURS, op), ours=False)
    return _Kernel(contender, schedule_text(op), identity)


def _is_done(
    row: Mapping[str, Any] | None, contenders: Iterable[Contender], kernel: _Kernel
) -> bool:
    if row is None or row["kernel"] != kernel.identity:
        return False
    known = {*row["ms"], *row["gaps"]}
    return all(one.name in known for one in contenders)


def _time_cell(bench: Bench, cell: Cell, contenders: Sequence[Contender]) -> dict[str, Any]:
    """The cell's row: what ``fa3gen.bench.run`` has in one, and section, gaps, TFLOP/s, clocks."""
    with ClockSampler() as clocks:
        row, gaps = time_problem(cell.problem, contenders, bench.timer, clocks, device=bench.device)
    speeds = {name: tflops(row, name) for name in row["ms"]}
    rounded = {name: round(value, 1) for name, value in speeds.items() if value is not None}
    facts = {"section": cell.section.value, "clocks": clocks.summary()}
    return {**row, "tflops": rounded, "gaps": gaps, **facts}


def _speeds(row: Mapping[str, Any]) -> str:
    timed = ", ".join(f"{name} {speed(row, name)}" for name in row["ms"])
    timed = f"{timed} TFLOP/s" if timed else "nothing timed"
    return timed + "".join(f", no {name}" for name in row["gaps"])


def merged_clocks(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of all problems: the least, the median of the medians, the greatest."""
    spans: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        for name, span in row["clocks"].items():
            spans.setdefault(name, []).append(span)
    return {
        name: {
            "min": min(span["min"] for span in found),
            "median": statistics.median(span["median"] for span in found),
            "max": max(span["max"] for span in found),
        }
        for name, found in spans.items()
    }


# --- files --------------------------------------------------------------------------------------


def resume(path: Path, meta: Mapping[str, Any]) -> Results:
    """The results in ``path`` to go on with, or empty ones where there is no such file.

    ``meta`` says what this run is. Raises InputError if the file is none of a forward table, or of
    another GPU, version or setting.
    """
    if not path.exists():
        return {"meta": dict(meta), "rows": []}
    old = read_results(path)
    for name in SAME:
        if old["meta"].get(name) != meta[name]:
            raise InputError(
                f"--resume: {name} must be that of {path.name}, {old['meta'].get(name)} "
                f"(got {meta[name]}); leave --resume out, or give another --json"
            )
    contenders = list(dict.fromkeys([*meta["contenders"], *old["meta"]["contenders"]]))
    lengths = sorted({*meta["flex_lengths"], *old["meta"]["flex_lengths"]})
    merged = {**meta, "contenders": contenders, "flex_lengths": lengths}
    return {"meta": merged, "rows": old["rows"]}


def render_files(path: Path) -> list[Path]:
    """Write the page and the picture beside the results in ``path``; returns what was written.

    Without matplotlib the picture is left out with a line that says so. Raises InputError.
    """
    from fa3gen.bench.forward_figure import draw

    results = read_results(path)
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    written = [page, picture]
    try:
        draw(results, picture)
    except ToolchainError as error:
        log(str(error))
        written.remove(picture)
    page.write_text(forward_table.render(results, picture.name if picture in written else None))
    return written


def read_results(path: Path) -> Results:
    """The results in a file. Raises InputError if they are none of a table."""
    try:
        results: Results = json.loads(path.read_text())
        results["meta"]["contenders"], [row_key(row) for row in results["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no results of a forward table ({error!r})") from error
    return results


def save_results(path: Path, results: Results) -> None:
    """Whole or not at all: a run may be cut off at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


# --- kernels ------------------------------------------------------------------------------------


def prepare(variants: Sequence[SpecFacts], directory: Path, jobs: int) -> int:
    """Build the variants' artifacts into sub-folders of ``directory``, ``jobs`` at a time.

    An artifact that is there is replaced. Failures are told at the end; returns how many.
    """
    builds = {
        variant_name(facts): functools.partial(_build, facts, directory) for facts in variants
    }
    return build_all(builds, jobs)


def build_all(builds: Mapping[str, Callable[[], str]], jobs: int) -> int:
    """Run builds by name, each of which returns what went wrong; returns how many failed."""
    from fa3gen.progress import build_progress

    failures = {}
    with build_progress() as progress, ThreadPoolExecutor(jobs) as pool:
        progress(f"{len(builds)} kernels, {jobs} at a time")
        running = {pool.submit(build): name for name, build in builds.items()}
        try:
            for count, build in enumerate(as_completed(running), 1):
                name = running[build]
                if reason := build.result():
                    failures[name] = reason
                state = "failed" if reason else "built"
                progress(f"step {count}/{len(builds)}: {name} {state}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, reason in failures.items():
        log(f"fa3gen: {name}: {reason}")
    return len(failures)


def _build(facts: SpecFacts, directory: Path) -> str:
    return build_spec(spec_of(facts), directory)


def build_spec(spec: Mapping[str, Any], directory: Path) -> str:
    """Run ``fa3gen build`` into the folder of the spec's name; what it says if it fails, else
    nothing."""
    folder = directory / spec["name"]
    if (folder / MANIFEST).is_file():
        shutil.rmtree(folder)
    command = [sys.executable, "-m", "fa3gen.cli", "build", json.dumps(spec), "-o", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.rpartition("fa3gen: ")[2].strip() if done.returncode else ""


def _op_loader(artifacts: Path | None) -> LoadOp:
    """Loads prebuilt artifacts, or compiles where there are none."""
    if artifacts is None:
        from fa3gen.driver import compile as compile_spec

        return lambda facts: compile_spec(spec_of(facts))
    from fa3gen.runtime.attention import load

    return lambda facts: load(artifacts / variant_name(facts))


# --- command line -------------------------------------------------------------------------------


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fa3gen.bench.forward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--artifacts", type=Path, metavar="DIR", help="built by --prepare")
    mode.add_argument("--prepare", type=Path, metavar="DIR", help="build the artifacts there")
    mode.add_argument("--render", type=Path, metavar="JSON", help="write its page and picture")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--only",
        type=names,
        default=[],
        metavar="WORDS",
        help="cells with all of these: grid, window, ragged, full, causal, d192_128, s4096, ...",
    )
    parser.add_argument("--against", type=_peers, default="fa3,cudnn,fa2,flex", metavar="PEERS")
    parser.add_argument(
        "--flex-lengths", type=numbers, default="1024,4096,16384", help="where flex is timed"
    )
    parser.add_argument("--repeats", type=positive, default=25, help="timed calls of each")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the JSON")
    parser.add_argument("--json", type=Path, help=f"the results ({FOLDER}/forward.json)")
    jobs = max(1, (os.cpu_count() or 2) // 2)  # a build is two processes
    parser.add_argument("--jobs", type=positive, default=jobs, help="builds at a time")
    return parser.parse_args(words)


def _peers(text: str) -> list[str]:
    if unknown := [name for name in names(text) if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PEERS)}")
    return names(text)


def positive(text: str) -> int:
    """An option's number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer (got {text})")
    return int(text)


def _measure(options: argparse.Namespace, cells: Sequence[Cell], command: str) -> int:
    """Time the cells and write all three files; 1 if fa3gen is missing or wrong somewhere."""
    if not torch.cuda.is_available():
        raise ToolchainError(
            "forward: needs a Hopper GPU, and torch sees none; see `fa3gen doctor`"
        )
    peers, skipped = load_contenders({}, options.against)
    meta = {
        **gpu_facts(),
        "fa3gen": __version__,
        "dtype": options.dtype,
        "repeats": options.repeats,
        "contenders": [OURS, *options.against],
        "flex_lengths": options.flex_lengths,
        "skipped": skipped,
        "clocks": {},
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    suffix = "" if options.dtype == "bf16" else f"_{options.dtype}"
    path = options.json or FOLDER / f"forward{suffix}.json"
    results: Results = {"meta": meta, "rows": []}
    if options.resume:
        results = resume(path, meta)
    timer = CudaTimer(repeats=options.repeats)
    lengths = frozenset(options.flex_lengths)
    bench = Bench(_op_loader(options.artifacts), peers, timer, lengths)
    run_cells(bench, cells, results, functools.partial(save_results, path))
    for file in (path, *render_files(path)):
        print(file)
    keys = {cell.key for cell in cells}
    rows = [row for row in results["rows"] if row_key(row) in keys]
    return 0 if all(OURS in row["ms"] and is_right(row, OURS) for row in rows) else 1


def log(line: str) -> None:
    """Tell the user something beside the results."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, measure or render; exit code 1 if something is missing or wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _arguments(words)
    try:
        if options.render:
            for file in render_files(options.render):
                print(file)
            return 0
        cells = select(plan(options.dtype), options.only)
        if options.prepare:
            return 1 if prepare(kernels(cells), options.prepare, options.jobs) else 0
        command = shlex.join(["python", "-m", "fa3gen.bench.forward", *words])
        return _measure(options, cells, command)
    except Fa3genError as error:
        log(f"fa3gen: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
