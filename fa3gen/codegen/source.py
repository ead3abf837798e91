"""KernelSource: the text of one kernel and its host side, and the facts that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from fa3gen.dtypes import DType

__all__ = ["KernelMeta", "KernelSource"]


@dataclass(frozen=True)
class KernelMeta:
    """What the build and the runtime must know of a kernel without reading its text."""

    name: str  # the spec's name, a C identifier
    op_name: str  # torch op name inside the namespace fa3gen: <name>_<hash8>
    symbol: str  # the kernel's extern "C" name in the cubin
    dtype: DType  # of q, k, v and out
    head_dim_qk: int
    head_dim_v: int
    block_m: int  # query rows of a work tile
    block_n: int  # keys of a KV tile
    threads: int  # of a CTA
    smem_bytes: int  # dynamic shared memory of a CTA


@dataclass(frozen=True)
class KernelSource:
    """CUDA and C++ text of one kernel: a pure function of spec, schedule and templates."""

    meta: KernelMeta
    device: str  # the .cu translation unit (compiled to a cubin)
    host: str  # the .cpp translation unit (torch stable ABI, embeds the cubin)
    alternative: str | None = None  # a macro that spells the kernel another way; the build tries it
