"""OpSource: the text of a variant's kernels and its host side, and the facts that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from fa3gen.dtypes import DType
from fa3gen.inputs import InputMeta

__all__ = ["KernelMeta", "KernelSource", "OpSource", "VariantMeta"]


@dataclass(frozen=True)
class VariantMeta:
    """What the runtime must know of a variant without reading its text."""

    name: str  # the spec's name, a C identifier
    op_name: str  # torch op name inside the namespace fa3gen: <name>_<hash8>
    dtype: DType  # of q, k, v and out
    head_dim_qk: int
    head_dim_v: int
    inputs: tuple[InputMeta, ...] = ()  # in the order of the op's arguments
    listed: bool = False  # calls take a plan: lists of KV tiles


@dataclass(frozen=True)
class KernelMeta:
    """What the build and the launch must know of one kernel."""

    stem: str  # its files' name without a suffix
    symbol: str  # its extern "C" name in the cubin
    max_keys: int | None  # the most keys of a call that takes it; None: any number
    block_m: int  # query rows of a work tile
    block_n: int  # keys of a KV tile
    threads: int  # of a CTA
    smem_bytes: int  # dynamic shared memory of a CTA


@dataclass(frozen=True)
class KernelSource:
    """CUDA text of one kernel, compiled to a cubin."""

    meta: KernelMeta
    text: str
    alternative: str | None = None  # a macro that spells the kernel another way; the build tries it
    paced: bool = False  # the build lowers the assembler's stall counts before exponentials


@dataclass(frozen=True)
class OpSource:
    """CUDA and C++ text of a variant: a pure function of spec, schedules and templates.

    ``kernels``: a call takes the first whose ``max_keys`` is not below its keys; the last takes any
    number.
    """

    meta: VariantMeta
    kernels: tuple[KernelSource, ...]
    lists: KernelSource | None  # the kernel that lists KV tiles before them
    host: str  # the .cpp translation unit (torch stable ABI, embeds the cubins)

    @property
    def units(self) -> tuple[KernelSource, ...]:
        """All that is compiled to a cubin."""
        return (*self.kernels, *([] if self.lists is None else [self.lists]))
