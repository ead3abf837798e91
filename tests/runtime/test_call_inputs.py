"""Inputs of a call: their checks, and an op that takes them through torch's own machinery."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from standin import META
from test_op import inputs as draw_qkv
from test_op import math_attention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fa3gen.dtypes import DType
from fa3gen.errors import InputError, UnsupportedError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.attention import Attention, load
from fa3gen.runtime.op import RegisteredOp, register_interpreted

_numbers = itertools.count()
INPUTS = (
    InputMeta("alpha", DType.FP32, ()),
    InputMeta("bias", DType.BF16, ("b", "h", "row", "k")),
    InputMeta("doc", DType.INT32, ("b", "k")),
    InputMeta("reach", DType.INT32, ()),
    InputMeta("shift", DType.FP16, ("hk", 3)),
)
NAMES = [meta.name for meta in INPUTS]
Q, K, V = draw_qkv()  # batch 2, 5 queries, 7 keys, heads 4 and 2
BIAS = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
DOC = torch.arange(14, dtype=torch.int32).reshape(2, 7)
SHIFT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).half()
GIVEN: dict[str, Any] = {"alpha": 2.0, "bias": BIAS, "doc": DOC, "reach": 3, "shift": SHIFT}


def compute(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention whose LSE tells every input, and in which order they came."""
    out, lse = math_attention(q, k, v, scale)
    alpha, bias, doc, reach, shift = inputs
    told = alpha + 10 * bias.float().sum(-1) + 100 * doc.sum(1).view(-1, 1, 1) + 1000 * reach
    return out, lse + told + shift.float().sum()


def registered(metas: tuple[InputMeta, ...] = INPUTS) -> RegisteredOp:
    """A fresh op with inputs."""
    name = f"more_{next(_numbers):08x}"
    meta = dataclasses.replace(META, name="more", op_name=name, head_dim_qk=64, head_dim_v=32)
    return register_interpreted(dataclasses.replace(meta, inputs=metas), compute)


def tensors(**changes: Any) -> tuple[Tensor, ...]:
    """The inputs in the op's order, all as tensors."""
    scalars = {"alpha": torch.tensor(2.0), "reach": torch.tensor(3, dtype=torch.int32)}
    return tuple({**GIVEN, **scalars, **changes}[name] for name in NAMES)


@pytest.fixture(scope="module")
def attention() -> Attention:
    return Attention(registered())


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


# --- the op ---------------------------------------------------------------------------------------


def test_schema() -> None:
    op = registered()
    given = "Tensor q, Tensor k, Tensor v, float scale"
    more = "".join(f", Tensor {name}" for name in NAMES)
    name = op.meta.op_name
    assert str(op.op._schema) == f"fa3gen::{name}({given}{more}) -> (Tensor, Tensor)"
    outputs = "Tensor(a!) out, Tensor(b!) lse"
    assert str(op.out._schema) == f"fa3gen::{name}_out({given}{more}, {outputs}) -> ()"


def test_passes_torchs_own_checks() -> None:
    op = registered()
    out, lse = torch.empty(2, 5, 4, 32, dtype=torch.bfloat16), torch.empty(2, 4, 5)
    torch.library.opcheck(op.op, (Q, K, V, 0.1, *tensors()))
    torch.library.opcheck(op.out, (Q, K, V, 0.1, *tensors(), out, lse))


def test_flops_do_not_count_inputs(attention: Attention) -> None:
    for out in (None, torch.empty(2, 5, 4, 32, dtype=torch.bfloat16)):
        with FlopCounterMode(display=False) as counter:
            attention(Q, K, V, out=out, **GIVEN)
        assert counter.get_total_flops() == 2 * (64 + 32) * (2 * 4) * 5 * 7


def test_inputs_are_passed_in_order_whatever_the_calls(attention: Attention) -> None:
    expected = compute(Q, K, V, 64**-0.5, *tensors())
    for names in (NAMES, NAMES[::-1]):
        found = attention(Q, K, V, return_lse=True, **{name: GIVEN[name] for name in names})
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_out_form(attention: Attention) -> None:
    out = torch.empty(2, 5, 4, 32, dtype=Q.dtype)
    result, lse = attention(Q, K, V, out=out, return_lse=True, **GIVEN)
    assert result is out
    torch.testing.assert_close((out, lse), compute(Q, K, V, 64**-0.5, *tensors()))


def test_an_input_may_require_grad() -> None:
    """It is recorded like q, k and v are, and refused as soon as the backward would run."""
    attention = Attention(registered())
    bias = BIAS.clone().requires_grad_()
    out = attention(Q, K, V, **{**GIVEN, "bias": bias})
    assert out.requires_grad
    with pytest.raises(UnsupportedError, match="more was compiled for the forward pass alone"):
        out.sum().backward()
    with torch.no_grad():
        assert not attention(Q, K, V, **{**GIVEN, "bias": bias}).requires_grad
    with pytest.raises(InputError, match="out: must not be given where gradients are recorded"):
        attention(Q, K, V, out=torch.empty_like(out), **{**GIVEN, "bias": bias})


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(attention: Attention, backend: str) -> None:
    def step(q: Tensor, bias: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        given = {**GIVEN, "bias": bias * 2, "alpha": alpha}
        return attention(q + 1, K, V, scale=0.5, return_lse=True, **given)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for alpha in (2.0, 3.5):
        torch.testing.assert_close(compiled(Q, BIAS, alpha), step(Q, BIAS, alpha))


def test_lengths_do_not_recompile(attention: Attention) -> None:
    compiles = 0

    def backend(graph: torch.fx.GraphModule, example: list[object]) -> torch.fx.GraphModule:
        nonlocal compiles
        compiles += 1
        return graph

    compiled = torch.compile(attention, fullgraph=True, backend=backend, dynamic=True)
    for seqlen in (5, 8, 13):
        q, k, v = draw_qkv(seqlen_q=seqlen, seqlen_k=2 * seqlen)
        bias = torch.zeros(2, 4, seqlen, 2 * seqlen, dtype=torch.bfloat16)
        doc = torch.zeros(2, 2 * seqlen, dtype=torch.int32)
        given = {**GIVEN, "bias": bias, "doc": doc}
        torch.testing.assert_close(compiled(q, k, v, **given), attention(q, k, v, **given))
    assert compiles == 1


def test_exports(attention: Attention) -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return attention(q, k, v, **{**GIVEN, "bias": bias})

    program = torch.export.export(Module(), (Q, K, V, BIAS))
    assert attention.op in {node.target for node in program.graph.nodes}
    found = program.module()(Q, K, V, BIAS)
    torch.testing.assert_close(found, attention(Q, K, V, **GIVEN))


def test_rule_broken_while_tracing_is_reported(attention: Attention) -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"bias: dtype must be torch\.bfloat16"):
        compiled(Q, K, V, **{**GIVEN, "bias": BIAS.float()})


def test_library_with_inputs(inputs_artifact: Artifact) -> None:
    """Its host side is compiled, and says what it takes, without a GPU."""
    assert inputs_artifact == Artifact.read(inputs_artifact.directory)
    assert [str(meta) for meta in inputs_artifact.inputs] == [
        "alpha fp32",
        "relative (b, hk, 255, row) bf16",
    ]
    attention = load(inputs_artifact.directory)
    more = "Tensor q, Tensor k, Tensor v, float scale, Tensor alpha, Tensor relative"
    assert f"({more}) -> (Tensor, Tensor)" in str(attention.op._schema)
    with FakeTensorMode():
        q = torch.empty(3, 17, 8, 128, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(3, 40, 2, 128, dtype=torch.bfloat16, device="cuda")
        relative = torch.empty(3, 2, 255, 17, dtype=torch.bfloat16, device="cuda")
        short = torch.empty(3, 2, 3, 17, dtype=torch.bfloat16, device="cuda")
        out, lse = attention(q, k, k, alpha=0.5, relative=relative, return_lse=True)
        assert (out.shape, lse.shape) == (q.shape, (3, 8, 17))
        with pytest.raises(InputError, match=r"relative: shape must be \(b, hk, 255, row\) ="):
            attention(q, k, k, alpha=0.5, relative=short)


# --- what a call may give -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 2),
        ("alpha", -0.5),
        ("alpha", torch.tensor(1.5)),
        ("reach", -(2**31)),
        ("reach", 2**31 - 1),
        ("reach", torch.tensor(7, dtype=torch.int32)),
    ],
    ids=str,
)
def test_scalars(attention: Attention, name: str, value: Any) -> None:
    _, lse = attention(Q, K, V, return_lse=True, **{**GIVEN, name: value})
    dtype = torch.float32 if name == "alpha" else torch.int32
    wanted = tensors(**{name: torch.as_tensor(value, dtype=dtype)})
    torch.testing.assert_close(lse, compute(Q, K, V, 64**-0.5, *wanted)[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", BIAS[:1]),
        ("bias", BIAS[:, :1, :1]),
        ("bias", BIAS[:1, :1, :1, :1]),
        ("bias", BIAS.transpose(2, 3).contiguous().transpose(2, 3)),
        ("bias", BIAS[:1].expand(2, -1, -1, -1)),
        ("doc", DOC[:, :1]),
        ("shift", SHIFT[:1]),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else value,
)
def test_an_axis_of_the_call_may_have_one_element(
    attention: Attention, name: str, value: Tensor
) -> None:
    given = {**GIVEN, name: value}
    torch.testing.assert_close(attention(Q, K, V, **given), attention(Q, K, V, **GIVEN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc": None}, r"doc: missing; pass it as a keyword, doc \(b, k\) int32"),
        ({"alpha": None}, r"alpha: missing; pass it as a keyword, alpha fp32"),
        ({"alpa": 1.0}, r"alpa: no input of this variant; did you mean alpha\?"),
        (
            {"zzz": 1.0},
            r"zzz: no input of this variant; its inputs: alpha, bias, doc, reach, shift",
        ),
        ({"doc": 3}, r"doc: must be a torch\.Tensor, doc \(b, k\) int32 \(got int\)"),
        ({"doc": [1, 2]}, r"doc: must be a torch\.Tensor, .* \(got list\)"),
        ({"alpha": True}, r"alpha: must be a number or a torch\.Tensor, .* \(got bool\)"),
        ({"alpha": "1"}, r"alpha: must be a number or a torch\.Tensor, .* \(got str\)"),
        ({"reach": True}, r"reach: must be a number or a torch\.Tensor, .* \(got bool\)"),
        ({"reach": 1.5}, r"reach: must be an integer of 32 bits \(got 1\.5\)"),
        ({"reach": 2**31}, r"reach: must be an integer of 32 bits \(got 2147483648\)"),
        ({"reach": -(2**31) - 1}, r"reach: must be an integer of 32 bits \(got -2147483649\)"),
        ({"reach": torch.tensor(3)}, r"reach: dtype must be torch\.int32 \(got torch\.int64\)"),
        ({"alpha": torch.ones(1)}, r"alpha: shape must be \(\) = \(\) \(got \(1,\)\)"),
        (
            {"bias": BIAS.half()},
            r"bias: dtype must be torch\.bfloat16 \(got torch\.float16\)",
        ),
        ({"doc": DOC.to("meta")}, r"doc: must be on the device of q, cpu \(got meta\)"),
        ({"doc": DOC[0]}, r"doc: shape must be \(b, k\) = \(2, 7\) \(got \(7,\)\)"),
        ({"doc": DOC[:, :5]}, r"doc: shape must be \(b, k\) = \(2, 7\) \(got \(2, 5\)\)"),
        ({"bias": BIAS[:, :, :, :0]}, r"bias: shape must be \(b, h, row, k\) = \(2, 4, 5, 7\)"),
        ({"bias": BIAS[:, :2]}, r"bias: shape must be .* \(got \(2, 2, 5, 7\)\)"),
        ({"shift": SHIFT[:, :1]}, r"shift: shape must be \(hk, 3\) = \(2, 3\) \(got \(2, 1\)\)"),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else None,
)
def test_bad_inputs(attention: Attention, changes: dict[str, Any], message: str) -> None:
    """A fixed size is not broadcast; an axis of the call is, but not from nothing."""
    given = {name: value for name, value in {**GIVEN, **changes}.items() if value is not None}
    for out in (None, torch.empty(2, 5, 4, 32, dtype=Q.dtype)):
        with pytest.raises(InputError, match=message):
            attention(Q, K, V, out=out, **given)


def test_q_is_checked_before_inputs(attention: Attention) -> None:
    with pytest.raises(InputError, match="q: dtype"):
        attention(Q.float(), K, V, **{**GIVEN, "bias": BIAS.float()})


def test_a_variant_without_inputs_takes_none() -> None:
    attention = Attention(registered(()))
    with pytest.raises(InputError, match=r"alpha: no input of this variant; its inputs: none"):
        attention(Q, K, V, alpha=1.0)


def test_an_ops_error_is_explained_by_the_input_that_is_wrong(attention: Attention) -> None:
    with pytest.raises(InputError, match="doc: dtype"):
        attention._explain(RuntimeError("whatever"), Q, K, V, tensors(doc=DOC.long()))


def test_calls_without_elements(attention: Attention) -> None:
    for given in (
        {"q": Q[:0], "k": K[:0], "v": V[:0], "bias": BIAS[:0], "doc": DOC[:0]},
        {"q": Q[:, :0], "bias": BIAS[:, :, :0]},
    ):
        arguments = {"q": Q, "k": K, "v": V, **GIVEN, **given}
        out, lse = attention(**arguments, return_lse=True)
        assert out.shape == (*arguments["q"].shape[:3], 32)
        assert lse.numel() == 0
