"""Check an attention op against the float64 reference, over fixed shapes and seeds.

Needs torch alone (rich, where installed, draws the table)::

    python -m fa3gen.check --artifact DIR --mask causal --sizes large --json OUT.json

The small set suits the interpreter on a CPU. The large set is for a GPU: it adds long sequences,
many residues of both lengths, more work tiles than the GPU has SMs, and calls each case three
times to see whether the results are the same.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    "cases",
    "check",
    "draw_inputs",
    "main",
    "render_table",
    "run_case",
]

Op = Callable[..., Any]  # op(q, k, v, *, scale, return_lse, out) -> (out, lse)

_GUARD = 4096  # elements around a poisoned output that the op must leave alone


class Layout(enum.Enum):
    """How the inputs lie in memory."""

    CONTIGUOUS = "contiguous"
    TRANSPOSED = "transposed"  # views of (batch, heads, seqlen, dim)
    PACKED = "packed"  # slices of one (batch, seqlen, heads + 2 * kv_heads, dim)
    EXPANDED = "expanded"  # K and V shared by the batch (stride 0)
    UNALIGNED = "unaligned"  # bases one element off a 16-byte boundary


@dataclass(frozen=True)
class Case:
    """One shape to check; ``seed`` fixes the inputs, ``scale`` None is head_dim ** -0.5."""

    batch: int
    heads: int
    kv_heads: int
    seqlen_q: int
    seqlen_k: int
    layout: Layout = Layout.CONTIGUOUS
    scale: float | None = None
    seed: int = 0
    rising: float = 0.0  # scores grow by so much from the last key, which comes first, to the first

    @property
    def name(self) -> str:
        """A short label, unique within a set."""
        text = f"b{self.batch}-h{self.heads}/{self.kv_heads}-q{self.seqlen_q}-k{self.seqlen_k}"
        if self.layout is not Layout.CONTIGUOUS:
            text += f"-{self.layout.value}"
        text += f"-rising{self.rising:g}" if self.rising else ""
        return text if self.scale is None else f"{text}-scale{self.scale:g}"


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


_SMALL = (
    Case(1, 1, 1, 1, 1),
    Case(1, 1, 1, 128, 128),
    Case(1, 2, 1, 127, 129),
    Case(1, 1, 1, 1, 257),
    Case(1, 1, 1, 257, 1),
    Case(1, 1, 1, 0, 64),
    Case(1, 2, 1, 64, 0),
    Case(0, 1, 1, 64, 64),
    Case(2, 4, 1, 65, 191),
    Case(2, 2, 2, 200, 200),
    Case(1, 1, 1, 300, 100),
    Case(1, 1, 1, 100, 300),
    Case(1, 1, 1, 384, 384),
    Case(1, 4, 1, 33, 35),
    Case(2, 2, 1, 130, 177, Layout.TRANSPOSED),
    Case(1, 2, 2, 151, 151, Layout.PACKED),
    Case(2, 1, 1, 90, 170, Layout.EXPANDED),
    Case(1, 2, 1, 70, 75, Layout.UNALIGNED),
    Case(1, 1, 1, 129, 257, scale=1.0),
    Case(1, 1, 1, 96, 200, scale=0.01),
)

_RESIDUES = (0, 1, 7, 8, 15, 33, 63, 64, 65, 79, 80, 81, 95, 112, 127, 128, 129, 143, 144, 175, 177)

_LARGE = (
    Case(1, 4, 1, 4096, 4096),
    Case(2, 4, 4, 4097, 4095),
    Case(1, 2, 2, 4095, 4097, scale=1.0),
    Case(1, 2, 1, 8192, 8192),
    Case(1, 2, 1, 8191, 1000),
    Case(1, 2, 1, 1000, 8191),
    Case(1, 2, 2, 64, 16384),
    Case(1, 2, 2, 16384, 64),
    Case(1, 16, 2, 1, 16384),
    Case(4, 16, 4, 1000, 1000),
    Case(64, 8, 8, 33, 70),
    Case(300, 4, 1, 129, 177),
    Case(3, 8, 2, 2000, 2000, Layout.TRANSPOSED),
    Case(2, 8, 8, 1111, 1111, Layout.PACKED),
    Case(2, 8, 2, 1024, 1024, Layout.PACKED),
    Case(3, 4, 2, 777, 1500, Layout.EXPANDED),
    Case(2, 4, 2, 513, 515, Layout.UNALIGNED),
    Case(2, 4, 2, 500, 1300, rising=60.0),
    Case(1, 4, 2, 1300, 1300, rising=2000.0),
    Case(2, 8, 2, 700, 700, layout=Layout.PACKED, rising=60.0),
    Case(2, 4, 2, 500, 1300, layout=Layout.TRANSPOSED, rising=2000.0),
    Case(2, 4, 2, 300, 1300, layout=Layout.EXPANDED, rising=60.0),
    Case(1, 4, 2, 300, 1300, layout=Layout.UNALIGNED, rising=60.0),
    # Every residue of one length meets a different one of the other.
    *(
        Case(2, 4, 2, 512 + r, 640 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)])
        for i, r in enumerate(_RESIDUES)
    ),
    *(
        Case(2, 4, 2, 768 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)], 512 + r)
        for i, r in enumerate(_RESIDUES)
    ),
)


def cases(sizes: str, limits: Sequence[int] = ()) -> tuple[Case, ...]:
    """The fixed set ``small`` or ``large`` (which includes the small one), seeds filled in.

    ``limits``: the most keys of the op's kernels but the last. The large set then has every residue
    for each of the kernels that take more keys, too.
    """
    sets = {"small": _SMALL, "large": _SMALL + _LARGE}
    if sizes not in sets:
        raise ValueError(f"sizes is small or large (got {sizes!r})")
    chosen = list(sets[sizes])
    for limit in limits if sizes == "large" else ():
        chosen += [
            Case(2, 4, 2, 256 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)], limit + 1 + r)
            for i, r in enumerate(_RESIDUES)
        ]
    fields = ({**vars(case), "seed": seed} for seed, case in enumerate(chosen))
    return tuple(Case(**values) for values in fields)


def limits_of(op: object) -> tuple[int, ...]:
    """The most keys of a built op's kernels but the last, which takes any number."""
    artifact = getattr(op, "artifact", None)
    kernels = () if artifact is None else artifact.kernels
    return tuple(kernel.max_keys for kernel in kernels if kernel.max_keys is not None)


def check(
    op: Op,
    mask_text: str,
    *,
    device: torch.device | str,
    sizes: str = "small",
    dtype: torch.dtype = torch.bfloat16,
    head_dims: tuple[int, int] = (128, 128),
    progress: Callable[[str], None] | None = None,
    score_text: str = "score",
) -> list[CheckResult]:
    """Run ``op`` over a fixed set of cases and judge each by the error rule.

    ``op(q, k, v, *, scale, return_lse, out)`` takes (batch, seqlen, heads, dim) tensors of
    ``dtype``; ``head_dims`` are those of q and k, and of v. ``mask_text`` and ``score_text`` pick
    the hand-written mask and formula. ``progress`` receives each case's name before it runs. Raises
    UnsupportedError for what nobody has written by hand.
    """
    calls = 3 if sizes == "large" else 1
    results = []
    for case in cases(sizes, limits_of(op)):
        if progress:
            progress(case.name)
        results.append(
            run_case(
                op,
                mask_text,
                case,
                device=device,
                dtype=dtype,
                head_dims=head_dims,
                calls=calls,
                score_text=score_text,
            )
        )
    return results


def run_case(
    op: Op,
    mask_text: str,
    case: Case,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    head_dims: tuple[int, int] = (128, 128),
    calls: int = 1,
    score_text: str = "score",
) -> CheckResult:
    """Check one case: poisoned outputs, ``calls`` equal results, inputs left alone."""
    keep, modify = reference_mask(mask_text), reference_score(score_text)
    try:
        # A GPU fault spoils every later call, so that drawing the next case's inputs raises too.
        inputs = draw_inputs(case, device=device, dtype=dtype, head_dims=head_dims)
        return _judge(op, (keep, modify), case, inputs, calls)
    except Exception as error:  # the verdict names it: one bad case must not hide the others
        return CheckResult(case, None, (f"raised {type(error).__name__}: {error}",))


def _judge(
    op: Op,
    what: tuple[IndexMask, ScoreFunction | None],
    case: Case,
    inputs: tuple[Tensor, Tensor, Tensor],
    calls: int,
) -> CheckResult:
    q, k, v = inputs
    keep, modify = what
    before = [x.clone() for x in inputs]
    out, lse, problems = _call(op, q, k, v, case.scale)
    for _ in range(calls - 1):
        again, lse_again, _ = _call(op, q, k, v, case.scale)
        if not (_same(out, again) and _same(lse, lse_again)):
            problems.append("two calls gave different results: a race")
            break
    if not all(_same(x, y) for x, y in zip(inputs, before, strict=True)):
        problems.append("an input was changed")
    report = check_error(out, lse, q, k, v, keep, case.scale, modify)
    return CheckResult(case, report, (*report.problems, *problems))


def draw_inputs(
    case: Case, *, device: torch.device | str, dtype: torch.dtype, head_dims: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q, k, v of the case in its memory layout, the same values on every device.

    A packed case with d != d_v or unequal lengths has nothing to pack: contiguous tensors.
    """
    generator = torch.Generator().manual_seed(case.seed)
    d, d_v = head_dims

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    def rise(q: Tensor, k: Tensor) -> None:
        """Scores that rise from the last key to the first, with the scale 1 / sqrt(d)."""
        keys = torch.arange(case.seqlen_k, 0, -1, device=device)[:, None] / case.seqlen_k
        q[..., 0], k[..., 0] = d**0.5, case.rising * keys

    batch, heads, kv_heads = case.batch, case.heads, case.kv_heads
    if case.layout is Layout.PACKED and d == d_v and case.seqlen_q == case.seqlen_k:
        packed = draw(batch, case.seqlen_q, heads + 2 * kv_heads, d)
        q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=2)
        if case.rising:
            rise(q, k)
        return q, k, v
    shapes = (
        (batch, case.seqlen_q, heads, d),
        (batch, case.seqlen_k, kv_heads, d),
        (batch, case.seqlen_k, kv_heads, d_v),
    )
    if case.layout is Layout.TRANSPOSED:
        q, k, v = (draw(b, h, s, dim).transpose(1, 2) for b, s, h, dim in shapes)
    elif case.layout is Layout.EXPANDED:
        q = draw(*shapes[0])
        k, v = (draw(1, *shape[1:]) for shape in shapes[1:])
    elif case.layout is Layout.UNALIGNED:
        q, k, v = (draw(math.prod(shape) + 1)[1:].view(shape) for shape in shapes)
    else:
        q, k, v = (draw(*shape) for shape in shapes)
    if case.rising:
        rise(q, k)
    return q, k.expand(shapes[1]), v.expand(shapes[2])


def _call(
    op: Op, q: Tensor, k: Tensor, v: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, list[str]]:
    """Call the op on a NaN-filled ``out=`` between guards, if it takes one: out, lse, problems."""
    shape = (*q.shape[:3], v.shape[3])
    _leave_nan_behind(q.device, math.prod(shape[:3]))
    if not _takes_out(op):
        out, lse = op(q, k, v, scale=scale, return_lse=True)
        return out, lse, []
    size = math.prod(shape)
    buffer = torch.full((size + 2 * _GUARD,), math.nan, dtype=q.dtype, device=q.device)
    out = buffer[_GUARD : _GUARD + size].view(shape)
    returned, lse = op(q, k, v, scale=scale, return_lse=True, out=out)
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
    """Check built artifacts; exit code 0 if every case passes, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.check", description=__doc__)
    parser.add_argument("--artifact", required=True, type=Path, help="folder from fa3gen build")
    parser.add_argument("--mask", required=True, help="mask text of the spec, such as causal")
    parser.add_argument("--score", default="score", help="score text, as 50 * tanh(score / 50)")
    parser.add_argument("--sizes", choices=("small", "large"), default="large")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    from fa3gen.runtime.artifact import Artifact
    from fa3gen.runtime.attention import load

    artifact = Artifact.read(options.artifact)
    results = check(
        load(options.artifact),
        options.mask,
        device=options.device,
        sizes=options.sizes,
        dtype=getattr(torch, artifact.dtype.torch_name),
        head_dims=(artifact.head_dim_qk, artifact.head_dim_v),
        score_text=options.score,
    )
    render_table(results)
    if options.json:
        options.json.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n")
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
