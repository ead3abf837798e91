"""What the table of variants is made of: variants, what each is set against, and its cells.

Formulas are written out here and not read from ``specs/``: a GPU machine may have no YAML parser.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fa3gen.bench.problem import Problem, SpecFacts
from fa3gen.dtypes import DType
from fa3gen.errors import InputError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.call_inputs import Sizes

__all__ = [
    "LENGTHS",
    "VARIANTS",
    "Baseline",
    "Cell",
    "Formula",
    "Inputs",
    "Relation",
    "Variant",
    "cells",
    "formulas",
    "select",
]

TOKENS = 16384  # keys of a call, in all batches together
WIDTH = 2048  # heads times head dim
HEAD_DIMS = (64, 128)
LENGTHS = (4096, 16384)
DOCUMENTS = 8  # of a sequence
TREE = 256  # queries of a tree
LARGEST = 24 << 30  # bytes of the inputs of a cell that is timed

Inputs = dict[str, Tensor]
Draw = Callable[[Sizes, torch.Generator], Inputs]


@dataclass(frozen=True)
class Formula:
    """The part of a spec that tells variants apart."""

    name: str
    mask: str = "full"
    score: str = "score"
    inputs: tuple[InputMeta, ...] = ()
    sink: str | None = None

    def kernel(self, head_dim: int) -> str:
        """The name of its spec and artifact."""
        return f"{self.name}_d{head_dim}"

    def spec(self, head_dim: int) -> dict[str, Any]:
        """Its spec, as a mapping."""
        inputs = {
            one.name: {"shape": list(one.shape), "dtype": one.dtype.value} for one in self.inputs
        }
        more = {"inputs": inputs, "sink": self.sink}
        fields = {"head_dim": head_dim, "mask": self.mask, "score": self.score, **more}
        return {"name": self.kernel(head_dim), **fields}


class Relation(enum.Enum):
    """How a variant is set against a kernel without formula and inputs."""

    SAME = "same elements"  # by the times of both
    TILES = "about the same tiles"  # by the times of both
    RATE = "TFLOP/s"  # over the elements that each keeps


@dataclass(frozen=True)
class Baseline:
    """A plain kernel, on the same tokens cut into sequences that may be shorter."""

    formula: Formula
    relation: Relation = Relation.SAME
    parts: int = 1  # that each sequence is cut into
    longest: int = TOKENS

    def length(self, seqlen: int) -> int:
        """Of its sequences, where the variant's have ``seqlen`` keys."""
        return min(seqlen // self.parts, self.longest)


@dataclass(frozen=True)
class Variant:
    """A formula, how its inputs are drawn, and what it is set against."""

    formula: Formula
    baselines: tuple[Baseline, ...]
    draw: Draw = lambda sizes, generator: {}
    queries: int | None = None  # None: as many as keys

    @property
    def name(self) -> str:
        """The formula's."""
        return self.formula.name


# --- inputs ---------------------------------------------------------------------------------------


def _slopes(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """ALiBi's own: 2 ** (-8 * (h + 1) / heads)."""
    heads = torch.arange(1, sizes.h + 1, device=generator.device, dtype=torch.float32)
    return {"slopes": torch.exp2(-8 * heads / sizes.h)}


def _relative(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"rel": torch.randn(sizes.h, 255, generator=generator, device=generator.device)}


def _bias(sizes: Sizes, generator: torch.Generator) -> Inputs:
    shape = (sizes.b, sizes.h, sizes.row, sizes.k)
    how: Any = {"generator": generator, "device": generator.device, "dtype": torch.bfloat16}
    return {"bias": torch.randn(shape, **how)}


def _documents(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """Of equal lengths."""
    keys = torch.arange(sizes.k, device=generator.device, dtype=torch.int32)
    ids = keys * DOCUMENTS // max(1, sizes.k)
    return {"doc": ids.expand(sizes.b, -1).contiguous()}


def _half(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """A prefix of half of the keys."""
    shape, device = (sizes.b,), generator.device
    return {"prefix_length": torch.full(shape, sizes.k // 2, dtype=torch.int32, device=device)}


def _sinks(sizes: Sizes, generator: torch.Generator) -> Inputs:
    drawn = torch.randn(sizes.h, generator=generator, device=generator.device)
    return {"sinks": drawn.bfloat16()}


def _tree(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """A binary tree in breadth-first order: each token sees itself and its ancestors."""
    sees = torch.zeros(sizes.row, TREE, dtype=torch.int32)
    for token in range(sizes.row):
        if token:
            sees[token] = sees[(token - 1) // 2]
        sees[token, token] = 1
    return {"tree": sees.to(generator.device)}


# --- variants -------------------------------------------------------------------------------------

_FULL, _CAUSAL = Formula("plain_full"), Formula("plain_causal", "causal")
_WINDOW = Formula("window", "window(1023, 0)")
_NARROW = Formula("plain_window127", "window(127, 0)")
_LINES = Formula("plain_window198", "window(198, 198)")  # 6 lines of 32 and 6 columns
_LONG_RATE = Baseline(_CAUSAL, Relation.RATE)
_SHORT_RATE = Baseline(_CAUSAL, Relation.RATE, longest=2048)

_SLOPES = (InputMeta("slopes", DType.FP32, ("h",)),)
_REL = (InputMeta("rel", DType.FP32, ("h", 255)),)
_BIAS = (InputMeta("bias", DType.BF16, ("b", "h", "row", "k")),)
_DOC = (InputMeta("doc", DType.INT32, ("b", "k"), masks=True),)
_PREFIX = (InputMeta("prefix_length", DType.INT32, ("b",), masks=True),)
_SINKS = (InputMeta("sinks", DType.BF16, ("h",)),)
_TREE = (InputMeta("tree", DType.INT32, ("row", TREE), masks=True),)

_ALIBI, _ALIBI_FULL = "score + slopes[h] * (k - q)", "score - slopes[h] * abs(q - k)"
_CAP = "50 * tanh(score / 50)"
_NEAR = "(abs(q // 32 - k // 32) <= 6) & (abs(q % 32 - k % 32) <= 6)"
_IN_TREE = "(k < seqlen_k - seqlen_q) | (tree[row, k - (seqlen_k - seqlen_q)] > 0)"

VARIANTS = (
    Variant(Formula("alibi", "causal", _ALIBI, _SLOPES), (Baseline(_CAUSAL),), _slopes),
    Variant(Formula("alibi_full", "full", _ALIBI_FULL, _SLOPES), (Baseline(_FULL),), _slopes),
    Variant(Formula("softcap", "causal", _CAP), (Baseline(_CAUSAL),)),
    Variant(Formula("softcap_full", "full", _CAP), (Baseline(_FULL),)),
    Variant(
        Formula("relative_bias", "full", "score + rel[h, k - q + 127]", _REL),
        (Baseline(_FULL),),
        _relative,
    ),
    Variant(
        Formula("full_bias", "full", "score + bias[b, h, row, k]", _BIAS),
        (Baseline(_FULL),),
        _bias,
    ),
    Variant(
        Formula("document_causal", "causal & document(doc)", "score", _DOC),
        (Baseline(_CAUSAL, parts=DOCUMENTS),),
        _documents,
    ),
    Variant(
        Formula("prefix_lm", "causal | (k < prefix_length[b])", "score", _PREFIX),
        (_LONG_RATE,),
        _half,
    ),
    Variant(_WINDOW, (_SHORT_RATE,)),
    Variant(
        Formula("sink_window", "window(127, 0)", "score", _SINKS, "sinks"),
        (Baseline(_NARROW), _SHORT_RATE),
        _sinks,
    ),
    Variant(Formula("chunked", "causal & chunk(8192)"), (Baseline(_CAUSAL, longest=8192),)),
    Variant(Formula("neighbourhood", _NEAR), (Baseline(_LINES, Relation.TILES), _SHORT_RATE)),
    Variant(
        Formula("dilated", "window(1023, 0) & ((q - k) % 4 == 0)"),
        (Baseline(_WINDOW, Relation.TILES), _SHORT_RATE),
    ),
    Variant(
        Formula("tree", _IN_TREE, "score", _TREE),
        (Baseline(_CAUSAL, Relation.TILES),),
        _tree,
        queries=TREE,
    ),
)


# --- cells ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One variant at one head dim and length."""

    variant: Variant
    problem: Problem

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the other cells."""
        return (self.variant.name, self.head_dim, self.problem.seqlen_k)

    @property
    def head_dim(self) -> int:
        """Of queries, keys and values."""
        return self.problem.facts.head_dim_qk

    @property
    def words(self) -> tuple[str, ...]:
        """The names that select it: variant, head dim, length."""
        return (self.variant.name, f"d{self.head_dim}", f"s{self.problem.seqlen_k}")

    @property
    def sizes(self) -> Sizes:
        """Of its inputs."""
        one = self.problem
        return Sizes(one.batch, one.heads, one.kv_heads, one.seqlen_q, one.seqlen_k)

    @property
    def input_bytes(self) -> int:
        """Of what is beside q, k and v."""
        shapes = ((meta, map(self.sizes.axis, meta.shape)) for meta in self.variant.formula.inputs)
        return sum(meta.dtype.bytes * math.prod(shape) for meta, shape in shapes)

    def ragged(self, seqlen_q: int, seqlen_k: int) -> Cell:
        """A small one of the same variant, to see whether results are right."""
        queries = min(seqlen_q, self.variant.queries or seqlen_q)
        return Cell(self.variant, Problem(self.problem.facts, 2, 2, 1, queries, seqlen_k))

    def __str__(self) -> str:
        return " ".join(self.words)


def cells(lengths: Iterable[int] = LENGTHS, head_dims: Iterable[int] = HEAD_DIMS) -> list[Cell]:
    """The whole table in its order, but for what would take too much memory."""
    found = (
        _cell(variant, d, seqlen)
        for d, seqlen, variant in itertools.product(head_dims, lengths, VARIANTS)
    )
    return [cell for cell in found if cell.input_bytes <= LARGEST]


def _cell(variant: Variant, head_dim: int, seqlen: int) -> Cell:
    mask, heads = variant.formula.mask, max(1, WIDTH // head_dim)
    facts = SpecFacts(mask, "bf16", head_dim, head_dim, variant=variant.name)
    queries = variant.queries or seqlen
    batch = max(1, TOKENS // seqlen)
    return Cell(variant, Problem(facts, batch, heads, heads, queries, seqlen))


def select(table: Sequence[Cell], words: Sequence[str]) -> list[Cell]:
    """The cells that have all of the words; all cells without words.

    Raises InputError if there are none.
    """
    chosen = [cell for cell in table if set(words) <= set(cell.words)]
    if not chosen:
        known = ", ".join(dict.fromkeys(word for cell in table for word in cell.words))
        raise InputError(f"--only: no cell has all of {', '.join(words)}; known: {known}")
    return chosen


def formulas(table: Iterable[Cell]) -> list[tuple[Formula, int]]:
    """The kernels that the cells need, as formulas and head dims, each once."""
    found: dict[tuple[Formula, int], None] = {}
    for cell in table:
        for formula in (cell.variant.formula, *(one.formula for one in cell.variant.baselines)):
            found[formula, cell.head_dim] = None
    return list(found)
