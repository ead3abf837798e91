"""fa3gen's peers, each behind one interface: is it here, can it do this problem, call it.

Every contender takes (batch, seqlen, heads, dim) tensors and gives its output in that layout.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fa3gen.bench.problem import Problem
from fa3gen.runtime.masks import Positions, reference_mask, window_bounds

__all__ = [
    "PEERS",
    "Contender",
    "UnavailableError",
    "bind_schema",
    "load_contender",
    "own_contender",
]

FA3_LIBRARY = "FA3GEN_FA3_LIBRARY"


class UnavailableError(Exception):
    """A peer is not installed here, or cannot do a problem; the message says why."""


Run = Callable[[], Tensor]
Prepare = Callable[[Problem, Tensor, Tensor, Tensor], Run]


@dataclass(frozen=True)
class Contender:
    """One implementation.

    ``prepare(problem, q, k, v)`` does what a user does once for a shape (masks, views) and
    returns the call to time; it raises :class:`UnavailableError` for a problem it cannot do.
    """

    name: str
    prepare: Prepare
    ours: bool = False


def load_contender(name: str) -> Contender:
    """The peer called ``name``, one of :data:`PEERS`. Raises UnavailableError with the reason."""
    if name not in PEERS:
        raise UnavailableError(f"unknown peer; known: {', '.join(sorted(PEERS))}")
    return Contender(name, PEERS[name]())


def own_contender(name: str, op: Callable[..., Any]) -> Contender:
    """An fa3gen op, under any name."""

    def prepare(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Run:
        def run() -> Tensor:
            out: Tensor = op(q, k, v, scale=problem.scale)
            return out

        return run

    return Contender(name, prepare, ours=True)


def _window(problem: Problem) -> tuple[int, int]:
    bounds = window_bounds(problem.facts.mask)
    if bounds is None:
        raise UnavailableError(f"no mask {problem.facts.mask}")
    return bounds


# --- FlashAttention-3 ---------------------------------------------------------------------------

_FA3_MODULES = ("flash_attn_3._C", "flash_attn_interface", "xformers.ops.fmha.flash3")


def _load_fa3() -> Prepare:
    if library := os.environ.get(FA3_LIBRARY):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise UnavailableError(f"{FA3_LIBRARY} does not load: {error}") from error
    else:
        for module in _FA3_MODULES:
            with contextlib.suppress(ImportError, OSError):
                importlib.import_module(module)
    try:
        fwd = torch.ops.flash_attn_3.fwd.default
    except AttributeError:
        raise UnavailableError(
            f"set {FA3_LIBRARY} to its library, or install flash_attn_3 or xformers"
        ) from None
    _print_once(f"fa3: {fwd._schema}")

    def prepare(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Run:
        left, right = _window(problem)
        causal = (left, right) == (-1, 0)
        known = {
            ("q",): q,
            ("k",): k,
            ("v",): v,
            ("softmax_scale",): problem.scale,
            ("is_causal", "causal"): causal,
            ("window_size_left",): left,
            ("window_size_right",): right,
            ("num_splits",): 1,  # its Python interface's default: no split of the keys
        }
        arguments = bind_schema(fwd._schema, known)

        def run() -> Tensor:
            return _first(fwd(**arguments))

        return run

    return prepare


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)


def bind_schema(schema: Any, known: Mapping[tuple[str, ...], object]) -> dict[str, object]:
    """Keyword arguments for an op from its schema.

    ``known`` maps the names that an argument has had to its value; each must be in the schema.
    Other arguments keep their defaults, or are None where they are optional. Raises
    UnavailableError for an argument that can be neither.
    """
    values: dict[str, object] = {}
    names = {argument.name for argument in schema.arguments}
    for aliases, value in known.items():
        found = [alias for alias in aliases if alias in names]
        if not found:
            raise UnavailableError(
                f"{schema.name} has no argument {' or '.join(aliases)}: {schema}"
            )
        values[found[0]] = value
    for argument in schema.arguments:
        if argument.name in values or argument.has_default_value():
            continue
        if not isinstance(argument.type, torch._C.OptionalType):
            raise UnavailableError(
                f"{schema.name} needs {argument.name}, which is unknown: {schema}"
            )
        values[argument.name] = None
    return values


def _first(result: Any) -> Tensor:
    """The output of an op that may return more than it."""
    out: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return out


# --- torch's own --------------------------------------------------------------------------------


def _load_sdpa(backend: SDPBackend) -> Prepare:
    def prepare(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Run:
        bounds = _window(problem)
        if bounds not in ((-1, -1), (-1, 0)):
            raise UnavailableError(f"sdpa has no mask {problem.facts.mask} without a dense tensor")
        causal = bounds == (-1, 0)
        if causal and problem.seqlen_q != problem.seqlen_k:
            raise UnavailableError("sdpa aligns causal masks to the first key, not the last")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = problem.heads != problem.kv_heads

        def run() -> Tensor:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(
                    q, k, v, is_causal=causal, scale=problem.scale, enable_gqa=grouped
                )
            return out.transpose(1, 2)

        return run

    return prepare


def _load_flex() -> Prepare:
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled = torch.compile(flex_attention)
    except ImportError as error:
        raise UnavailableError(f"torch.compile does not work here: {error}") from error

    def prepare(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Run:
        keep = reference_mask(problem.facts.mask)
        offset = problem.seqlen_k - problem.seqlen_q
        group = problem.heads // problem.kv_heads

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return keep(Positions(b, h, h // group, q_idx, q_idx + offset, kv_idx))

        block_mask = None
        if problem.facts.mask != "full":
            block_mask = create_block_mask(
                mask_mod, None, None, problem.seqlen_q, problem.seqlen_k, device=str(q.device)
            )
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = problem.heads != problem.kv_heads

        def run() -> Tensor:
            out = compiled(q, k, v, block_mask=block_mask, scale=problem.scale, enable_gqa=grouped)
            return _first(out).transpose(1, 2)

        return run

    return prepare


# --- FlashAttention-4 ---------------------------------------------------------------------------


def _load_fa4() -> Prepare:
    try:
        flash_attn_func = importlib.import_module("flash_attn.cute").flash_attn_func
    except (ImportError, AttributeError) as error:
        raise UnavailableError(f"flash_attn.cute is not installed: {error}") from error

    def prepare(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Run:
        left, right = _window(problem)
        causal = (left, right) == (-1, 0)
        window = (None, None) if causal else tuple(None if x < 0 else x for x in (left, right))

        def run() -> Tensor:
            return _first(
                flash_attn_func(
                    q, k, v, softmax_scale=problem.scale, causal=causal, window_size=window
                )
            )

        return run

    return prepare


PEERS: Mapping[str, Callable[[], Prepare]] = {
    "fa3": _load_fa3,
    "cudnn": lambda: _load_sdpa(SDPBackend.CUDNN_ATTENTION),
    "fa2": lambda: _load_sdpa(SDPBackend.FLASH_ATTENTION),
    "flex": _load_flex,
    "fa4": _load_fa4,
}
