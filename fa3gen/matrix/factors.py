"""What a spec and a call choose between; the first value of each factor is the default.

A value of a spec's factor is a piece of the spec. Masks and formulas are such as somebody has
written by hand (``fa3gen.runtime.masks``, ``fa3gen.runtime.scores``); together they have every
way to find KV tiles (closed form, periods, lists), and every way to a score (none, a factor, a
function, per head, by table, a tile of a loaded bias). Lengths of calls are given by the tile of
the kernel that is called: ``m`` its query rows, ``n`` its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["CALL", "DEGENERATE", "QUICK", "QUICK_CALL", "SPEC", "Factors", "Piece"]

Piece: TypeAlias = "Mapping[str, Any]"
Factors: TypeAlias = "Mapping[str, tuple[str, ...]]"  # values by factor


def _vector(axis: str, dtype: str = "fp32", **drawn: Any) -> Piece:
    return {"shape": [axis], "dtype": dtype, **drawn}


_SCALAR: Piece = {"dtype": "fp32", "example": "uniform", "size": 2}
_COUNT: Piece = {"dtype": "int32", "example": "uniform", "size": 200}

SPEC: Mapping[str, Mapping[str, Piece]] = {
    "dtype": {"bf16": {"dtype": "bf16"}, "fp16": {"dtype": "fp16"}},
    "head_dim": {
        "128": {"head_dim": 128},
        "64": {"head_dim": 64},
        "96": {"head_dim": 96},
        "256": {"head_dim": 256},
        "192x128": {"head_dim": {"qk": 192, "v": 128}},
        "40x72": {"head_dim": {"qk": 40, "v": 72}},
    },
    "mask": {
        "full": {"mask": "full"},
        "causal": {"mask": "causal"},
        "window": {"mask": "window(37, 0)"},
        "band": {"mask": "window(20, 11)"},
        "window_input": {
            "mask": "window(left, right)",
            "inputs": {"left": _COUNT, "right": _COUNT},
        },
        "chunk": {"mask": "chunk(48)"},
        "prefix": {"mask": "causal | prefix(33)"},
        "prefix_input": {
            "mask": "causal | (k < length[b])",
            "inputs": {"length": _vector("b", "int32", example="uniform", size=200)},
        },
        "dilated": {"mask": "causal & ((q - k) % 3 == 0)"},
        "document": {
            "mask": "causal & document(doc)",
            "inputs": {
                "doc": {"shape": ["b", "k"], "dtype": "int32", "example": "segments", "size": 60}
            },
        },
    },
    "score": {
        "score": {},
        "softcap": {"score": "50 * tanh(score / 50)"},
        "gain": {"score": "score * gain", "inputs": {"gain": _SCALAR}},
        "alibi": {
            "score": "score + slopes[h] * (k - q)",
            "inputs": {"slopes": _vector("h", example="uniform")},
        },
        "relative": {
            "score": "score + rel[h, k - q + 127]",
            "inputs": {"rel": {"shape": ["h", 255], "dtype": "fp32"}},
        },
        "bias": {
            "score": "score + bias[b, h, row, k]",
            "inputs": {"bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"}},
        },
    },
    "sink": {"none": {}, "sink": {"sink": "sinks", "inputs": {"sinks": _vector("h")}}},
    "warpgroups": {"auto": {}, **{str(n): {"schedule": {"warpgroups": n}} for n in (1, 2, 3)}},
    "tile_n": {
        "auto": {},
        **{str(n): {"schedule": {"tile": {"n": n}}} for n in (16, 64, 80, 128, 176)},
    },
    "depth": {"auto": {}, **{str(n): {"schedule": {"pipeline_depth": n}} for n in (1, 2, 3)}},
    "overlap": {"auto": {}, **{str(n): {"schedule": {"overlap": n}} for n in (1, 2, 3)}},
    "pingpong": {
        "auto": {},
        "yes": {"schedule": {"pingpong": True}},
        "no": {"schedule": {"pingpong": False}},
    },
    "p_operand": {"auto": {}, "shared": {"schedule": {"p_operand": "shared"}}},
    "persistent": {
        "auto": {},
        "no": {"schedule": {"persistent": False}},
        "static": {"schedule": {"persistent": "static"}},
        "dynamic": {"schedule": {"persistent": "dynamic"}},
    },
    "producer": {"yes": {}, "no": {"schedule": {"warp_specialized": False}}},
    "o_staging": {
        "auto": {},
        **{name: {"schedule": {"o_staging": name}} for name in ("apart", "over_q", "over_v")},
    },
    "ctas": {"auto": {}, "2": {"schedule": {"ctas_per_sm": 2}}},
    "maxima": {
        "auto": {},
        **{name: {"schedule": {"maxima": name}} for name in ("exact", "lazy", "speculative")},
    },
}

# What the interpreter goes through in about a minute.
QUICK: Factors = {
    "dtype": ("bf16", "fp16"),
    "head_dim": ("128", "64", "40x72"),
    "mask": ("full", "causal", "band", "window_input", "prefix", "dilated", "document"),
    "score": ("score", "softcap", "alibi", "bias"),
    "sink": ("none", "sink"),
    "warpgroups": ("auto", "1", "3"),
    "tile_n": ("auto", "16", "80"),
    "depth": ("auto", "1"),
    "overlap": ("auto", "1", "3"),
    "pingpong": ("auto", "no"),
    "p_operand": ("auto", "shared"),
    "persistent": ("auto", "no", "dynamic"),
    "producer": ("yes", "no"),
    "o_staging": ("auto", "over_v"),
    "ctas": ("auto", "2"),
    "maxima": ("auto", "exact", "lazy"),
}

QUICK_CALL: Factors = {
    "seqlen_q": ("m", "1", "m-1", "m+1", "2m+33"),
    "seqlen_k": ("n", "1", "n-1", "n+1", "2n+8", "3n+7"),
    "heads": ("1/1", "2/2", "4/2", "3/1"),
    "batch": ("1", "2"),
    "layout": ("contiguous", "transposed", "packed", "expanded", "unaligned"),
    "scale": ("default", "1", "0.01"),
    "rising": ("0", "60"),
    "numbers": ("no", "yes"),
}

CALL: Factors = {
    "seqlen_q": ("m", "1", "m-1", "m+1", "2m+33", "3m"),
    "seqlen_k": ("n", "1", "n-1", "n+1", "2n+8", "3n", "3n+7", "5n+64"),
    "heads": ("1/1", "4/4", "4/2", "6/2", "8/1"),
    "batch": ("1", "3", "many"),
    "layout": ("contiguous", "transposed", "packed", "expanded", "unaligned"),
    "scale": ("default", "1", "0.01"),
    "rising": ("0", "60", "2000"),
    "numbers": ("no", "yes"),
}

# Calls without a result, or without keys: each in every layout.
DEGENERATE: Factors = {
    "empty": ("batch", "seqlen_q", "seqlen_k", "heads"),
    "layout": CALL["layout"],
}
