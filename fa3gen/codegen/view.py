"""What the templates see: a Program and its Schedule as plain names and numbers.

All decisions and all arithmetic are made here; templates only spell.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from fa3gen.codegen.cpp import print_cpp
from fa3gen.codegen.source import KernelMeta
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.program import (
    Advance,
    Barrier,
    Buffer,
    NamedBarrier,
    Node,
    Program,
    Role,
    SetRegisters,
    SyncCta,
    instructions,
)
from fa3gen.schedule.schedule import Persistence, Schedule
from fa3gen.spec.symbols import k as K
from fa3gen.spec.symbols import seqlen_k as SEQLEN_K

__all__ = ["HostView", "KernelView", "MapView", "RingView", "RoleView", "kernel_view"]


@dataclass(frozen=True)
class RingView:
    """A role's cursor through a buffer."""

    name: str
    stages: int


@dataclass(frozen=True)
class RoleView:
    """A role's branch of the kernel."""

    name: str
    rings: tuple[RingView, ...]
    entry: tuple[Node, ...]  # setmaxnreg, by every thread
    body: tuple[Node, ...]


@dataclass(frozen=True)
class MapView:
    """A TMA tensor map, as the host encodes it."""

    name: str
    box_rows: int
    box_cols: int
    swizzle_bytes: int


@dataclass(frozen=True)
class HostView:
    """The host translation unit."""

    meta: KernelMeta
    maps: tuple[MapView, ...]
    longest_first: bool
    persistent: bool
    cta_per_sm: int


@dataclass(frozen=True)
class BoundsView:
    """Key bounds of a query tile as C++ expressions in q_first, q_last and the lengths."""

    some_begin: str
    every_begin: str
    every_end: str
    some_end: str


@dataclass(frozen=True)
class KernelView:
    """The device translation unit."""

    meta: KernelMeta
    program: Program
    thread_setup: tuple[Node, ...]  # by one thread
    cta_setup: tuple[Node, ...]  # by every thread
    producer: RoleView
    consumer: RoleView
    buffers: dict[str, Buffer]
    barriers: tuple[Barrier, ...]
    named: tuple[NamedBarrier, ...]
    element: str
    fragments: dict[str, str]  # register tile to the name of its fragment
    consumers: int
    chunk: int  # columns of a 128-byte column chunk
    chunks_qk: int
    chunks_v: int
    wgmma_rows: int
    bounds: BoundsView
    keep: str
    banner: tuple[str, ...]


_ELEMENTS = {"bf16": "cutlass::bfloat16_t", "fp16": "cutlass::half_t"}


def kernel_view(schedule: Schedule, program: Program, meta: KernelMeta) -> KernelView:
    """The device side of a Program."""
    bounds = schedule.bounds

    def bound(expr: sympy.Expr | None, default: str) -> str:
        return default if expr is None else print_cpp(expr, _runtime_name)

    every_end = "0" if not bounds.exact else bound(bounds.every_end, "params.seqlen_k")
    return KernelView(
        meta=meta,
        program=program,
        thread_setup=tuple(node for node in program.setup if not isinstance(node, SyncCta)),
        cta_setup=tuple(node for node in program.setup if isinstance(node, SyncCta)),
        producer=_role(program, program.role("producer")),
        consumer=_role(program, program.role("consumer")),
        buffers={buffer.name: buffer for buffer in program.buffers},
        barriers=program.barriers,
        named=program.named,
        element=_ELEMENTS[program.dtype.value],
        fragments={"S": "tSrS", "P": "tOrP", "O": "tOrO"},
        consumers=program.role("consumer").instances,
        chunk=program.buffer("Q").chunk,
        chunks_qk=program.buffer("Q").cols // program.buffer("Q").chunk,
        chunks_v=program.buffer("V").cols // program.buffer("V").chunk,
        wgmma_rows=HOPPER.wgmma_rows,
        bounds=BoundsView(
            bound(bounds.some_begin, "0"),
            bound(bounds.every_begin, "0"),
            every_end,
            bound(bounds.some_end, "params.seqlen_k"),
        ),
        keep=_keep(program.keep),
        banner=_banner(schedule, program),
    )


def host_view(schedule: Schedule, program: Program, meta: KernelMeta) -> HostView:
    """The host side of a Program: one tensor map a tensor."""
    rows = {"q": "Q", "k": "K", "v": "V"}
    chunk, swizzle = program.buffers[0].chunk, HOPPER.swizzle_bytes
    maps = [MapView(name, program.buffer(tile).rows, chunk, swizzle) for name, tile in rows.items()]
    maps.append(MapView("o", HOPPER.wgmma_rows, chunk, swizzle))
    return HostView(
        meta=meta,
        maps=tuple(maps),
        longest_first=schedule.longest_first,
        persistent=schedule.tiling.persistence is not Persistence.NONE,
        cta_per_sm=1,
    )


def _role(program: Program, role: Role) -> RoleView:
    entry = tuple(node for node in role.body if isinstance(node, SetRegisters))
    body = tuple(node for node in role.body if not isinstance(node, SetRegisters))
    return RoleView(role.name, _rings(program, role), entry, body)


def _rings(program: Program, role: Role) -> tuple[RingView, ...]:
    """The cursors that a role moves, in buffer order."""
    moved = {i.cursor for i in instructions(role.body) if isinstance(i, Advance)}
    return tuple(
        RingView(buffer.name, buffer.stages) for buffer in program.buffers if buffer.name in moved
    )


def _runtime_name(symbol: str) -> str:
    """Lengths are kernel parameters; everything else is a local of the same name."""
    return f"params.{symbol}" if symbol in ("seqlen_q", "seqlen_k") else symbol


def _keep(keep: sympy.Basic) -> str:
    """The mask with the bound by seqlen_k first."""
    inside = sympy.Lt(K, SEQLEN_K)
    rest = sympy.And(*(part for part in sympy.And.make_args(keep) if part != inside))
    text = print_cpp(inside, _runtime_name)
    if rest is sympy.true:
        return text
    more = print_cpp(rest, _runtime_name)
    return f"{text} && ({more})" if isinstance(rest, sympy.Or) else f"{text} && {more}"


def _banner(schedule: Schedule, program: Program) -> tuple[str, ...]:
    """What the kernel computes and how it is scheduled."""
    spec, tiling, registers = schedule.spec, schedule.tiling, schedule.registers
    dims = spec.head_dim
    rows = [
        ("head dim", f"{dims.qk} (Q, K), {dims.v} (V, O)"),
        ("type", f"{spec.dtype.value}, fp32 accumulation"),
        ("score", spec.score),
        ("mask", spec.mask),
        ("work tile", f"{tiling.block_m} queries by {tiling.block_n} keys a step"),
        ("warpgroups", f"1 producer (TMA), {tiling.warpgroups} consumers of 64 queries"),
        ("rings", f"{tiling.stages} stages of K, {tiling.stages} of V"),
        ("overlap", _OVERLAP[tiling.overlap]),
        ("ping-pong", "consumers take turns on the tensor core" if tiling.pingpong else "off"),
        ("grid", tiling.persistence.value),
        ("shared", f"{program.shared_bytes} bytes"),
    ]
    if registers is not None:
        rows.append(("registers", f"producer {registers.producer}, consumers {registers.consumer}"))
    return tuple(f"{name:<11s} {value}" for name, value in rows)


_OVERLAP = {
    1: "none: QK, softmax and PV of a KV tile in sequence",
    2: "PV of a KV tile runs during the softmax of the next",
}
