"""Emission of one role's instructions, with the synchronisation that the data flow demands.

An ``Emitter`` keeps a scoreboard: which wgmma groups are in flight, which register tiles were
touched since the last ``wgmma.fence``, which ring stages were awaited. From it follow, for each
operation as it is appended,

* a ``Wait`` on the full barrier before the first reader of a stage,
* a ``WgmmaFence`` if an operand in registers was touched since the last,
* a ``WgmmaWait`` whose depth is the number of younger groups, before the first use of a result,
* an ``Arrive`` on the empty barrier and an ``Advance`` once the last reader of a stage has retired.

Nothing else is emitted, so nothing emitted is redundant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fa3gen.errors import GraphError
from fa3gen.schedule.program import (
    Advance,
    Arrive,
    Calc,
    CalcKind,
    EachWork,
    Executor,
    Expect,
    ForTiles,
    Gemm,
    GemmKind,
    IfTiles,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    Segment,
    Wait,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)

__all__ = ["Emitter", "Turn"]


_SETTLED = ("alpha", "row_sum")  # what shows that a computation is done, without the tile it read
_FENCED = frozenset({"S", "P", "O"})  # register tiles that are wgmma operands


@dataclass(frozen=True)
class _Group:
    """A committed wgmma group of one product."""

    kind: GemmKind
    accumulator: str
    a: str | None  # register A operand
    ring: str  # the ring of its B operand, released when it retires


@dataclass(frozen=True)
class Turn:
    """Ping-pong: a named barrier whose completion is the warpgroup's turn on the tensor core."""

    barrier: str
    threads: int


@dataclass
class Emitter:
    """Appends instructions to the innermost open block."""

    blocks: list[list[Node]] = field(default_factory=lambda: [[]])
    groups: list[_Group] = field(default_factory=list)
    touched: set[str] = field(default_factory=lambda: set(_FENCED))
    awaited: set[str] = field(default_factory=set)
    computed: tuple[str, ...] = ()  # by the last computation beside the products in flight

    @property
    def body(self) -> tuple[Node, ...]:
        """What has been emitted into the outermost block."""
        if len(self.blocks) != 1 or self.groups:
            raise GraphError("a role ends inside a block or with a product in flight")
        return tuple(self.blocks[0])

    def append(self, *nodes: Node) -> None:
        """Append nodes as they are."""
        self.blocks[-1].extend(nodes)

    @contextmanager
    def each_work(self) -> Iterator[None]:
        """A loop over work tiles."""
        with self._block() as block:
            yield
        self.append(EachWork(tuple(block)))

    @contextmanager
    def if_tiles(self) -> Iterator[None]:
        """A part that runs only if the work tile visits a KV tile."""
        with self._block() as block:
            yield
        if block:
            self.append(IfTiles(tuple(block)))

    @contextmanager
    def for_tiles(self, segment: Segment) -> Iterator[None]:
        """A loop over the KV tiles of a segment; the scoreboard must come round to where it was."""
        before = (list(self.groups), set(self.awaited))
        repeats = segment not in (Segment.FIRST, Segment.DRAIN)
        if repeats:  # whatever an iteration touches, the next one finds touched
            self.touched = set(_FENCED)
        with self._block() as block:
            yield
        if repeats:
            self.touched = set(_FENCED)
            if before != (self.groups, self.awaited):
                raise GraphError(f"the loop over {segment.value} does not restore its entry state")
        if block:
            self.append(ForTiles(segment, tuple(block)))

    @contextmanager
    def _block(self) -> Iterator[list[Node]]:
        self.blocks.append([])
        yield self.blocks[-1]
        self.blocks.pop()

    # --- operations -------------------------------------------------------------------------------

    def load(self, buffer: str, stage_bytes: int, skew: int = 0) -> None:
        """Producer: wait for a free stage, announce the bytes, load."""
        self.append(
            Wait(f"{buffer}_empty", buffer, empty=True),
            Expect(f"{buffer}_full", buffer, stage_bytes),
            Load(buffer, f"{buffer}_full", buffer, skew),
            Advance(buffer),
        )

    def acquire(self, ring: str) -> None:
        """Wait for the cursor's stage of a ring to be filled, unless this role already has."""
        if ring not in self.awaited:
            self.append(Wait(f"{ring}_full", ring))
            self.awaited.add(ring)

    def gemm(self, gemm: Gemm, turn: Turn | None = None) -> None:
        """Issue and commit a product; with ``turn``, wait for it first."""
        for ring in (gemm.a_cursor, gemm.b_cursor):
            if ring is not None:
                self.acquire(ring)
        if turn is not None:
            self.append(NamedSync(turn.barrier, turn.threads))
        a_register = gemm.a if gemm.a_cursor is None else None
        operands = [name for name in (gemm.accumulator, a_register) if name is not None]
        self._retire_for(operands)
        if self.touched & set(operands):
            self.append(WgmmaFence(tuple(sorted(self.touched))))
            self.touched.clear()
        self.append(gemm, WgmmaCommit())
        self.computed = ()
        self.groups.append(_Group(gemm.kind, gemm.accumulator, a_register, gemm.b_cursor))

    def pass_turn(self, turn: Turn) -> None:
        """Ping-pong: give the tensor core to the next warpgroup."""
        self.append(NamedArrive(turn.barrier, turn.threads, shift=1))

    def calc(
        self, kind: CalcKind, reads: tuple[str, ...], writes: tuple[str, ...], skew: int = 0
    ) -> None:
        """A register computation, after the products it needs have retired."""
        self._retire_for([*reads, *writes])
        self.append(Calc(kind, reads, writes, skew))
        self.touched |= {name for name in (*reads, *writes) if name in _FENCED}
        self.computed = tuple(name for name in writes if name in _SETTLED)

    def drain(self) -> None:
        """Wait for every product in flight."""
        self._retire(len(self.groups))

    # --- the scoreboard ---------------------------------------------------------------------------

    def _retire_for(self, registers: list[str]) -> None:
        """Retire the youngest group that uses any of these register tiles, and all older ones."""
        using = [
            index
            for index, group in enumerate(self.groups)
            if group.accumulator in registers or (group.a is not None and group.a in registers)
        ]
        if using:
            self._retire(using[-1] + 1)

    def _retire(self, count: int) -> None:
        """Retire the ``count`` oldest groups and release the ring stages they read."""
        if not count:
            return
        retired, self.groups = self.groups[:count], self.groups[count:]
        accumulators = tuple(group.accumulator for group in retired)
        self.append(WgmmaWait(len(self.groups), accumulators, self.computed))
        self.computed = ()
        for group in retired:
            self.append(
                Arrive(f"{group.ring}_empty", group.ring, Executor.EACH_WARP), Advance(group.ring)
            )
            self.awaited.discard(group.ring)
