from __future__ import annotations

import pytest

from fa3gen.errors import UnsupportedError
from fa3gen.schedule import make_plan
from fa3gen.spec import AttentionSpec

INPUTS = {
    "doc": {"shape": ["b", "k"], "dtype": "int32"},
    "rel": {"shape": ["h", 255], "dtype": "fp32"},
}


def spec_of(key: str, text: str) -> AttentionSpec:
    return AttentionSpec(**{"head_dim": 64, "inputs": INPUTS, key: text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("mask", "6000000 * k + h < q or doc[b, k] == 3"),
        ("mask", "doc[b, k] == k * 100000"),
        ("mask", "k * 2147483647 < q * 2147483646"),
        ("mask", "doc[b, k] + 2147483647 < doc[b, q]"),
        ("mask", "(k * 65536 + q) % 7 < 3"),
        ("mask", "(k * 65536) // 65536 == doc[b, q]"),
        ("mask", "doc[b, k * 1000000] == 3"),
        ("score", "score + where(100000 * k < q, 1, 2)"),
        ("score", "score + rel[h, 100000 * (k - q)]"),
    ],
)
def test_numbers_that_take_integers_out_of_int32_are_refused(key: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{key}: kernels count in int32"):
        make_plan(spec_of(key, text))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("mask", "k * 2000000 < q * 2000001"),  # solved for k, and never computed
        ("mask", "k * 1e12 < doc[b, k]"),  # in fp32
        ("mask", "k // 4096 * 4096 <= doc[b, q]"),
        ("mask", "(k - q) % 2147483647 < 3"),
        ("mask", "(k // 64 - q // 64) ** 2 + (k % 64 - q % 64) ** 2 <= 25"),
        ("score", "score + 100000 * (k - q)"),  # a product in fp32
        ("score", "score + rel[h, 2 * (k - q) + 100000]"),
    ],
)
def test_others_are_compiled(key: str, text: str) -> None:
    assert make_plan(spec_of(key, text))
