"""InputMeta: a tensor beside q, k and v, as everyone from the compiler to the call knows it."""

from __future__ import annotations

from dataclasses import dataclass

from fa3gen.dtypes import DType

__all__ = ["InputMeta", "MAX_INPUTS"]

MAX_INPUTS = 32  # that a kernel's parameters hold


@dataclass(frozen=True)
class InputMeta:
    """A declared input: ``shape`` of ``b h hk row k`` and sizes; () for a scalar."""

    name: str
    dtype: DType
    shape: tuple[str | int, ...]

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.shape))
        return f"{self.name} ({axes}) {self.dtype.value}" if axes else f"{self.name} {self.dtype.value}"
