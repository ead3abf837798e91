"""Inputs of formulas and masks, drawn as their specs say; needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.call_inputs import Sizes

__all__ = ["EXAMPLES", "InputExample", "draw_examples", "examples_of"]

EXAMPLES = ("normal", "uniform", "segments")
_SIZES = {"normal": 1, "uniform": 2, "segments": 100}  # where a spec gives none


@dataclass(frozen=True)
class InputExample:
    """How an input is drawn.

    ``normal``: with the spread ``size`` (1), rounded for integers. ``uniform``: from 0 up to
    ``size`` (integers below 2, reals below 1). ``segments``: ids that rise by one at the end of
    each segment along the last axis, of 1 to 2 * ``size`` - 1 positions (100).
    """

    meta: InputMeta
    example: str | None = None  # None: normal, and uniform of integers
    size: int | None = None

    def __post_init__(self) -> None:
        if self.example not in (None, *EXAMPLES):
            raise InputError(
                f"{self.meta.name}: its example must be one of {', '.join(EXAMPLES)} "
                f"(got {self.example!r})"
            )

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A tensor on the CPU."""
        whole = self.meta.dtype is DType.INT32
        example = self.example or ("uniform" if whole else "normal")
        default = 1 if example == "uniform" and not whole else _SIZES[example]
        size = default if self.size is None else self.size
        if example == "segments":
            drawn = _segments(shape, size, generator)
        elif example == "normal":
            drawn = torch.randn(shape, generator=generator) * size
        elif whole:
            drawn = torch.randint(0, size, shape, generator=generator)
        else:
            drawn = torch.rand(shape, generator=generator) * size
        dtype: torch.dtype = getattr(torch, self.meta.dtype.torch_name)
        return (drawn.round() if whole and drawn.is_floating_point() else drawn).to(dtype)


def examples_of(
    metas: Iterable[InputMeta], examples: Mapping[str, Mapping[str, Any]]
) -> tuple[InputExample, ...]:
    """The inputs of an op with ``{name: {"example": .., "size": ..}}``, both optional.

    Raises InputError for other names and keys.
    """
    metas = tuple(metas)
    if unknown := set(examples) - {meta.name for meta in metas}:
        raise InputError(f"{min(unknown)}: no input of this variant")
    for name, given in examples.items():
        if strange := set(given) - {"example", "size"}:
            raise InputError(f"{name}: {min(strange)} is neither example nor size")
    return tuple(InputExample(meta, **examples.get(meta.name, {})) for meta in metas)


def draw_examples(
    examples: Iterable[InputExample], sizes: Sizes, seed: int, device: torch.device | str
) -> dict[str, Tensor]:
    """A tensor for each input, for a call of these sizes; the same values on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for one in examples:
        shape = tuple(map(sizes.axis, one.meta.shape))
        drawn[one.meta.name] = one.draw(shape, generator).to(device)
    return drawn


def _segments(shape: tuple[int, ...], size: int, generator: torch.Generator) -> Tensor:
    """Ids of segments along the last axis, each row with segments of its own."""
    length = shape[-1] if shape else 1
    rows = torch.Size(shape[:-1]).numel()
    # A segment has a position at the least, so that so many lengths are enough.
    lengths = torch.randint(1, max(2, 2 * size), (rows, length), generator=generator)
    ends = lengths.cumsum(-1)
    ids = torch.searchsorted(ends, torch.arange(length).expand(rows, -1).contiguous(), right=True)
    return ids.view(shape)
