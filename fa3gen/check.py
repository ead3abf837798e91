"""Check an attention op against the float64 reference, over fixed shapes and seeds.

Needs torch alone (rich, where installed, draws the table)::

    python -m fa3gen.check --artifact DIR --mask causal --sizes large --json OUT.json
    python -m fa3gen.check --artifact DIR --mask 'causal & document(doc)' \\
        --inputs '{"doc": {"example": "segments", "size": 300}}'

Of the large set each case is called three times, to see whether the results are the same; see
``fa3gen.cases``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fa3gen.cases import Case, Layout, call_inputs, cases, draw_inputs
from fa3gen.errors import InputError
from fa3gen.runtime.call_inputs import InputValue
from fa3gen.runtime.examples import InputExample, examples_of
from fa3gen.runtime.reference import (
    ErrorReport,
    IndexMask,
    check_error,
    reference_mask,
    reference_score,
)
from fa3gen.runtime.scores import ScoreFunction

__all__ = [
    "Case",
    "CheckResult",
    "Layout",
    "Variant",
    "call_inputs",
    "cases",
    "check",
    "draw_inputs",
    "main",
    "render_table",
    "run_case",
]

Op = Callable[..., Any]  # op(q, k, v, *, scale, return_lse, out, **inputs) -> (out, lse)

_GUARD = 4096  # elements around a poisoned output that the op must leave alone


@dataclass(frozen=True)
class Variant:
    """What an op computes: its mask and score by their texts, which pick what is written by hand,
    the inputs that these name, how they are drawn, and which of them is the sink."""

    mask: str = "full"
    score: str = "score"
    inputs: tuple[InputExample, ...] = ()
    sink: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one case: ``report`` is None if the call raised."""

    case: Case
    report: ErrorReport | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every rule holds."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        case = {**asdict(self.case), "layout": self.case.layout.value, "name": self.case.name}
        report = self.report.to_json() if self.report else None
        return {"case": case, "ok": self.ok, "problems": list(self.problems), "report": report}


def limits_of(op: object) -> tuple[int, ...]:
    """The most keys of a built op's kernels but the last, which takes any number."""
    artifact = getattr(op, "artifact", None)
    kernels = () if artifact is None else artifact.kernels
    return tuple(kernel.max_keys for kernel in kernels if kernel.max_keys is not None)


def check(
    op: Op,
    variant: Variant | str,
    *,
    device: torch.device | str,
    sizes: str = "small",
    dtype: torch.dtype = torch.bfloat16,
    head_dims: tuple[int, int] = (128, 128),
    progress: Callable[[str], None] | None = None,
) -> list[CheckResult]:
    """Run ``op`` over a fixed set of cases and judge each by the error rule.

    ``op(q, k, v, *, scale, return_lse, out, **inputs)`` takes (batch, seqlen, heads, dim) tensors
    of ``dtype``; ``head_dims`` are those of q and k, and of v. ``variant`` may be a mask's text.
    ``progress`` receives each case's name before it runs. Raises UnsupportedError for what nobody
    has written by hand.
    """
    calls = 3 if sizes == "large" else 1
    results = []
    for case in cases(sizes, limits_of(op)):
        if progress:
            progress(case.name)
        results.append(
            run_case(
                op, variant, case, device=device, dtype=dtype, head_dims=head_dims, calls=calls
            )
        )
    return results


def run_case(
    op: Op,
    variant: Variant | str,
    case: Case,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    head_dims: tuple[int, int] = (128, 128),
    calls: int = 1,
) -> CheckResult:
    """Check one case: poisoned outputs, ``calls`` equal results, inputs left alone.

    An op that lists KV tiles is called once more with a plan, for the same result.
    """
    variant = Variant(variant) if isinstance(variant, str) else variant
    written = (reference_mask(variant.mask), reference_score(variant.score))
    try:
        # A GPU fault spoils every later call, so that drawing the next case's inputs raises too.
        tensors = draw_inputs(case, device=device, dtype=dtype, head_dims=head_dims)
        more = call_inputs(variant.inputs, case, device)
        return _judge(op, case, _Arguments(*tensors, more, case), written, variant.sink, calls)
    except Exception as error:  # the verdict names it: one bad case must not hide the others
        return CheckResult(case, None, (f"raised {type(error).__name__}: {error}",))


@dataclass(frozen=True)
class _Arguments:
    """What an op is called with."""

    q: Tensor
    k: Tensor
    v: Tensor
    inputs: Mapping[str, Tensor]
    case: Case

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.q, self.k, self.v, *self.inputs.values())

    @property
    def keywords(self) -> dict[str, InputValue]:
        """The inputs as the case passes them."""
        return {
            name: tensor.item() if self.case.numbers and tensor.dim() == 0 else tensor
            for name, tensor in self.inputs.items()
        }

    @property
    def sizes(self) -> dict[str, Any]:
        """What a plan is made for."""
        q, k = self.q, self.k
        lengths = {"seqlen_q": q.shape[1], "seqlen_k": k.shape[1], "device": q.device}
        return {"batch": q.shape[0], "heads": q.shape[2], "heads_k": k.shape[2], **lengths}


def _judge(
    op: Op,
    case: Case,
    given: _Arguments,
    written: tuple[IndexMask, ScoreFunction | None],
    sink: str | None,
    calls: int,
) -> CheckResult:
    before = [x.clone() for x in given.tensors]
    out, lse, problems = _call(op, given)
    for _ in range(calls - 1):
        again, lse_again, _ = _call(op, given)
        if not (_same(out, again) and _same(lse, lse_again)):
            problems.append("two calls gave different results: a race")
            break
    plan = _plan(op, given)
    if plan is not None:
        planned, lse_planned, _ = _call(op, given, plan=plan)
        if not (_same(out, planned) and _same(lse, lse_planned)):
            problems.append("a call with a plan gave another result")
    if not all(_same(x, y) for x, y in zip(given.tensors, before, strict=True)):
        problems.append("an input was changed")
    report = check_error(
        out,
        lse,
        given.q,
        given.k,
        given.v,
        written[0],
        case.scale,
        written[1],
        inputs=given.inputs,
        sink=None if sink is None else given.inputs[sink],
    )
    return CheckResult(case, report, (*report.problems, *problems))


def _plan(op: Op, given: _Arguments) -> object | None:
    """The plan of an op that lists KV tiles."""
    make = getattr(op, "plan", None)
    plan = None if make is None else make(**given.sizes, **given.keywords)
    return None if plan is None or plan.lists is None else plan


def _call(op: Op, given: _Arguments, **more: object) -> tuple[Tensor, Tensor, list[str]]:
    """Call the op on a NaN-filled ``out=`` between guards, if it takes one: out, lse, problems."""
    q, k, v = given.q, given.k, given.v
    keywords = {"scale": given.case.scale, "return_lse": True, **given.keywords, **more}
    shape = (*q.shape[:3], v.shape[3])
    _leave_nan_behind(q.device, math.prod(shape[:3]))
    if not _takes_out(op):
        out, lse = op(q, k, v, **keywords)
        return out, lse, []
    size = math.prod(shape)
    buffer = torch.full((size + 2 * _GUARD,), math.nan, dtype=q.dtype, device=q.device)
    out = buffer[_GUARD : _GUARD + size].view(shape)
    returned, lse = op(q, k, v, out=out, **keywords)
    problems = []
    if returned.data_ptr() != out.data_ptr() or returned.stride() != out.stride():
        problems.append("the tensor given as out= is not the one returned")
    if not bool(torch.cat((buffer[:_GUARD], buffer[_GUARD + size :])).isnan().all()):
        problems.append("memory outside of out was written")
    return returned, lse, problems


def _takes_out(op: Op) -> bool:
    parameters = inspect.signature(op).parameters
    return "out" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _leave_nan_behind(device: torch.device, rows: int) -> None:
    """Fill and free a block of the LSE's size, so that the op's own may start as NaN.

    Only torch's caching allocator on a GPU hands the same block out again.
    """
    torch.full((rows,), math.nan, dtype=torch.float32, device=device)


def _same(x: Tensor, y: Tensor) -> bool:
    """Equal element by element, NaN equal to NaN."""
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


def render_table(results: Sequence[CheckResult]) -> None:
    """Print the results as a table, by rich if it is installed and plainly otherwise."""
    header = ("case", "max error", "limit", "lse error", "worst row", "verdict")
    rows = [_row(result) for result in results]
    title = f"{sum(r.ok for r in results)} of {len(results)} cases pass"
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        print(title)
        return
    table = Table(title=title)
    for name in header:
        table.add_column(name, no_wrap=name == "case", overflow="fold")
    for row, result in zip(rows, results, strict=True):
        table.add_row(*map(escape, row), style=None if result.ok else "bold red")
    Console().print(table)


def _row(result: CheckResult) -> tuple[str, ...]:
    verdict = "ok" if result.ok else "; ".join(result.problems)
    if (report := result.report) is None:
        return (result.case.name, "-", "-", "-", "-", verdict)
    return (
        result.case.name,
        f"{report.max_error:.2e}",
        f"{report.limit:.2e}",
        f"{report.lse_error:.2e}",
        f"{report.row_ratio:.2f}",
        verdict,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check built artifacts; exit code 0 if every case passes, 1 if one fails, 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.check", description=__doc__)
    parser.add_argument("--artifact", required=True, type=Path, help="folder from fa3gen build")
    parser.add_argument("--mask", required=True, help="mask text of the spec, such as causal")
    parser.add_argument("--score", default="score", help="score text, as 50 * tanh(score / 50)")
    parser.add_argument("--sink", help="the input that is the sink")
    parser.add_argument(
        "--inputs",
        default={},
        type=_examples,
        metavar="JSON",
        help="how inputs are drawn: {NAME: {example: normal, uniform or segments, size: N}}",
    )
    parser.add_argument("--sizes", choices=("small", "large"), default="large")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    from fa3gen.runtime.artifact import Artifact
    from fa3gen.runtime.attention import load

    artifact = Artifact.read(options.artifact)
    try:
        inputs = examples_of(artifact.inputs, options.inputs)
    except InputError as error:
        parser.error(f"--inputs: {error}")
    results = check(
        load(options.artifact),
        Variant(options.mask, options.score, inputs, options.sink),
        device=options.device,
        sizes=options.sizes,
        dtype=getattr(torch, artifact.dtype.torch_name),
        head_dims=(artifact.head_dim_qk, artifact.head_dim_v),
    )
    render_table(results)
    if options.json:
        options.json.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n")
    return 0 if all(result.ok for result in results) else 1


def _examples(text: str) -> dict[str, dict[str, Any]]:
    """The option ``--inputs``."""
    given = json.loads(text)
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise ValueError
    return given


if __name__ == "__main__":
    sys.exit(main())
