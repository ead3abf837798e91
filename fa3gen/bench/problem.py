"""What is timed: one shape of one attention variant, with its FLOPs and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fa3gen.errors import InputError
from fa3gen.runtime.masks import kept_pairs, reference_mask

__all__ = ["DTYPES", "Problem", "SpecFacts", "grid"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SpecFacts:
    """The part of a spec that a benchmark needs.

    ``variant`` labels the rows (``plain`` for nothing but the mask), ``dtype`` is a spec's name
    (bf16, fp16), ``mask`` a mask text that :func:`~fa3gen.runtime.masks.reference_mask` knows.
    """

    mask: str
    dtype: str = "bf16"
    head_dim_qk: int = 128
    head_dim_v: int = 128
    variant: str = "plain"
    operation: str = "forward"


@dataclass(frozen=True)
class Problem:
    """One cell of a benchmark's grid."""

    facts: SpecFacts
    batch: int
    heads: int
    kv_heads: int
    seqlen_q: int
    seqlen_k: int

    @property
    def scale(self) -> float:
        """The softmax scale that every contender is given."""
        return 1.0 / math.sqrt(self.facts.head_dim_qk)

    def flops(
        self,
        device: torch.device | str | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Multiplications and additions of the two GEMMs over the kept score elements.

        2 * (d + d_v) for each kept pair of each head. Pairs are counted one by one, but for a
        causal square: half of S * S, as the field counts it. ``inputs``: those that the mask names.
        """
        lengths = (self.seqlen_q, self.seqlen_k)
        if self.facts.mask == "causal" and self.seqlen_q == self.seqlen_k:
            doubled_pairs = self.batch * self.seqlen_q * self.seqlen_k
        else:
            keep = reference_mask(self.facts.mask)
            doubled_pairs = 2 * kept_pairs(keep, *lengths, device, batch=self.batch, inputs=inputs)
        dims = self.facts.head_dim_qk + self.facts.head_dim_v
        return self.heads * doubled_pairs * dims

    @property
    def bytes(self) -> int:
        """q, k, v, out and the fp32 LSE, each moved once."""
        d, d_v = self.facts.head_dim_qk, self.facts.head_dim_v
        query_rows = self.batch * self.seqlen_q * self.heads
        key_rows = self.batch * self.seqlen_k * self.kv_heads
        return (query_rows + key_rows) * (d + d_v) * self._dtype.itemsize + query_rows * 4

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.facts.dtype]

    def inputs(self, device: torch.device | str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normal q, k, v in the layout (batch, seqlen, heads, dim), drawn on ``device``."""
        generator = torch.Generator(device).manual_seed(seed)
        d, d_v = self.facts.head_dim_qk, self.facts.head_dim_v

        def draw(seqlen: int, heads: int, dim: int) -> Tensor:
            shape = (self.batch, seqlen, heads, dim)
            return torch.randn(shape, generator=generator, device=device).to(self._dtype)

        return (
            draw(self.seqlen_q, self.heads, d),
            draw(self.seqlen_k, self.kv_heads, d),
            draw(self.seqlen_k, self.kv_heads, d_v),
        )


def grid(
    facts: SpecFacts,
    lengths: tuple[int, ...],
    *,
    tokens: int = 16384,
    heads: int | None = None,
    kv_heads: int | None = None,
) -> list[Problem]:
    """Square problems of the given lengths with ``tokens`` tokens a call (batch at least 1).

    ``heads`` defaults to 2048 / d, ``kv_heads`` to ``heads``. Raises InputError for a head count
    that the KV heads do not divide.
    """
    heads = heads or max(1, 2048 // facts.head_dim_qk)
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise InputError(f"heads is a multiple of kv_heads (got {heads} and {kv_heads})")
    return [Problem(facts, max(1, tokens // s), heads, kv_heads, s, s) for s in lengths]
