"""Where the shipped templates and specs are. No other module knows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["INCLUDE", "SPECS", "TEMPLATES"]

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """A data folder: inside the wheel, or beside the package in a checkout."""
    inside = _PACKAGE / "_data" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


TEMPLATES = _shipped("templates")
SPECS = _shipped("specs")
INCLUDE = TEMPLATES / "include"
