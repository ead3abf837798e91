"""Emission of one role's instructions, with the synchronisation that the data flow demands.

An ``Emitter`` keeps a scoreboard: which wgmma groups are in flight, which register tiles were
touched since the last ``wgmma.fence``, which ring stages were awaited. From it follow, for each
operation as it is appended,

* a ``Wait`` on the full barrier before the first reader of a stage,
* a ``WgmmaFence`` if an operand in registers was touched since the last,
* a ``WgmmaWait`` whose depth is the number of younger groups, before the first use of a result,
* an ``Arrive`` on the empty barrier and an ``Advance`` once the last reader of a stage has retired,
* where the role loads for itself, the load of the tile that the released stage is for,
* before P is staged in shared memory, a ``NamedSync`` if a product has read it since the last one.

Nothing else is emitted, so nothing emitted is redundant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

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
    IfAhead,
    IfTiles,
    Leftover,
    Leftovers,
    Load,
    NamedArrive,
    NamedSync,
    Node,
    OnInstance,
    Phase,
    ProxyFence,
    Segment,
    StageOut,
    Step,
    Wait,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)

__all__ = ["Emitter", "Prefetch", "State", "Turn"]


_SETTLED = ("alpha", "row_sum")  # what shows that a computation is done, without the tile it read


@dataclass(frozen=True)
class _Group:
    """A committed wgmma group of one product."""

    kind: GemmKind
    accumulator: str
    a: str  # A operand, a register tile or a buffer
    ring: str  # the ring of its B operand, released when it retires
    skew: int  # KV tiles behind the loop's tile


@dataclass(frozen=True)
class Turn:
    """Ping-pong: a named barrier whose completion is the warpgroup's turn on the tensor core."""

    barrier: str
    threads: int


@dataclass(frozen=True)
class Prefetch:
    """A role without a producer loads for itself: on its first instance, one thread."""

    stages: int
    bytes: dict[str, int]  # of a stage, by ring
    rings: tuple[str, ...] = ("K", "V")


@dataclass(frozen=True)
class State:
    """What is in flight at a place in a role."""

    groups: tuple[_Group, ...]
    awaited: frozenset[str]
    touched: frozenset[str] = field(compare=False)
    unconverged: frozenset[str] = field(compare=False)


@dataclass
class Emitter:
    """Appends instructions to the innermost open block.

    ``fenced``: register tiles that are wgmma operands; ``trailing``: rings whose stages are
    released after the role has gone on to the next; ``staged``: buffers that the role itself fills
    for a product; ``covered``: buffers of which the role overwrites what its products have read;
    ``always``: every work tile visits a KV tile.
    """

    fenced: frozenset[str] = frozenset()
    trailing: frozenset[str] = frozenset()
    staged: frozenset[str] = frozenset()
    covered: frozenset[str] = frozenset()
    prefetch: Prefetch | None = None
    always: bool = False
    blocks: list[list[Node]] = field(default_factory=lambda: [[]])
    groups: list[_Group] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # touched, at the end of a turn of the last loop
    awaited: set[str] = field(default_factory=set)
    unconverged: set[str] = field(default_factory=set)  # such buffers, read since a named barrier
    computed: tuple[str, ...] = ()  # by the last computation beside the products in flight
    horizon: int | None = None  # how many KV tiles may follow the loop's; None: any number

    @property
    def shared(self) -> frozenset[str]:
        """Buffers that products read and the role then writes."""
        return self.staged | self.covered

    def __post_init__(self) -> None:
        self.touched = set(self.fenced)

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
        if self.always:
            yield
            return
        with self._block() as block:
            yield
        if block:
            self.append(IfTiles(tuple(block)))

    @contextmanager
    def for_tiles(self, segment: Segment, follows: bool = False) -> Iterator[None]:
        """A loop over the KV tiles of a segment; the scoreboard must come round to where it was.
        ``follows``: the loop before has had a turn, and ends each as this one begins."""
        before, unconverged = self.state, set(self.unconverged)
        repeats = segment not in (Segment.FIRST, Segment.REST, Segment.DRAIN)
        if follows:
            self.touched = set(self.left)
        elif repeats:  # whatever an iteration touches, the next one finds touched
            self._forget()
        with self._block() as block:
            yield
        if follows and not self.touched <= self.left:
            raise GraphError(f"the loop over {segment.value} ends otherwise than the one before")
        if repeats:
            self.left = set(self.touched)
            unconverged |= self.unconverged  # the loop may have had no turn
            self._forget()
            self.unconverged = unconverged
            if before != self.state:
                raise GraphError(f"the loop over {segment.value} does not restore its entry state")
        if block:
            self.append(ForTiles(segment, tuple(block)))

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        """Iteration number ``index`` of a segment with as many as are peeled."""
        with self._block() as block:
            yield
        self.append(Step(index, tuple(block)))

    @contextmanager
    def phase(self, index: int, count: int) -> Iterator[None]:
        """The iterations t with t % count == index of a loop; no part of its own if all are."""
        if index:
            self._forget()
        with self._block() as block:
            yield
        self.append(*([Phase(index, count, tuple(block))] if count > 1 else block))

    @contextmanager
    def leftovers(self, count: int) -> Iterator[None]:
        """Alternatives by the KV tiles that loops of ``count`` a turn leave over."""
        with self._block() as block:
            yield
        kinds = tuple(node for node in block if isinstance(node, Leftover))
        self.append(*([Leftovers(kinds)] if count > 1 else block))

    @contextmanager
    def leftover(self, tiles: int, count: int, entry: State) -> Iterator[None]:
        """What follows the loops if they leave ``tiles`` over, from the state that they end in."""
        before = set(self.unconverged) if tiles else set()
        self.groups, self.awaited = list(entry.groups), set(entry.awaited)
        self.touched, self.unconverged = set(entry.touched), set(entry.unconverged)
        with self._block() as block:
            yield
        self.unconverged |= before  # of the alternatives so far
        self.append(*([Leftover(tiles, tuple(block))] if count > 1 else block))

    @property
    def state(self) -> State:
        """What is in flight here."""
        return State(
            tuple(self.groups),
            frozenset(self.awaited),
            frozenset(self.touched),
            frozenset(self.unconverged),
        )

    def _forget(self) -> None:
        """Take every register tile for touched and every staged buffer for read."""
        busy = {name for group in self.groups for name in (group.accumulator, group.a)}
        self.touched = set(self.fenced) - busy
        self.unconverged = set(self.shared)

    @contextmanager
    def _block(self) -> Iterator[list[Node]]:
        self.blocks.append([])
        yield self.blocks[-1]
        self.blocks.pop()

    # --- operations -------------------------------------------------------------------------------

    def load(self, buffer: str, stage_bytes: int, skew: int = 0, free: bool = False) -> None:
        """Producer: wait for a free stage, unless it is known to be, announce the bytes, load."""
        if not free:
            self.append(Wait(f"{buffer}_empty", buffer, empty=True))
        self.append(
            Expect(f"{buffer}_full", buffer, stage_bytes),
            Load(buffer, f"{buffer}_full", buffer, skew),
            Advance(buffer),
        )

    def load_first(self) -> None:
        """Without a producer: Q, and the KV tiles that fill the rings. Q's release comes last of a
        work tile's, so that its stages are then all free."""
        assert self.prefetch is not None
        tiles = [
            IfAhead(ahead, self._load_alone(ring, -ahead, free=True))
            for ahead in range(self.prefetch.stages)
            for ring in self.prefetch.rings
        ]
        self.append(OnInstance(0, (*self._load_alone("Q", 0), *tiles)))

    def _load_ahead(self, ring: str, ahead: int) -> None:
        """Load the KV tile ``ahead`` of the loop's, if there is one, from one thread."""
        if self.horizon is None or ahead <= self.horizon:
            self.append(OnInstance(0, (IfAhead(ahead, self._load_alone(ring, -ahead)),)))

    def _load_alone(self, ring: str, skew: int, free: bool = False) -> tuple[Node, ...]:
        assert self.prefetch is not None
        cursor = f"next_{ring}"
        wait = Wait(f"{ring}_empty", cursor, empty=True, by=Executor.ELECTED)
        return (
            *([] if free else [wait]),
            Expect(f"{ring}_full", cursor, self.prefetch.bytes[ring]),
            Load(ring, f"{ring}_full", cursor, skew),
            Advance(cursor),
        )

    def acquire(self, ring: str) -> None:
        """Wait for the cursor's stage of a ring to be filled, unless this role already has."""
        if ring not in self.awaited | self.staged:
            self.append(Wait(f"{ring}_full", ring))
            self.awaited.add(ring)

    def gemm(self, gemm: Gemm, turn: Turn | None = None) -> None:
        """Issue and commit a product; with ``turn``, wait for it first."""
        for ring in (gemm.a_cursor, gemm.b_cursor):
            if ring is not None:
                self.acquire(ring)
        if turn is not None:
            self.append(NamedSync(turn.barrier, turn.threads))
        operands = [gemm.accumulator] + ([gemm.a] if gemm.a_cursor is None else [])
        self._retire_for(operands)
        if self.touched & set(operands):
            self.append(WgmmaFence(tuple(sorted(self.touched))))
            self.touched.clear()
        self.append(gemm, WgmmaCommit())
        self.computed = ()
        ring = gemm.b_cursor
        self.groups.append(_Group(gemm.kind, gemm.accumulator, gemm.a, ring, gemm.skew))
        if ring in self.trailing:
            self.append(Advance(ring))
            self.awaited.discard(ring)

    def pass_turn(self, turn: Turn) -> None:
        """Ping-pong: give the tensor core to the next warpgroup."""
        self.append(NamedArrive(turn.barrier, turn.threads, shift=1))

    def calc(
        self,
        kind: CalcKind,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        skew: int = 0,
        keys: tuple[int, int] | None = None,
        ring: str | None = None,
    ) -> None:
        """A register computation, after the products it needs have retired; ``ring``: of a shared
        tile that it reads too."""
        if ring is not None:
            self.acquire(ring)
        # what it reads first: the stage of S's product is released while what it overwrites flies
        self._retire_for(list(reads))
        self._retire_for(list(writes))
        self.append(Calc(kind, reads, writes, skew, keys, ring))
        self.touched |= self.fenced & {*reads, *writes}
        branches = kind in (CalcKind.SHIFT, CalcKind.REDO)  # past their votes nothing moves
        self.computed = () if branches else tuple(name for name in writes if name in _SETTLED)

    def free(self, *registers: str) -> None:
        """Retire the products that use register tiles, one after another, before what need not wait
        for all of them."""
        for register in registers:
            self._retire_for([register])

    def release(self, ring: str, skew: int, fence: bool) -> None:
        """The stage of a ring that computations have read for the last time; ``fence``: unless a
        later one comes before TMA fills it."""
        self.append(*([ProxyFence()] if fence else []))
        self.append(Arrive(f"{ring}_empty", ring, Executor.EACH_WARP), Advance(ring))
        self.awaited.discard(ring)
        if self.prefetch is not None:
            self._load_ahead(ring, self.prefetch.stages - skew)

    def stage_operand(self, stage: StageOut, sync: NamedSync) -> None:
        """Write an operand of a product to shared memory, for all warps of the warpgroup."""
        self._retire_for([stage.source, stage.buffer])
        if stage.buffer in self.unconverged:
            self.append(sync)
        self.append(stage, ProxyFence(), sync)
        self.unconverged.clear()
        self.touched |= self.fenced & {stage.source}
        self.computed = ()

    def next_iteration(self) -> None:
        """Products in flight now belong to a KV tile one further behind."""
        self.groups = [replace(group, skew=group.skew + 1) for group in self.groups]

    def drain(self) -> None:
        """Wait for every product in flight."""
        self._retire(len(self.groups))

    # --- the scoreboard ---------------------------------------------------------------------------

    def _retire_for(self, registers: list[str]) -> None:
        """Retire the youngest group that uses any of these register tiles, and all older ones."""
        using = [
            index
            for index, group in enumerate(self.groups)
            if group.accumulator in registers or group.a in registers
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
            ring = group.ring
            cursor = f"done_{ring}" if ring in self.trailing else ring
            self.append(Arrive(f"{ring}_empty", cursor, Executor.EACH_WARP), Advance(cursor))
            if ring not in self.trailing:
                self.awaited.discard(ring)
            self.unconverged |= self.shared & {group.a}
            if self.prefetch is not None:
                self._load_ahead(ring, self.prefetch.stages - group.skew)
