"""Programs that the schedule tests share: every shipped spec, and variants of the knobs."""

from __future__ import annotations

import functools
from typing import Any

from fa3gen.paths import SPECS
from fa3gen.schedule import make_schedule
from fa3gen.schedule.lower import lower
from fa3gen.schedule.program import Program
from fa3gen.schedule.schedule import Schedule
from fa3gen.spec import AttentionSpec
from fa3gen.spec.load import load_spec

SHIPPED = tuple(sorted(path.stem for path in SPECS.glob("*.yaml")))

_KNOBS: dict[str, dict[str, Any]] = {
    "overlap 1": {"mask": "causal", "schedule": {"overlap": 1}},
    "O over Q": {"mask": "full", "schedule": {"tile": {"m": 128, "n": 176}}},
    "overlap 1, O over Q": {
        "mask": "full",
        "schedule": {"overlap": 1, "tile": {"m": 128, "n": 176}},
    },
    "O over Q, for all there is room apart": {
        "mask": "causal",
        "head_dim": 64,
        "schedule": {"o_staging": "over_q"},
    },
    "O over V": {
        "mask": "causal",
        "head_dim": {"qk": 192, "v": 128},
        "schedule": {"tile": {"m": 128, "n": 96}, "o_staging": "over_v"},
    },
    "O over V, full": {
        "head_dim": 256,
        "schedule": {"tile": {"m": 128, "n": 64}, "o_staging": "over_v"},
    },
    "O over V, overlap 1, one warpgroup": {
        "mask": "window(100, 20)",
        "schedule": {"warpgroups": 1, "overlap": 1, "o_staging": "over_v", "tile": {"n": 64}},
    },
    "rescale each step": {"mask": "causal", "schedule": {"maxima": "exact"}},
    "lazy, overlap 3": {
        "mask": "causal",
        "head_dim": 64,
        "schedule": {"overlap": 3, "maxima": "lazy"},
    },
    "lazy, few keys": {
        "mask": "window(100, 20)",
        "schedule": {"tile": {"n": 16}, "maxima": "lazy"},
    },
    "speculative, overlap 1": {
        "mask": "causal",
        "schedule": {"overlap": 1, "maxima": "speculative", "pingpong": False},
    },
    "lazy": {"mask": "causal", "schedule": {"maxima": "lazy"}},
    "formula": {"mask": "causal", "score": "score + (k - q) / 16"},
    "formula, lazy": {
        "mask": "window(100, 20)",
        "head_dim": 64,
        "score": "50 * tanh(score / 50)",
        "schedule": {"maxima": "lazy"},
    },
    "inputs": {
        "mask": "causal",
        "head_dim": 64,
        "score": "score + slopes[h] * (k - q)",
        "inputs": {"slopes": {"shape": ["h"], "dtype": "fp32"}},
        "schedule": {"maxima": "speculative"},
    },
    "documents": {
        "mask": "causal & document(doc)",
        "head_dim": 64,
        "inputs": {"doc": {"shape": ["b", "k"], "dtype": "int32"}},
        "schedule": {"maxima": "lazy"},
    },
    "bias, lazy, one stage": {
        "mask": "full",
        "head_dim": 64,
        "score": "score + bias[h, row, k]",
        "inputs": {"bias": {"shape": ["h", "row", "k"], "dtype": "fp16"}},
        "schedule": {"maxima": "lazy", "pipeline_depth": 1},
    },
    "bias, overlap 3": {
        "mask": "causal",
        "head_dim": 64,
        "score": "20 * tanh((score + bias[b, h, row, k]) / 20)",
        "inputs": {"bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"}},
        "schedule": {"overlap": 3},
    },
    "bias, no producer, overlap 3": {
        "head_dim": 64,
        "score": "score + bias[row, k]",
        "inputs": {"bias": {"shape": ["row", "k"], "dtype": "bf16"}},
        "schedule": {"warp_specialized": False, "overlap": 3},
    },
    "two CTAs an SM": {
        "mask": "causal",
        "head_dim": 64,
        "schedule": {
            "tile": {"m": 128, "n": 64},
            "overlap": 1,
            "ctas_per_sm": 2,
            "maxima": "lazy",
        },
    },
    "two CTAs an SM, full": {
        "head_dim": 64,
        "schedule": {"tile": {"m": 64, "n": 96}, "ctas_per_sm": 2},
    },
    "one warpgroup": {"mask": "causal", "schedule": {"warpgroups": 1}},
    "three warpgroups": {"mask": "causal", "schedule": {"warpgroups": 3}},
    "three warpgroups, wide": {"head_dim": 64, "schedule": {"warpgroups": 3}},
    "window": {"mask": "window(100, 0)"},
    "two-sided window": {"mask": "window(100, 20)", "head_dim": 64},
    "no ping-pong": {"mask": "causal", "schedule": {"pingpong": False}},
    "one stage": {"schedule": {"pipeline_depth": 1}},
    "three stages": {"mask": "causal", "head_dim": 64, "schedule": {"pipeline_depth": 3}},
    "chunk": {"mask": "chunk(64)"},
    "dilated": {"mask": "(q - k) % 2 == 0"},
    "overlap 3": {"mask": "window(100, 20)", "head_dim": 64, "schedule": {"overlap": 3}},
    "overlap 3, full": {"head_dim": 96, "schedule": {"overlap": 3, "pipeline_depth": 3}},
    "P shared": {"mask": "causal", "schedule": {"p_operand": "shared"}},
    "P shared, overlap 1": {"head_dim": 64, "schedule": {"p_operand": "shared", "overlap": 1}},
    "P shared, overlap 3": {"head_dim": 64, "schedule": {"p_operand": "shared", "overlap": 3}},
    "no producer": {"mask": "causal", "schedule": {"warp_specialized": False}},
    "no producer, overlap 3": {
        "mask": "window(100, 20)",
        "head_dim": 64,
        "schedule": {"warp_specialized": False, "overlap": 3, "persistent": False},
    },
    "no producer, overlap 1, P shared": {
        "schedule": {"warp_specialized": False, "overlap": 1, "p_operand": "shared"}
    },
    "fp16, head dims apart": {
        "head_dim": {"qk": 192, "v": 128},
        "dtype": "fp16",
        "schedule": {"tile": {"m": 128, "n": 128}},
    },
}
VARIANTS = tuple(_KNOBS)


@functools.cache
def schedule(name: str) -> Schedule:
    """The Schedule of a shipped spec or a variant."""
    if name in SHIPPED:
        return make_schedule(load_spec(SPECS / f"{name}.yaml"))
    return make_schedule(AttentionSpec(**{"head_dim": 128, **_KNOBS[name]}))


@functools.cache
def program(name: str) -> Program:
    """The Program of a shipped spec or a variant."""
    return lower(schedule(name))
