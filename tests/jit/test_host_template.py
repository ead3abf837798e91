from __future__ import annotations

import dataclasses

import jinja2
import pytest
from standin import HostView, MapView, render_host


def test_names_and_values() -> None:
    text = render_host(HostView(longest_first=False, persistent=True))
    assert '"standin_kernel"' in text
    assert ".persistent = true," in text
    assert ".longest_first = false," in text
    assert ".o = {.rows = 64, .cols = 64, .swizzle_bytes = 128}," in text
    assert "//%" not in text
    assert text.endswith("}\n")


def test_each_map_is_spelled() -> None:
    maps = tuple(MapView(name, 64, 32, 64) for name in "qkvo")
    text = render_host(HostView(maps=maps))
    for name in "qkvo":
        assert f".{name} = {{.rows = 64, .cols = 32, .swizzle_bytes = 64}}," in text


def test_missing_value_is_an_error() -> None:
    view = dataclasses.replace(HostView(), maps=(object(),))  # type: ignore[arg-type]
    with pytest.raises(jinja2.UndefinedError):
        render_host(view)
