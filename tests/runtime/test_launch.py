"""The host side on a GPU, with the stand-in kernel: out = q, and lse tells k, v and the scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fa3gen.errors import InputError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention, load

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU (compute capability 9.0)",
)

DEVICE = "cuda"


@pytest.fixture(scope="module")
def attention(standin_artifact: Artifact) -> Attention:
    return load(standin_artifact.directory)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


def expected_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, seqlen_q, heads, _ = q.shape
    lse = torch.full((batch, heads), scale * math.log2(math.e), device=DEVICE)
    if k.shape[1] > 0:
        first = k[:, 0, :, 0].float() + v[:, 0, :, 0].float()
        lse = lse + first.repeat_interleave(heads // k.shape[2], 1)
    return lse[:, :, None].expand(batch, heads, seqlen_q)


def check(attention: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float = 0.25) -> None:
    out, lse = attention(q, k, v, scale=scale, return_lse=True)
    assert torch.equal(out, q)
    assert out.is_contiguous()
    torch.testing.assert_close(lse, expected_lse(q, k, v, scale), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seqlen_q", [1, 63, 64, 128, 129, 1000])
@pytest.mark.parametrize("seqlen_k", [0, 1, 130])
@pytest.mark.parametrize(("batch", "heads", "heads_k"), [(1, 1, 1), (2, 6, 2), (3, 4, 4)])
def test_shapes(
    attention: Attention, seqlen_q: int, seqlen_k: int, batch: int, heads: int, heads_k: int
) -> None:
    k, v = draw(batch, seqlen_k, heads_k, 128), draw(batch, seqlen_k, heads_k, 128)
    check(attention, draw(batch, seqlen_q, heads, 128), k, v)


def test_more_work_than_processors(attention: Attention) -> None:
    check(attention, draw(4, 2000, 16, 128), draw(4, 100, 8, 128), draw(4, 100, 8, 128))


def test_in_place_layouts(attention: Attention) -> None:
    packed = draw(2, 200, 3, 4, 128)
    check(attention, *packed.unbind(2))
    transposed = draw(2, 4, 200, 128).transpose(1, 2)
    check(attention, transposed, transposed, transposed)
    expanded = draw(2, 200, 1, 128).expand(2, 200, 4, 128)
    check(attention, expanded, expanded, expanded)
    one_batch = draw(1, 200, 4, 128).expand(3, 200, 4, 128)
    check(attention, one_batch, one_batch, one_batch)
    overlapping = draw(40_000).as_strided((1, 200, 4, 128), (1, 8, 2000, 1))
    check(attention, overlapping, overlapping, overlapping)


def test_copied_layouts(attention: Attention) -> None:
    for shape, strides, offset in (
        ((2, 200, 4, 128), (102_400, 512, 128, 1), 1),  # base
        ((2, 200, 4, 128), (103_200, 516, 129, 1), 0),  # strides
        ((2, 200, 4, 128), (102_400, 512, 1, 4), 0),  # last dimension
    ):
        q = draw(250_000).as_strided(shape, strides, offset)
        check(attention, q, q, q)


def test_strides_of_single_elements_do_not_matter(attention: Attention) -> None:
    q = draw(5000).as_strided((1, 1, 1, 128), (7, 3, 5, 1))
    check(attention, q, q, q)


def test_nothing_to_do(attention: Attention) -> None:
    k = draw(1, 10, 2, 128)
    for q in (draw(0, 5, 2, 128), draw(1, 0, 2, 128), draw(1, 5, 0, 128)):
        batch, heads_k = q.shape[0], 2 if q.shape[2] else 0
        keys = k[:batch, :, :heads_k]
        out, lse = attention(q, keys, keys, return_lse=True)
        assert out.shape == q.shape
        assert lse.numel() == 0


def test_out_form(attention: Attention) -> None:
    q, k = draw(2, 150, 4, 128), draw(2, 150, 4, 128)
    out = torch.zeros(2, 4, 150, 128, device=DEVICE, dtype=q.dtype).transpose(1, 2)
    assert attention(q, k, k, out=out) is out
    assert torch.equal(out, q)
    odd = torch.zeros(2 * 150 * 4 * 128 + 1, device=DEVICE, dtype=q.dtype)[1:].view(q.shape)
    with pytest.raises(InputError, match="out: base must be a multiple of 16 bytes"):
        attention(q, k, k, out=odd)


def test_op_checks_for_itself(attention: Attention) -> None:
    q, k = draw(2, 10, 4, 128), draw(2, 10, 4, 128)
    lse = torch.empty(2, 4, 10, device=DEVICE)
    op, out_form = attention.op, attention._registered.out
    for call, message in (
        (lambda: op(q.half(), k, k, 1.0), "q: dtype must be bf16"),
        (lambda: op(q[0], k, k, 1.0), "q: rank must be 4"),
        (lambda: op(q, k.cpu(), k, 1.0), "k: must be on cuda:0"),
        (lambda: op(q, k[..., :64], k, 1.0), "k: head dim must be 128"),
        (lambda: op(q, k[:1], k, 1.0), "k: batch must be 2"),
        (lambda: op(q, k, k[:, :3], 1.0), "v: seqlen must be 10"),
        (lambda: op(q[:, :, :3], k, k, 1.0), "k: heads must divide those of q, 3"),
        (lambda: op(q, k, k, math.nan), "scale must be finite and positive"),
        (lambda: out_form(q, k, k, 1.0, q[:, :3], lse), "out: seqlen must be 10"),
        (lambda: out_form(q, k, k, 1.0, q.clone(), lse[:1]), "lse: must be contiguous of shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_a_call_explains_what_the_op_refuses(attention: Attention) -> None:
    q, k = draw(2, 10, 4, 128), draw(2, 10, 4, 128)
    attention(q, k, k)  # the GPU is known from here on
    for arguments, message in (
        ((q.half(), k, k), r"q: dtype must be torch\.bfloat16 \(got torch\.float16\)"),
        ((q[0], k, k), r"q: rank must be 4"),
        ((q, k.cpu(), k), r"k, v: must be on the device of q, cuda:0 \(got cpu, cuda:0\)"),
        ((q, k, k.to("meta")), r"k, v: must be on the device of q"),
        ((q, k[..., :64], k), r"k: head_dim must be 128 \(got 64\)"),
        ((q, k[:1], k), r"k, v: batch must be that of q, 2 \(got 1 and 2\)"),
        ((q, k, k[:, :3]), r"v: seqlen must be that of k, 10 \(got 3\)"),
        ((q[:, :, :3], k, k), r"k: heads must divide those of q, 3 \(got 4\)"),
        ((None, k, k), r"q: must be a torch\.Tensor"),
    ):
        with pytest.raises(InputError, match=message):
            attention(*arguments)
    with pytest.raises(InputError, match="scale: must be finite"):
        attention(q, k, k, scale=math.nan)


def test_a_call_records_and_counts(attention: Attention) -> None:
    q, k = draw(2, 10, 4, 128).requires_grad_(), draw(2, 10, 4, 128)
    assert attention(q, k, k).requires_grad
    with torch.no_grad():
        assert not attention(q, k, k).requires_grad
    with torch.inference_mode():
        assert attention(q, k, k).is_inference()
    assert attention(q, k, k).requires_grad
    with FlopCounterMode(display=False) as counter:
        attention(q, k, k)
    assert counter.get_total_flops() == 2 * 2 * 4 * 10 * 10 * 256


def test_current_stream_and_graph(attention: Attention) -> None:
    q, k = draw(2, 300, 4, 128), draw(2, 300, 4, 128)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = q * 2
        out = attention(late, k, k)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(out, q * 2)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, k)
    q.copy_(draw(2, 300, 4, 128))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, q)


def test_first_launch_may_be_captured(standin_artifact: Artifact) -> None:
    program = """
import sys, torch
from fa3gen.runtime.attention import load
attention = load(sys.argv[1])
q = torch.randn(1, 64, 1, 128, device="cuda", dtype=torch.bfloat16)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = attention(q, q, q)
graph.replay()
torch.cuda.synchronize()
assert torch.equal(out, q)
"""
    from test_artifact import run_python

    run_python(program, str(standin_artifact.directory))


def test_compiles(attention: Attention) -> None:
    q, k = draw(2, 300, 4, 128), draw(2, 300, 4, 128)
    compiled = torch.compile(lambda q, k: attention(q * 2, k, k) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(q, k), q * 2 + 1)
