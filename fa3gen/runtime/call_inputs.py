"""The inputs of a call: the tensors and numbers that a variant's formulas name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta

__all__ = ["InputValue", "Sizes", "check_inputs", "gather_inputs"]

InputValue = Union[Tensor, int, float]  # noqa: UP007  (evaluated at run time on Python 3.10)

_INT32 = (-(2**31), 2**31 - 1)


def gather_inputs(
    metas: Sequence[InputMeta], given: Mapping[str, InputValue], device: torch.device
) -> tuple[Tensor, ...]:
    """The inputs in the order of the op's arguments; a number becomes a tensor on ``device``.

    Raises InputError where one is missing, unknown, or no tensor or number.
    """
    names = [meta.name for meta in metas]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"its inputs: {', '.join(names) or 'none'}"
            )
            raise InputError(f"{name}: no input of this variant; {hint}")
    return tuple(_tensor(meta, given.get(meta.name), device) for meta in metas)


def _tensor(meta: InputMeta, value: InputValue | None, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise InputError(f"{meta.name}: missing; pass it as a keyword, {meta}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or meta.shape:
        kind = "a torch.Tensor" if meta.shape else "a number or a torch.Tensor"
        raise InputError(f"{meta.name}: must be {kind}, {meta} (got {type(value).__name__})")
    if meta.dtype is DType.INT32 and not (
        isinstance(value, int) and _INT32[0] <= value <= _INT32[1]
    ):
        raise InputError(f"{meta.name}: must be an integer of 32 bits (got {value})")
    dtype: torch.dtype = getattr(torch, meta.dtype.torch_name)
    return torch.full((), value, dtype=dtype, device=device)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call that axes of inputs have."""

    b: int
    h: int
    hk: int
    row: int
    k: int

    @staticmethod
    def of(q: Tensor, k: Tensor) -> Sizes:
        """Those of a call."""
        return Sizes(q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])

    @property
    def in_order(self) -> tuple[int, int, int, int, int]:
        """Batch, heads, heads_k, seqlen_q, seqlen_k."""
        return (self.b, self.h, self.hk, self.row, self.k)

    def axis(self, axis: str | int) -> int:
        """The size of an input's axis."""
        return axis if isinstance(axis, int) else int(getattr(self, axis))


def check_inputs(
    metas: Sequence[InputMeta],
    inputs: Sequence[Tensor | None],
    sizes: Sizes,
    device: torch.device,
) -> None:
    """Raises InputError unless each input has its device, dtype and shape; an axis of the call may
    have one element, which stands for all."""
    for meta, tensor in zip(metas, inputs, strict=False):  # a plan may stand behind them
        assert tensor is not None
        dtype: torch.dtype = getattr(torch, meta.dtype.torch_name)
        if tensor.dtype != dtype:
            raise InputError(f"{meta.name}: dtype must be {dtype} (got {tensor.dtype})")
        if tensor.device != device:
            raise InputError(
                f"{meta.name}: must be on the device of q, {device} (got {tensor.device})"
            )
        expected = tuple(map(sizes.axis, meta.shape))
        fits = tensor.dim() == len(expected) and all(
            size == wanted or (size == 1 and isinstance(axis, str))
            for size, wanted, axis in zip(tensor.shape, expected, meta.shape, strict=False)
        )
        if not fits:
            axes = ", ".join(map(str, meta.shape))
            raise InputError(
                f"{meta.name}: shape must be ({axes}) = {expected} (got {tuple(tensor.shape)})"
            )
