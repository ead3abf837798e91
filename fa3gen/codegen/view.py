"""What the templates see: a Program and its Schedule as plain names and numbers.

All decisions and all arithmetic are made here; templates only spell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from fa3gen.codegen.cpp import print_cpp
from fa3gen.codegen.elements import ElementsView, KernelNames, elements_view, far_view
from fa3gen.codegen.lists import ListsView
from fa3gen.codegen.source import KernelMeta, VariantMeta
from fa3gen.inputs import InputMeta, by_key, forward_schema, plan_schema
from fa3gen.ir.far import far_form
from fa3gen.ir.staging import stage_mask, stage_score
from fa3gen.schedule.arch import HOPPER
from fa3gen.schedule.key_sets import Interval
from fa3gen.schedule.needs import product_dim
from fa3gen.schedule.patterns import Pattern, row_pattern
from fa3gen.schedule.program import (
    Advance,
    Barrier,
    Buffer,
    Calc,
    CalcKind,
    NamedBarrier,
    Node,
    Program,
    Role,
    SetRegisters,
    SyncCta,
    instructions,
)
from fa3gen.schedule.ranges import Q_FIRST, Q_LAST, row_keys
from fa3gen.schedule.schedule import Persistence, Schedule
from fa3gen.spec import symbols
from fa3gen.spec.model import Maxima

__all__ = [
    "HostView",
    "KernelView",
    "LaunchView",
    "MapView",
    "RingView",
    "RoleView",
    "host_view",
    "kernel_view",
    "launch_view",
]


@dataclass(frozen=True)
class RingView:
    """A role's cursor through a buffer."""

    name: str
    stages: int


@dataclass(frozen=True)
class RoleView:
    """A role's branch of the kernel."""

    name: str
    first: int  # warpgroup of the CTA
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
class LaunchView:
    """How the host launches one kernel."""

    meta: KernelMeta
    maps: tuple[MapView, ...]
    longest_first: bool
    persistent: bool
    claims: bool  # work tiles are claimed from a counter
    cta_per_sm: int
    bias: int = -1  # the input that is added to products
    bias_factor: float = 0.0


@dataclass(frozen=True)
class InputView:
    """A declared input, as the host checks it."""

    name: str
    dtype: str
    scalar: str  # its type in torch's C++
    rank: int
    axes: str


@dataclass(frozen=True)
class HostView:
    """The host translation unit."""

    variant: VariantMeta
    kernels: tuple[LaunchView, ...]
    score_factor: str
    score_is_product: bool
    inputs: tuple[InputView, ...] = ()
    parameters: str = ""  # of the op's functions, for the inputs
    arguments: str = "{}"
    schema: str = ""
    plan_schema: str = ""
    lists: ListsView | None = None  # the kernel that lists KV tiles
    bias: int = -1  # the input that is added to products
    bias_factor: str = "0.0"


@dataclass(frozen=True)
class ProductView:
    """A wgmma instruction: PTX text, and its accumulator's operand numbers by rows of text."""

    name: str
    comment: str
    instruction: str
    accumulators: tuple[range, ...]
    operands: str
    predicate: int  # operand number of the accumulate flag
    a_type: str
    a_constraints: str  # of the asm statement


@dataclass(frozen=True)
class BoundsView:
    """Key bounds of a query tile as C++ expressions in q_first, q_last and the lengths."""

    some_begin: str
    every_begin: str
    every_end: str
    some_end: str


@dataclass(frozen=True)
class MaskView:
    """How scores are masked: element by element, or by the interval of keys that a row keeps."""

    template: str  # of the struct or function that knows what is kept
    closure: str  # template of what it closes over, once a kernel
    function: str  # that applies it
    kept: str  # what it takes to tell
    rows: str = ""  # and before that
    elements: ElementsView | None = None
    begin: str = ""  # of a row's keys
    end: str = ""


@dataclass(frozen=True)
class ScoreView:
    """How products become scores: by a formula, or they are."""

    template: str  # of the formula's struct
    elements: ElementsView | None = None


@dataclass(frozen=True)
class BiasView:
    """The input that is added to products, and its indices before row and key, outermost first."""

    name: str
    element: str
    outer: str
    inner: str


@dataclass(frozen=True)
class KernelView:
    """The device translation unit."""

    variant: VariantMeta
    meta: KernelMeta
    program: Program
    thread_setup: tuple[Node, ...]  # by one thread
    cta_setup: tuple[Node, ...]  # by every thread
    roles: str  # template that parts the warpgroups of the CTA
    producer: RoleView | None
    consumer: RoleView
    p_operand: str  # template of P as an operand
    buffers: dict[str, Buffer]
    types: dict[str, str]  # element type of each buffer
    barriers: tuple[Barrier, ...]
    named: tuple[NamedBarrier, ...]
    element: str
    products: tuple[ProductView, ...]
    unit: int  # elements in 16 bytes
    fragments: dict[str, str]  # register tile to the name of its fragment
    views: dict[str, str]  # tile of scores to the name of its view in rows and columns
    headers: tuple[str, ...]
    params: str  # type of the kernel's parameters
    inputs_template: str
    tiles_template: str  # of the KV tiles that a work tile visits
    row_structs: tuple[str, ...]  # what knows its work tile's rows
    shared: bool  # key bounds depend on heads or inputs
    rows: str  # type of what a thread keeps of its rows
    consumers: int
    chunk: int  # columns of a 128-byte column chunk
    product_qk: int  # head dims in whole k blocks of the products
    product_v: int
    chunks_qk: int
    chunks_v: int
    wgmma_rows: int
    shared_limit: int  # bytes that a CTA may use
    bounds: BoundsView
    score: ScoreView
    bias: BiasView | None
    multiplier: str  # of scores, to be exponents of 2
    normalize: str  # function that ends a row
    sink: str  # what it takes of a sink
    mask: MaskView
    turns: dict[str, str]  # by segment, while there is another turn of its loop
    banner: tuple[str, ...]

    def stage_elements(self, buffer: str, cursor: str) -> str:
        """What to add to a buffer's address for the stage of a cursor; nothing if it has one."""
        if self.buffers[buffer].stages == 1:
            return ""
        return f" + {cursor.lower()}.stage * kStage{buffer}"

    def stage_units(self, buffer: str, cursor: str) -> str:
        """The same in units of matrix descriptors."""
        elements = self.stage_elements(buffer, cursor)
        return f"{elements} / kUnit" if elements else ""

    def columns(self, keys: tuple[int, int]) -> str:
        """The columns of a thread, 2 in each block of 8 keys, as template arguments."""
        lanes = 4  # share a row
        return f"{keys[0] // lanes}, {keys[1] // lanes}"

    def scored_again(self, op: Calc) -> tuple[Node, ...]:
        """What makes scores of products that were computed again; nothing if they are scores."""
        (scores, *_) = op.reads
        bias = Calc(CalcKind.BIAS, (scores,), (scores,), op.skew, cursor=op.cursor)
        formula = Calc(CalcKind.SCORE, (scores, "rows"), (scores,), op.skew)
        biased, plain = op.cursor is not None, self.program.score.plain
        return (*([bias] if biased else []), *([] if plain else [formula]))

    def tile_behind(self, tiles: int) -> str:
        """The KV tile so many behind the loop's, which are visited from the last one down."""
        place = f"n {'+' if tiles > 0 else '-'} {abs(tiles)}" if tiles else "n"
        if self.program.listed:
            return f"kv.tile({place})"
        return f"({place})" if tiles else place


_BUFFER_TYPES = {"bf16": "Element", "fp16": "Element", "int32": "int"}


def _buffer_type(program: Program, buffer: Buffer) -> str:
    """Of an element; a bias may have another type than Q, K and V."""
    if buffer.name == "Bias" and buffer.dtype is not program.dtype:
        return _ELEMENTS[buffer.dtype.value]
    return _BUFFER_TYPES[buffer.dtype.value]


_ELEMENTS = {"bf16": "__nv_bfloat16", "fp16": "__half"}
_PTX_TYPES = {"bf16": "bf16", "fp16": "f16"}


def kernel_view(
    schedule: Schedule, program: Program, variant: VariantMeta, meta: KernelMeta
) -> KernelView:
    """The device side of a Program."""
    bounds, score, mask = schedule.bounds, _score(program), _mask(schedule, program)
    names = KernelNames(program.inputs, bounded=True)
    more = bool(program.inputs) or program.listed

    def bound(expr: sympy.Expr | None, default: str) -> str:
        return default if expr is None else print_cpp(expr, names)

    scores = [tile.name for tile in program.tiles if tile.name.startswith("S")]
    every_end = "0" if not bounds.exact else bound(bounds.every_end, "params.seqlen_k")
    return KernelView(
        variant=variant,
        meta=meta,
        program=program,
        thread_setup=tuple(node for node in program.setup if not isinstance(node, SyncCta)),
        cta_setup=tuple(node for node in program.setup if isinstance(node, SyncCta)),
        roles=f"forward/roles_{'_'.join(role.name for role in program.roles)}.j2",
        producer=next((_role(program, r) for r in program.roles if r.name == "producer"), None),
        consumer=_role(program, program.role("consumer")),
        buffers={buffer.name: buffer for buffer in program.buffers},
        types={buffer.name: _buffer_type(program, buffer) for buffer in program.buffers},
        barriers=program.barriers,
        named=program.named,
        element=_ELEMENTS[program.dtype.value],
        products=_products(program),
        unit=16 // program.dtype.bytes,
        p_operand=f"forward/p_{'registers' if _p_in_registers(program) else 'shared'}.j2",
        fragments={**{s: f"tSr{s}" for s in scores}, "P": "tOrP", "O": "tOrO"},
        views={s: s.replace("S", "scores") for s in scores},
        headers=_headers(schedule, program, mask),
        params="Params" if more else "ForwardParams",
        inputs_template=f"forward/inputs{'' if more else '_none'}.j2",
        tiles_template=f"forward/tiles_{'listed' if program.listed else 'range'}.j2",
        row_structs=(
            *(["Score"] if score.elements else []),
            *(["Mask"] if mask.elements or mask.kept == "mask" else []),
        ),
        shared=_is_shared(bounds.some_begin, bounds.every_begin, bounds.every_end, bounds.some_end),
        rows=_ROWS[schedule.tiling.maxima],
        consumers=program.role("consumer").instances,
        chunk=program.buffer("Q").chunk,
        product_qk=product_dim(schedule.spec.head_dim.qk),
        product_v=product_dim(schedule.spec.head_dim.v),
        chunks_qk=program.buffer("Q").cols // program.buffer("Q").chunk,
        chunks_v=program.buffer("V").cols // program.buffer("V").chunk,
        wgmma_rows=HOPPER.wgmma_rows,
        shared_limit=HOPPER.share(program.ctas_per_sm).shared_bytes,
        bounds=BoundsView(
            bound(bounds.some_begin, "0"),
            bound(bounds.every_begin, "0"),
            every_end,
            bound(bounds.some_end, "params.seqlen_k"),
        ),
        score=score,
        bias=_bias(program),
        multiplier="1.f" if program.score.biased else "params.scale_log2",
        normalize="normalize" if program.sink is None else "normalize_with_sink",
        sink="" if program.sink is None else _sink(program.sink, names),
        mask=mask,
        turns=_turns(program.unroll),
        banner=_banner(schedule, program),
    )


def launch_view(schedule: Schedule, program: Program, meta: KernelMeta) -> LaunchView:
    """The host side of a Program: one tensor map a tensor."""
    rows = {"q": "Q", "k": "K", "v": "V"}
    chunk, swizzle = program.buffers[0].chunk, HOPPER.swizzle_bytes
    maps = [MapView(name, program.buffer(tile).rows, chunk, swizzle) for name, tile in rows.items()]
    maps.append(MapView("o", HOPPER.wgmma_rows, chunk, swizzle))
    if program.bias is not None:
        buffer = program.buffer("Bias")
        maps.append(MapView("bias", buffer.rows, buffer.chunk, swizzle))
    return LaunchView(
        meta=meta,
        maps=tuple(maps),
        longest_first=schedule.longest_first,
        persistent=schedule.tiling.persistence is not Persistence.NONE,
        claims=schedule.tiling.persistence is Persistence.DYNAMIC,
        cta_per_sm=program.ctas_per_sm,
        bias=-1 if program.bias is None else program.inputs.index(program.bias.meta),
        bias_factor=0.0 if program.bias is None else program.bias.factor,
    )


_SCALARS = {"fp32": "Float", "bf16": "BFloat16", "fp16": "Half", "int32": "Int"}
_AXES = {"b": "Batch", "h": "Heads", "hk": "KvHeads", "row": "Row", "k": "Key"}


def host_view(
    variant: VariantMeta,
    kernels: tuple[LaunchView, ...],
    factor: float,
    is_product: bool,
    lists: ListsView | None,
) -> HostView:
    """The host side of a variant. Arguments of its functions have names that no macro has."""
    names = [f"{meta.name}_" for meta in variant.inputs]
    return HostView(
        variant,
        kernels,
        repr(factor),
        is_product,
        inputs=tuple(_input(meta) for meta in variant.inputs),
        parameters="".join(f", Tensor {name}" for name in names),
        arguments="{" + ", ".join(names) + "}",
        schema=forward_schema(variant.inputs, lists is not None),
        plan_schema=plan_schema(variant.inputs),
        lists=lists,
        bias=kernels[-1].bias,
        bias_factor=repr(kernels[-1].bias_factor),
    )


def _input(meta: InputMeta) -> InputView:
    axes = (
        f"fa3gen::host::kAxis{_AXES[axis]}" if axis in _AXES else str(axis) for axis in meta.shape
    )
    dtype = meta.dtype.value
    return InputView(meta.name, dtype, _SCALARS[dtype], len(meta.shape), ", ".join(axes))


def _turns(unroll: int) -> dict[str, str]:
    """Conditions of the loops over KV tiles, from tile n down, ``unroll`` tiles a turn."""
    last = "n" if unroll == 1 else f"n - {unroll - 1}"
    enough = "" if unroll == 1 else f" && {last} >= kv.begin"
    return {
        "right": f"n >= kv.full_end{enough}",
        "full": f"{last} >= kv.full_begin",
        "left": f"{last} >= kv.begin",
    }


def _role(program: Program, role: Role) -> RoleView:
    entry = tuple(node for node in role.body if isinstance(node, SetRegisters))
    body = tuple(node for node in role.body if not isinstance(node, SetRegisters))
    return RoleView(role.name, role.first_warpgroup, _rings(program, role), entry, body)


def _products(program: Program) -> tuple[ProductView, ...]:
    """S = Q K^T from shared memory; O += P V with P in registers and V contracted along rows."""
    dtype = _PTX_TYPES[program.dtype.value]
    place = "registers" if _p_in_registers(program) else "shared memory"
    columns = {"QK": program.block_n, "PV": program.tile("O").cols}
    comments = {
        "QK": "S (+)= Q K^T, both from shared memory",
        "PV": f"O (+)= P V, P from {place}, V from shared memory along its rows",
    }
    views = []
    for kind, width in columns.items():
        count = HOPPER.wgmma_rows * width // HOPPER.warpgroup
        a_in_registers = kind == "PV" and _p_in_registers(program)
        if a_in_registers:
            a = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
            operands = f"{a}, %{count + 4}, p, 1, 1, 1;"
        else:
            operands = f"%{count}, %{count + 1}, p, 1, 1, 0, {int(kind == 'PV')};"
        views.append(
            ProductView(
                name=f"Product{kind}",
                comment=comments[kind],
                instruction=f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.{dtype}.{dtype}",
                accumulators=tuple(range(i, min(i + 8, count)) for i in range(0, count, 8)),
                operands=operands,
                predicate=count + (5 if a_in_registers else 2),
                a_type="uint32_t const*" if a_in_registers else "uint64_t",
                a_constraints=", ".join(f'"r"(a[{i}])' for i in range(4))
                if a_in_registers
                else '"l"(a)',
            )
        )
    return tuple(views)


def _p_in_registers(program: Program) -> bool:
    """Whether P is a register tile, and no buffer."""
    return any(tile.name == "P" for tile in program.tiles)


def _rings(program: Program, role: Role) -> tuple[RingView, ...]:
    """The cursors that a role moves, in buffer order."""
    moved = {i.cursor for i in instructions(role.body) if isinstance(i, Advance)}
    order = [buffer.name for buffer in program.buffers]
    ordered = sorted(moved, key=lambda cursor: (order.index(program.ring(cursor).name), cursor))
    return tuple(RingView(cursor, program.ring(cursor).stages) for cursor in ordered)


def _score(program: Program) -> ScoreView:
    form = program.score
    if form.plain:
        return ScoreView("forward/score_product.j2")
    over = "" if form.factor == 1 else f", over {form.factor}, which the softmax multiplies by"
    base = ": an exponent of 2" if form.biased else over
    comment = f"The score: what the formula makes of an element of Q K^T{base}."
    view = elements_view(
        "Score", comment, stage_score(form, by_key(program.inputs)), program.inputs
    )
    if far := far_form(form, program.inputs):
        view = replace(view, far=far_view(far, program.inputs))
    return ScoreView("forward/score_formula.j2", view)


def _bias(program: Program) -> BiasView | None:
    """The bias that is added to products, at indices inside its tensor."""
    if program.bias is None:
        return None
    meta, names = program.bias.meta, KernelNames(program.inputs)
    count = len(meta.shape) - 2
    texts = []
    for index, dim in zip(program.bias.heads, range(count - 2, count), strict=True):
        size = f"params.inputs.{meta.name}_.sizes[{dim}]"
        texts.append("0" if dim < 0 else f"fa3gen::inside({print_cpp(index, names)}, {size})")
    return BiasView(meta.name, _ELEMENTS[meta.dtype.value], *texts)


def _mask(schedule: Schedule, program: Program) -> MaskView:
    """By rows where their keys are an interval, which takes fewer instructions an element."""
    keys = row_keys(schedule.spec.mask_expr)
    if pattern := _pattern(schedule):
        return _mask_pattern(pattern, program)
    if keys is None:
        comment = "The mask: whether an element is kept."
        staged = stage_mask(program.keep, by_key(program.inputs))
        view = elements_view("Mask", comment, staged, program.inputs, keep=True)
        template, closure = "forward/mask_elements.j2", "forward/kept_elements.j2"
        return MaskView(template, closure, "mask_scores", "mask", elements=view)
    names = KernelNames(program.inputs, bounded=True)
    begin, end = _row_ends(keys, names)
    begins = "false" if keys.begin is None else "true"
    function, rows = f"mask_rows<{begins}>", "first_row(tile), "
    if _is_shared(keys.begin, keys.end):
        template, closure = "forward/mask_rows_shared.j2", "forward/kept_elements.j2"
        return MaskView(template, closure, function, "mask", rows, begin=begin, end=end)
    template, closure = "forward/mask_rows.j2", "forward/kept_rows.j2"
    return MaskView(template, closure, function, "kept", rows, begin=begin, end=end)


def _pattern(schedule: Schedule) -> Pattern | None:
    """How the mask repeats along rows, in KV tiles with more columns than a period has."""
    mask = schedule.spec.mask_expr
    pattern = row_pattern(mask) if row_keys(mask) is None else None
    if pattern is None or _is_shared(pattern.keys.begin, pattern.keys.end):
        return None
    return pattern if 8 * pattern.blocks < schedule.tiling.block_n else None


def _mask_pattern(pattern: Pattern, program: Program) -> MaskView:
    names = KernelNames(program.inputs, bounded=True)
    comment = "The mask: whether an element inside the row's keys is kept."
    staged = stage_mask(pattern.keep, by_key(program.inputs))
    view = elements_view("Mask", comment, staged, program.inputs, keep=True, bounded=False)
    begin, end = _row_ends(pattern.keys, names)
    begins = "false" if pattern.keys.begin is None else "true"
    function = f"mask_pattern<{begins}, {pattern.blocks}>"
    template, closure = "forward/mask_pattern.j2", "forward/kept_rows.j2"
    return MaskView(
        template, closure, function, "kept, mask", "first_row(tile), ", view, begin, end
    )


def _row_ends(keys: Interval, names: KernelNames) -> tuple[str, str]:
    """The keys of a row, within those there are."""
    end = "params.seqlen_k"
    if keys.end is not None:
        end = f"max(min({print_cpp(keys.end, names)}, {end}), 0)"
    begin = "0" if keys.begin is None else f"max({print_cpp(keys.begin, names)}, 0)"
    return begin, end


_POSITIONS = {
    symbols.q,
    symbols.row,
    symbols.k,
    symbols.seqlen_q,
    symbols.seqlen_k,
    Q_FIRST,
    Q_LAST,
}


def _is_shared(*bounds: sympy.Expr | None) -> bool:
    """Whether key bounds depend on heads or inputs."""
    return any(bound is not None and not bound.free_symbols <= _POSITIONS for bound in bounds)


def _sink(name: str, names: KernelNames) -> str:
    """The sink of a work tile's head as an exponent of 2."""
    place, dtype = f"params.inputs.{name}_", names.type_of(name)
    return f"fa3gen::look_up<{dtype}>({place}, tile.head) * fa3gen::kLog2e, "


def _headers(schedule: Schedule, program: Program, mask: MaskView) -> tuple[str, ...]:
    """Headers of the softmax, of formulas and of masks."""
    formula, maxima = not program.score.plain, schedule.tiling.maxima
    elements = formula or bool(program.inputs) or mask.elements is not None
    guesses = formula and maxima is Maxima.SPECULATIVE
    found = {
        "bias": program.bias is not None,
        "elements": elements,
        _SOFTMAX[maxima]: True,
        "score": formula,
        "speculative_score": guesses,
    }
    return tuple(sorted(name for name, wanted in found.items() if wanted))


def _banner(schedule: Schedule, program: Program) -> tuple[str, ...]:
    """What the kernel computes and how it is scheduled."""
    spec, tiling, registers = schedule.spec, schedule.tiling, schedule.registers
    dims = spec.head_dim
    loader = "1 producer (TMA)" if tiling.specialized else "no producer: a consumer's thread loads"
    granted = f"producer {registers.producer}, " if registers and tiling.specialized else ""
    rows = [
        ("head dim", f"{dims.qk} (Q, K), {dims.v} (V, O)"),
        ("type", f"{spec.dtype.value}, fp32 accumulation"),
        ("score", spec.score),
        ("mask", spec.mask),
        *([("keys", f"up to {schedule.max_keys} of a call")] * (schedule.max_keys is not None)),
        ("work tile", f"{tiling.block_m} queries by {tiling.block_n} keys a step"),
        ("warpgroups", f"{loader}, {tiling.warpgroups} consumers of 64 queries"),
        *([("occupancy", f"{tiling.ctas_per_sm} CTAs an SM")] * (tiling.ctas_per_sm > 1)),
        ("rings", _rings_text(program)),
        ("overlap", _OVERLAP[tiling.overlap]),
        ("P", "through shared memory" if tiling.p_shared else "in registers"),
        ("ping-pong", "consumers take turns on the tensor core" if tiling.pingpong else "off"),
        ("maxima", _FOLLOWED[tiling.maxima]),
        ("grid", tiling.persistence.value),
        ("shared", f"{program.shared_bytes} bytes"),
    ]
    if registers is not None:
        rows.append(("registers", f"{granted}consumers {registers.consumer}"))
    return tuple(f"{name:<11s} {value}" for name, value in rows)


def _rings_text(program: Program) -> str:
    rings = [b for b in program.buffers if b.name in ("Q", "K", "V", "Bias")]
    return ", ".join(f"{ring.stages} of {ring.name.replace('B', 'b')}" for ring in rings)


_SOFTMAX = {  # headers
    Maxima.EXACT: "softmax",
    Maxima.LAZY: "lazy_softmax",
    Maxima.SPECULATIVE: "speculative_softmax",
}
_ROWS = {
    Maxima.EXACT: "RowStatistics",
    Maxima.LAZY: "ShiftedRows",
    Maxima.SPECULATIVE: "SpeculativeRows",
}
_FOLLOWED = {
    Maxima.EXACT: "followed in each step",
    Maxima.LAZY: "followed where exponents would pass 14",
    Maxima.SPECULATIVE: "followed in masked tiles, else where sums of exponentials are too large",
}
_OVERLAP = {
    1: "none: QK, softmax and PV of a KV tile in sequence",
    2: "PV of a KV tile runs during the softmax of the next",
    3: "PV of the KV tile before and QK of the one after run during a softmax",
}
