"""From a schedule to CUDA and C++ text."""

from fa3gen.codegen.render import render
from fa3gen.codegen.source import KernelMeta, KernelSource, OpSource, VariantMeta

__all__ = ["KernelMeta", "KernelSource", "OpSource", "VariantMeta", "render"]
