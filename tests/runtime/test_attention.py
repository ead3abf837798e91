from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from test_op import inputs, interpreted, math_attention
from torch import Tensor

from fa3gen.errors import InputError
from fa3gen.runtime import attention as attention_module
from fa3gen.runtime.attention import Attention


@pytest.fixture(scope="module")
def attention() -> Attention:
    return Attention(interpreted(), spec="a spec")


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


def test_attributes(attention: Attention) -> None:
    assert attention.name == "small"
    assert attention.spec == "a spec"
    assert attention.artifact is None
    assert attention.op.namespace == "fa3gen"
    assert "on the interpreter" in repr(attention)


def test_spec_is_made_when_asked_for() -> None:
    made: list[str] = []

    def make() -> str:
        made.append("a spec")
        return made[-1]

    attention = Attention(interpreted(), spec=make)
    assert made == []
    assert attention.spec == attention.spec == "a spec"
    assert made == ["a spec"]
    assert Attention(interpreted()).spec is None


def test_default_scale(attention: Attention) -> None:
    q, k, v = inputs()
    out, lse = attention(q, k, v, return_lse=True)
    expected_out, expected_lse = math_attention(q, k, v, 64**-0.5)
    assert torch.equal(out, expected_out)
    assert torch.equal(lse, expected_lse)
    assert torch.equal(attention(q, k, v), out)


def test_scale(attention: Attention) -> None:
    q, k, v = inputs()
    assert torch.equal(attention(q, k, v, scale=1), math_attention(q, k, v, 1.0)[0])


def test_out(attention: Attention) -> None:
    q, k, v = inputs()
    out = torch.empty(2, 4, 5, 32, dtype=q.dtype).transpose(1, 2)
    result, lse = attention(q, k, v, out=out, return_lse=True)
    assert result is out
    assert torch.equal(out, attention(q, k, v))
    assert lse.shape == (2, 4, 5)


def test_out_counts_as_written(attention: Attention) -> None:
    q, k, v = inputs()
    out = torch.empty(2, 5, 4, 32, dtype=q.dtype)
    version = out._version
    attention(q, k, v, out=out)
    assert out._version > version
    with torch.inference_mode():
        attention(q, k, v, out=torch.empty_like(out))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(attention: Attention, backend: str) -> None:
    q, k, v = inputs()
    out = torch.empty(2, 5, 4, 32, dtype=q.dtype)

    def step(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return attention(q + 1, k, v, scale=0.5, return_lse=True)

    def step_out(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
        return attention(q + 1, k, v, scale=0.5, out=out) * 2

    expected = step(q, k, v)
    compiled = torch.compile(step, fullgraph=True, backend=backend)(q, k, v)
    torch.testing.assert_close(compiled, expected)
    doubled = torch.compile(step_out, fullgraph=True, backend=backend)(q, k, v, out)
    torch.testing.assert_close((doubled, out), (expected[0] * 2, expected[0]))


def test_lengths_do_not_recompile(attention: Attention) -> None:
    compiles = 0

    def backend(graph: torch.fx.GraphModule, example: list[object]) -> torch.fx.GraphModule:
        nonlocal compiles
        compiles += 1
        return graph

    compiled = torch.compile(attention, fullgraph=True, backend=backend, dynamic=True)
    for seqlen in (5, 8, 13):
        q, k, v = inputs(seqlen_q=seqlen, seqlen_k=2 * seqlen)
        torch.testing.assert_close(compiled(q, k, v), attention(q, k, v))
    assert compiles == 1


def test_exports(attention: Attention) -> None:
    class Module(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v)

    program = torch.export.export(Module(), inputs())
    assert attention.op in {node.target for node in program.graph.nodes}


def test_rule_broken_while_tracing_is_reported(attention: Attention) -> None:
    q, k, v = inputs()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="InputError"):
        compiled(q, k[:1], v)


Q, K, V = inputs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, K, V), r"q: must be a torch\.Tensor \(got NoneType\)"),
        ((Q.half(), K, V), r"q: dtype must be torch\.bfloat16 \(got torch\.float16\)"),
        ((Q, K.float(), V), r"k: dtype must be torch\.bfloat16 \(got torch\.float32\)"),
        ((Q[0], K, V), r"q: rank must be 4, .* \(got shape \(5, 4, 64\)\)"),
        ((Q[..., :32], K, V), r"q: head_dim must be 64 \(got 32\)"),
        ((Q, K, K), r"v: head_dim must be 32 \(got 64\)"),
        ((Q, K[:1], V), r"k, v: batch must be that of q, 2 \(got 1 and 2\)"),
        ((Q, K, V[:, :3]), r"v: seqlen must be that of k, 7 \(got 3\)"),
        ((Q, K, V[:, :, :1]), r"v: heads must be those of k, 2 \(got 1\)"),
        ((Q[:, :, :3], K, V), r"k: heads must divide those of q, 3 \(got 2\)"),
        ((Q, K[:, :, :0], V[:, :, :0]), r"k: heads must divide those of q, 4 \(got 0\)"),
        ((Q, K.to("meta"), V), r"k, v: must be on the device of q, cpu \(got meta, cpu\)"),
    ],
)
def test_bad_input(attention: Attention, arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention(*arguments)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-45, 1e300])
def test_bad_scale(attention: Attention, scale: float) -> None:
    with pytest.raises(InputError, match=r"scale: must be finite and positive.*\(got"):
        attention(Q, K, V, scale=scale)


@pytest.mark.parametrize("scale", [True, "1", torch.ones(())])
def test_scale_that_is_no_number(attention: Attention, scale: object) -> None:
    with pytest.raises(InputError, match=r"scale: must be a number \(got \w+\)"):
        attention(Q, K, V, scale=scale)  # type: ignore[arg-type]


OUT = torch.empty(2, 5, 4, 32, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (OUT.float(), r"out: dtype must be"),
        (OUT[:, :3], r"out: shape must be \(2, 5, 4, 32\) \(got \(2, 3, 4, 32\)\)"),
        (OUT.to("meta"), r"out: must be on the device of q, cpu \(got meta\)"),
        (
            torch.empty(2, 5, 32, 4, dtype=OUT.dtype).transpose(2, 3),
            r"out: last dimension must be contiguous",
        ),
        (torch.empty(2, 5, 4, 33, dtype=OUT.dtype)[..., :32], r"out: strides must be multiples"),
        (torch.empty(2, 5, 1, 32, dtype=OUT.dtype).expand(2, 5, 4, 32), r"out: strides .* not 0"),
    ],
)
def test_bad_out(attention: Attention, out: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention(Q, K, V, out=out)


def test_out_with_gradients(attention: Attention) -> None:
    q = Q.clone().requires_grad_()
    with pytest.raises(InputError, match=r"out: must not be given where gradients are recorded"):
        attention(q, K, V, out=OUT.clone())
    with torch.no_grad():
        attention(q, K, V, out=OUT.clone())


def test_interpreted_kernel_refuses_cuda_tensors(attention: Attention) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k, v = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in (Q, K, V))
        with pytest.raises(InputError, match="must be on the CPU, as small is interpreted"):
            attention(q, k, v)


@pytest.mark.parametrize("on_cuda", [False, True])
def test_another_gpu_is_refused_before_a_launch(
    monkeypatch: pytest.MonkeyPatch, on_cuda: bool
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    registered = interpreted()
    registered.on_cuda = on_cuda
    attention = Attention(registered)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(attention_module, "_checked_gpus", set())
    monkeypatch.setattr(registered, "op", None)  # to launch would be a TypeError
    with FakeTensorMode():
        q, k, v = (torch.empty(x.shape, dtype=x.dtype, device="cuda:0") for x in (Q, K, V))
        with pytest.raises(
            InputError,
            match=r"q: must be on a GPU of compute capability 9\.0, Hopper "
            r"\(got cuda:0, NVIDIA A100, 8\.0\); move the tensors",
        ):
            attention(q, k, v)


# On a GPU an eager call leaves the checks to the op, whose errors are explained afterwards.


def test_an_ops_error_is_explained_by_the_rule_that_is_broken(attention: Attention) -> None:
    with pytest.raises(InputError, match=r"k, v: batch must be that of q, 2") as caught:
        attention._explain(RuntimeError("whatever the op has said"), Q, K[:1], V, ())
    assert caught.value.__suppress_context__


def test_a_rule_that_the_op_alone_checks(attention: Attention) -> None:
    said = f"fa3gen::{attention.op._opname}: q: size of dimension 1 must be below 2^31\nException"
    with pytest.raises(InputError) as caught:
        attention._explain(RuntimeError(said), Q, K, V, ())
    assert str(caught.value) == "q: size of dimension 1 must be below 2^31"


def test_an_error_that_is_none_of_the_inputs(attention: Attention) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        attention._explain(error, Q, K, V, ())
    assert caught.value is error


def test_empty_batch_and_no_query(attention: Attention) -> None:
    for q, k, v in ((Q[:0], K[:0], V[:0]), (Q[:, :0], K, V)):
        out, lse = attention(q, k, v, return_lse=True)
        assert out.shape == (*q.shape[:3], 32)
        assert lse.numel() == 0
