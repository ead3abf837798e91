"""A kernel with an attention kernel's interface and none of its work: it builds in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2

from fa3gen.codegen import view as codegen
from fa3gen.codegen.source import KernelMeta, KernelSource, OpSource, VariantMeta
from fa3gen.dtypes import DType
from fa3gen.inputs import InputMeta
from fa3gen.paths import TEMPLATES
from fa3gen.runtime.artifact import Artifact, file_sha256

META = VariantMeta(
    name="standin",
    op_name="standin_00000001",
    dtype=DType.BF16,
    head_dim_qk=128,
    head_dim_v=128,
)
KERNEL = KernelMeta(
    stem="kernel",
    symbol="standin_kernel",
    max_keys=None,
    block_m=128,
    block_n=128,
    threads=128,
    smem_bytes=2 * (128 * 128 + 2 * 128 * 64) + 8,
)


@dataclass(frozen=True)
class MapView:
    """One tensor map, as the template reads it."""

    name: str
    box_rows: int
    box_cols: int = 64
    swizzle_bytes: int = 128


@dataclass(frozen=True)
class LaunchView:
    """One kernel, as the host template reads it."""

    meta: KernelMeta = KERNEL
    maps: tuple[MapView, ...] = field(
        default=(MapView("q", 128), MapView("k", 128), MapView("v", 128), MapView("o", 64))
    )
    longest_first: bool = True
    persistent: bool = True
    claims: bool = False
    cta_per_sm: int = 1
    bias: int = -1
    bias_factor: float = 0.0


@dataclass(frozen=True)
class InputView:
    """One input, as the host template reads it."""

    name: str
    dtype: str
    scalar: str
    rank: int
    axes: str


@dataclass(frozen=True)
class HostView:
    """The host template's one variable."""

    variant: VariantMeta = META
    kernels: tuple[LaunchView, ...] = (LaunchView(),)
    score_factor: str = "1.0"
    score_is_product: bool = True
    inputs: tuple[InputView, ...] = ()
    parameters: str = ""
    arguments: str = "{}"
    schema: str = ""
    plan_schema: str = ""
    lists: None = None
    bias: int = -1
    bias_factor: str = "0.0"


def host_with_inputs(*inputs: InputMeta) -> codegen.HostView:
    """A host side in the compiler's own words; with a scalar and a table if no inputs are named."""
    inputs = inputs or (
        InputMeta("alpha", DType.FP32, ()),
        InputMeta("relative", DType.BF16, ("b", "hk", 255, "row")),
    )
    variant = replace(META, name="inputs", op_name="inputs_00000001", inputs=inputs)
    return codegen.host_view(variant, (LaunchView(),), 1.0, True, None)


def render_host(view: HostView | codegen.HostView) -> str:
    """host.cpp, rendered as codegen does."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="//%",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("host/host.cpp.j2").render(host=view)


def standin_source(view: HostView | codegen.HostView | None = None) -> OpSource:
    """The stand-in's text."""
    view = view or HostView()
    text = Path(__file__).with_name("standin.cu").read_text(encoding="utf-8")
    kernels = tuple(KernelSource(kernel.meta, text) for kernel in view.kernels)
    return OpSource(view.variant, kernels, None, render_host(view))


def renamed(artifact: Artifact, folder: Path, name: str, number: int) -> Artifact:
    """The stand-in as the op of another variant, in ``folder``, without a compiler: of the same
    length, the op's name is overwritten wherever the library has it."""
    op_name = f"standin_{number:08x}"
    folder.mkdir(parents=True)
    library = folder / f"{op_name}.so"
    content = artifact.library_path.read_bytes()
    assert META.op_name.encode() in content
    library.write_bytes(content.replace(META.op_name.encode(), op_name.encode()))
    (folder / "host.cpp").write_text("// a source\n", encoding="utf-8")
    (folder / "build.log").write_text("Compile time = 1.25 ms\n", encoding="utf-8")
    made = replace(
        artifact,
        directory=folder,
        name=name,
        op_name=op_name,
        library=library.name,
        library_sha256=file_sha256(library),
    )
    made.write()
    return made
