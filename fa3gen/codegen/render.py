"""Schedules and their Programs to OpSource, through Jinja: a pure function of its input.

Each node of a Program has one template, named after its class: ``control/for_tiles_full`` for a
loop over full tiles, ``stages/calc_row_max`` for a computation. A template gets its node as ``op``,
the kernel's view as ``kernel`` and, for a block, ``emit(nodes)``, the text of its body.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

import jinja2

from fa3gen import _version
from fa3gen.codegen.lists import ListsView, lists_view
from fa3gen.codegen.source import KernelMeta, KernelSource, OpSource, VariantMeta
from fa3gen.codegen.view import (
    HostView,
    KernelView,
    LaunchView,
    host_view,
    kernel_view,
    launch_view,
)
from fa3gen.errors import RenderError
from fa3gen.ir.score import ScoreForm
from fa3gen.paths import TEMPLATES
from fa3gen.schedule.lower import lower
from fa3gen.schedule.program import (
    BLOCKS,
    Advance,
    Arrive,
    Calc,
    ClaimWork,
    EachWork,
    Executor,
    Expect,
    ForTiles,
    Gemm,
    GemmKind,
    Load,
    Node,
    Program,
    ReadWork,
    StageOut,
    TmaStore,
    TmaStoreCommit,
    TmaStoreWait,
    Wait,
)
from fa3gen.schedule.schedule import Schedule
from fa3gen.spec.model import Maxima

__all__ = ["render", "template_name"]

_INDENT = 2


def render(plan: Sequence[Schedule]) -> OpSource:
    """The kernels of a launch plan as CUDA and C++ text; RenderError if a template lacks a name.

    ``plan``: schedules of one spec in the order in which a call tries them.
    """
    environment = _environment()
    programs = [lower(schedule) for schedule in plan]
    variant = _variant(plan)
    try:
        views = [_launch(*pair) for pair in zip(plan, programs, strict=True)]
        kernels = tuple(
            _kernel(environment, variant, *made) for made in zip(plan, programs, views, strict=True)
        )
        lists = _lists(variant, plan[-1], programs[-1])
        unit = None if lists is None else _lists_kernel(environment, lists)
        host = environment.get_template("host/host.cpp.j2").render(
            host=_host(variant, tuple(views), programs[0].score, lists)
        )
    except jinja2.TemplateError as error:
        raise RenderError(f"{variant.name}: {error}") from error
    return OpSource(variant, kernels, unit, _tidy(host))


def _host(
    variant: VariantMeta,
    views: tuple[LaunchView, ...],
    form: ScoreForm,
    lists: ListsView | None,
) -> HostView:
    return host_view(variant, views, form.constant, form.scales_products, lists)


def _lists(variant: VariantMeta, schedule: Schedule, program: Program) -> ListsView | None:
    """The kernel that lists KV tiles, if their kernels take lists; one for all of a plan's."""
    if not program.listed:
        return None
    return lists_view(variant, program, schedule.bounds, f"{variant.name}_lists")


def _lists_kernel(environment: jinja2.Environment, lists: ListsView) -> KernelSource:
    text = _tidy(environment.get_template("lists.cu.j2").render(lists=lists))
    meta = KernelMeta("lists", lists.symbol, None, 0, 0, 1024, 0)
    return KernelSource(meta, text)


def _kernel(
    environment: jinja2.Environment,
    variant: VariantMeta,
    schedule: Schedule,
    program: Program,
    launch: LaunchView,
) -> KernelSource:
    view = kernel_view(schedule, program, variant, launch.meta)
    alternative = "FA3GEN_SWAP_COLUMNS" if schedule.tiling.maxima is Maxima.LAZY else None
    text = _tidy(_Renderer(environment, view).kernel())
    return KernelSource(launch.meta, text, alternative, paced=schedule.tiling.ctas_per_sm == 1)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="//%",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _variant(plan: Sequence[Schedule]) -> VariantMeta:
    spec = plan[0].spec
    choices = [f"{schedule.max_keys} {schedule.tiling}" for schedule in plan]
    identity = "\n".join([_version.__version__, spec.canonical(), *choices])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    op_name = f"{spec.name}_{digest}"
    dims = spec.head_dim
    listed = plan[0].bounds.listed
    return VariantMeta(spec.name, op_name, spec.dtype, dims.qk, dims.v, spec.input_metas, listed)


def _launch(schedule: Schedule, program: Program) -> LaunchView:
    end = "" if schedule.max_keys is None else f"_to_{schedule.max_keys}"
    meta = KernelMeta(
        stem=f"kernel{end}",
        symbol=f"{schedule.spec.name}_forward{end}",
        max_keys=schedule.max_keys,
        block_m=program.block_m,
        block_n=program.block_n,
        threads=program.threads,
        smem_bytes=program.shared_bytes,
    )
    return launch_view(schedule, program, meta)


class _Renderer:
    """Walks a Program and spells each node; ``alone``: for a role that is one thread."""

    def __init__(
        self, environment: jinja2.Environment, kernel: KernelView, alone: bool = False
    ) -> None:
        self.environment, self.view, self.alone = environment, kernel, alone

    def kernel(self) -> str:
        """The whole translation unit."""
        template = self.environment.get_template("kernel.cu.j2")
        one_thread = _Renderer(self.environment, self.view, alone=True)
        return template.render(kernel=self.view, emit=self.emit, emit_alone=one_thread.emit)

    def emit(self, nodes: tuple[Node, ...], depth: int = 0) -> str:
        """The text of a block, indented ``depth`` levels; runs of one thread under one guard."""
        text = ""
        for elected, run in itertools.groupby(nodes, is_elected):
            body = "".join(self._node(node) for node in run)
            if elected and not self.alone:
                guard = self.environment.get_template("control/elected.j2")
                body = guard.render(body="".join(f"  {line}" for line in body.splitlines(True)))
            text += body
        pad = " " * (_INDENT * depth)
        return "".join(_indent(line, pad) for line in text.splitlines(True))

    def _node(self, node: Node) -> str:
        template = self.environment.get_template(template_name(node))
        return template.render(op=node, kernel=self.view, emit=self.emit)


def _indent(line: str, pad: str) -> str:
    """A line moved right; empty lines and preprocessor lines stay at the margin."""
    return pad + line if line.strip() and not line.startswith("#") else line


def is_elected(node: Node) -> bool:
    """Whether the warpgroup's elected thread alone executes a consumer's node."""
    if isinstance(node, (Arrive, Wait)):
        return node.by is Executor.ELECTED
    if isinstance(node, Advance):
        return node.cursor.startswith("next_")
    return isinstance(node, (Expect, Load, TmaStore, TmaStoreCommit, TmaStoreWait))


def template_name(node: Node) -> str:
    """The template of a node: its class, and its kind or segment where it has one."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(node).__name__).lower()
    if isinstance(node, (Gemm, Calc)):
        name += f"_{node.kind.name.lower()}"
    if isinstance(node, Gemm) and node.kind is GemmKind.PV:
        name += "_registers" if node.a_cursor is None else "_shared"
    if isinstance(node, (Load, StageOut)):
        name += f"_{node.buffer.lower()}"
    if isinstance(node, Arrive):
        name += f"_{node.by.name.lower()}"
    if isinstance(node, EachWork):
        kinds = {type(child) for child in node.body}
        name += "_claim" if ClaimWork in kinds else "_read" if ReadWork in kinds else "_static"
    if isinstance(node, ForTiles):
        name += f"_{node.segment.name.lower()}"
    folder = "control" if isinstance(node, BLOCKS) else "stages"
    return f"{folder}/{name}.j2"


def _tidy(text: str) -> str:
    """No trailing blanks, at most one empty line in a row, none before a closing brace."""
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    text = re.sub(r"\{\n\n", "{\n", text)
    return re.sub(r"\n\n([ \t]*\})", r"\n\1", text)
