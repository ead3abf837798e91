"""The table of variants: each beside a plain kernel of fa3gen's and FlexAttention, in one run.

::

    python -m fa3gen.bench.variants --prepare DIR        # build all kernels; needs no GPU
    python -m fa3gen.bench.variants --artifacts DIR      # time; needs torch and a Hopper GPU
    python -m fa3gen.bench.variants --render FILE.json   # write FILE.md and FILE.png again

Writes ``benchmarks/results/variants.json`` after each cell, so that ``--resume`` can go on from a
run that was cut off, and the page and the picture beside it at the end. Without ``--artifacts`` the
kernels are compiled where they are timed.

Before a kernel is timed it is judged, by the error rule, on a small call of ragged lengths; every
contender on the last head of the last sequence of the call that is timed. FlexAttention is compiled
anew for each cell, so at few lengths.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fa3gen._version import __version__
from fa3gen.bench import variants_table
from fa3gen.bench.forward import (
    FOLDER,
    Results,
    build_all,
    build_spec,
    log,
    positive,
    read_results,
    resume,
    save_results,
)
from fa3gen.bench.report import is_right
from fa3gen.bench.run import OURS, names, numbers
from fa3gen.bench.timing import CudaTimer, gpu_facts
from fa3gen.bench.variants_plan import VARIANTS, Cell, cells, formulas, select
from fa3gen.bench.variants_run import FLEX, PLANNED, Bench, LoadOp, run_cells
from fa3gen.errors import Fa3genError, ToolchainError

__all__ = ["main", "prepare", "render_files"]


# --- files ----------------------------------------------------------------------------------------


def render_files(path: Path) -> list[Path]:
    """Write the page and the picture beside the results in ``path``; returns what was written.

    Without matplotlib the picture is left out with a line that says so. Raises InputError.
    """
    from fa3gen.bench.variants_figure import draw

    results = read_results(path)
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    written = [page, picture]
    try:
        draw(results, picture)
    except ToolchainError as error:
        log(str(error))
        written.remove(picture)
    page.write_text(variants_table.render(results, picture.name if picture in written else None))
    return written


def prepare(table: Sequence[Cell], directory: Path, jobs: int) -> int:
    """Build the cells' kernels into sub-folders of ``directory``; returns how many failed."""
    builds = {
        formula.kernel(d): functools.partial(build_spec, formula.spec(d), directory)
        for formula, d in formulas(table)
    }
    return build_all(builds, jobs)


def _op_loader(artifacts: Path | None) -> LoadOp:
    """Loads prebuilt artifacts, or compiles where there are none."""
    if artifacts is None:
        from fa3gen.driver import compile as compile_spec

        return lambda formula, d: compile_spec(formula.spec(d))
    from fa3gen.runtime.attention import load

    return lambda formula, d: load(artifacts / formula.kernel(d))


# --- command line ---------------------------------------------------------------------------------


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fa3gen.bench.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--artifacts", type=Path, metavar="DIR", help="built by --prepare")
    mode.add_argument("--prepare", type=Path, metavar="DIR", help="build the artifacts there")
    mode.add_argument("--render", type=Path, metavar="JSON", help="write its page and picture")
    known = ", ".join(one.name for one in VARIANTS)
    parser.add_argument(
        "--only",
        type=names,
        default=[],
        metavar="WORDS",
        help=f"cells with all of these: d64, d128, s4096, s16384, {known}",
    )
    parser.add_argument(
        "--flex-lengths", type=numbers, default="4096", help="where flex is timed ('': nowhere)"
    )
    parser.add_argument("--repeats", type=positive, default=25, help="timed calls of each")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the JSON")
    default = FOLDER / "variants.json"
    parser.add_argument("--json", type=Path, default=default, help=f"the results ({default})")
    jobs = max(1, (os.cpu_count() or 2) // 2)  # a build is two processes
    parser.add_argument("--jobs", type=positive, default=jobs, help="builds at a time")
    return parser.parse_args(words)


def _measure(options: argparse.Namespace, table: Sequence[Cell], command: str) -> int:
    """Time the cells and write all three files; 1 if fa3gen is missing or wrong somewhere."""
    if not torch.cuda.is_available():
        raise ToolchainError(
            "variants: needs a Hopper GPU, and torch sees none; see `fa3gen doctor`"
        )
    meta = {
        **gpu_facts(),
        "fa3gen": __version__,
        "dtype": "bf16",
        "repeats": options.repeats,
        "contenders": [OURS, PLANNED, FLEX] if options.flex_lengths else [OURS, PLANNED],
        "flex_lengths": options.flex_lengths,
        "skipped": {},
        "clocks": {},
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    results: Results = {"meta": meta, "rows": []}
    if options.resume:
        results = resume(options.json, meta)
    timer = CudaTimer(repeats=options.repeats)
    bench = Bench(_op_loader(options.artifacts), timer, frozenset(options.flex_lengths))
    run_cells(bench, table, results, functools.partial(save_results, options.json))
    for file in (options.json, *render_files(options.json)):
        print(file)
    keys = {cell.key for cell in table}
    rows = [row for row in results["rows"] if variants_table.row_key(row) in keys]
    wrong = [row for row in rows if not _is_good(row)]
    for row in wrong:
        log(f"fa3gen: {row['variant']} d{row['d']}, S {row['Sk']}: {_trouble(row)}")
    return 1 if wrong else 0


def _is_good(row: Mapping[str, Any]) -> bool:
    own = [name for name in (OURS, PLANNED) if name in row["ms"]]
    return OURS in own and row["ragged"]["ok"] and all(is_right(row, name) for name in own)


def _trouble(row: Mapping[str, Any]) -> str:
    own = [row["error"][name]["problems"] for name in (OURS, PLANNED) if name in row["error"]]
    gap = [row["gaps"][name] for name in (OURS, PLANNED) if name in row["gaps"]]
    return "; ".join([*row["ragged"]["problems"], *(one for many in own for one in many), *gap])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, measure or render; exit code 1 if something is missing or wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _arguments(words)
    try:
        if options.render:
            for file in render_files(options.render):
                print(file)
            return 0
        table = select(cells(), options.only)
        if options.prepare:
            return 1 if prepare(table, options.prepare, options.jobs) else 0
        command = shlex.join(["python", "-m", "fa3gen.bench.variants", *words])
        return _measure(options, table, command)
    except Fa3genError as error:
        log(f"fa3gen: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
