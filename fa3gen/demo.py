"""The main job, end to end: a spec to a compiled kernel to checked numbers (``make demo``)."""

from __future__ import annotations

import sys
import time

import torch

from fa3gen.driver import interpreted, source_of
from fa3gen.errors import Fa3genError
from fa3gen.jit.cache import build_cached
from fa3gen.runtime.attention import Attention
from fa3gen.runtime.masks import reference_mask
from fa3gen.runtime.op import register
from fa3gen.runtime.reference import check_error
from fa3gen.schedule import make_plan, verify
from fa3gen.schedule.lower import lower
from fa3gen.spec import load_spec

__all__ = ["main"]

_SPEC = "causal_d128_bf16"


def main() -> int:
    """Compile the causal kernel, run it, print its error; exit code 1 if it is out of bounds."""
    spec = load_spec(_SPEC)
    plan = make_plan(spec)
    for schedule in plan:
        started = time.perf_counter()
        print(f"{verify(lower(schedule))} in {time.perf_counter() - started:.2f} s")
    artifact = build_cached(source_of(plan), progress=lambda line: print(line, flush=True))
    for kernel in artifact.kernels:
        print(
            f"built for sm_90a: {kernel}, {kernel.registers} registers a thread at entry, "
            f"{kernel.spill_bytes} bytes spilled"
        )
    print(f"{artifact.build_seconds:.1f} s")
    on_gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    if on_gpu:
        op, device, lengths = Attention(register(artifact), spec=spec), "cuda", (4096, 4096)
    else:
        op, device, lengths = interpreted(plan), "cpu", (300, 333)
    batch, heads = 2, 4
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, heads, 128, dtype=torch.bfloat16, device=device)
        for length in (lengths[0], lengths[1], lengths[1])
    )
    out, lse = op(q, k, v, return_lse=True)
    scale = spec.head_dim.qk**-0.5
    report = check_error(out, lse, q, k, v, reference_mask(spec.mask), scale)
    where = torch.cuda.get_device_name() if on_gpu else "the CPU interpreter (no Hopper GPU here)"
    print(
        f"ran on {where}: q {tuple(q.shape)}, k {tuple(k.shape)}\n"
        f"largest error against fp64 {report.max_error:.3e} (limit {report.limit:.3e}), "
        f"LSE {report.lse_error:.1e}: {'ok' if report.ok else 'WRONG'}"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Fa3genError as error:
        sys.exit(f"fa3gen: {error}")
