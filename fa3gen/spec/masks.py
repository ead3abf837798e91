"""The named masks, each an expression in ``q`` and ``k`` like any that a user writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

from fa3gen.spec.symbols import FloorDiv, FormulaError, Where, b, both, k, q, relation

__all__ = ["NAMED_MASKS", "NamedMask", "causal", "chunk", "document", "full", "prefix", "window"]


_BEYOND = 2**29  # more keys than there are


@dataclass(frozen=True)
class NamedMask:
    """A named mask: its parameters as the user sees them, and what builds its expression."""

    parameters: tuple[str, ...]  # none: written without parentheses
    build: Callable[..., Any]


def full() -> Any:
    """Every key."""
    return sympy.true


def causal() -> Any:
    """``k <= q``."""
    return relation("<=", k, q)


def window(left: Any, right: Any) -> Any:
    """``q - left <= k <= q + right``, both ends inclusive; -1 means unbounded on that side.

    Each side is an Integer or an integer Symbol (a run-time input, where -1 is unbounded too).
    """
    before, after = (_reach(side) for side in (left, right))
    return both(relation("<=", q - before, k), relation("<=", k, q + after))


def _reach(side: Any) -> Any:
    """The keys that a side reaches, where -1 means all."""
    _at_least(side, -1, "a window reaches -1 (unbounded) or more keys to each side")
    unbounded = relation("==", side, sympy.Integer(-1))
    return Where(unbounded, sympy.oo if side.is_Integer else sympy.Integer(_BEYOND), side)


def chunk(size: Any) -> Any:
    """``q // size == k // size``: attention inside blocks of ``size`` positions."""
    _at_least(size, 1, "a chunk holds at least 1 position")
    return relation("==", FloorDiv(q, size), FloorDiv(k, size))


def prefix(length: Any) -> Any:
    """``k < length``."""
    _at_least(length, 0, "a prefix has at least 0 keys")
    return relation("<", k, length)


def document(ids: Callable[..., Any]) -> Any:
    """``ids[b, q] == ids[b, k]``, of an input of shape [b, k]."""
    return relation("==", ids(b, q), ids(b, k))


def _at_least(value: Any, least: int, rule: str) -> None:
    if value.is_Integer and value < least:
        raise FormulaError(rule, f"write an integer from {least} up")


NAMED_MASKS = {
    "causal": NamedMask((), causal),
    "chunk": NamedMask(("size",), chunk),
    "document": NamedMask(("ids",), document),
    "full": NamedMask((), full),
    "prefix": NamedMask(("length",), prefix),
    "window": NamedMask(("left", "right"), window),
}
