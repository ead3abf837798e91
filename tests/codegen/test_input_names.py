"""Names of inputs, which a stranger chooses: in C++, in torch's schemas and in calls.

C++ text has an input's name as ``name_`` (a member, a parameter) or before ``_of_rows_``: what
could still change its meaning is a macro of a header.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fa3gen.codegen import render
from fa3gen.codegen.source import OpSource
from fa3gen.errors import SpecError, ToolchainError
from fa3gen.inputs import MAX_INPUTS
from fa3gen.jit.steps import DEVICE_FLAGS, HOST_FLAGS
from fa3gen.jit.toolchain import Toolchain, find_toolchain
from fa3gen.paths import INCLUDE
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.op import register_interpreted
from fa3gen.schedule import make_plan
from fa3gen.spec import AttentionSpec

NAMES = """
    threadIdx blockIdx warpSize half float4 uint2 dim3 min_ abs_ printf memcpy fmaf tanhf sqrtf
    NULL NDEBUG INFINITY NAN M_PI EOF errno stdin linux unix signbit isnan isfinite major
    minor CUTE_DEVICE CUTLASS_ASSERT CUDART_INF_F TORCH_BOX STABLE_TORCH_LIBRARY_IMPL CHECK EXCEPT
    I J X Y i j r n x y z w c0 r0 w0 b0 p0 far0 base bias offset product column pair element tile
    params inputs Inputs Params shared smem sQ sK sV sO tSrS tOrO row_max row_sum kv work mask kept
    score_factor kOp kInputs kKernels kernel lists forward forward_out Tensor tensor scalar shape
    strides sizes device name dtype rank axes fa3gen torch std cute optional tuple int64_t uint8_t
    size_t int32_t bool_ main getline block_m block_n m_block key_begin known shift first_row
    cls args kwargs inputs_ spec op print type match_ case_ object len dict id None_ Any Optional
    Float Int Half BFloat16 Dict List Future Storage Scalar Layout Device Generator inplace mutates
    schema dispatch kernel_ requires_grad grad input query key value attn_mask dropout_p is_causal
    softmax_scale causal_ window_ deterministic seqused cu_seqlens page_table device_index stream
    library m impl def_ a a_ A zoo oo nan E S N O Q pi beta gamma lambda_ Symbol Function Integer
"""
REFUSED = """
    and or xor not compl bitand bitor and_eq xor_eq class int float return auto typename constexpr
    asm register lambda def import None True False with async await yield global nonlocal del is in
    row q k b h hk v score seqlen_q seqlen_k inf tanh exp min max where floor causal window full out
    lse scale return_lse self plan like batch heads heads_k _x __x x__y _X __init__ 1x x-y x.y x! é
    /etc/passwd ../x x;y x" x\\
"""
ODD = ["a\0", "a\u200b", "x\n", "\uff4b", "CU_COMPLEX_H", "C10_MACROS_EXPORT_H"]


def _spec(names: list[str]) -> AttentionSpec:
    """A spec that looks each input up, by rows and by keys, in its formula and in its mask."""
    shapes = ["b", "k"], ["h"], [], ["b", "h", "row", "k"]
    inputs = {
        name: {"shape": shapes[i % 4], "dtype": "int32" if i % 4 == 0 else "fp32"}
        for i, name in enumerate(names)
    }
    index = "[b, {}]", "[h]", "", "[b, h, row, k]"
    uses = [name + index[i % 4].format("k") for i, name in enumerate(names)]
    keys = names[::4]
    mask = " and ".join(f"{name}[b, q] == {name}[b, k]" for name in keys)
    return AttentionSpec(head_dim=64, score=" + ".join(["score", *uses]), mask=mask, inputs=inputs)


GROUPS = [NAMES.split()[i : i + MAX_INPUTS] for i in range(0, len(NAMES.split()), MAX_INPUTS)]


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    try:
        return find_toolchain()
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sources() -> list[OpSource]:
    """Kernels whose inputs have the names."""
    return [render(make_plan(_spec(names))) for names in GROUPS]


def _host_command(toolchain: Toolchain) -> list[str]:
    system = [toolchain.torch_include, *toolchain.cuda_include]
    folders = [word for path in system for word in ("-isystem", str(path))]
    return [str(toolchain.cxx), *HOST_FLAGS, f"-I{INCLUDE}", *folders]


def _device_command(toolchain: Toolchain) -> list[str]:
    flags = [flag for flag in DEVICE_FLAGS if flag not in ("-Xptxas", "-v")]
    folders = [f"-I{INCLUDE}", f"-I{toolchain.cutlass_include}"]
    return [str(toolchain.nvcc), "-ccbin", str(toolchain.cxx), *flags, *folders]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_hosts_compile(toolchain: Toolchain, sources: list[OpSource], tmp_path: Path) -> None:
    """In one translation unit, each in a namespace of its own."""
    lines = ["#include <torch/csrc/stable/library.h>", '#include "fa3gen/host/forward.h"']
    for i, source in enumerate(sources):
        body, _, _ = source.host.partition("STABLE_TORCH_LIBRARY_FRAGMENT")
        lines += [f"namespace unit_{i} {{", re.sub("#include.*", "", body), "}"]
    path = tmp_path / "host.cpp"
    path.write_text("\n".join(lines))
    _run([*_host_command(toolchain), "-fsyntax-only", str(path)])


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(GROUPS)))
def test_kernels_compile(
    index: int, toolchain: Toolchain, sources: list[OpSource], tmp_path: Path
) -> None:
    for unit in sources[index].units:
        path = tmp_path / f"{unit.meta.stem}.cu"
        path.write_text(unit.text)
        _run([*_device_command(toolchain), str(path), "-o", str(tmp_path / "kernel.cubin")])


@pytest.mark.parametrize("side", ["host", "device"])
def test_no_macro_has_such_a_name(
    side: str, toolchain: Toolchain, sources: list[OpSource], tmp_path: Path
) -> None:
    """Of all macros of all headers, not only those of which someone thought."""
    source = sources[0]
    texts = [source.host] if side == "host" else [unit.text for unit in source.units]
    includes = re.findall(r"#include.*", "\n".join(texts))
    path = tmp_path / ("host.cpp" if side == "host" else "kernel.cu")
    path.write_text("\n".join(includes))
    if side == "host":
        text = _run([*_host_command(toolchain), "-E", "-dM", str(path)])
    else:
        flags = [flag for flag in _device_command(toolchain) if flag != "-cubin"]
        text = _run([*flags, "-E", "-Xcompiler", "-dM", "-D__CUDA_ARCH__=900", str(path)])
    macros = re.findall(r"^#define (\w+)(?=\s|$)", text, re.M)  # those of functions need a bracket
    assert len(macros) > 1000
    assert {"NULL", "CU_COMPLEX_H_"} & set(macros)
    ends = re.compile(r"(.+?)(?:_|_of_(?:rows|keys)_\d+)")
    taken = [match[1] for macro in macros if (match := ends.fullmatch(macro))]
    assert [name for name in taken if _is_allowed(name)] == []


def _is_allowed(name: str) -> bool:
    try:
        AttentionSpec(head_dim=64, inputs={name: {"dtype": "fp32"}})
    except SpecError:
        return False
    return True


@pytest.mark.parametrize(
    "name", [*REFUSED.split(), "", " ", "a" * 65, "a\0", "a\u200b", "x\n", "\uff4b"]
)
def test_refused(name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        AttentionSpec(head_dim=64, inputs={name: {"dtype": "fp32"}})


class _Zeros:
    """Stands for an op's implementation."""

    def __call__(self, q: Tensor, *more: Tensor | float | None) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(q), q.new_zeros(q.shape[0], q.shape[2], q.shape[1]).float()

    def plan(self, *sizes_and_inputs: int | Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.int32)


def test_each_name_can_be_given_in_a_call(sources: list[OpSource]) -> None:
    """Through torch's schemas, its wrappers and ours."""
    q = torch.zeros(1, 16, 1, 64, dtype=torch.bfloat16)
    sizes = {"b": 1, "h": 1, "row": 16, "k": 16}
    for source in sources:
        values = {
            one.name: torch.zeros(
                [sizes[axis] for axis in one.shape if isinstance(axis, str)],
                dtype=getattr(torch, one.dtype.torch_name),
            )
            for one in source.meta.inputs
        }
        out = Attention(register_interpreted(source.meta, _Zeros()))(q, q, q, **values)
        assert out.shape == q.shape
