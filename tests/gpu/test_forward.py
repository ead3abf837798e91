"""Built kernels on the GPU, against the float64 reference.

``FA3GEN_ARTIFACTS`` names the kernels to check, as ``MASK=DIR`` joined by the path separator
(``causal=build/causal:full=build/full``); without it they are compiled on the spot. A machine
without pytest can run ``python -m fa3gen.check`` instead.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fa3gen.check import Case, Variant, cases, limits_of, run_case


def _kernels() -> list[tuple[str, str | None]]:
    """(mask, artifact folder); a folder of None is compiled on the spot."""
    named = os.environ.get("FA3GEN_ARTIFACTS")
    if not named:
        return [("full", None), ("causal", None)]
    pairs = (entry.rpartition("=") for entry in named.split(os.pathsep))
    return [(mask, folder) for mask, _, folder in pairs]


@functools.cache
def _op(mask: str, folder: str | None) -> Any:
    if folder is None:
        import fa3gen

        spec = {"name": f"check_{mask}", "head_dim": 128, "dtype": "bf16", "mask": mask}
        return fa3gen.compile(spec)
    from fa3gen.runtime.attention import load

    return load(Path(folder))


@pytest.mark.parametrize("kernel", _kernels(), ids=lambda kernel: kernel[0])
@pytest.mark.parametrize("case", cases("large"), ids=lambda case: case.name)
def test_forward(kernel: tuple[str, str | None], case: Case) -> None:
    op = _op(*kernel)
    facts = op.artifact
    result = run_case(
        op,
        kernel[0],
        case,
        device="cuda",
        dtype=getattr(torch, facts.dtype.torch_name),
        head_dims=(facts.head_dim_qk, facts.head_dim_v),
        calls=3,
    )
    assert result.ok, result


@pytest.mark.skipif("FA3GEN_ARTIFACTS" in os.environ, reason="named kernels are checked")
def test_every_kernel_of_a_plan() -> None:
    """d64 has a kernel of its own for short calls: both, and the lengths where they meet."""
    import fa3gen

    op = fa3gen.compile({"name": "check_plan", "head_dim": 64, "mask": "causal"})
    limits = limits_of(op)
    assert limits
    (limit, *_) = limits
    meeting = (Case(1, 2, 1, 300, limit, seed=1), Case(1, 2, 1, 300, limit + 1, seed=2))
    for case in (*meeting, *cases("large", limits)[len(cases("large")) :]):
        result = run_case(op, "causal", case, device="cuda", head_dims=(64, 64), calls=3)
        assert result.ok, result


@pytest.mark.skipif("FA3GEN_ARTIFACTS" in os.environ, reason="named kernels are checked")
@pytest.mark.parametrize("maxima", ["exact", "lazy", "speculative"])
@pytest.mark.parametrize("score", ["50 * tanh(score / 50)", "score + (k - q) / 16", "2 * score"])
def test_score_formulas(score: str, maxima: str) -> None:
    import fa3gen

    spec = {"head_dim": 64, "mask": "causal", "score": score, "schedule": {"maxima": maxima}}
    op = fa3gen.compile({"name": "check_score", **spec})
    for case in cases("large"):
        variant = Variant("causal", score)
        result = run_case(op, variant, case, device="cuda", head_dims=(64, 64), calls=3)
        assert result.ok, result
