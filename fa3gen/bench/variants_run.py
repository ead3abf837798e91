"""A run of the table of variants: the calls of each cell, right or wrong, and their times."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fa3gen.bench import variants_table
from fa3gen.bench.contenders import Run
from fa3gen.bench.forward import Results, log, merged_clocks
from fa3gen.bench.problem import Problem, SpecFacts
from fa3gen.bench.run import OURS, describe, leave_nan_behind, schedule_text
from fa3gen.bench.timing import ClockSampler, Timer
from fa3gen.bench.variants_flex import prepare_flex
from fa3gen.bench.variants_plan import Baseline, Cell, Formula, Inputs
from fa3gen.errors import Fa3genError, ToolchainError
from fa3gen.runtime.reference import (
    ErrorReport,
    Reference,
    make_reference,
    reference_mask,
    reference_score,
)

__all__ = ["FLEX", "PLAN", "PLANNED", "Bench", "LoadOp", "run_cells"]

FLEX = "flex"
PLAN = "plan"  # listing the KV tiles of a mask of data, alone
PLANNED = "planned"  # fa3gen with the lists made before
_LENGTHS = (777, 1300)  # ragged: of queries and keys

LoadOp = Callable[[Formula, int], Callable[..., Any]]
Tensors = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Bench:
    """Who is timed, and how."""

    load_op: LoadOp  # fa3gen's op of a formula and head dim; Fa3genError leaves a gap
    timer: Timer
    flex_lengths: frozenset[int] = frozenset()
    flex: Callable[[Cell, Tensor, Tensor, Tensor, Inputs], Run] = prepare_flex
    device: str = "cuda"
    ragged: tuple[int, int] = _LENGTHS

    def has_flex(self, cell: Cell) -> bool:
        """Whether FlexAttention is timed there."""
        return cell.problem.seqlen_k in self.flex_lengths


@dataclass(frozen=True)
class _Kernel:
    """An op of fa3gen's, or why there is none."""

    op: Callable[..., Any] | None
    reason: str = ""

    @property
    def identity(self) -> str | None:
        """Of its library."""
        artifact = getattr(self.op, "artifact", None)
        return None if artifact is None else artifact.library_sha256

    def call(self, *tensors: Tensor, **options: Any) -> Any:
        """Call the op. Raises ToolchainError if there is none."""
        if self.op is None:
            raise ToolchainError(self.reason)
        return self.op(*tensors, **options)


# --- a run ----------------------------------------------------------------------------------------


def run_cells(
    bench: Bench, table: Sequence[Cell], results: Results, save: Callable[[Results], None]
) -> None:
    """Time the cells that ``results`` lacks, and save it after each.

    A row that is there stays if the same kernels made it and it has FlexAttention, or the reason
    why not, where that is asked for. Rows end up in the table's order.
    """
    rows = {variants_table.row_key(row): row for row in results["rows"]}
    kernel_of = functools.cache(functools.partial(_load, bench.load_op))
    judged = functools.cache(functools.partial(_judge_ragged, bench, kernel_of))
    for count, cell in enumerate(table, 1):
        used = (cell.variant.formula, *(one.formula for one in cell.variant.baselines))
        kernels = {formula.name: kernel_of(formula, cell.head_dim) for formula in used}
        identities = {name: kernel.identity for name, kernel in kernels.items()}
        if _is_done(rows.get(cell.key), identities, bench.has_flex(cell)):
            continue
        started = time.monotonic()
        row = {**_time_cell(bench, cell, kernels), "kernels": identities}
        row["ragged"] = judged(cell.ragged(*bench.ragged))
        rows[cell.key] = row
        results["rows"] = variants_table.in_order(rows.values())
        results["meta"]["clocks"] = merged_clocks(results["rows"])
        save(results)
        speeds = ", ".join(f"{name} {ms:.3f}" for name, ms in row["ms"].items())
        gaps = "".join(f", no {name}" for name in row["gaps"])
        seconds = time.monotonic() - started
        log(f"[{count}/{len(table)}] {cell}: {speeds or 'nothing timed'} ms{gaps}, {seconds:.1f} s")


def _load(load_op: LoadOp, formula: Formula, head_dim: int) -> _Kernel:
    try:
        return _Kernel(load_op(formula, head_dim))
    except Fa3genError as error:
        return _Kernel(None, str(error).splitlines()[0])


def _is_done(row: Mapping[str, Any] | None, kernels: Mapping[str, str | None], flex: bool) -> bool:
    if row is None or row["kernels"] != kernels:
        return False
    return not flex or FLEX in row["ms"] or FLEX in row["gaps"]


def _time_cell(bench: Bench, cell: Cell, kernels: Mapping[str, _Kernel]) -> dict[str, Any]:
    """The cell's row, but for what ``run_cells`` knows."""
    tensors, inputs = _drawn(cell, bench.device)
    runs, reports, gaps = _prepared(bench, cell, kernels, tensors, inputs)
    with ClockSampler() as clocks, clocks.window():
        times = bench.timer(runs)
    what = describe(cell.problem, bench.device, inputs)
    formula, own = cell.variant.formula, kernels[cell.variant.name].op
    return {
        **what,
        "section": "variants",
        "score": formula.score,
        "inputs": [str(one) for one in formula.inputs],
        "schedule": None if own is None else schedule_text(own),
        "baselines": [_described(cell, one, bench.device) for one in cell.variant.baselines],
        "error": {name: report.to_json() for name, report in reports.items()},
        "ms": times,
        "gaps": gaps,
        "clocks": clocks.summary(),
    }


def _drawn(cell: Cell, device: str) -> tuple[Tensors, Inputs]:
    """q, k, v and the variant's inputs."""
    generator = torch.Generator(device).manual_seed(1)
    return cell.problem.inputs(device, 0), cell.variant.draw(cell.sizes, generator)


def _prepared(
    bench: Bench, cell: Cell, kernels: Mapping[str, _Kernel], tensors: Tensors, inputs: Inputs
) -> tuple[dict[str, Run], dict[str, ErrorReport], dict[str, str]]:
    """The calls to time, their errors on the last head, and who is left out and why."""
    problem, formula = cell.problem, cell.variant.formula
    reference = _last_reference(formula, tensors, inputs, problem.scale)
    runs: dict[str, Run] = {}
    reports: dict[str, ErrorReport] = {}
    gaps: dict[str, str] = {}

    def add(name: str, prepare: Callable[[], Run], right: Reference) -> None:
        try:
            run = prepare()
            leave_nan_behind(tensors[0])
            reports[name] = right.compare(run()[-1:, :, -1:], None)
        except Exception as error:  # a contender refuses in many ways; the others go on
            gaps[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            runs[name] = run

    own = kernels[formula.name]
    add(
        OURS,
        lambda: functools.partial(own.call, *tensors, scale=problem.scale, **inputs),
        reference,
    )
    make = _plan_maker(own.op, cell, inputs, bench.device)
    if OURS in runs and make is not None:
        options = {"scale": problem.scale, "plan": make(), **inputs}
        add(PLANNED, lambda: functools.partial(own.call, *tensors, **options), reference)
        runs[PLAN] = make
    for one in cell.variant.baselines:
        parts = _cut(tensors, cell, one)
        plain = functools.partial(kernels[one.formula.name].call, *parts, scale=problem.scale)
        right = _last_reference(one.formula, parts, {}, problem.scale)
        add(_label(cell, one), functools.partial(_ready, plain), right)
    if bench.has_flex(cell):
        torch.compiler.reset()  # compiled for this shape: after a few it would be for any
        add(FLEX, lambda: bench.flex(cell, *tensors, inputs), reference)
    return runs, reports, gaps


def _ready(run: Run) -> Run:
    return run


def _plan_maker(
    op: Callable[..., Any] | None, cell: Cell, inputs: Inputs, device: str
) -> Callable[[], Any] | None:
    """What makes an op's plan for the cell; None of an op that lists no tiles."""
    make = getattr(op, "plan", None)
    if make is None:
        return None
    one = cell.problem
    sizes = {"batch": one.batch, "heads": one.heads, "heads_k": one.kv_heads, "device": device}
    lengths = {"seqlen_q": one.seqlen_q, "seqlen_k": one.seqlen_k}
    maker = functools.partial(make, **sizes, **lengths, **inputs)
    return None if maker().lists is None else maker


def _cut(tensors: Tensors, cell: Cell, baseline: Baseline) -> Tensors:
    """q, k, v as the baseline's shorter sequences, more in a batch."""
    length = baseline.length(cell.problem.seqlen_k)
    if length == cell.problem.seqlen_k:
        return tensors
    q, k, v = (x.reshape(-1, length, *x.shape[2:]) for x in tensors)
    return q, k, v


def _label(cell: Cell, baseline: Baseline) -> str:
    return f"{baseline.formula.name} {baseline.length(cell.problem.seqlen_k)}"


def _described(cell: Cell, baseline: Baseline, device: str) -> dict[str, Any]:
    """A baseline in a row."""
    problem, mask = cell.problem, baseline.formula.mask
    length = baseline.length(problem.seqlen_k)
    facts = SpecFacts(mask, problem.facts.dtype, cell.head_dim, cell.head_dim)
    batch = problem.batch * problem.seqlen_k // length
    queries = min(length, problem.seqlen_q)
    flops = Problem(facts, batch, problem.heads, problem.kv_heads, queries, length).flops(device)
    relation = {"name": _label(cell, baseline), "relation": baseline.relation.name}
    return {**relation, "mask": mask, "Sk": length, "flops": flops}


# --- right or wrong -------------------------------------------------------------------------------


def _last_reference(formula: Formula, tensors: Tensors, inputs: Inputs, scale: float) -> Reference:
    """What is right of the last head of the last sequence."""
    q, k, v = (x[-1:, :, -1:] for x in tensors)
    last = {meta.name: _last(inputs[meta.name], meta.shape) for meta in formula.inputs}
    return _reference(formula, (q, k, v), last, scale)


def _last(tensor: Tensor, axes: Sequence[str | int]) -> Tensor:
    """Of an input, what belongs to the last head of the last sequence."""
    for place, axis in enumerate(axes):
        if axis in ("b", "h", "hk"):
            tensor = tensor.narrow(place, tensor.shape[place] - 1, 1)
    return tensor


def _reference(formula: Formula, tensors: Tensors, inputs: Inputs, scale: float) -> Reference:
    keep = None if formula.mask == "full" else reference_mask(formula.mask)
    sink = inputs[formula.sink] if formula.sink else None
    modify = reference_score(formula.score)
    return make_reference(*tensors, keep, scale, modify, inputs=inputs, sink=sink)


def _judge_ragged(
    bench: Bench, kernel_of: Callable[[Formula, int], _Kernel], cell: Cell
) -> dict[str, object]:
    """The verdict on fa3gen's kernel on a small call, LSE and all."""
    formula, scale = cell.variant.formula, cell.problem.scale
    tensors, inputs = _drawn(cell, bench.device)
    right = _reference(formula, tensors, inputs, scale)
    kernel = kernel_of(formula, cell.head_dim)
    try:
        out, lse = kernel.call(*tensors, scale=scale, return_lse=True, **inputs)
    except Exception as error:  # the verdict names it
        return {"ok": False, "problems": [f"raised {type(error).__name__}: {error}"]}
    return right.compare(out, lse).to_json()
