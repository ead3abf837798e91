"""A model with a kernel of a bundle: compiled by AOTInductor in one process, run in another.

::

    python examples/export.py compile BUNDLE VARIANT model.pt2
    python examples/export.py run BUNDLE model.pt2

The package names the op and does not hold it: whoever runs it loads the bundle first, and needs
neither the model's code nor a compiler. Without a GPU the op is interpreted, which takes the
compiler's packages and VARIANT's spec.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fa3gen

HEADS, WIDTH = 4, 256
SHAPES = ((2, 160), (1, 33), (3, 130))  # batch and length of the example, and of other calls


class SelfAttention(nn.Module):
    """x (batch, length, WIDTH) to the same: projections, attention, projection."""

    def __init__(self, attention: fa3gen.Attention) -> None:
        super().__init__()
        assert attention.artifact is not None
        self.attention = attention
        self.head_dim = attention.artifact.head_dim_qk
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * self.head_dim)
        self.out = nn.Linear(HEADS * self.head_dim, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, HEADS, self.head_dim)
        q, k, v = qkv.unbind(2)  # read in place: strides are multiples of 16 bytes
        return self.out(self.attention(q, k, v).flatten(2))


def variants(folder: str) -> fa3gen.Bundle:
    """A bundle, ready for this machine."""
    bundle = fa3gen.load_bundle(folder)
    if not torch.cuda.is_available():
        for attention in bundle.values():
            fa3gen.compile(attention.spec)  # gives the op that is there an interpreter too
    return bundle


@torch.no_grad()
def compile_model(attention: fa3gen.Attention, path: str) -> None:
    """Write the package, and beside it some calls with what the model gives without a compiler."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert attention.artifact is not None
    dtype = getattr(torch, attention.artifact.dtype.torch_name)
    model = SelfAttention(attention).to(device, dtype).eval()
    inputs = [torch.randn(*shape, WIDTH, device=device, dtype=dtype) for shape in SHAPES]
    dynamic = {"x": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2)}}
    program = torch.export.export(model, (inputs[0],), dynamic_shapes=dynamic)
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    torch.save([(x, model(x)) for x in inputs], Path(path).with_suffix(".calls"))


def run_model(path: str) -> float:
    """Run the package on the same calls; the largest difference, checked."""
    model = torch._inductor.aoti_load_package(path)
    largest = 0.0
    for x, expected in torch.load(Path(path).with_suffix(".calls")):
        out = model(x)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
        largest = max(largest, (out - expected).abs().max().item())
        print(f"batch {x.shape[0]}, length {x.shape[1]}: as without a compiler")
    return largest


def main(command: str, folder: str, *more: str) -> None:
    """Compile or run, as the command line says."""
    bundle = variants(folder)
    if command == "compile":
        name, path = more
        compile_model(bundle[name], path)
    elif command == "run":
        (path,) = more
        print(f"largest difference {run_model(path):.1e}")
    else:
        sys.exit(f"compile or run (got {command})")


if __name__ == "__main__":
    main(*sys.argv[1:])
