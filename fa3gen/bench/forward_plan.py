"""What the forward table is made of: its cells in order, and the kernels that they need."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fa3gen.bench.problem import Problem, SpecFacts, grid
from fa3gen.errors import InputError

__all__ = [
    "LENGTHS",
    "MASKS",
    "RAGGED_UNIT",
    "TOKENS",
    "WIDTH",
    "Cell",
    "Key",
    "Section",
    "kernels",
    "plan",
    "row_key",
    "select",
    "spec_of",
    "variant_name",
]

TOKENS = 16384  # of a call, counted along the keys
WIDTH = 2048  # heads times head dim
MASKS = ("full", "causal")
HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 192), (192, 128), (256, 256))  # (qk, v)
MORE_HEADS = {192: (16,)}  # by the queries' head dim, beside WIDTH / d
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WINDOW, WINDOW_LENGTHS = "window(1023, 0)", (1024, 4096, 16384)
RAGGED_HEAD_DIMS = (128, 64)
RAGGED_UNIT = 128  # a ragged length is compared with the next multiple of it
RAGGED_LENGTHS = (1000, 1024, 4000, 4096, 8100, 8192)
RAGGED_PAIRS = ((2048, 4096), (1024, 8192))  # (queries, keys)

Key = tuple[object, ...]


class Section(enum.Enum):
    """A part of the table."""

    GRID = "grid"  # all head dims, full and causal
    WINDOW = "window"
    RAGGED = "ragged"  # lengths that no tile divides beside such as one does, and fewer queries


@dataclass(frozen=True)
class Cell:
    """One problem and its place in the table."""

    section: Section
    problem: Problem

    @property
    def key(self) -> Key:
        """What tells it from the other cells: :func:`row_key` of its row."""
        facts, problem = self.problem.facts, self.problem
        dims = (facts.head_dim_qk, facts.head_dim_v)
        lengths = (problem.seqlen_q, problem.seqlen_k)
        return (self.section.value, facts.dtype, facts.mask, *dims, problem.heads, *lengths)

    @property
    def words(self) -> tuple[str, ...]:
        """The names that select it: section, mask, head dim, variant, length."""
        facts = self.problem.facts
        length = f"s{self.problem.seqlen_k}"
        return (self.section.value, _mask(facts), _dims(facts), variant_name(facts), length)

    def __str__(self) -> str:
        problem = self.problem
        queries = "" if problem.seqlen_q == problem.seqlen_k else f"{problem.seqlen_q}/"
        lengths = f"S {queries}{problem.seqlen_k}"
        return f"{self.section.value} {variant_name(problem.facts)} h{problem.heads} {lengths}"


def row_key(row: Mapping[str, Any]) -> Key:
    """The key of the cell that a row of the JSON holds."""
    columns = ("section", "dtype", "mask", "d", "dv", "Hq", "Sq", "Sk")
    return tuple(row[column] for column in columns)


def plan(dtype: str) -> list[Cell]:
    """The whole table in its order."""
    parts = (_grid_cells(dtype), _window_cells(dtype), _ragged_cells(dtype))
    return list(itertools.chain.from_iterable(parts))


def _grid_cells(dtype: str) -> Iterator[Cell]:
    for (d, d_v), mask in itertools.product(HEAD_DIMS, MASKS):
        for heads in (WIDTH // d, *MORE_HEADS.get(d, ())):
            facts = SpecFacts(mask, dtype, d, d_v)
            for problem in grid(facts, LENGTHS, tokens=TOKENS, heads=heads):
                yield Cell(Section.GRID, problem)


def _window_cells(dtype: str) -> Iterator[Cell]:
    for problem in grid(SpecFacts(WINDOW, dtype), WINDOW_LENGTHS, tokens=TOKENS):
        yield Cell(Section.WINDOW, problem)


def _ragged_cells(dtype: str) -> Iterator[Cell]:
    lengths = [*((s, s) for s in RAGGED_LENGTHS), *RAGGED_PAIRS]
    for d, mask in itertools.product(RAGGED_HEAD_DIMS, MASKS):
        facts, heads = SpecFacts(mask, dtype, d, d), WIDTH // d
        for seqlen_q, seqlen_k in lengths:
            batch = TOKENS // seqlen_k
            problem = Problem(facts, batch, heads, heads, seqlen_q, seqlen_k)
            yield Cell(Section.RAGGED, problem)


def select(cells: Sequence[Cell], words: Sequence[str]) -> list[Cell]:
    """The cells that have all of the words; all cells without words.

    Raises InputError if there are none.
    """
    chosen = [cell for cell in cells if set(words) <= set(cell.words)]
    if not chosen:
        known = ", ".join(dict.fromkeys(word for cell in cells for word in cell.words))
        raise InputError(f"--only: no cell has all of {', '.join(words)}; known: {known}")
    return chosen


def kernels(cells: Sequence[Cell]) -> list[SpecFacts]:
    """The variants that the cells need, each once."""
    return list(dict.fromkeys(cell.problem.facts for cell in cells))


def variant_name(facts: SpecFacts) -> str:
    """The name of a variant's spec and artifact, such as ``causal_d192_128_bf16``."""
    return f"{_mask(facts)}_{_dims(facts)}_{facts.dtype}"


def spec_of(facts: SpecFacts) -> dict[str, Any]:
    """The spec of a variant, as a mapping."""
    dims = {"qk": facts.head_dim_qk, "v": facts.head_dim_v}
    name = variant_name(facts)
    return {"name": name, "head_dim": dims, "dtype": facts.dtype, "mask": facts.mask}


def _mask(facts: SpecFacts) -> str:
    return facts.mask.partition("(")[0]


def _dims(facts: SpecFacts) -> str:
    d, d_v = facts.head_dim_qk, facts.head_dim_v
    return f"d{d}" if d == d_v else f"d{d}_{d_v}"
