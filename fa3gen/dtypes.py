"""Element types of tensors and of register tiles."""

from __future__ import annotations

import enum

__all__ = ["DType"]


class DType(enum.Enum):
    """An element type, by its name in a spec."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    E4M3 = "e4m3"
    INT32 = "int32"

    @property
    def bytes(self) -> int:
        """Size of an element in bytes."""
        return {"bf16": 2, "fp16": 2, "fp32": 4, "e4m3": 1, "int32": 4}[self.value]

    @property
    def torch_name(self) -> str:
        """Its attribute in the torch module."""
        return {
            "bf16": "bfloat16",
            "fp16": "float16",
            "fp32": "float32",
            "e4m3": "float8_e4m3fn",
            "int32": "int32",
        }[self.value]
