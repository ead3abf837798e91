from __future__ import annotations

import dataclasses
from typing import Any

import jinja2
import pytest
from standin import KERNEL, HostView, LaunchView, MapView, render_host


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
