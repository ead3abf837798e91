"""Inputs on the GPU: biases in every layout that a call may bring, lists of tiles in graphs."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.runtime.reference import check_error, reference_mask

SHAPES = [  # batch, heads, heads_k, seqlen_q, seqlen_k, softmax scale
    (2, 4, 2, 333, 776, None),
    (1, 2, 2, 700, 513, 2.0),  # scores so large that guesses fail
    (3, 3, 1, 128, 128, None),
    (2, 2, 2, 1, 4100, None),
    (1, 4, 4, 513, 64, 4.0),
]
KNOBS: list[dict[str, Any]] = [
    {},
    {"overlap": 1, "pingpong": False, "tile": {"m": 128, "n": 64}},
    {"overlap": 3, "tile": {"m": 128, "n": 64}},
    {"maxima": "lazy"},
    {"warp_specialized": False, "tile": {"m": 128, "n": 64}},
]


@functools.cache
def bias_op(dim: int, dtype: str, knobs: int, mask: str = "full") -> Any:
    import fa3gen

    bias = {"shape": ["b", "h", "row", "k"], "dtype": dtype}
    spec = {"head_dim": dim, "mask": mask, "score": "score + bias[b, h, row, k]"}
    return fa3gen.compile(
        {"name": "check_bias", **spec, "inputs": {"bias": bias}, "schedule": KNOBS[knobs]}
    )


def biases(sizes: tuple[int, int, int, int], like: Tensor) -> dict[str, Tensor]:
    """Biases of a call, by how they lie in memory."""
    batch, heads, rows, keys = sizes

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=like.device).to(like.dtype)

    wide = drawn(batch, heads, rows, keys + 24)
    infinite = drawn(*sizes)
    infinite[:, :, ::3, : keys // 2] = -math.inf
    return {
        "packed": drawn(*sizes),
        "of all heads": drawn(1, 1, rows, keys),
        "of each head": drawn(1, heads, rows, keys),
        "one row": drawn(batch, heads, 1, keys),
        "one key": drawn(batch, heads, rows, 1),
        "one element": drawn(1, 1, 1, 1),
        "expanded": drawn(1, heads, rows, keys).expand(sizes),
        "expanded rows": drawn(batch, heads, 1, keys).expand(sizes),
        "transposed": drawn(batch, heads, keys, rows).transpose(2, 3),
        "unaligned": wide[..., 3 : 3 + keys],
        "sliced": wide[..., 8 : 8 + keys],
        "infinite": infinite,
    }


def check_biases(op: Any, dim: int, mask: str, dtype: str, device: str = "cuda") -> None:
    like = torch.empty(0, device=device, dtype={"bf16": torch.bfloat16, "fp16": torch.half}[dtype])
    for batch, heads, heads_k, seqlen_q, seqlen_k, scale in SHAPES:
        torch.manual_seed(seqlen_q)

        def drawn(seqlen: int, count: int, of: int = batch) -> Tensor:
            return torch.randn(of, seqlen, count, dim, device=device, dtype=torch.bfloat16)

        q, k, v = drawn(seqlen_q, heads), drawn(seqlen_k, heads_k), drawn(seqlen_k, heads_k)
        sizes = (batch, heads, seqlen_q, seqlen_k)
        for name, bias in biases(sizes, like).items():
            out, lse = op(q, k, v, scale=scale, return_lse=True, bias=bias)
            full = bias.expand(sizes)

            def score(s: Any, at: Any, full: Tensor = full) -> Any:
                return s + full.to(s.dtype)[at.b, at.h, at.row, at.k]

            report = check_error(out, lse, q, k, v, reference_mask(mask), scale, score)
            assert report.ok, (name, sizes, report)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("dim", [64, 128])
def test_biases_in_every_layout(dim: int, dtype: str) -> None:
    check_biases(bias_op(dim, dtype, 0), dim, "full", dtype)


@pytest.mark.parametrize("knobs", range(1, len(KNOBS)))
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_biases_under_knobs(mask: str, knobs: int) -> None:
    check_biases(bias_op(64, "bf16", knobs, mask), 64, mask, "bf16")


def test_lists_in_a_graph() -> None:
    """A graph lists the tiles of the ids that it finds when it is replayed."""
    import fa3gen

    spec = {"head_dim": 128, "mask": "causal & document(doc)"}
    ids = {"doc": {"shape": ["b", "k"], "dtype": "int32"}}
    op = fa3gen.compile({"name": "check_lists", **spec, "inputs": ids})

    def documents(count: int) -> Tensor:
        return (torch.arange(1000, device="cuda") * count // 1000).int().expand(2, 1000)

    doc = documents(5).contiguous()
    q, k, v = (torch.randn(2, 1000, 4, 128, device="cuda").bfloat16() for _ in range(3))
    wanted = op(q, k, v, doc=doc)
    assert all(torch.equal(wanted, op(q, k, v, doc=doc)) for _ in range(20))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(q, k, v, doc=doc)
    for count in (5, 3):
        doc.copy_(documents(count))
        out.zero_()
        graph.replay()
        assert torch.equal(out, op(q, k, v, doc=doc)), count
