"""Attention kernels built by fa3gen; ``load()`` gives them by the names of their specs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fa3gen import Bundle

__all__ = ["load"]


@functools.cache
def load() -> Bundle:
    """The bundle of this package; its ops are then registered with torch.

    Raises fa3gen's InputError where a file is damaged, or torch is too old.
    """
    from fa3gen import load_bundle

    return load_bundle(Path(__file__).with_name("bundle"))
