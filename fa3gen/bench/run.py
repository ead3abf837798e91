"""Time an fa3gen op beside its peers.

::

    python -m fa3gen.bench.run --artifact DIR --mask causal --lengths 4096,8192,16384 \\
        --against fa3,cudnn --json OUT.json

Needs torch and a built artifact. More artifacts, as ``NAME=DIR``, run beside the first under
their own names.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fa3gen.bench.contenders import (
    PEERS,
    Contender,
    Run,
    UnavailableError,
    load_contender,
    own_contender,
)
from fa3gen.bench.problem import Problem, SpecFacts, grid
from fa3gen.bench.report import render
from fa3gen.bench.timing import ClockSampler, CudaTimer, Timer, gpu_facts
from fa3gen.errors import InputError
from fa3gen.runtime.reference import ErrorReport, make_reference, reference_mask

__all__ = [
    "OURS",
    "describe",
    "leave_nan_behind",
    "load_contenders",
    "main",
    "names",
    "numbers",
    "run_bench",
    "schedule_text",
    "time_problem",
]

OURS = "fa3gen"
_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def run_bench(
    ops: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    facts: SpecFacts,
    against: Sequence[str] = (),
    lengths: Sequence[int] = _LENGTHS,
    *,
    tokens: int = 16384,
    heads: int | None = None,
    kv_heads: int | None = None,
    timer: Timer | None = None,
    device: torch.device | str = "cuda",
    command: str = "",
) -> dict[str, Any]:
    """Time ``ops`` and the peers named in ``against`` on square problems of each length.

    ``ops`` is one op, or several by name; the one called ``fa3gen`` (the only one) is what peers
    are compared with. A call has ``tokens`` tokens and ``heads`` heads (2048 / d). Every output is
    judged by the error rule against the float64 reference before it is timed; a peer that is
    missing or cannot do a problem is skipped, and ``meta["skipped"]`` says why.

    Returns ``{"meta": {gpu, driver, cuda, torch, cudnn, clocks, command, date, skipped}, "rows":
    [{op, variant, dtype, d, dv, mask, B, Hq, Hk, Sq, Sk, flops, bytes, schedule, error, ms}]}``
    with ``error`` (the error report) and ``ms`` (milliseconds a call) by contender.
    """
    named = dict(ops) if isinstance(ops, Mapping) else {OURS: ops}
    contenders, skipped = load_contenders(named, against)
    timer = timer or CudaTimer()
    rows = []
    problems = grid(facts, tuple(lengths), tokens=tokens, heads=heads, kv_heads=kv_heads)
    with ClockSampler() as clocks:
        for seed, problem in enumerate(problems):
            row, reasons = time_problem(
                problem, contenders, timer, clocks, device=device, seed=seed
            )
            skipped |= {f"{name}, S={problem.seqlen_k}": text for name, text in reasons.items()}
            rows.append({**row, "schedule": schedule_text(next(iter(named.values())))})
    date = datetime.now(timezone.utc).date().isoformat()
    meta: dict[str, Any] = {**gpu_facts(), "clocks": clocks.summary(), "command": command}
    return {"meta": {**meta, "date": date, "skipped": skipped}, "rows": rows}


def time_problem(
    problem: Problem,
    contenders: Sequence[Contender],
    timer: Timer,
    clocks: ClockSampler,
    *,
    device: torch.device | str,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Judge and time the contenders on one problem, interleaved.

    Returns a row without its ``schedule``, and why by name of each contender that is not in it.
    """
    inputs = problem.inputs(device, seed)
    runs, errors, reasons = _judge_all(problem, contenders, inputs)
    with clocks.window():
        times = timer(runs)
    reports = {name: report.to_json() for name, report in errors.items()}
    return {**describe(problem, device), "error": reports, "ms": times}, reasons


def load_contenders(
    ops: Mapping[str, Callable[..., Any]], against: Sequence[str]
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders, ours first, and the reasons of the peers that are not here."""
    if clash := set(ops) & set(PEERS):
        raise InputError(f"an op has the name of a peer: {', '.join(sorted(clash))}")
    contenders = [own_contender(name, op) for name, op in ops.items()]
    skipped = {}
    for name in against:
        try:
            contenders.append(load_contender(name))
        except UnavailableError as reason:
            skipped[name] = str(reason)
    return contenders, skipped


def _judge_all(
    problem: Problem, contenders: Sequence[Contender], inputs: tuple[Tensor, Tensor, Tensor]
) -> tuple[dict[str, Run], dict[str, ErrorReport], dict[str, str]]:
    """Call each contender once: the calls to time, the errors, and who is left out and why."""
    mask = problem.facts.mask
    keep = None if mask == "full" else reference_mask(mask)
    reference = make_reference(*inputs, keep, problem.scale)
    runs: dict[str, Run] = {}
    errors: dict[str, ErrorReport] = {}
    skipped: dict[str, str] = {}
    for contender in contenders:
        try:
            run = contender.prepare(problem, *inputs)
            leave_nan_behind(reference.out)
            errors[contender.name] = reference.compare(run(), None)
        except Exception as error:  # peers refuse a problem in many ways; ours must not
            if contender.ours:
                raise
            reason = str(error).strip() or type(error).__name__
            skipped[contender.name] = reason.splitlines()[0]
        else:
            runs[contender.name] = run
    return runs, errors, skipped


def leave_nan_behind(like: Tensor) -> None:
    """Fill and free a block of an output's size, so that the call's own may start as NaN."""
    torch.full((like.numel(),), math.nan, dtype=torch.bfloat16, device=like.device)


def schedule_text(op: Callable[..., Any]) -> str | None:
    """What an op's artifact says of its schedule, None of an op without one."""
    artifact = getattr(op, "artifact", None)
    if artifact is None:
        return None
    return "; ".join(str(kernel) for kernel in artifact.kernels)


def describe(
    problem: Problem, device: torch.device | str, inputs: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """The columns of a row that say what was timed."""
    facts = problem.facts
    return {
        "op": facts.operation,
        "variant": facts.variant,
        "dtype": facts.dtype,
        "d": facts.head_dim_qk,
        "dv": facts.head_dim_v,
        "mask": facts.mask,
        "B": problem.batch,
        "Hq": problem.heads,
        "Hk": problem.kv_heads,
        "Sq": problem.seqlen_q,
        "Sk": problem.seqlen_k,
        "flops": problem.flops(device, inputs),
        "bytes": problem.bytes,
    }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fa3gen.bench.run", description=__doc__)
    parser.add_argument(
        "--artifact", required=True, action="append", help="DIR (ours), or NAME=DIR; repeatable"
    )
    parser.add_argument("--mask", required=True, help="mask text of the spec, such as causal")
    parser.add_argument("--variant", default="plain", help="label of the rows")
    parser.add_argument("--lengths", type=numbers, default=list(_LENGTHS))
    parser.add_argument("--against", type=names, default=[], help=", ".join(PEERS))
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a call")
    parser.add_argument("--heads", type=int, help="query heads (2048 / d)")
    parser.add_argument("--kv-heads", type=int, help="KV heads (as many)")
    parser.add_argument("--repeats", type=int, default=25, help="timed calls of each contender")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args(arguments)


def numbers(text: str) -> list[int]:
    """The integers of an option, joined by commas."""
    return [int(part) for part in names(text)]


def names(text: str) -> list[str]:
    """The words of an option, joined by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; exit code 1 if an op of ours is wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _arguments(words)
    from fa3gen.runtime.artifact import Artifact
    from fa3gen.runtime.attention import load

    parts = [text.rpartition("=") for text in options.artifact]
    ops = {name or OURS: load(folder) for name, _, folder in parts}
    first = Artifact.read(parts[0][2])
    facts = SpecFacts(
        mask=options.mask,
        dtype=first.dtype.value,
        head_dim_qk=first.head_dim_qk,
        head_dim_v=first.head_dim_v,
        variant=options.variant,
    )
    results = run_bench(
        ops,
        facts,
        options.against,
        options.lengths,
        tokens=options.tokens,
        heads=options.heads,
        kv_heads=options.kv_heads,
        timer=CudaTimer(repeats=options.repeats),
        command=shlex.join(["python", "-m", "fa3gen.bench.run", *words]),
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(render(results))
    wrong = [r for r in results["rows"] for name in ops if not r["error"][name]["ok"]]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
