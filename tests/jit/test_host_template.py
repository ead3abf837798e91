from __future__ import annotations

import dataclasses
from typing import Any

import jinja2
import pytest
from standin import KERNEL, HostView, LaunchView, MapView, host_with_inputs, render_host

from fa3gen.dtypes import DType
from fa3gen.inputs import InputMeta


def host(**values: Any) -> HostView:
    return HostView(kernels=(LaunchView(**values),))


def test_names_and_values() -> None:
    text = render_host(host(longest_first=False, persistent=True))
    assert '"standin_kernel"' in text
    assert ".persistent = true," in text
    assert ".longest_first = false," in text
    assert ".o = {.rows = 64, .cols = 64, .swizzle_bytes = 128}," in text
    assert "//%" not in text
    assert text.endswith("}\n")


def test_each_map_is_spelled() -> None:
    maps = tuple(MapView(name, 64, 32, 64) for name in "qkvo")
    text = render_host(host(maps=maps))
    for name in "qkvo":
        assert f".{name} = {{.rows = 64, .cols = 32, .swizzle_bytes = 64}}," in text


def test_missing_value_is_an_error() -> None:
    view = host(maps=(object(),))
    with pytest.raises(jinja2.UndefinedError):
        render_host(view)


def test_kernels_are_tried_in_order() -> None:
    short = dataclasses.replace(KERNEL, stem="kernel_to_512", symbol="few", max_keys=512)
    text = render_host(HostView(kernels=(LaunchView(short), LaunchView())))
    assert 'DeviceKernel kernel_to_512(fa3gen_kernel_to_512, "few", ' in text
    assert text.index(".max_keys = 512,") < text.index(".max_keys = fa3gen::host::kAnyKeys,")


SCALARS = {
    DType.FP32: ("fp32", "Float"),
    DType.BF16: ("bf16", "BFloat16"),
    DType.FP16: ("fp16", "Half"),
    DType.INT32: ("int32", "Int"),
}


@pytest.mark.parametrize("dtype", SCALARS, ids=lambda dtype: dtype.value)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ""),
        (("h",), "fa3gen::host::kAxisHeads"),
        ((7, 255), "7, 255"),
        (("b", "k"), "fa3gen::host::kAxisBatch, fa3gen::host::kAxisKey"),
        (
            ("b", "hk", 3, "row"),
            "fa3gen::host::kAxisBatch, fa3gen::host::kAxisKvHeads, 3, fa3gen::host::kAxisRow",
        ),
    ],
    ids=str,
)
def test_an_input_is_spelled(shape: tuple[str | int, ...], axes: str, dtype: DType) -> None:
    text = render_host(host_with_inputs(InputMeta("table", dtype, shape)))
    name, scalar = SCALARS[dtype]
    assert (
        f'{{.name = "table", .dtype = "{name}", .scalar = fa3gen::host::ScalarType::{scalar}, '
        f".rank = {len(shape)}, .axes = {{{axes}}}}},"
    ) in text
    assert ".inputs = kInputs," in text


def test_inputs_are_arguments_of_both_ops() -> None:
    """In order; C++ names are such that no macro and no other argument has them."""
    inputs = (InputMeta("alpha", DType.FP32, ()), InputMeta("NULL", DType.INT32, ("b", "k")))
    text = render_host(host_with_inputs(*inputs))
    schema = "(Tensor q, Tensor k, Tensor v, float scale, Tensor alpha, Tensor NULL"
    assert f'm.def("inputs_00000001{schema}) -> (Tensor, Tensor)");' in text
    outputs = "Tensor(a!) out, Tensor(b!) lse) -> ()"
    assert f'm.def("inputs_00000001_out{schema}, {outputs}");' in text
    arguments = "Tensor q, Tensor k, Tensor v, double scale, Tensor alpha_, Tensor NULL_"
    assert f"forward({arguments}) {{" in text
    assert f"forward_out({arguments}, Tensor out, Tensor lse) {{" in text
    assert "fa3gen::host::forward(kOp, q, k, v, scale, {alpha_, NULL_});" in text
    assert "fa3gen::host::forward_out(kOp, q, k, v, scale, {alpha_, NULL_}, out, lse);" in text


def test_without_inputs_nothing_is_said_of_them() -> None:
    text = render_host(HostView())
    assert "kInputs" not in text
    assert ".inputs = {}," in text
    assert "forward(kOp, q, k, v, scale, {});" in text
