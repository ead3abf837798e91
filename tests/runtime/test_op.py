from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from standin import META
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fa3gen.dtypes import DType
from fa3gen.errors import InputError, UnsupportedError
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.op import RegisteredOp, register, register_interpreted

_numbers = itertools.count()


def math_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Full attention in fp32; the results are not contiguous."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.float().repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k) * scale
    out = torch.einsum("bhqk,bkhd->bhqd", scores.softmax(-1), v).transpose(1, 2)
    return out.to(q.dtype), scores.logsumexp(-1)


def interpreted(head_dim_qk: int = 64, head_dim_v: int = 32) -> RegisteredOp:
    """A fresh op without a library."""
    meta = dataclasses.replace(
        META,
        name="small",
        op_name=f"small_{next(_numbers):08x}",
        dtype=DType.BF16,
        head_dim_qk=head_dim_qk,
        head_dim_v=head_dim_v,
    )
    return register_interpreted(meta, math_attention)


def inputs(seqlen_q: int = 5, seqlen_k: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    return draw(2, seqlen_q, 4, 64), draw(2, seqlen_k, 2, 64), draw(2, seqlen_k, 2, 32)


def test_passes_torchs_own_checks() -> None:
    registered = interpreted()
    q, k, v = inputs()
    out, lse = torch.empty(2, 5, 4, 32, dtype=torch.bfloat16), torch.empty(2, 4, 5)
    torch.library.opcheck(registered.op, (q, k, v, 0.1))
    torch.library.opcheck(registered.out, (q, k, v, 0.1, out, lse))


def test_out_form_writes_both() -> None:
    registered = interpreted()
    q, k, v = inputs()
    out, lse = torch.empty(2, 5, 4, 32, dtype=torch.bfloat16), torch.empty(2, 4, 5)
    registered.out(q, k, v, 0.1, out, lse)
    expected_out, expected_lse = registered.op(q, k, v, 0.1)
    assert torch.equal(out, expected_out)
    assert torch.equal(lse, expected_lse)


def test_a_later_interpreter_replaces_the_earlier() -> None:
    registered = interpreted()
    q, k, v = inputs()

    def ones(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return q.new_ones(2, 5, 4, 32), torch.ones(2, 4, 5)

    assert register_interpreted(registered.meta, ones) is registered
    assert torch.equal(registered.op(q, k, v, 0.1)[1], torch.ones(2, 4, 5))


def test_library_defines_schema_and_shapes_without_a_gpu(standin_artifact: Artifact) -> None:
    registered = register(standin_artifact)
    assert register(standin_artifact) is registered
    assert str(registered.op._schema).endswith(
        "(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)"
    )
    assert str(registered.out._schema).endswith("Tensor(a!) out, Tensor(b!) lse) -> ()")
    with FakeTensorMode():
        q = torch.empty(3, 17, 8, 128, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(3, 40, 2, 128, dtype=torch.bfloat16, device="cuda")
        out, lse = Attention(registered)(q, k, k, return_lse=True)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, "cuda")
    assert (lse.shape, lse.dtype) == ((3, 8, 17), torch.float32)


def test_library_op_traces_on_meta(standin_artifact: Artifact) -> None:
    attention = Attention(register(standin_artifact))
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    q = torch.empty(2, 9, 4, 128, dtype=torch.bfloat16, device="meta")
    assert compiled(q, q, q).shape == q.shape


def test_cpu_tensors_without_an_interpreter(standin_artifact: Artifact) -> None:
    registered = register(standin_artifact)
    if registered.interpreted is not None:
        pytest.skip("the interpreter is registered for this op")
    q = torch.zeros(1, 1, 1, 128, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"q: must be on a CUDA device.*\(got cpu\)"):
        Attention(registered)(q, q, q)


def test_flops_are_those_of_both_gemms() -> None:
    attention = Attention(interpreted())
    q, k, v = inputs()
    dense = 2 * (64 + 32) * (2 * 4) * 5 * 7
    for out in (None, torch.empty(2, 5, 4, 32, dtype=torch.bfloat16)):
        with FlopCounterMode(display=False) as counter:
            attention(q, k, v, out=out)
        assert counter.get_total_flops() == dense, out


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_forward_with_gradients_on_and_backward_refused(backend: str | None) -> None:
    attention = Attention(interpreted())
    call = torch.compile(attention, fullgraph=True, backend=backend) if backend else attention
    q, k, v = inputs()
    expected = attention(q, k, v)
    q.requires_grad_()
    out = call(q, k, v)
    assert torch.equal(out.detach(), expected)
    assert out.requires_grad
    with pytest.raises(UnsupportedError, match=r"small was compiled for the forward pass alone"):
        out.sum().backward()


def test_autograd_is_quiet_under_no_grad() -> None:
    attention = Attention(interpreted())
    q, k, v = inputs()
    q.requires_grad_()
    with torch.no_grad():
        assert not attention(q, k, v).requires_grad
