"""From a schedule to CUDA and C++ text."""

from fa3gen.codegen.render import render
from fa3gen.codegen.source import KernelMeta, KernelSource

__all__ = ["KernelMeta", "KernelSource", "render"]
