"""fa3gen: a kernel compiler for attention on NVIDIA Hopper GPUs.

``compile(spec)`` returns a torch op for an attention variant; ``load(directory)`` one that was
built ahead of time and needs torch alone, ``load_bundle(directory)`` many of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fa3gen import errors
from fa3gen._version import __version__

if TYPE_CHECKING:
    from fa3gen.driver import build, compile
    from fa3gen.flex import FlexVariant, from_flex
    from fa3gen.runtime.attention import Attention, load
    from fa3gen.runtime.bundle import Bundle, load_bundle
    from fa3gen.spec import AttentionSpec

__all__ = [
    "Attention",
    "AttentionSpec",
    "Bundle",
    "FlexVariant",
    "__version__",
    "build",
    "compile",
    "errors",
    "from_flex",
    "load",
    "load_bundle",
]

_HOMES = {
    "Attention": "fa3gen.runtime.attention",
    "AttentionSpec": "fa3gen.spec",
    "Bundle": "fa3gen.runtime.bundle",
    "FlexVariant": "fa3gen.flex",
    "build": "fa3gen.driver",
    "compile": "fa3gen.driver",
    "from_flex": "fa3gen.flex",
    "load": "fa3gen.runtime.attention",
    "load_bundle": "fa3gen.runtime.bundle",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``load`` brings in nothing but torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fa3gen' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
