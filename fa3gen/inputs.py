"""InputMeta: a tensor beside q, k and v, as everyone from the compiler to the call knows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fa3gen.dtypes import DType

__all__ = ["MAX_INPUTS", "InputMeta", "by_key", "forward_schema", "op_schemas", "plan_schema"]

MAX_INPUTS = 32  # that a kernel's parameters hold


@dataclass(frozen=True)
class InputMeta:
    """A declared input: ``shape`` of ``b h hk row k`` and sizes; () for a scalar."""

    name: str
    dtype: DType
    shape: tuple[str | int, ...]
    masks: bool = False  # the mask names it, so that plans depend on it

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.shape))
        return (
            f"{self.name} ({axes}) {self.dtype.value}"
            if axes
            else f"{self.name} {self.dtype.value}"
        )


def by_key(inputs: Iterable[InputMeta]) -> frozenset[str]:
    """The inputs that lie in memory key by key."""
    return frozenset(one.name for one in inputs if one.shape and one.shape[-1] == "k")


def forward_schema(inputs: Iterable[InputMeta], listed: bool) -> str:
    """What a variant's op takes after ``scale``, in torch's schema language."""
    tensors = "".join(f", Tensor {one.name}" for one in inputs)
    return f"{tensors}, Tensor? plan" if listed else tensors


def plan_schema(inputs: Iterable[InputMeta]) -> str:
    """What the op takes that makes plans."""
    sizes = "int batch, int heads, int heads_k, int seqlen_q, int seqlen_k"
    return f"Tensor like, {sizes}" + "".join(f", Tensor {one.name}" for one in inputs)


def op_schemas(op_name: str, inputs: Sequence[InputMeta], listed: bool) -> tuple[str, ...]:
    """The schemas of a variant's ops: the op, its out form and, of a ``listed`` one, the op that
    makes plans."""
    arguments = "Tensor q, Tensor k, Tensor v, float scale" + forward_schema(inputs, listed)
    outputs = "Tensor(a!) out, Tensor(b!) lse"
    pair = (
        f"{op_name}({arguments}) -> (Tensor, Tensor)",
        f"{op_name}_out({arguments}, {outputs}) -> ()",
    )
    return (*pair, f"{op_name}_plan({plan_schema(inputs)}) -> Tensor") if listed else pair
