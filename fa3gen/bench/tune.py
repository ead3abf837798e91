"""``fa3gen tune``: build the candidates of a spec, time them, keep the winners by length class.

::

    python -m fa3gen.bench.tune prepare SPEC... -o DIR   # builds; needs no GPU
    python -m fa3gen.bench.tune time DIR...              # needs torch and a Hopper GPU
    python -m fa3gen.bench.tune decide DIR... --table T  # writes the winners into a table

Each SPEC has a folder: ``candidates.json`` (the spec, and knobs by name), an artifact a candidate,
and ``results.json`` (times, in the format of ``fa3gen.bench.run``, saved after each length). Every
step goes on where one that was cut off has stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fa3gen.bench.contenders import own_contender
from fa3gen.bench.problem import Problem, SpecFacts
from fa3gen.bench.run import describe, numbers, time_problem
from fa3gen.bench.timing import ClockSampler, CudaTimer, Timer, gpu_facts
from fa3gen.bench.winners import Winner, speedup, winners
from fa3gen.errors import BuildError, Fa3genError, InputError, ScheduleError
from fa3gen.runtime.artifact import MANIFEST

__all__ = ["decide", "main", "prepare", "time_candidates"]

LENGTHS = (
    512,
    1000,
    1024,
    2048,
    4000,
    4096,
    8192,
    16384,
)  # of queries and keys; no tile divides all
TOKENS = 16384  # of a call
WIDTH = 2048  # heads times head dim
CANDIDATES, RESULTS = "candidates.json", "results.json"
REPEATS = 15
RAGGED = 333  # queries and keys of the shape that every candidate is judged on

Progress = Callable[[str], None]
_SAME = ("gpu", "driver", "cuda", "torch", "kernels")  # for a run to go on


# --- builds -------------------------------------------------------------------------------------


def prepare(spec: Any, folder: Path, *, jobs: int = 1, progress: Progress | None = None) -> int:
    """Build the candidates of an AttentionSpec in ``folder``, ``jobs`` at a time; returns how many.

    Those that this fa3gen has built there stay. A candidate that ptxas or a build gate refuses is
    left out; InputError if that is the default, or if the spec gives knobs.
    """
    from fa3gen.bench.candidates import DEFAULT, candidates
    from fa3gen.jit.index import package_fingerprint

    if spec.schedule.model_dump(exclude_none=True):
        raise InputError("tune: the spec gives knobs, and they stand; leave its schedule out")
    if spec.score != "score" or spec.inputs:
        raise InputError("tune: only the plain score is timed; leave formula and inputs out")
    found = candidates(spec)
    maker = package_fingerprint()
    if (folder / CANDIDATES).is_file() and _read(folder / CANDIDATES).get("fa3gen") != maker:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CANDIDATES).is_file():  # says whose the artifacts are, also if this is cut off
        _save(folder / CANDIDATES, {"fa3gen": maker})
    refused: dict[str, str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        builds = {
            pool.submit(_build, spec, knobs, folder / name): name for name, knobs in found.items()
        }
        try:
            for count, build in enumerate(as_completed(builds), 1):
                name = builds[build]
                if reason := build.result():
                    if name == DEFAULT:
                        raise InputError(f"tune: the default kernel cannot be built: {reason}")
                    refused[name] = reason
                if progress:
                    state = "refused" if reason else "built"
                    progress(f"step {count}/{len(builds)}: {spec.name} {name} {state}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    record = {
        "fa3gen": maker,
        "spec": json.loads(spec.canonical()),
        "facts": {
            "mask": spec.mask,
            "dtype": spec.dtype.value,
            "head_dim_qk": spec.head_dim.qk,
            "head_dim_v": spec.head_dim.v,
        },
        "candidates": {name: knobs for name, knobs in found.items() if name not in refused},
        "refused": refused,
    }
    _save(folder / CANDIDATES, record)
    return len(found) - len(refused)


def _build(spec: Any, knobs: Mapping[str, Any], folder: Path) -> str:
    """Build a candidate; why it cannot be, or nothing."""
    from fa3gen.driver import source_of
    from fa3gen.jit.compiler import build
    from fa3gen.jit.toolchain import find_toolchain
    from fa3gen.schedule import make_plan

    if (folder / MANIFEST).is_file():
        return ""
    try:
        plan = make_plan(spec.model_copy(update={"schedule": knobs}), tables=())
        build(source_of(plan), folder, find_toolchain())
    except (BuildError, ScheduleError) as error:
        return str(error).splitlines()[0]
    return ""


# --- times --------------------------------------------------------------------------------------


def time_candidates(
    folder: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    timer: Timer | None = None,
    device: str = "cuda",
    load: Callable[[Path], Any] | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Time the candidates in a folder, interleaved, at each length that its results lack.

    Each is first judged by the error rule on one ragged shape; a wrong one raises InputError, for
    the compiler is then at fault. Returns the results, which are in the folder too.
    """
    from fa3gen.runtime.attention import load as load_artifact

    record = _read(folder / CANDIDATES)
    if "candidates" not in record:
        raise InputError(f"tune: the builds in {folder} are not complete; prepare it again")
    facts = SpecFacts(**record["facts"])
    ops: dict[str, Any] = {
        name: (load or load_artifact)(folder / name) for name in record["candidates"]
    }
    path = folder / RESULTS
    meta: dict[str, Any] = {
        **gpu_facts(),
        "candidates": record["candidates"],
        "variants": {name: {"schedule": knobs} for name, knobs in record["candidates"].items()},
        "kernels": {name: op.artifact.library_sha256 for name, op in ops.items()},
        "spec": record["spec"],
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    rows = _rows_to_keep(path, meta)
    missing = [length for length in lengths if length not in rows]
    if missing:
        _judge(facts, ops, device)
    for count, length in enumerate(missing, 1):
        if progress:
            progress(f"step {count}/{len(missing)}: {record['spec']['name']}, S {length}")
        heads = max(1, WIDTH // facts.head_dim_qk)
        problem = Problem(facts, max(1, TOKENS // length), heads, heads, length, length)
        rows[length] = _time(problem, ops, timer or CudaTimer(repeats=REPEATS), device)
        _save(path, {"meta": meta, "rows": [rows[length] for length in sorted(rows)]})
    return {"meta": meta, "rows": [rows[length] for length in sorted(rows)]}


def _judge(facts: SpecFacts, ops: Mapping[str, Any], device: str) -> None:
    problem = Problem(facts, 2, 2, 1, RAGGED, RAGGED)
    contenders = [own_contender(name, op) for name, op in ops.items()]
    row, _ = time_problem(problem, contenders, _no_timer, ClockSampler(), device=device)
    wrong = [name for name, report in row["error"].items() if not report["ok"]]
    if wrong:
        raise InputError(f"tune: wrong results, a fault of fa3gen's: {', '.join(wrong)}")


def _no_timer(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    return {}


def _time(problem: Problem, ops: Mapping[str, Any], timer: Timer, device: str) -> dict[str, Any]:
    """A row as ``fa3gen.bench.run`` has it, but for the errors, which are judged before."""
    inputs = problem.inputs(device, 0)
    calls = {name: own_contender(name, op).prepare(problem, *inputs) for name, op in ops.items()}
    with ClockSampler() as clocks, clocks.window():
        times = timer(calls)
    return {**describe(problem, device), "clocks": clocks.summary(), "ms": times}


def _rows_to_keep(path: Path, meta: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The rows of an earlier run on the same GPU with the same kernels, by length."""
    if not path.is_file():
        return {}
    old = _read(path)
    same = all(old["meta"].get(name) == meta[name] for name in _SAME)
    return {row["Sk"]: row for row in old["rows"]} if same else {}


# --- winners ------------------------------------------------------------------------------------


def decide(folder: Path, table: Path) -> list[Winner]:
    """Write the winners of a folder's results into a table, in place of its problem's entry."""
    from fa3gen.bench.candidates import DEFAULT
    from fa3gen.schedule import tuned
    from fa3gen.spec import AttentionSpec
    from fa3gen.spec.model import ScheduleKnobs

    results = _read(folder / RESULTS)
    meta = results["meta"]
    times = {row["Sk"]: row["ms"] for row in results["rows"]}
    won = winners(times, DEFAULT)
    kernels = [
        tuned.TunedKernel(winner.max_keys, ScheduleKnobs(**meta["candidates"][winner.name]))
        for winner in won
    ]
    measured = {
        "candidates": len(meta["candidates"]),
        "speedup": {str(s): round(speedup(times[s], s, won, DEFAULT), 3) for s in sorted(times)},
        **{name: meta[name] for name in ("gpu", "driver", "cuda", "torch", "date", "command")},
    }
    spec = AttentionSpec(**{**meta["spec"], "schedule": {}})
    entry = tuned.Entry.of(spec, tuned.gpu_class(meta["gpu"]), kernels, measured)
    tuned.write(table, [*tuned.read(table), entry])
    return won


# --- files and the command line -----------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not what fa3gen tune writes ({error})") from error
    return record


def _save(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all: a run may be cut off at any time."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fa3gen.bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="step", required=True)
    building = steps.add_parser("prepare", help="build the candidates of specs")
    building.add_argument("specs", nargs="+", metavar="SPEC")
    building.add_argument("-o", "--output", type=Path, required=True, help="a folder of folders")
    jobs = max(1, (os.cpu_count() or 2) // 2)  # a build is two processes
    building.add_argument("--jobs", type=int, default=jobs, help="builds at a time")
    timing = steps.add_parser("time", help="time the candidates of folders")
    timing.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    timing.add_argument("--lengths", type=numbers, default=list(LENGTHS))
    timing.add_argument("--repeats", type=int, default=REPEATS, help="timed calls of each")
    deciding = steps.add_parser("decide", help="write the winners of folders into a table")
    deciding.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    deciding.add_argument("--table", type=Path, required=True)
    return parser.parse_args(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step; exit code 1 if it cannot be done."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _arguments(words)
    command = shlex.join(["python", "-m", "fa3gen.bench.tune", *words])
    try:
        if options.step == "prepare":
            from fa3gen.spec import load_spec

            for text in options.specs:
                spec = load_spec(text)
                prepare(spec, options.output / spec.name, jobs=options.jobs, progress=_log)
        for folder in getattr(options, "folders", ()):
            if options.step == "time":
                timer = CudaTimer(repeats=options.repeats)
                time_candidates(
                    folder, lengths=options.lengths, timer=timer, progress=_log, command=command
                )
            else:
                won = decide(folder, options.table)
                print(f"{folder.name}: {', '.join(map(str, won))}")
    except Fa3genError as error:
        _log(f"fa3gen: {error}")
        return 1
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
