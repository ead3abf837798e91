"""What a check calls an op with: fixed shapes and seeds, and the tensors drawn for them.

The small set suits the interpreter on a CPU. The large set is for a GPU: it adds long sequences,
many residues of both lengths, and more work tiles than the GPU has SMs.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fa3gen.runtime.call_inputs import Sizes
from fa3gen.runtime.examples import InputExample, draw_examples

__all__ = ["Case", "Layout", "call_inputs", "cases", "draw_inputs"]

_OTHER_SEEDS = 1 << 20  # inputs of formulas are drawn apart from q, k and v


class Layout(enum.Enum):
    """How the inputs lie in memory."""

    CONTIGUOUS = "contiguous"
    TRANSPOSED = "transposed"  # views of (batch, heads, seqlen, dim)
    PACKED = "packed"  # slices of one tensor: along the heads, or K and V along the last dimension
    EXPANDED = "expanded"  # K, V (stride 0) and inputs shared by the batch
    UNALIGNED = "unaligned"  # bases one element off a 16-byte boundary


@dataclass(frozen=True)
class Case:
    """One shape to check; ``seed`` fixes the inputs, ``scale`` None is head_dim ** -0.5."""

    batch: int
    heads: int
    kv_heads: int
    seqlen_q: int
    seqlen_k: int
    layout: Layout = Layout.CONTIGUOUS
    scale: float | None = None
    seed: int = 0
    rising: float = 0.0  # scores grow by so much from the last key, which comes first, to the first
    numbers: bool = False  # inputs without a shape are passed as Python's numbers

    @property
    def name(self) -> str:
        """A short label, unique within a set."""
        text = f"b{self.batch}-h{self.heads}/{self.kv_heads}-q{self.seqlen_q}-k{self.seqlen_k}"
        if self.layout is not Layout.CONTIGUOUS:
            text += f"-{self.layout.value}"
        text += f"-rising{self.rising:g}" if self.rising else ""
        text += "" if self.scale is None else f"-scale{self.scale:g}"
        return f"{text}-numbers" if self.numbers else text


_SMALL = (
    Case(1, 1, 1, 1, 1),
    Case(1, 1, 1, 128, 128),
    Case(1, 2, 1, 127, 129, numbers=True),
    Case(1, 1, 1, 1, 257),
    Case(1, 1, 1, 257, 1),
    Case(1, 1, 1, 0, 64),
    Case(1, 2, 1, 64, 0),
    Case(0, 1, 1, 64, 64),
    Case(2, 4, 1, 65, 191),
    Case(2, 2, 2, 200, 200),
    Case(1, 1, 1, 300, 100),
    Case(1, 1, 1, 100, 300),
    Case(1, 1, 1, 384, 384),
    Case(1, 4, 1, 33, 35),
    Case(2, 2, 1, 130, 177, Layout.TRANSPOSED),
    Case(1, 2, 2, 151, 151, Layout.PACKED),
    Case(2, 1, 1, 90, 170, Layout.EXPANDED),
    Case(1, 2, 1, 70, 75, Layout.UNALIGNED),
    Case(1, 1, 1, 129, 257, scale=1.0),
    Case(1, 1, 1, 96, 200, scale=0.01),
)

_RESIDUES = (0, 1, 7, 8, 15, 33, 63, 64, 65, 79, 80, 81, 95, 112, 127, 128, 129, 143, 144, 175, 177)

_LARGE = (
    Case(1, 4, 1, 4096, 4096),
    Case(2, 4, 4, 4097, 4095),
    Case(1, 2, 2, 4095, 4097, scale=1.0),
    Case(1, 2, 1, 8192, 8192),
    Case(1, 2, 1, 8191, 1000),
    Case(1, 2, 1, 1000, 8191),
    Case(1, 2, 2, 64, 16384),
    Case(1, 2, 2, 16384, 64),
    Case(1, 16, 2, 1, 16384),
    Case(4, 16, 4, 1000, 1000),
    Case(64, 8, 8, 33, 70),
    Case(300, 4, 1, 129, 177),
    Case(3, 8, 2, 2000, 2000, Layout.TRANSPOSED),
    Case(2, 8, 8, 1111, 1111, Layout.PACKED),
    Case(2, 8, 2, 1024, 1024, Layout.PACKED),
    Case(3, 4, 2, 777, 1500, Layout.EXPANDED),
    Case(2, 4, 2, 513, 515, Layout.UNALIGNED),
    Case(2, 4, 2, 500, 1300, rising=60.0),
    Case(1, 4, 2, 1300, 1300, rising=2000.0),
    Case(2, 8, 2, 700, 700, layout=Layout.PACKED, rising=60.0),
    Case(2, 4, 2, 500, 1300, layout=Layout.TRANSPOSED, rising=2000.0),
    Case(2, 4, 2, 300, 1300, layout=Layout.EXPANDED, rising=60.0),
    Case(1, 4, 2, 300, 1300, layout=Layout.UNALIGNED, rising=60.0),
    # Every residue of one length meets a different one of the other.
    *(
        Case(2, 4, 2, 512 + r, 640 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)])
        for i, r in enumerate(_RESIDUES)
    ),
    *(
        Case(2, 4, 2, 768 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)], 512 + r)
        for i, r in enumerate(_RESIDUES)
    ),
)


def cases(sizes: str, limits: Sequence[int] = ()) -> tuple[Case, ...]:
    """The fixed set ``small`` or ``large`` (which includes the small one), seeds filled in.

    ``limits``: the most keys of the op's kernels but the last. The large set then has every residue
    for each of the kernels that take more keys, too.
    """
    sets = {"small": _SMALL, "large": _SMALL + _LARGE}
    if sizes not in sets:
        raise ValueError(f"sizes is small or large (got {sizes!r})")
    chosen = list(sets[sizes])
    for limit in limits if sizes == "large" else ():
        chosen += [
            Case(2, 4, 2, 256 + _RESIDUES[(5 * i + 3) % len(_RESIDUES)], limit + 1 + r)
            for i, r in enumerate(_RESIDUES)
        ]
    fields = ({**vars(case), "seed": seed} for seed, case in enumerate(chosen))
    return tuple(Case(**values) for values in fields)


def draw_inputs(
    case: Case, *, device: torch.device | str, dtype: torch.dtype, head_dims: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q, k, v of the case in its memory layout, the same values on every device.

    Where d != d_v or lengths differ, a packed case has K and V as slices of rows of both.
    """
    generator = torch.Generator().manual_seed(case.seed)
    d, d_v = head_dims

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    def rise(q: Tensor, k: Tensor) -> None:
        """Scores that rise from the last key to the first, with the scale 1 / sqrt(d)."""
        keys = torch.arange(case.seqlen_k, 0, -1, device=device)[:, None] / case.seqlen_k
        q[..., 0], k[..., 0] = d**0.5, case.rising * keys

    batch, heads, kv_heads = case.batch, case.heads, case.kv_heads
    shapes = (
        (batch, case.seqlen_q, heads, d),
        (batch, case.seqlen_k, kv_heads, d),
        (batch, case.seqlen_k, kv_heads, d_v),
    )
    if case.layout is Layout.PACKED and d == d_v and case.seqlen_q == case.seqlen_k:
        packed = draw(batch, case.seqlen_q, heads + 2 * kv_heads, d)
        q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=2)
    elif case.layout is Layout.PACKED:
        q = draw(*shapes[0])
        k, v = torch.split(draw(*shapes[1][:3], d + d_v), [d, d_v], dim=3)
    elif case.layout is Layout.TRANSPOSED:
        q, k, v = (draw(b, h, s, dim).transpose(1, 2) for b, s, h, dim in shapes)
    elif case.layout is Layout.EXPANDED:
        q = draw(*shapes[0])
        k, v = (draw(1, *shape[1:]) for shape in shapes[1:])
    elif case.layout is Layout.UNALIGNED:
        q, k, v = (draw(math.prod(shape) + 1)[1:].view(shape) for shape in shapes)
    else:
        q, k, v = (draw(*shape) for shape in shapes)
    if case.rising:
        rise(q, k)
    return q, k.expand(shapes[1]), v.expand(shapes[2])


def call_inputs(
    inputs: Sequence[InputExample], case: Case, device: torch.device | str
) -> dict[str, Tensor]:
    """The inputs of a case beside q, k and v."""
    batch = min(case.batch, 1) if case.layout is Layout.EXPANDED else case.batch
    sizes = Sizes(batch, case.heads, case.kv_heads, case.seqlen_q, case.seqlen_k)
    return draw_examples(inputs, sizes, case.seed + _OTHER_SEEDS, device)
