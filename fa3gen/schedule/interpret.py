"""Execution of a Program on CPU tensors, tile by tile, with the kernel's rounding points.

The machine, its steps and its worst case for asynchronous operations are the verifier's. Values are
torch tensors instead of tokens: operands in the spec's type, products and the softmax in fp32, P
rounded before the second product, O rounded as it is staged. What was never written, is in flight
or was overwritten is NaN, so that a Program which uses it shows in its output.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor

from fa3gen.dtypes import DType
from fa3gen.errors import VerificationError
from fa3gen.ir.bias import BiasTile
from fa3gen.ir.score import LOG2E
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.lower import lower
from fa3gen.schedule.machine import Agent, Machine, Place
from fa3gen.schedule.program import Calc, CalcKind, Gemm, GemmKind, Program
from fa3gen.schedule.ranges import KeyBounds, TileRange, tile_range
from fa3gen.schedule.schedule import Persistence, Schedule
from fa3gen.schedule.tile_lists import TileLists, WorkTile
from fa3gen.spec import symbols

__all__ = ["Execution", "Interpreter", "evaluate", "interpret"]

_CHANGE = 1 / 32  # how often a random interleaving changes its priorities, per step


@dataclass(frozen=True)
class Execution:
    """How the work tiles of a call are run.

    Each CTA takes at most ``work_tiles`` of them in sequence. Without a ``seed`` every role runs as
    far as it can and loads land last, in the order of their issue; with one the roles' steps and
    the loads' landings interleave at random, loads in any order.
    """

    work_tiles: int = 8
    seed: int | None = None


class Interpreter:
    """A schedule's Program on CPU tensors, ``(q, k, v, scale, *inputs) -> (out, lse)``; the inputs
    in the order of the spec's."""

    def __init__(self, schedule: Schedule, execution: Execution | None = None) -> None:
        if execution is None:
            single = schedule.tiling.persistence is Persistence.NONE
            execution = Execution(work_tiles=1) if single else Execution()
        self.program = lower(schedule)
        self.bounds = schedule.bounds
        self.execution = execution

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *more: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the Program; shapes, types and errors as of :func:`interpret`. ``more``: the inputs,
        and where KV tiles are listed a plan or None."""
        inputs = [tensor for tensor in more[: len(self.program.inputs)] if tensor is not None]
        plan = more[-1] if self.program.listed and more else None
        tensors = (q, k, v, *inputs)
        return interpret(self.program, self.bounds, tensors, scale, self.execution, plan)

    def plan(self, sizes: tuple[int, int, int, int, int], inputs: Sequence[Tensor]) -> Tensor:
        """The lists of KV tiles for (batch, heads, heads_k, seqlen_q, seqlen_k), as int32."""
        batch, heads, heads_k, seqlen_q, seqlen_k = sizes
        dim = self.program.buffer("Q").cols
        q = torch.empty(batch, seqlen_q, heads, dim, device="meta")
        k = torch.empty(batch, seqlen_k, heads_k, dim, device="meta")
        call = _Call(self.program, (q, k, k, *inputs), 1.0, results=False)
        return call.lists.encode()


def interpret(
    program: Program,
    bounds: KeyBounds,
    tensors: tuple[Tensor, ...],
    scale: float,
    execution: Execution = Execution(),
    plan: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a Program on q, k, v and its inputs.

    q (batch, seqlen_q, heads, d), k (batch, seqlen_k, heads_k, d) and v (batch, seqlen_k, heads_k,
    d_v) are CPU tensors of the Program's type with any strides; heads_k divides heads. Inputs have
    the types and axes that the Program declares. Returns out
    (batch, seqlen_q, heads, d_v) in that type and the natural-log LSE (batch, heads, seqlen_q) in
    fp32, both new and contiguous. A row without keys gives 0 and -inf, a row that the Program does
    not write NaN. Raises VerificationError where the Program deadlocks or breaks a rule of the
    machine that no value shows.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        call = _Call(program, tensors, scale)
        if plan is not None:
            call.lists.decode(plan)
        works = call.work_tiles()
        order = None if execution.seed is None else random.Random(execution.seed)
        ctas = -(-len(works) // execution.work_tiles)
        for cta in range(ctas):
            mine = works[cta::ctas]
            tiles = [call.tile_range(bounds, work) for work in mine]
            _run(Machine(program, tiles, _Tensors(call, mine)), order)
        return call.out, call.lse


def _run(machine: Machine, order: random.Random | None) -> None:
    """Run a machine to its end, after a random interleaving if there is an order to draw from.

    Roles and landings have priorities that change now and then: a role that stays far behind, or a
    load that lands long after its issue, shows more faults than an even mix does.
    """

    def land() -> bool:
        flights = len(machine.flights)
        return flights > 0 and order is not None and machine.land(order.randrange(flights))

    def step(agent: Agent) -> bool:
        return not agent.done and machine.step(agent)

    actors: list[Callable[[], bool]] = [land, *(partial(step, agent) for agent in machine.agents)]
    progress = order is not None
    while progress and order is not None:
        if order.random() < _CHANGE:
            order.shuffle(actors)
        progress = any(actor() for actor in actors)  # the first that can act
    machine.run()  # the whole run, or the end of it: everything done, or a deadlock to describe


# --- one call -------------------------------------------------------------------------------------


class _Call:
    """The tensors of one call and what its work tiles share."""

    def __init__(
        self,
        program: Program,
        tensors: tuple[Tensor, ...],
        scale: float,
        results: bool = True,
    ) -> None:
        self.program = program
        q, k, v, *inputs = tensors
        self.global_tensors = {"Q": q, "K": k, "V": v}
        self.dtype: torch.dtype = getattr(torch, program.dtype.torch_name)
        self.batch, self.seqlen_q, self.heads, _ = q.shape
        self.seqlen_k, heads_k = k.shape[1:3]
        self.m_blocks = range(-(-self.seqlen_q // program.block_m))
        self.group = self.heads // max(heads_k, 1)  # query heads per KV head
        self.dim_v = v.shape[3]
        self.score_scale = _fp32(scale)
        self.scale = _fp32(program.score.multiplier(scale))  # what the softmax multiplies by
        self.scale_log2 = _fp32(program.score.multiplier(scale) * math.log2(math.e))
        self.inputs = _inputs(program, inputs)
        factor = 0.0 if program.bias is None else program.bias.factor
        self.bias_factor = _fp32(factor / scale)
        self.masks = _Masks(program, self.seqlen_q, self.seqlen_k, self.inputs)
        sizes = (self.batch, self.heads, self.seqlen_q, self.seqlen_k)
        self.lists = TileLists(program, sizes, self.kept)
        if results:
            nan = math.nan  # shows what the Program does not write
            self.out = q.new_full((self.batch, self.seqlen_q, self.heads, self.dim_v), nan)
            self.lse = q.new_full((self.batch, self.heads, self.seqlen_q), nan, dtype=torch.float32)

    def work_tiles(self) -> list[WorkTile]:
        """Every work tile, those with the last rows first."""
        return [
            WorkTile(m_block, head, batch)
            for m_block, batch, head in itertools.product(
                reversed(self.m_blocks), range(self.batch), range(self.heads)
            )
        ]

    def tile_range(self, bounds: KeyBounds, work: WorkTile) -> TileRange:
        """The KV tiles that the rows of a query tile visit."""
        shift = self.seqlen_k - self.seqlen_q
        first = work.m_block * self.program.block_m
        last = min(first + self.program.block_m, self.seqlen_q) - 1
        lengths, block_n = (self.seqlen_q, self.seqlen_k), self.program.block_n
        if self.program.listed:
            return self._listed_range(work)
        heads = {symbol: _integer(value) for symbol, value in self.head_indices(work).items()}

        def shared(expr: Any) -> int:
            return int(evaluate(expr, heads | self.inputs))

        tiles = tile_range(bounds, first + shift, last + shift, lengths, block_n, shared)
        if self.program.always:
            tiles = tiles.or_beyond(-(-max(self.seqlen_k, 1) // self.program.block_n))
        return tiles.at_least(self.program.peeled)

    def _listed_range(self, work: WorkTile) -> TileRange:
        """Places in the work tile's list: whole tiles first."""
        whole, masked = self.lists.of(work)
        count = len(whole) + len(masked)
        tiles = TileRange(0, 0, len(whole), count)
        return (tiles.or_beyond(0) if self.program.always else tiles).at_least(self.program.peeled)

    def kept(self, work: WorkTile, first_row: int, first_key: int) -> Tensor:
        """Booleans of one warpgroup's S."""
        return self.masks.tile(first_row, first_key, self.head_indices(work))

    def kv_tile(self, work: WorkTile, place: int) -> int:
        """The KV tile at a place of the loop; beyond a list lies one past the last key."""
        if not self.program.listed:
            return place
        whole, masked = self.lists.of(work)
        tiles = [*whole, *masked]
        beyond = -(-max(self.seqlen_k, 1) // self.program.block_n)
        return tiles[place] if place < len(tiles) else beyond

    def head_indices(self, work: WorkTile) -> dict[Any, int]:
        """The values of b, h and hk."""
        heads = {symbols.b: work.batch, symbols.h: work.head}
        return heads | {symbols.hk: work.head // self.group}

    def load(self, name: str, work: WorkTile, first: int) -> Tensor:
        """Rows ``first ...`` of Q, K or V in fp32, (rows, cols) of the buffer, as TMA loads them:
        zero outside the tensor, whatever its memory holds there."""
        buffer = self.program.buffer(name)
        tile = torch.zeros(buffer.rows, buffer.cols, dtype=torch.float32, device="cpu")
        head = work.head if name == "Q" else work.head // self.group
        rows = self.global_tensors[name][work.batch, first : first + buffer.rows, head]
        tile[: rows.shape[0], : rows.shape[1]] = rows
        return tile

    def load_bias(self, bias: BiasTile, work: WorkTile, first_row: int, first_key: int) -> Tensor:
        """The tile of an input from a row and a key on; zero outside the tensor."""
        buffer, at = self.program.buffer("Bias"), self.head_indices(work)
        heads = {symbol: _integer(value) for symbol, value in at.items()}
        table = self.inputs[bias.meta.name]
        for index in bias.lookup.args[:-2]:
            table = table[min(max(int(evaluate(index, heads)), 0), table.shape[0] - 1)]
        table = table.expand(self.seqlen_q, self.seqlen_k)
        tile = torch.zeros(buffer.rows, buffer.cols, dtype=torch.float32, device="cpu")
        part = table[first_row : first_row + buffer.rows, first_key : first_key + buffer.cols]
        tile[: part.shape[0], : part.shape[1]] = part
        return tile

    def store(self, name: str, value: Tensor, work: WorkTile, first: int) -> None:
        """Write O (rows, cols) or lse (rows, 1) to the rows ``first ...`` that exist."""
        last = min(first + HOPPER.wgmma_rows, self.seqlen_q)
        count = last - first
        if count <= 0:
            return
        if name == "O":
            value = value.expand(HOPPER.wgmma_rows, self.program.buffer("O").cols)
            self.out[work.batch, first:last, work.head] = value[:count, : self.dim_v]
        elif name == "lse":
            self.lse[work.batch, work.head, first:last] = value.expand(HOPPER.wgmma_rows, 1)[
                :count, 0
            ]
        else:
            raise VerificationError(f"stores {name}, which is no output")


def _inputs(program: Program, tensors: Sequence[Tensor]) -> dict[Any, Tensor]:
    """Inputs as formulas name them: scalars by their symbol, tables by their name."""
    found: dict[Any, Tensor] = {}
    for meta, tensor in zip(program.inputs, tensors, strict=True):
        value = tensor if meta.dtype is DType.INT32 else tensor.float()
        scalar = symbols.scalar_input(meta.name, meta.dtype)
        found[meta.name if meta.shape else scalar] = value
    return found


def _fp32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


# --- values ---------------------------------------------------------------------------------------

_NAN = _fp32(math.nan)
_LOG2E = _fp32(math.log2(math.e))
_LIMIT = 14.0  # exponents up to which a lazy maximum stays
# Of a thread's exponentials in a row, where it was right to speculate on them.
_LARGEST_SUM = {torch.float16: 2.0**14, torch.bfloat16: 2.0**60}
_LANES = 4  # of a warp that share a row, with two columns in each 8
_WARP_ROWS = 16  # of a product, that vote together


class _Tensors:
    """The Domain of fp32 CPU tensors, for one CTA. A row vector has shape (rows, 1)."""

    def __init__(self, call: _Call, work: list[WorkTile]) -> None:
        self.call, self.work = call, work
        self.program = call.program

    def poison(self) -> Tensor:
        """NaN, of no shape: it spreads to whatever is computed with it."""
        return _NAN

    def load(self, buffer: str, place: Place) -> Tensor:
        """Q of the work tile; K, V or bias of the KV tile."""
        work = self.work[place.work]
        first_row = work.m_block * self.program.block_m
        if buffer == "Q":
            return self.call.load(buffer, work, first_row)
        if buffer == "Bias" and self.program.bias is not None:
            return self.call.load_bias(self.program.bias, work, first_row, self._first_key(place))
        return self.call.load(buffer, work, self._first_key(place))

    def slab(self, value: Tensor, instance: int) -> Tensor:
        """The rows of one consumer."""
        first = instance * HOPPER.wgmma_rows
        return value[first : first + HOPPER.wgmma_rows]

    def gemm(
        self, gemm: Gemm, operands: tuple[Tensor, Tensor], accumulator: Tensor, place: Place
    ) -> Tensor:
        """S = Q K^T, or O + P V."""
        b_buffer = self.program.buffer(gemm.b)
        b = operands[1].expand(b_buffer.rows, b_buffer.cols)
        if gemm.kind is GemmKind.QK:
            return operands[0].expand(HOPPER.wgmma_rows, b_buffer.cols) @ b.T
        p = operands[0].expand(HOPPER.wgmma_rows, b_buffer.rows)
        return torch.addmm(accumulator, p, b)

    def calc(self, calc: Calc, registers: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
        """Masking, online softmax and rescaling, in fp32."""
        name = next((name for name in registers if name.startswith("S")), "S")  # S, or one of two
        s, o = registers.get(name, _NAN), registers.get("O", _NAN)
        row_max, row_sum = registers.get("row_max", _NAN), registers.get("row_sum", _NAN)
        alpha = registers.get("alpha", _NAN)
        match calc.kind:
            case CalcKind.CLEAR:
                return self._clear("row_max")
            case CalcKind.CLEAR_SHIFTED:
                return self._clear("shift")
            case CalcKind.SHIFT:
                return self._shift(name, registers, calc.keys or (0, 0))
            case CalcKind.EXP2:
                s = self._scores(s)
                part = slice(*(calc.keys or (0, 0)))
                s[:, part] = s[:, part].exp2()
                return {name: s}
            case CalcKind.ADD_SUM:
                return {"row_sum": row_sum + s.sum(-1, keepdim=True)}
            case CalcKind.BIAS:
                return {name: s + self._bias(registers)}
            case CalcKind.SCORE:
                return {name: self._formula(s, place)}
            case CalcKind.MASK:
                return {name: torch.where(self._keep(place), s, -math.inf)}
            case CalcKind.ROW_MAX:
                newer = torch.maximum(row_max, s.amax(-1, keepdim=True))
                return {"row_max": newer, "alpha": self._exp2_above(row_max, newer)}
            case CalcKind.EXP:
                return {name: self._exp2_above(s, row_max)}
            case CalcKind.ROW_SUM:
                return {"row_sum": row_sum * alpha + s.sum(-1, keepdim=True)}
            case CalcKind.ROWS:
                return {"rows": _fp32(0.0)}  # formulas are evaluated whole
            case CalcKind.SPECULATE | CalcKind.SPECULATE_SCORE:
                if calc.kind is CalcKind.SPECULATE_SCORE:
                    s = self._formula(s, place)
                s = torch.exp2(s * self.call.scale_log2 - row_max * self.call.scale_log2)
                sums = s.sum(-1, keepdim=True)
                guess = {name: s, "P": s.to(self.call.dtype).float(), "tile_sum": sums}
                return {name: guess[name] for name in calc.writes}
            case CalcKind.REDO:
                return self._redo(name, registers, place)
            case CalcKind.CONVERT:
                return {"P": s.to(self.call.dtype).float()}
            case CalcKind.RESCALE | CalcKind.RESCALE_GROWN:  # alpha is 1 where none has grown
                return {"O": o * alpha}
            case CalcKind.NORMALIZE:
                return self._normalize(o, row_sum, row_max * self.call.scale, place)
            case CalcKind.NORMALIZE_SHIFTED:
                return self._normalize(o, row_sum, registers["shift"] * math.log(2), place)

    def stage(self, buffer: str, value: Tensor, place: Place) -> Tensor:
        """O in the output's type; P in the operands', for a product that computes in fp32."""
        rounded = value.to(self.call.dtype)
        return rounded.float() if buffer == "P" else rounded

    def store(self, tile: str, value: Tensor, place: Place) -> None:
        """The consumer's rows of O or lse to the result."""
        self.call.store(tile, value, self.work[place.work], self._first_row(place))

    def _first_row(self, place: Place) -> int:
        """The consumer's first query row."""
        block = self.work[place.work].m_block * self.program.block_m
        return block + place.instance * HOPPER.wgmma_rows

    def _first_key(self, place: Place) -> int:
        """The first key of the KV tile; tiles are visited from the last one down."""
        index = place.range.end - 1 - place.tile
        return self.call.kv_tile(self.work[place.work], index) * self.program.block_n

    def _keep(self, place: Place) -> Tensor:
        work = self.work[place.work]
        return self.call.kept(work, self._first_row(place), self._first_key(place))

    def _bias(self, registers: dict[str, Tensor]) -> Tensor:
        """What is added to products, of the tile of a bias."""
        bias = registers["Bias"].expand(HOPPER.wgmma_rows, self.program.buffer("Bias").cols)
        return bias[:, : self.program.block_n] * self.call.bias_factor

    def _formula(self, s: Tensor, place: Place) -> Tensor:
        """What the formula makes of a tile of products, in fp32."""
        form = self.program.score
        if form.plain:
            return s
        heads = {symbol: _integer(value) for symbol, value in self._heads(place).items()}
        at = self.call.masks.positions(self._first_row(place), self._first_key(place)) | heads
        at |= {symbols.score: s * self.call.score_scale, LOG2E: _LOG2E, **self.call.inputs}
        return evaluate(form.value, at).float().expand(HOPPER.wgmma_rows, self.program.block_n)

    def _heads(self, place: Place) -> dict[Any, int]:
        return self.call.head_indices(self.work[place.work])

    def _clear(self, subtrahend: str) -> dict[str, Tensor]:
        def full(cols: int, value: float) -> Tensor:
            size = (HOPPER.wgmma_rows, cols)
            return torch.full(size, value, dtype=torch.float32, device="cpu")

        cols = self.program.buffer("O").cols
        return {"O": full(cols, 0.0), subtrahend: full(1, -math.inf), "row_sum": full(1, 0.0)}

    def _scores(self, s: Tensor) -> Tensor:
        """A copy of S to change a part of."""
        return s.expand(HOPPER.wgmma_rows, self.program.block_n).clone()

    def _shift(
        self, name: str, registers: dict[str, Tensor], keys: tuple[int, int]
    ) -> dict[str, Tensor]:
        """A part of S against the shift (-inf where no key was kept so far), which grows in warps
        with an exponent beyond the limit or a row without a shift."""
        begin, end = keys
        s, shift = self._scores(registers[name]), registers["shift"]
        none = shift == -math.inf
        base = shift.masked_fill(none, 0.0)
        x = s[:, begin:end] * self.call.scale_log2 - base
        highest = x.amax(-1, keepdim=True)
        grows = ((highest > _LIMIT) | none).view(-1, _WARP_ROWS).any(-1)
        grows = grows.repeat_interleave(_WARP_ROWS)[:, None]
        growth = torch.where(none, highest, highest.clamp(min=0.0))
        growth = growth.masked_fill(~grows | (highest == -math.inf), 0.0)
        alpha = torch.exp2(-growth).masked_fill(none, 1.0)
        s[:, begin:end] = x - growth
        s[:, :begin] *= alpha
        grown = (base + growth).masked_fill(none & (highest == -math.inf), -math.inf)
        return {
            name: s,
            "shift": grown,
            "row_sum": registers["row_sum"] * alpha,
            "alpha": alpha * registers["alpha"] if begin else alpha,
        }

    def _redo(self, name: str, registers: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
        """The tile with its own maxima in warps where the sum of some thread's columns is too
        large, or none was kept before; elsewhere as it is."""
        s, p, o = registers[name], registers["P"], registers["O"]
        row_max, row_sum = registers["row_max"], registers["row_sum"]
        columns = s.expand(HOPPER.wgmma_rows, self.program.block_n).view(
            HOPPER.wgmma_rows, -1, _LANES, 2
        )
        limit = _LARGEST_SUM[self.call.dtype]
        right = (columns.sum((1, 3)) < limit).view(-1, _WARP_ROWS * _LANES).all(-1)
        right = right.repeat_interleave(_WARP_ROWS)[:, None]
        work = self.work[place.work]
        q = self.call.load("Q", work, self._first_row(place))[: HOPPER.wgmma_rows]
        products = q @ self.load("K", place).T
        if self.program.bias is not None:
            products = products + self._bias(registers)
        again = self._formula(products, place)
        newer = torch.maximum(row_max, again.amax(-1, keepdim=True))
        alpha = self._exp2_above(row_max, newer)
        again = self._exp2_above(again, newer)
        # what should not have been used shows; -inf over no maximum yet is NaN by right
        again = torch.where(s.isnan() & (row_max != -math.inf), s, again)
        total = row_sum * alpha + again.sum(-1, keepdim=True)
        return {
            name: torch.where(right, s, again),
            "P": torch.where(right, p, again.to(self.call.dtype).float()),
            "row_max": torch.where(right, row_max, newer),
            "row_sum": torch.where(right, row_sum + registers["tile_sum"], total),
            "O": torch.where(right, o, o * alpha),
        }

    def _exp2_above(self, x: Tensor, row_max: Tensor) -> Tensor:
        """2^((x - row_max) scale_log2); nothing is subtracted where no key was kept so far."""
        subtrahend = row_max.masked_fill(row_max == -math.inf, 0.0)
        return torch.exp2((x - subtrahend) * self.call.scale_log2)

    def _normalize(
        self, o: Tensor, row_sum: Tensor, subtracted: Tensor, place: Place
    ) -> dict[str, Tensor]:
        """O / row_sum and LSE, from what was subtracted of scores; 0 and -inf (of both its terms)
        where no key was kept. A sink joins the sum."""
        if self.program.sink is None:
            inverse = row_sum.reciprocal().masked_fill(row_sum == 0, 0.0)
            return {"O": o * inverse, "lse": subtracted + row_sum.log()}
        table = self.call.inputs[self.program.sink]
        sink = _looked_up(table, [_integer(self.work[place.work].head)])
        keys = subtracted + row_sum.log()
        lse = torch.logaddexp(keys, sink.expand_as(keys))
        share = torch.exp(subtracted - lse).masked_fill(row_sum == 0, 0.0)
        return {"O": o * share, "lse": lse}


# --- masks ----------------------------------------------------------------------------------------


class _Masks:
    """The Program's mask on the score tiles of one call, each evaluated once while it is in use."""

    _MOST = 256  # tiles remembered

    def __init__(
        self, program: Program, seqlen_q: int, seqlen_k: int, inputs: Mapping[Any, Tensor]
    ) -> None:
        self.keep, self.inputs = program.keep, inputs
        self.block_n = program.block_n
        self.shift = seqlen_k - seqlen_q
        self.lengths = {
            symbols.seqlen_q: _integer(seqlen_q),
            symbols.seqlen_k: _integer(seqlen_k),
        }
        self.used = self.keep.free_symbols
        self.known: dict[tuple[int, ...], Tensor] = {}

    def tile(self, first_row: int, first_key: int, heads: Mapping[Any, int]) -> Tensor:
        """Booleans (rows, keys) of one warpgroup's S; ``heads``: values of b, h and hk."""
        heads = {symbol: value for symbol, value in heads.items() if symbol in self.used}
        key = (first_row, first_key, *heads.values())
        if key not in self.known:
            if len(self.known) >= self._MOST:
                self.known.clear()
            self.known[key] = self._evaluate(first_row, first_key, heads)
        return self.known[key]

    def positions(self, first_row: int, first_key: int) -> dict[Any, Tensor]:
        """The indices of one warpgroup's S, which broadcast to (rows, keys), and the lengths."""
        row = torch.arange(first_row, first_row + HOPPER.wgmma_rows, device="cpu")[:, None]
        k = torch.arange(first_key, first_key + self.block_n, device="cpu")[None, :]
        return {symbols.row: row, symbols.q: row + self.shift, symbols.k: k, **self.lengths}

    def _evaluate(self, first_row: int, first_key: int, heads: Mapping[Any, int]) -> Tensor:
        values = self.positions(first_row, first_key)
        values |= {symbol: _integer(value) for symbol, value in heads.items()}
        values |= self.inputs
        return evaluate(self.keep, values).expand(HOPPER.wgmma_rows, self.block_n)


def _integer(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64, device="cpu")


def _divisor(x: Tensor) -> Tensor:
    """Zeros as ones: integer division by zero has no value, and must not stop the tile's others."""
    return x if x.is_floating_point() else x.masked_fill(x == 0, 1)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """Exact for integers to a power of 0 or more, else in fp32."""
    real = base.is_floating_point() or exponent.is_floating_point()
    if real or bool((exponent < 0).any()):
        return torch.pow(base.float(), exponent.float())
    return torch.pow(base, exponent)


def _remainder(dividend: Tensor, divisor: Tensor) -> Tensor:
    return torch.remainder(dividend, _divisor(divisor))


# Of any number of arguments, joined two at a time.
_JOINED: dict[type[Any], Callable[[Tensor, Tensor], Tensor]] = {
    sympy.And: torch.logical_and,
    sympy.Or: torch.logical_or,
    sympy.Add: torch.add,
    sympy.Mul: torch.mul,
    sympy.Min: torch.minimum,
    sympy.Max: torch.maximum,
}

_CALLED: dict[type[Any], Callable[..., Tensor]] = {
    sympy.Not: torch.logical_not,
    sympy.Le: torch.le,
    sympy.Lt: torch.lt,
    sympy.Ge: torch.ge,
    sympy.Gt: torch.gt,
    sympy.Eq: torch.eq,
    sympy.Ne: torch.ne,
    sympy.Pow: _power,
    sympy.Mod: _remainder,
    symbols.FloorMod: _remainder,
    symbols.FloorDiv: lambda x, y: torch.floor_divide(x, _divisor(y)),
    symbols.Where: torch.where,
    sympy.Abs: torch.abs,
    sympy.floor: lambda x: torch.floor(x).long() if x.is_floating_point() else x,
    sympy.exp: lambda x: torch.exp(x.float()),
    sympy.log: lambda x: torch.log(x.float()),
    sympy.tanh: lambda x: torch.tanh(x.float()),
}


def _looked_up(table: Tensor, indices: Sequence[Tensor]) -> Tensor:
    if not table.numel():  # then nothing that it gives is kept
        return torch.zeros((), dtype=table.dtype, device="cpu")
    inside = [
        index.long().clamp(0, size - 1) for index, size in zip(indices, table.shape, strict=True)
    ]
    return table[tuple(inside)]


def evaluate(expr: Any, values: Mapping[Any, Tensor]) -> Tensor:
    """A parsed formula or mask on tensors that broadcast: integers exactly, reals in fp32.

    ``values`` gives each symbol's tensor, and each table's by its name; indices beyond a table are
    clamped to it. The atoms are those of ``fa3gen.spec.symbols``. Raises VerificationError for an
    expression of any other.
    """
    if expr in (sympy.true, sympy.false):
        return torch.tensor(expr == sympy.true, device="cpu")
    if isinstance(expr, sympy.Integer):
        return _integer(int(expr))
    if isinstance(expr, sympy.Number):  # oo among them
        return _fp32(float(expr))
    if expr in values:
        return values[expr]
    parts = [evaluate(part, values) for part in expr.args]
    if isinstance(expr, AppliedUndef) and expr.func.__name__ in values:
        return _looked_up(values[expr.func.__name__], parts)
    if expr.func in _JOINED:
        return reduce(_JOINED[expr.func], parts)
    if expr.func in _CALLED:
        return _CALLED[expr.func](*parts)
    raise VerificationError(f"no value of {type(expr).__name__}: {expr}")
