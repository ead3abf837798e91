"""Lists of KV tiles on the CPU: what the kernel that lists them must find, and plans."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fa3gen.errors import InputError
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.program import Program
from fa3gen.schedule.ranges import list_axes

__all__ = ["TileLists", "WorkTile"]

Kept = Callable[
    ["WorkTile", int, int], Tensor
]  # of 64 rows and a KV tile, from two first positions


@dataclass(frozen=True)
class WorkTile:
    """The query rows ``m_block * block_m ...`` of one head."""

    m_block: int
    head: int
    batch: int


class TileLists:
    """The KV tiles that query tiles visit, as the mask's elements say, or a plan.

    ``sizes``: batch, heads, seqlen_q, seqlen_k.
    """

    def __init__(self, program: Program, sizes: tuple[int, int, int, int], kept: Kept) -> None:
        self.program, self.kept = program, kept
        self.batch, self.heads, self.seqlen_q, self.seqlen_k = sizes
        self.axes = list_axes(program.keep)  # whether batches, heads have lists of their own
        self.known: dict[WorkTile, tuple[list[int], list[int]]] = {}

    @property
    def m_blocks(self) -> range:
        """Query tiles of a head."""
        return range(-(-self.seqlen_q // self.program.block_m))

    @property
    def room(self) -> int:
        """The most tiles of a list."""
        return max(-(-self.seqlen_k // self.program.block_n), 1)

    def of(self, work: WorkTile) -> tuple[list[int], list[int]]:
        """The tiles that all rows of a query tile keep whole, and those that some keep in part."""
        shared = WorkTile(
            work.m_block,
            work.head if self.axes[1] else 0,
            work.batch if self.axes[0] else 0,
        )
        if shared not in self.known:
            self.known[shared] = self._look(shared)
        return self.known[shared]

    def _look(self, work: WorkTile) -> tuple[list[int], list[int]]:
        whole: list[int] = []
        masked: list[int] = []
        rows, block_m = HOPPER.wgmma_rows, self.program.block_m
        begin = work.m_block * block_m
        firsts = range(begin, min(begin + block_m, self.seqlen_q), rows)
        for tile in range(-(-self.seqlen_k // self.program.block_n)):
            key = tile * self.program.block_n
            kept = torch.cat(
                [self.kept(work, first, key)[: self.seqlen_q - first] for first in firsts]
            )
            if bool(kept.any()):
                (whole if bool(kept.all()) else masked).append(tile)
        return whole, masked

    def _works(self) -> list[WorkTile]:
        """A work tile of each list, in the order of a plan."""
        batches = range(self.batch if self.axes[0] else min(self.batch, 1))
        heads = range(self.heads if self.axes[1] else min(self.heads, 1))
        places = itertools.product(batches, heads, self.m_blocks)
        return [WorkTile(m_block, head, batch) for batch, head, m_block in places]

    def encode(self) -> Tensor:
        """All lists as int32: numbers of whole and masked tiles of each, then each list's room,
        with whole tiles from its start and masked ones from its end."""
        counts: list[int] = []
        tiles: list[int] = []
        for work in self._works():
            whole, masked = self.of(work)
            counts += [len(whole), len(masked)]
            unused = [0] * (self.room - len(whole) - len(masked))
            tiles += [*whole, *unused, *reversed(masked)]
        return torch.tensor([*counts, *tiles], dtype=torch.int32, device="cpu")

    def decode(self, plan: Tensor) -> None:
        """Take the lists of a plan; InputError if it is of other sizes."""
        works, values = self._works(), plan.tolist()
        expected = len(works) * (2 + self.room)
        if len(values) != expected:
            raise InputError(
                "plan: must be one for these lengths, batches and heads: "
                f"{expected} int32 (got {len(values)})"
            )
        for index, work in enumerate(works):
            whole, masked = values[2 * index : 2 * index + 2]
            start = 2 * len(works) + index * self.room
            tiles = values[start : start + self.room]
            self.known[work] = (tiles[:whole], tiles[self.room - masked :][::-1])
