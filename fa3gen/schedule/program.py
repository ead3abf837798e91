"""Program: what each role of a CTA executes, with every synchronisation explicit.

The verifier, the interpreter and the renderer read this record and nothing else. A Program is a set
of resources (shared-memory buffers, mbarriers, named barriers, register tiles) and one tree of
instructions a role: straight-line lists inside ``EachWork``, ``IfTiles`` and ``ForTiles``.

**Rings.** A buffer with several stages is a ring. Each role walks it with a *cursor*, a counter
that ``Advance`` raises: stage = counter % stages, and the barrier phase is counter // stages. A
full barrier is awaited at that phase; an empty one a phase earlier, so that the first round passes.
A role that also loads walks the ring by a cursor of its own, ``next_`` and the buffer's name; one
that releases a stage after it has gone on to the next releases by ``done_`` and the name.

**Executors.** ``ELECTED`` is one fixed thread of the warpgroup, ``EACH_WARP`` one lane of each warp
once its whole warp has come there, ``ALL`` every thread. What an arrival publishes depends on it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import sympy

from fa3gen.dtypes import DType
from fa3gen.inputs import InputMeta
from fa3gen.ir.bias import BiasTile
from fa3gen.ir.score import ScoreForm

__all__ = [
    "BLOCKS",
    "Access",
    "Advance",
    "Arrive",
    "Barrier",
    "Buffer",
    "Calc",
    "CalcKind",
    "ClaimAhead",
    "ClaimWork",
    "EachWork",
    "EndOfWork",
    "Executor",
    "Expect",
    "FenceBarrierInit",
    "ForTiles",
    "Gemm",
    "GemmKind",
    "IfAhead",
    "IfTiles",
    "InitBarrier",
    "Instruction",
    "Leftover",
    "Leftovers",
    "Load",
    "NamedArrive",
    "NamedBarrier",
    "NamedSync",
    "Node",
    "OnInstance",
    "Phase",
    "Program",
    "ProxyFence",
    "ReadWork",
    "RegisterTile",
    "Role",
    "Segment",
    "SetRegisters",
    "StageOut",
    "Step",
    "StoreRows",
    "SyncCta",
    "TmaStore",
    "TmaStoreCommit",
    "TmaStoreWait",
    "Wait",
    "WgmmaCommit",
    "WgmmaFence",
    "WgmmaWait",
    "instructions",
]


# --- resources ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Buffer:
    """A shared-memory buffer: ``stages`` tiles, in column chunks of ``chunk`` elements.

    A tile is stored chunk after chunk, each of ``rows`` rows of 128 swizzled bytes, as by TMA.
    """

    name: str  # the tile value it holds
    offset: int  # bytes from the start of dynamic shared memory
    rows: int
    cols: int  # padded to whole chunks
    dtype: DType
    stages: int
    chunk: int

    @property
    def stage_bytes(self) -> int:
        """Bytes of one stage."""
        return self.rows * self.cols * self.dtype.bytes

    @property
    def bytes(self) -> int:
        """Bytes of all stages."""
        return self.stage_bytes * self.stages

    def intervals(self, stage: int, first_row: int, rows: int) -> tuple[tuple[int, int], ...]:
        """Byte intervals [start, end) of some rows of one stage."""
        start = self.offset + stage * self.stage_bytes
        row_bytes = self.chunk * self.dtype.bytes
        chunks = range(0, self.stage_bytes, self.rows * row_bytes)
        if rows == self.rows:
            return ((start, start + self.stage_bytes),)
        return tuple(
            (start + at + first_row * row_bytes, start + at + (first_row + rows) * row_bytes)
            for at in chunks
        )


@dataclass(frozen=True)
class Barrier:
    """An array of mbarriers, one a stage, each completed by ``arrivals`` arrivals and its bytes."""

    name: str
    stages: int
    arrivals: int
    offset: int  # bytes from the start of dynamic shared memory


@dataclass(frozen=True)
class NamedBarrier:
    """One named barrier an instance of a role: instance i owns id ``first_id + i``."""

    name: str
    first_id: int
    instances: int
    threads: int  # that complete it


@dataclass(frozen=True)
class RegisterTile:
    """A register tile of one warpgroup; ``registers``: 32-bit registers of each thread."""

    name: str
    rows: int
    cols: int
    dtype: DType
    registers: int


class Executor(enum.Enum):
    """Who executes an instruction."""

    ELECTED = "elected thread"
    EACH_WARP = "one lane of each warp"
    ALL = "all threads"


# --- synchronisation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitBarrier:
    """Initialise every stage of an mbarrier array (thread 0 of the CTA)."""

    barrier: str
    arrivals: int


@dataclass(frozen=True)
class FenceBarrierInit:
    """Make initialised mbarriers visible to the async proxy."""


@dataclass(frozen=True)
class SyncCta:
    """__syncthreads() before the roles part."""


@dataclass(frozen=True)
class SetRegisters:
    """setmaxnreg: ``count`` registers a thread from here on; ``grows``: more than at launch."""

    count: int
    grows: bool


@dataclass(frozen=True)
class Expect:
    """Arrive and expect ``bytes`` by TMA (elected thread)."""

    barrier: str
    cursor: str
    bytes: int
    shift: int = 0  # stages away from the cursor


@dataclass(frozen=True)
class Wait:
    """Wait for the phase of the cursor's fill; ``empty``: for the one before."""

    barrier: str
    cursor: str
    empty: bool = False
    flip: bool = False  # wait on the other parity (a fault; for the verifier's own test)
    shift: int = 0
    by: Executor = Executor.ALL


@dataclass(frozen=True)
class Arrive:
    """Arrive on an mbarrier at the cursor's stage."""

    barrier: str
    cursor: str
    by: Executor
    shift: int = 0


@dataclass(frozen=True)
class Advance:
    """Move a cursor to the next stage."""

    cursor: str


@dataclass(frozen=True)
class NamedSync:
    """Arrive and wait at the named barrier of instance (own + ``shift``) modulo instances."""

    barrier: str
    threads: int
    shift: int = 0


@dataclass(frozen=True)
class NamedArrive:
    """Arrive at the named barrier of instance (own + ``shift``) modulo instances; do not wait."""

    barrier: str
    threads: int
    shift: int = 0


@dataclass(frozen=True)
class WgmmaFence:
    """wgmma.fence: order earlier accesses to these register tiles before the next wgmma."""

    registers: tuple[str, ...]


@dataclass(frozen=True)
class WgmmaCommit:
    """wgmma.commit_group."""


@dataclass(frozen=True)
class WgmmaWait:
    """wgmma.wait_group: at most ``pending`` younger groups stay in flight; ``retires`` names the
    accumulators that this wait completes (an intent that the verifier checks). ``after`` names
    what was computed last during the flight: the assembler must not move that work past the wait,
    or nothing overlaps (order for speed alone, not for safety)."""

    pending: int
    retires: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProxyFence:
    """fence.proxy.async: order generic accesses of shared memory before the async proxy's."""


@dataclass(frozen=True)
class TmaStoreCommit:
    """cp.async.bulk.commit_group (elected thread)."""


@dataclass(frozen=True)
class TmaStoreWait:
    """cp.async.bulk.wait_group[.read] (elected thread): ``pending`` groups may stay in flight."""

    pending: int
    read: bool


# --- tile operations ------------------------------------------------------------------------------


class Access(enum.Enum):
    """Which rows of a shared tile an instruction touches."""

    TILE = "all rows"
    SLAB = "the warpgroup's own rows"


@dataclass(frozen=True)
class Load:
    """TMA load of one tile into a stage; completes bytes on ``barrier`` (elected thread)."""

    buffer: str
    barrier: str
    cursor: str
    skew: int = 0  # KV tiles behind the loop's tile
    shift: int = 0


@dataclass(frozen=True)
class ClaimWork:
    """Write the number of the work tile claimed last to a stage (elected thread)."""

    buffer: str
    cursor: str
    shift: int = 0


@dataclass(frozen=True)
class ClaimAhead:
    """Claim the work tile after the one at hand; its number is waited for by ``ClaimWork``."""


@dataclass(frozen=True)
class ReadWork:
    """Read the number of the work tile at hand; one past the last ends the loop."""

    buffer: str
    cursor: str
    shift: int = 0


@dataclass(frozen=True)
class EndOfWork:
    """Leave the loop over work tiles if the claim is past the last."""


class GemmKind(enum.Enum):
    """The products of attention."""

    QK = "S = Q K^T"
    PV = "O += P V"


@dataclass(frozen=True)
class Gemm:
    """Issue a warpgroup MMA: accumulator (op)= a * b. Asynchronous until its group retires."""

    kind: GemmKind
    accumulator: str
    a: str  # a register tile or a shared buffer
    b: str  # a shared buffer
    a_cursor: str | None  # None: a is in registers
    b_cursor: str
    skew: int = 0
    shift: int = 0


class CalcKind(enum.Enum):
    """Register computations of one warpgroup."""

    CLEAR = "O = 0, row_max = -inf, row_sum = 0"
    ROWS = "what formulas and masks take of the work tile and its rows"
    BIAS = "S = S + the bias over the softmax scale"
    SCORE = "S = the formula of S"
    MASK = "S = S where kept, else -inf"
    ROW_MAX = "row_max' = max(row_max, rowmax S); alpha = 2^((row_max - row_max') scale_log2)"
    EXP = "S = 2^((S - row_max) scale_log2)"
    ROW_SUM = "row_sum = row_sum alpha + rowsum S"
    CONVERT = "P = S in the operand type"
    RESCALE = "O = O alpha"
    NORMALIZE = "O = O / row_sum; lse = row_max scale + ln row_sum"

    # with the maxima of the tiles before
    SPECULATE = "S = 2^((S - row_max) scale_log2), P = S in the operand type, tile_sum = rowsum S"
    SPECULATE_SCORE = "the same of the formula of S, but for P"
    REDO = (
        "row_sum += tile_sum; where that is too large S, P, row_max, alpha, O, row_sum from Q K^T"
    )

    # with maxima that are followed lazily: shift grows only where exponents would grow too large
    CLEAR_SHIFTED = "O = 0, row_sum = 0, shift = 0 of no key yet"
    SHIFT = "S = S scale_log2 - shift; shift may grow, S, row_sum and alpha with it"
    EXP2 = "S = 2^S"
    ADD_SUM = "row_sum = row_sum + rowsum S"
    RESCALE_GROWN = "O = O alpha where a shift has grown"
    NORMALIZE_SHIFTED = "O = O / row_sum; lse = (shift + log2 row_sum) ln 2"


@dataclass(frozen=True)
class Calc:
    """A register computation; ``reads`` and ``writes`` are register tiles, ``keys`` the columns of
    S from one to before another where it takes a part of them. With a ``cursor`` it also reads the
    warpgroup's rows of that shared tile (generic proxy)."""

    kind: CalcKind
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    skew: int = 0
    keys: tuple[int, int] | None = None
    cursor: str | None = None
    shift: int = 0


@dataclass(frozen=True)
class StageOut:
    """Round a register tile and write it to the warpgroup's rows of a shared buffer (generic
    proxy): O for its store, or P as an operand."""

    source: str
    buffer: str
    skew: int = 0


@dataclass(frozen=True)
class TmaStore:
    """TMA store of the warpgroup's rows of a shared buffer to global memory (elected thread)."""

    buffer: str


@dataclass(frozen=True)
class StoreRows:
    """Write a row vector from registers to global memory."""

    source: str


Instruction = (
    InitBarrier
    | FenceBarrierInit
    | SyncCta
    | SetRegisters
    | Expect
    | Wait
    | Arrive
    | Advance
    | NamedSync
    | NamedArrive
    | WgmmaFence
    | WgmmaCommit
    | WgmmaWait
    | ProxyFence
    | TmaStoreCommit
    | TmaStoreWait
    | Load
    | ClaimWork
    | ClaimAhead
    | ReadWork
    | EndOfWork
    | Gemm
    | Calc
    | StageOut
    | TmaStore
    | StoreRows
)


# --- control --------------------------------------------------------------------------------------


class Segment(enum.Enum):
    """A run of KV tiles of a work tile, in visiting order (from the last key down).

    With D tiles peeled in a prologue, ALL = every tile after those; RIGHT, FULL and LEFT part ALL
    into tiles masked at the upper end, tiles that need no mask, and tiles masked at the lower end.
    Where the loops take U tiles a turn, the last turn of RIGHT may take some that need no mask,
    FULL leaves less than a turn to LEFT, and REST is what no whole turn is left for.
    """

    FIRST = "the tile with the last key"
    ALL = "every tile after the peeled ones"
    RIGHT = "masked tiles at the upper end"
    FULL = "tiles that need no mask"
    LEFT = "masked tiles at the lower end"
    REST = "tiles left over by the loops"
    DRAIN = "what is owed after the last tile"


@dataclass(frozen=True)
class EachWork:
    """Run ``body`` for each work tile of the CTA.

    They follow from the CTA's index; or, where the body has an ``EndOfWork``, they are claimed
    before it, and the loop ends there once the claim is past the last.
    """

    body: tuple[Node, ...]


@dataclass(frozen=True)
class IfTiles:
    """Run ``body`` if the work tile visits any KV tile."""

    body: tuple[Node, ...]


@dataclass(frozen=True)
class ForTiles:
    """Run ``body`` for each KV tile of a segment; bodies of FIRST and DRAIN are made of steps."""

    segment: Segment
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Step:
    """Iteration number ``index`` of a segment that has as many as tiles are peeled."""

    index: int
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Phase:
    """Part of a loop that takes ``count`` KV tiles a turn: ``body`` for those t of them with
    t % ``count`` == ``index``. Register tiles that outlive an iteration go by several names in turn
    (modulo variable expansion)."""

    index: int
    count: int
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Leftover:
    """What follows the loops if they have left ``tiles`` KV tiles over."""

    tiles: int
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Leftovers:
    """One of the ``Leftover`` in ``body``, by the number of KV tiles left."""

    body: tuple[Leftover, ...]


@dataclass(frozen=True)
class IfAhead:
    """Run ``body`` if the work tile has a KV tile ``tiles`` after the loop's tile."""

    tiles: int
    body: tuple[Node, ...]


@dataclass(frozen=True)
class OnInstance:
    """Run ``body`` on one instance of the role only."""

    instance: int
    body: tuple[Node, ...]


Block = EachWork | IfTiles | ForTiles | Step | Phase | Leftovers | Leftover | IfAhead | OnInstance
BLOCKS = (
    EachWork,
    IfTiles,
    ForTiles,
    Step,
    Phase,
    Leftovers,
    Leftover,
    IfAhead,
    OnInstance,
)

Node = Instruction | Block


@dataclass(frozen=True)
class Role:
    """What ``instances`` warpgroups execute, each with ``registers`` registers a thread."""

    name: str
    first_warpgroup: int
    instances: int
    registers: int  # granted by setmaxnreg
    needs: int  # registers that its tiles and addresses take
    body: tuple[Node, ...]


@dataclass(frozen=True)
class Program:
    """One kernel: resources, barrier set-up and roles."""

    name: str
    buffers: tuple[Buffer, ...]
    barriers: tuple[Barrier, ...]
    named: tuple[NamedBarrier, ...]
    tiles: tuple[RegisterTile, ...]
    setup: tuple[Instruction, ...]
    roles: tuple[Role, ...]
    block_m: int
    block_n: int
    dtype: DType
    inputs: tuple[InputMeta, ...]
    score: ScoreForm
    bias: BiasTile | None  # the input that is added to products
    sink: str | None  # the input that joins each row's sum
    keep: sympy.Basic  # of an element (q, k), the bound by seqlen_k included
    threads: int
    ctas_per_sm: int
    shared_bytes: int
    peeled: int  # KV tiles before the loops, in a prologue: a work tile has none, or as many
    lag: int  # KV tiles that the softmax is behind the loop's tile
    unroll: int  # KV tiles of a turn of the consumers' loops
    followed: int  # KV tiles of a loop that begin a work tile with the mask's code, needed or not
    always: bool  # every work tile visits a KV tile, one past the last key if it keeps none
    listed: bool  # KV tiles are places in a list of the work tile's: whole tiles, then masked ones

    def buffer(self, name: str) -> Buffer:
        """The shared buffer of a tile value."""
        return next(buffer for buffer in self.buffers if buffer.name == name)

    def ring(self, cursor: str) -> Buffer:
        """The buffer that a cursor walks."""
        return self.buffer(cursor.removeprefix("next_").removeprefix("done_"))

    def barrier(self, name: str) -> Barrier:
        """An mbarrier array by name."""
        return next(barrier for barrier in self.barriers if barrier.name == name)

    def named_barrier(self, name: str) -> NamedBarrier:
        """A named barrier by name."""
        return next(barrier for barrier in self.named if barrier.name == name)

    def tile(self, name: str) -> RegisterTile:
        """A register tile by name."""
        return next(tile for tile in self.tiles if tile.name == name)

    def role(self, name: str) -> Role:
        """A role by name."""
        return next(role for role in self.roles if role.name == name)

    def __str__(self) -> str:
        lines = [f"program {self.name}: {self.threads} threads, {self.shared_bytes} B shared"]
        lines += [_show(instruction, 1) for instruction in self.setup]
        for role in self.roles:
            lines.append(f"role {role.name} x{role.instances}, {role.registers} registers")
            lines += [_show(node, 1) for node in role.body]
        return "\n".join(lines)


def instructions(nodes: tuple[Node, ...]) -> Iterator[Instruction]:
    """Every instruction of a tree, in text order."""
    for node in nodes:
        if isinstance(node, BLOCKS):
            yield from instructions(node.body)
        else:
            yield node


def _head(block: Block) -> str:
    """When a block runs."""
    match block:
        case EachWork():
            return "for each work tile"
        case IfTiles():
            return "if any KV tile"
        case ForTiles(segment):
            return f"for {segment.value}"
        case Step(index):
            return f"step {index}"
        case Phase(index, count):
            return f"where t % {count} = {index}"
        case Leftovers():
            return "by the tiles left over"
        case Leftover(tiles):
            return f"{tiles} left over"
        case IfAhead(tiles):
            return f"if there is a KV tile t + {tiles}"
        case OnInstance(instance):
            return f"on instance {instance}"


# Fields that are not shown where they say nothing.
_OMITTED = ("skew", "shift", "flip", "empty", "a_cursor", "keys", "cursor")


def _show(node: Node, depth: int) -> str:
    """One node as indented text."""
    pad = "  " * depth
    if isinstance(node, BLOCKS):
        head = f"{pad}{_head(node)}:"
        return "\n".join([head, *(_show(child, depth + 1) for child in node.body)])
    fields = []
    for name in node.__dataclass_fields__:
        value = getattr(node, name)
        if value in (0, False, None) and name in _OMITTED:
            continue
        if value is Executor.ALL:
            continue
        text = value.name if isinstance(value, enum.Enum) else value
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else text
        fields.append(f"{name}={text}")
    return f"{pad}{type(node).__name__} {' '.join(fields)}".rstrip()
