"""Attention written out by hand in torch, and the error rule that every check applies.

The reference works in float64 on the inputs' device, a block of rows and heads at a time, so that
16k x 16k scores fit. It shares no code with the compiler: masks come from
:mod:`fa3gen.runtime.masks`, as tensors or as functions of index tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fa3gen.runtime.masks import (
    IndexMask,
    Keep,
    Positions,
    causal_mask,
    reference_mask,
    window_mask,
)
from fa3gen.runtime.scores import ScoreFunction, reference_score

__all__ = [
    "ErrorReport",
    "IndexMask",
    "Keep",
    "Positions",
    "Reference",
    "attention_reference",
    "causal_mask",
    "check_error",
    "make_reference",
    "math_attention",
    "reference_mask",
    "reference_score",
    "window_mask",
]

Inputs = Mapping[str, Tensor]  # what masks and scores name

_BLOCK = 1 << 26  # score elements evaluated at once (512 MiB in float64)
LSE_ABSOLUTE = 1e-4
LSE_RELATIVE = 1e-5
ROW_SLACK = 4.0  # how far one row may exceed the error rule applied to that row alone


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Keep = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
    modify: ScoreFunction | None = None,
    *,
    inputs: Inputs | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, evaluated in ``dtype``.

    q (batch, seqlen_q, heads, d), k (batch, seqlen_k, kv_heads, d), v (batch, seqlen_k, kv_heads,
    d_v); ``heads`` is a multiple of ``kv_heads``. ``keep`` is None, booleans broadcastable to
    (batch, heads, seqlen_q, seqlen_k), or a function of :class:`Positions`. ``scale`` defaults to
    d ** -0.5; ``modify`` makes scores of the scaled products; both may look into ``inputs``.
    ``sink`` (heads): one more score of each row, of a key whose value is zero. Returns out (batch,
    seqlen_q, heads, d_v) and the natural-log LSE (batch, heads, seqlen_q); a row that keeps no key
    gives zeros and -inf, or the sink.
    """
    batch, seqlen_q, heads, d = q.shape
    scale = d**-0.5 if scale is None else scale
    out = torch.zeros(batch, seqlen_q, heads, v.shape[3], dtype=dtype, device=q.device)
    lse = torch.full((batch, heads, seqlen_q), -math.inf, dtype=dtype, device=q.device)
    for block in _blocks(q, k, _converted(inputs, dtype)):
        s = block.query(q).to(dtype) @ block.keys(k).to(dtype).mT * scale
        if modify is not None:
            s = modify(s, block.positions())
        kept = block.mask(keep)
        if kept is not None:
            s = s.masked_fill(~kept, -math.inf)
        row_max = s.amax(-1, keepdim=True)
        row_max = row_max.masked_fill(row_max == -math.inf, 0.0)
        p = torch.exp(s - row_max)
        row_sum = p.sum(-1, keepdim=True)
        o = p @ block.keys(v).to(dtype) / row_sum.masked_fill(row_sum == 0, 1.0)
        out[:, block.rows, block.heads] = o.transpose(1, 2)
        lse[:, block.heads, block.rows] = (row_max + row_sum.log()).squeeze(-1)
    return (out, lse) if sink is None else _with_sink(out, lse, sink)


def _with_sink(out: Tensor, lse: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with one more key in each row, of the score ``sink`` (heads) and the value zero."""
    joined = torch.logaddexp(lse, sink.to(lse.dtype)[:, None].expand_as(lse))
    share = torch.exp(lse - joined).nan_to_num()  # of the softmax, that the keys keep
    return out * share.transpose(1, 2)[..., None], joined


def _converted(inputs: Inputs | None, dtype: torch.dtype) -> Inputs:
    """The inputs in the types that a reference computes in."""
    return {
        name: tensor.to(dtype if tensor.is_floating_point() else torch.int64)
        for name, tensor in (inputs or {}).items()
    }


def math_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Keep = None,
    scale: float | None = None,
    modify: ScoreFunction | None = None,
    *,
    inputs: Inputs | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The same by torch's MATH back end in the inputs' dtype: (batch, seqlen_q, heads, d_v). With
    ``modify`` or ``sink`` by the same steps written out, their scores in fp32."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for block in _blocks(q, k, _converted(inputs, torch.float32)):
        if modify is not None or sink is not None:
            o = _written_out(block, (q, k, v), keep, scale, modify, sink)
            out[:, block.rows, block.heads] = o.transpose(1, 2)
            continue
        with sdpa_kernel(SDPBackend.MATH):
            o = torch.nn.functional.scaled_dot_product_attention(
                block.query(q),
                block.keys(k),
                block.keys(v),
                attn_mask=block.mask(keep),
                scale=scale,
            )
        out[:, block.rows, block.heads] = o.transpose(1, 2)
    return out


def _written_out(
    block: _Block,
    tensors: tuple[Tensor, Tensor, Tensor],
    keep: Keep,
    scale: float,
    modify: ScoreFunction | None,
    sink: Tensor | None,
) -> Tensor:
    """Softmax attention of a block with products, P and O rounded to the inputs' dtype."""
    q, k, v = tensors
    s = (block.query(q) @ block.keys(k).mT).float() * scale
    if modify is not None:
        s = modify(s, block.positions())
    kept = block.mask(keep)
    if kept is not None:
        s = s.masked_fill(~kept, -math.inf)
    if sink is not None:
        more = sink.float().expand(block.num_heads)[block.heads].view(1, -1, 1, 1)
        s = torch.cat((s, more.expand(*s.shape[:3], 1)), -1)
    p = torch.nan_to_num(s.softmax(-1))[..., : block.seqlen_k]
    return p.to(q.dtype) @ block.keys(v)


@dataclass(frozen=True)
class _Block:
    """Some query heads and rows, of every batch."""

    batch: int
    num_heads: int
    group: int  # query heads per KV head
    seqlen_q: int
    seqlen_k: int
    heads: slice
    rows: slice
    device: torch.device
    inputs: Inputs

    def query(self, q: Tensor) -> Tensor:
        """The block's queries (batch, heads, rows, d)."""
        return q[:, self.rows, self.heads].transpose(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """All keys (or values) of the block's heads (batch, heads, seqlen_k, d)."""
        kv_heads = torch.arange(self.heads.start, self.heads.stop, device=self.device) // self.group
        return x[:, :, kv_heads].transpose(1, 2)

    def mask(self, keep: Keep) -> Tensor | None:
        """The block of the mask, (batch, heads, rows, seqlen_k) booleans."""
        if keep is None:
            return None
        shape = (self.batch, self.num_heads, self.seqlen_q, self.seqlen_k)
        if isinstance(keep, Tensor):
            return keep.expand(shape)[:, self.heads, self.rows]
        at = self.positions()
        heads = self.heads.stop - self.heads.start
        return keep(at).expand(self.batch, heads, at.row.shape[2], self.seqlen_k)

    def positions(self) -> Positions:
        """Where the block's scores are, (batch, heads, rows, seqlen_k) by broadcasting."""
        row = torch.arange(self.rows.start, self.rows.stop, device=self.device).view(1, 1, -1, 1)
        h = torch.arange(self.heads.start, self.heads.stop, device=self.device).view(1, -1, 1, 1)
        return Positions(
            b=torch.arange(self.batch, device=self.device).view(-1, 1, 1, 1),
            h=h,
            hk=h // self.group,
            row=row,
            q=row + (self.seqlen_k - self.seqlen_q),
            k=torch.arange(self.seqlen_k, device=self.device).view(1, 1, 1, -1),
            inputs=self.inputs,
        )


def _blocks(q: Tensor, k: Tensor, inputs: Inputs) -> Iterator[_Block]:
    """Cut the scores into blocks of at most about ``_BLOCK`` elements; none if there are none."""
    batch, seqlen_q, heads, _ = q.shape
    seqlen_k, kv_heads = k.shape[1:3]
    if 0 in (batch, seqlen_q, heads, seqlen_k, kv_heads):
        return
    head_step = min(heads, max(1, _BLOCK // (batch * seqlen_q * seqlen_k)))
    row_step = min(seqlen_q, max(1, _BLOCK // (batch * head_step * seqlen_k)))
    for head in range(0, heads, head_step):
        for row in range(0, seqlen_q, row_step):
            yield _Block(
                batch=batch,
                num_heads=heads,
                group=heads // kv_heads,
                seqlen_q=seqlen_q,
                seqlen_k=seqlen_k,
                heads=slice(head, min(heads, head + head_step)),
                rows=slice(row, min(seqlen_q, row + row_step)),
                device=q.device,
                inputs=inputs,
            )


@dataclass(frozen=True)
class ErrorReport:
    """How far an output is from the reference, and which rules it breaks.

    ``max_error`` and ``limit`` are absolute, as are ``math_error`` (torch's MATH back end against
    the reference) and ``lse_error``; ``row_ratio`` is the worst row's error over the limit that
    the same rule gives for that row alone. NaN where the output has NaN.
    """

    max_error: float
    math_error: float
    limit: float
    lse_error: float
    row_ratio: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if no rule is broken."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """Plain values; a figure that is not finite becomes None."""
        figures = {
            name: getattr(self, name)
            for name in ("max_error", "math_error", "limit", "lse_error", "row_ratio")
        }
        plain = {name: x if math.isfinite(x) else None for name, x in figures.items()}
        return {"ok": self.ok, **plain, "problems": list(self.problems)}


@dataclass(frozen=True)
class Reference:
    """What a right output looks like, for one set of inputs."""

    out: Tensor  # float64 (batch, seqlen_q, heads, d_v)
    lse: Tensor  # float64 (batch, heads, seqlen_q)
    row_limit: Tensor  # float64 (batch, seqlen_q, heads): the error rule applied to each row
    keyless: Tensor  # booleans (batch, heads, seqlen_q): rows without keys
    math_error: float
    limit: float
    dtype: torch.dtype  # of the output

    def compare(self, out: Tensor, lse: Tensor | None) -> ErrorReport:
        """Apply the error rule to ``out`` and, unless it is None, to ``lse``.

        max|out - ref| <= 2 * max|math - ref| + eps(dtype) * max|ref|, no row beyond
        ``ROW_SLACK`` times its own such limit, rows without keys exactly 0 and -inf (or near the
        sink), LSE within 1e-4 + 1e-5 relative, and no NaN anywhere.
        """
        problems = [*self._shape_problems(out, lse)]
        if problems:
            nan = math.nan
            return ErrorReport(nan, self.math_error, self.limit, nan, nan, tuple(problems))
        error = (out.to(torch.float64) - self.out).abs()
        max_error, row_ratio = _max(error), _max(self._row_ratio(error))
        lse_error = 0.0 if lse is None else self._check_lse(lse, problems)
        if count := int(out.isnan().sum()):
            problems.append(f"out has {count} NaN of {out.numel()} elements")
        elif not max_error <= self.limit:
            problems.append(f"max error {max_error:.3e} > limit {self.limit:.3e}")
        elif not row_ratio <= ROW_SLACK:
            problems.append(f"a row is {row_ratio:.1f} times beyond its limit (> {ROW_SLACK:g})")
        if wrong := int((out[self.keyless.transpose(1, 2)] != 0).any(-1).sum()):
            problems.append(f"{wrong} rows without keys are not zero")
        return ErrorReport(
            max_error, self.math_error, self.limit, lse_error, row_ratio, tuple(problems)
        )

    def _shape_problems(self, out: Tensor, lse: Tensor | None) -> Iterator[str]:
        if out.shape != self.out.shape or out.dtype != self.dtype:
            yield (
                f"out is {tuple(out.shape)} {out.dtype}, "
                f"expected {tuple(self.out.shape)} {self.dtype}"
            )
        if lse is not None and (lse.shape != self.lse.shape or lse.dtype != torch.float32):
            yield (
                f"lse is {tuple(lse.shape)} {lse.dtype}, "
                f"expected {tuple(self.lse.shape)} torch.float32"
            )

    def _row_ratio(self, error: Tensor) -> Tensor:
        """Each row's error over its limit; 0 where both are 0."""
        row_error = error.amax(-1)
        return torch.where(row_error == 0, 0.0, row_error / self.row_limit)

    def _check_lse(self, lse: Tensor, problems: list[str]) -> float:
        """The largest LSE error over the rows that have one; broken rules go to ``problems``."""
        masked = self.lse == -math.inf
        if count := int(lse.isnan().sum()):
            problems.append(f"lse has {count} NaN of {lse.numel()} elements")
        if wrong := int((lse[masked] != -math.inf).sum()):
            problems.append(f"lse of {wrong} rows without keys is not -inf")
        right = self.lse[~masked]
        error = (lse[~masked].to(torch.float64) - right).abs()
        if wrong := int((error > LSE_ABSOLUTE + LSE_RELATIVE * right.abs()).sum()):
            problems.append(f"lse of {wrong} rows is off, by up to {_max(error):.3e}")
        return _max(error)


def make_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Keep = None,
    scale: float | None = None,
    modify: ScoreFunction | None = None,
    *,
    inputs: Inputs | None = None,
    sink: Tensor | None = None,
) -> Reference:
    """Evaluate the float64 reference and torch's MATH back end once, to judge several outputs."""
    out, lse = attention_reference(q, k, v, keep, scale, modify=modify, inputs=inputs)
    keyless = lse == -math.inf
    if sink is not None:
        out, lse = _with_sink(out, lse, sink)
    by_math = math_attention(q, k, v, keep, scale, modify, inputs=inputs, sink=sink)
    math_error = (by_math.to(torch.float64) - out).abs()
    eps = torch.finfo(q.dtype).eps
    return Reference(
        out=out,
        lse=lse,
        row_limit=2 * math_error.amax(-1) + eps * out.abs().amax(-1),
        keyless=keyless,
        math_error=_max(math_error),
        limit=2 * _max(math_error) + eps * _max(out.abs()),
        dtype=q.dtype,
    )


def check_error(
    out: Tensor,
    lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Keep = None,
    scale: float | None = None,
    modify: ScoreFunction | None = None,
    *,
    inputs: Inputs | None = None,
    sink: Tensor | None = None,
) -> ErrorReport:
    """Judge one output: :func:`make_reference`, then :meth:`Reference.compare`."""
    made = make_reference(q, k, v, keep, scale, modify, inputs=inputs, sink=sink)
    return made.compare(out, lse)


def _max(x: Tensor) -> float:
    """The largest element (NaN if there is one), 0 of an empty tensor."""
    return float(x.max()) if x.numel() else 0.0
