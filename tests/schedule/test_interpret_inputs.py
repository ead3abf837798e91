"""Inputs end to end on the CPU: compiled specs against attention written by hand in torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fa3gen
from fa3gen.driver import interpreted
from fa3gen.errors import InputError
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.reference import Positions, check_error
from fa3gen.schedule import make_schedule
from fa3gen.spec import AttentionSpec

DIM, BATCH, HEADS, KV_HEADS = 64, 2, 2, 1
SCALE = 0.11  # not the default
Inputs = dict[str, Tensor]


def attention(**keys: Any) -> Attention:
    """The interpreted op of a spec: small tiles, so that a call has several."""
    knobs = {"tile": {"m": 64, "n": 64}, **keys.pop("schedule", {})}
    return _attention(AttentionSpec(**{"head_dim": DIM, "schedule": knobs, **keys}))


@functools.cache
def _attention(spec: AttentionSpec) -> Attention:
    return interpreted((make_schedule(spec),))


def draw(seqlen_q: int, seqlen_k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((seqlen_q, HEADS), (seqlen_k, KV_HEADS), (seqlen_k, KV_HEADS))
    q, k, v = (torch.randn((BATCH, *n, DIM), generator=generator).bfloat16() for n in sizes)
    return q, k, v


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def documents(seqlen: int, batch: int = BATCH) -> Tensor:
    """Documents of different lengths in each batch."""
    return torch.stack([torch.arange(seqlen) // (17 + 20 * b) for b in range(batch)]).int()


def at_table(table: Tensor, *indices: Tensor) -> Tensor:
    """An element of a table, whose sizes of 1 stand for all."""
    parts = (index.clamp(0, size - 1) for index, size in zip(indices, table.shape, strict=True))
    return table.double()[tuple(parts)] if table.is_floating_point() else table[tuple(parts)]


def check(
    op: Attention,
    lengths: tuple[int, int],
    inputs: dict[str, Any],
    modify: Callable[[Tensor, Positions], Tensor] | None = None,
    keep: Callable[[Positions], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Call the op, judge it by the error rule, and return the result."""
    q, k, v = draw(*lengths)
    out, lse = op(q, k, v, scale=SCALE, return_lse=True, **inputs)
    report = check_error(out, lse, q, k, v, keep, SCALE, modify)
    assert report.ok, (op.name, lengths, report)
    return out, lse


LENGTHS = pytest.mark.parametrize("lengths", [(100, 100), (70, 150), (90, 40)], ids=str)


# --- formulas -------------------------------------------------------------------------------------


def declare(**inputs: tuple[list[Any], str]) -> dict[str, dict[str, Any]]:
    return {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in inputs.items()}


KNOBS = [
    {"maxima": "exact", "overlap": 1, "pingpong": False},
    {"maxima": "exact", "overlap": 3},
    {"maxima": "lazy", "overlap": 2},
    {"maxima": "lazy", "overlap": 3},
    {"maxima": "speculative", "overlap": 1, "pingpong": False},
    {"maxima": "speculative", "overlap": 2},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: f"{knobs['maxima']} {knobs['overlap']}")
@pytest.mark.parametrize("lengths", [(130, 170)], ids=str)
def test_alibi(lengths: tuple[int, int], knobs: dict[str, Any]) -> None:
    knobs = {**knobs, "tile": {"m": 128, "n": 64}}
    op = attention(
        mask="causal",
        score="score + slopes[h] * (k - q)",
        inputs=declare(slopes=(["h"], "fp32")),
        schedule=knobs,
    )
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)
    check(
        op,
        lengths,
        {"slopes": slopes},
        lambda s, at: s + at_table(slopes, at.h) * (at.k - at.q),
        lambda at: at.k <= at.q,
    )


@LENGTHS
def test_relative_bias_is_clamped_to_its_table(lengths: tuple[int, int]) -> None:
    op = attention(score="score + rel[h, k - q + 32]", inputs=declare(rel=(["h", 65], "bf16")))
    rel = normal(HEADS, 65, dtype=torch.bfloat16)
    modify = lambda s, at: s + at_table(rel, at.h, (at.k - at.q + 32))  # noqa: E731
    check(op, lengths, {"rel": rel}, modify)


@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_a_full_bias_and_its_broadcasts(axes: tuple[int, ...]) -> None:
    op = attention(
        score="score + bias[b, h, row, k]",
        inputs=declare(bias=(["b", "h", "row", "k"], "bf16")),
    )
    size = [1 if i in axes else n for i, n in enumerate((BATCH, HEADS, 40, 90))]
    bias = normal(*size, dtype=torch.bfloat16)
    check(
        op,
        (40, 90),
        {"bias": bias},
        lambda s, at: s + at_table(bias, at.b, at.h, at.row, at.k),
    )


@LENGTHS
def test_biases_of_keys_and_rows(lengths: tuple[int, int]) -> None:
    op = attention(
        score="score * scales[h, row] + keys[k] - shift[hk]",
        inputs=declare(scales=(["h", "row"], "fp32"), keys=(["k"], "fp16"), shift=(["hk"], "fp32")),
    )
    scales, shift = normal(HEADS, lengths[0]), normal(KV_HEADS)
    keys = normal(lengths[1], dtype=torch.float16)
    group = HEADS // KV_HEADS

    def modify(s: Tensor, at: Positions) -> Tensor:
        s = s * at_table(scales, at.h, at.row) + at_table(keys, at.k)
        return s - at_table(shift, at.h // group)

    check(op, lengths, {"scales": scales, "keys": keys, "shift": shift}, modify)


@pytest.mark.parametrize("maxima", ["exact", "lazy", "speculative"])
def test_factors_of_any_sign_and_of_zero(maxima: str) -> None:
    """Where a row's factor is negative, its greatest scores are its least products."""
    op = attention(
        score="score * factors[h]",
        inputs=declare(factors=(["h"], "fp32")),
        schedule={"maxima": maxima},
    )
    for values in ((-3.0, 0.0), (20.0, 0.5)):
        factors = torch.tensor(values)
        check(op, (60, 150), {"factors": factors}, lambda s, at, f=factors: s * at_table(f, at.h))


@pytest.mark.parametrize("maxima", ["exact", "lazy", "speculative"])
@pytest.mark.parametrize("size", [0.5, 300.0])
def test_biases_that_outweigh_the_scores(size: float, maxima: str) -> None:
    """A large bias makes speculation wrong: what is done again takes it, too."""
    op = attention(
        mask="causal",
        score="score + keys[k]",
        inputs=declare(keys=(["k"], "fp32")),
        schedule={"maxima": maxima},
    )
    keys = normal(200) * size
    check(
        op,
        (60, 200),
        {"keys": keys},
        lambda s, at: s + at_table(keys, at.k),
        lambda at: at.k <= at.q,
    )


@pytest.mark.parametrize("cap", [20.0, torch.tensor(20.0), torch.tensor(20)], ids=str)
def test_a_scalar_may_be_a_number_or_a_tensor(cap: Any) -> None:
    op = attention(score="cap * tanh(score / cap)", inputs={"cap": {"dtype": "fp32"}})
    if isinstance(cap, Tensor) and not cap.is_floating_point():
        cap = cap.float()
    check(op, (40, 70), {"cap": cap}, lambda s, at: 20 * torch.tanh(s / 20))


def test_formulas_may_mask_by_inputs() -> None:
    op = attention(
        score="where(doc[b, k] == doc[b, q], score, -inf)",
        inputs=declare(doc=(["b", "k"], "int32")),
    )
    doc = documents(150)
    same = lambda at: at_table(doc, at.b, at.q) == at_table(doc, at.b, at.k)  # noqa: E731
    check(op, (150, 150), {"doc": doc}, keep=same)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["document(doc)", "causal & document(doc)"])
@pytest.mark.parametrize(("overlap", "maxima"), [(1, "lazy"), (2, "exact"), (3, "lazy")])
def test_documents(mask: str, overlap: int, maxima: str) -> None:
    op = attention(
        mask=mask,
        inputs=declare(doc=(["b", "k"], "int32")),
        schedule={"overlap": overlap, "maxima": maxima},
    )
    for lengths in ((130, 130), (40, 130), (90, 40)):  # positions before the first key, too
        doc = documents(lengths[1])

        def keep(at: Positions, doc: Tensor = doc) -> Tensor:
            same = at_table(doc, at.b, at.q) == at_table(doc, at.b, at.k)
            return same & (at.k <= at.q) if "causal" in mask else same

        check(op, lengths, {"doc": doc}, keep=keep)


def test_documents_of_one_batch_for_all() -> None:
    op = attention(mask="document(doc)", inputs=declare(doc=(["b", "k"], "int32")))
    doc = documents(150, batch=1)
    same = lambda at: at_table(doc, at.b, at.q) == at_table(doc, at.b, at.k)  # noqa: E731
    check(op, (150, 150), {"doc": doc}, keep=same)


def test_documents_or_causal_leave_tiles_to_speculate_on() -> None:
    op = attention(
        mask="causal | document(doc)",
        score="score + keys[k]",
        inputs=declare(doc=(["b", "k"], "int32"), keys=(["k"], "fp32")),
        schedule={"maxima": "speculative"},
    )
    doc, keys = documents(200), normal(200) * 30

    def keep(at: Positions) -> Tensor:
        return (at_table(doc, at.b, at.q) == at_table(doc, at.b, at.k)) | (at.k <= at.q)

    modify = lambda s, at: s + at_table(keys, at.k)  # noqa: E731
    check(op, (100, 200), {"doc": doc, "keys": keys}, modify, keep)


@LENGTHS
def test_a_window_of_each_head(lengths: tuple[int, int]) -> None:
    op = attention(mask="causal & (k >= q - reach[h])", inputs=declare(reach=(["h"], "int32")))
    reach = torch.tensor([3, 70], dtype=torch.int32)
    check(
        op,
        lengths,
        {"reach": reach},
        keep=lambda at: (at.k <= at.q) & (at.k >= at.q - at_table(reach, at.h)),
    )


@pytest.mark.parametrize("reach", [-1, 0, 100, torch.tensor(9, dtype=torch.int32)], ids=str)
def test_a_window_of_the_call(reach: Any) -> None:
    """The same op for any reach; -1 is unbounded."""
    op = attention(mask="window(reach, 0)", inputs={"reach": {"dtype": "int32"}})
    n = int(reach)

    def keep(at: Positions) -> Tensor:
        return (at.k <= at.q) & ((at.k >= at.q - n) if n >= 0 else (at.k >= 0))

    check(op, (60, 130), {"reach": reach}, keep=keep)


def test_lengths_of_each_batch() -> None:
    """Padded keys; a batch without any gives 0 and -inf."""
    op = attention(mask="k < lengths[b]", inputs=declare(lengths=(["b"], "int32")))
    lengths = torch.tensor([90, 0], dtype=torch.int32)
    out, lse = check(op, (70, 130), {"lengths": lengths}, keep=lambda at: at.k < lengths[at.b])
    assert bool((out[1] == 0).all())
    assert bool((lse[1] == -math.inf).all())


@pytest.mark.parametrize("maxima", ["exact", "lazy"])
def test_rows_that_keep_nothing_are_zero(maxima: str) -> None:
    """Some of a tile, and all of another."""
    op = attention(
        mask="kept[row] > 0 and causal",
        score="score + keys[k]",
        inputs=declare(kept=(["row"], "int32"), keys=(["k"], "fp32")),
        schedule={"maxima": maxima},
    )
    kept = torch.tensor([i % 3 and i < 64 for i in range(130)], dtype=torch.int32)
    keys = normal(130)
    out, lse = check(
        op,
        (130, 130),
        {"kept": kept, "keys": keys},
        lambda s, at: s + at_table(keys, at.k),
        lambda at: (kept[at.row] > 0) & (at.k <= at.q),
    )
    assert bool((out[:, kept == 0] == 0).all())
    assert bool((lse[..., kept == 0] == -math.inf).all())
    assert bool(lse[..., kept > 0].isfinite().all())


# --- calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("maxima", ["exact", "lazy", "speculative"])
@pytest.mark.parametrize("lengths", [(70, 0), (0, 70), (1, 1)], ids=str)
def test_empty_and_shortest_lengths(lengths: tuple[int, int], maxima: str) -> None:
    op = attention(
        mask="causal",
        score="score + bias[h, row, k] + keys[k]",
        inputs=declare(bias=(["h", "row", "k"], "fp32"), keys=(["k"], "bf16")),
        schedule={"maxima": maxima},
    )
    bias, keys = normal(HEADS, *lengths), normal(lengths[1], dtype=torch.bfloat16)
    out, lse = check(
        op,
        lengths,
        {"bias": bias, "keys": keys},
        lambda s, at: s + at_table(bias, at.h, at.row, at.k) + at_table(keys, at.k),
        lambda at: at.k <= at.q,
    )
    if lengths[1] == 0:
        assert bool((out == 0).all())
        assert bool((lse == -math.inf).all())


def test_strides_do_not_matter() -> None:
    op = attention(
        score="score + bias[h, row, k]", inputs=declare(bias=(["h", "row", "k"], "fp32"))
    )
    bias, (q, k, v) = normal(HEADS, 70, 90), draw(70, 90)
    expected = op(q, k, v, bias=bias)
    turned = bias.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided = bias.repeat_interleave(2, -1)[..., ::2]
    for other in (turned, strided):
        assert torch.equal(op(q, k, v, bias=other), expected)
    rows = bias[:1, :1].expand(HEADS, 70, 90)
    assert torch.equal(op(q, k, v, bias=rows), op(q, k, v, bias=bias[:1, :1]))


def test_compile_takes_inputs() -> None:
    """The front door, with the scheduler's own knobs."""
    op = fa3gen.compile(
        {
            "head_dim": DIM,
            "mask": "causal & document(doc)",
            "score": "score + slopes[h] * (k - q)",
            "inputs": declare(doc=(["b", "k"], "int32"), slopes=(["h"], "fp32")),
        }
    )
    doc, slopes = documents(150), normal(HEADS)

    def keep(at: Positions) -> Tensor:
        return (at_table(doc, at.b, at.q) == at_table(doc, at.b, at.k)) & (at.k <= at.q)

    modify = lambda s, at: s + at_table(slopes, at.h) * (at.k - at.q)  # noqa: E731
    check(op, (150, 150), {"slopes": slopes, "doc": doc}, modify, keep)


def test_a_plan_changes_nothing() -> None:
    """Which tiles are visited may be found once for many calls."""
    op = attention(mask="causal & document(doc)", inputs=declare(doc=(["b", "k"], "int32")))
    doc = documents(150)
    plan = op.plan(doc=doc, heads=HEADS, heads_k=KV_HEADS)
    assert plan.lists is not None
    for seed in (0, 1):
        q, k, v = draw(150, 150, seed)
        found = op(q, k, v, return_lse=True, plan=plan, doc=doc)
        for with_plan, without in zip(found, op(q, k, v, return_lse=True, doc=doc), strict=True):
            assert torch.equal(with_plan, without)


def test_a_plan_takes_what_the_mask_takes() -> None:
    """Inputs of the score and the sink need not be given, nor heads that the mask does not tell."""
    inputs = {
        "doc": {"shape": ["b", "k"], "dtype": "int32"},
        "slopes": {"shape": ["h"], "dtype": "fp32"},
        "sinks": {"shape": ["h"], "dtype": "bf16"},
    }
    op = attention(
        mask="causal & document(doc)",
        score="score + slopes[h] * (k - q)",
        inputs=inputs,
        sink="sinks",
    )
    q, k, v = draw(150, 150)
    doc = documents(150)
    given = {"doc": doc, "slopes": normal(HEADS), "sinks": normal(HEADS).bfloat16()}
    assert torch.equal(op(q, k, v, plan=op.plan(doc=doc), **given), op(q, k, v, **given))
    with pytest.raises(InputError, match="doc: missing"):
        op.plan(slopes=given["slopes"])


def test_a_plan_of_fewer_heads_than_the_mask_tells_apart_is_refused() -> None:
    inputs = {"doc": {"shape": ["b", "k"], "dtype": "int32"}}
    op = attention(mask="document(doc) & (k % (h + 1) == 0)", inputs=inputs)
    q, k, v = draw(150, 150)
    doc = documents(150)
    with pytest.raises(InputError, match="plan: must be one for"):
        op(q, k, v, doc=doc, plan=op.plan(doc=doc))
