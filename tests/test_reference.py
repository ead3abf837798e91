"""The float64 reference against torch, the hand-written masks, and the error rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.errors import InputError, UnsupportedError
from fa3gen.runtime import reference
from fa3gen.runtime.masks import Positions, dense_mask, kept_pairs, window_bounds
from fa3gen.runtime.reference import (
    attention_reference,
    causal_mask,
    check_error,
    make_reference,
    math_attention,
    reference_mask,
    reference_score,
    window_mask,
)

SHAPES = [  # batch, heads, kv_heads, seqlen_q, seqlen_k, d, d_v
    (1, 1, 1, 1, 1, 8, 8),
    (2, 4, 1, 17, 31, 16, 16),
    (2, 4, 2, 40, 23, 32, 8),
    (1, 6, 6, 33, 33, 8, 24),
]


def draw(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, kv_heads, seqlen_q, seqlen_k, d, d_v = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (
        (batch, seqlen_q, heads, d),
        (batch, seqlen_k, kv_heads, d),
        (batch, seqlen_k, kv_heads, d_v),
    )
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return q, k, v


def by_torch(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same attention by torch's own functions, all at once."""
    group = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) * scale
    scores = scores.masked_fill(~keep, -math.inf)
    weights = torch.nan_to_num(torch.softmax(scores, -1))
    return (weights @ values).transpose(1, 2), torch.logsumexp(scores, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1, 50, 1 << 26])
def test_reference_agrees_with_torch_for_random_masks(
    shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", block)
    q, k, v = draw(shape)
    batch, heads, _, seqlen_q, seqlen_k, _, _ = shape
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(batch, heads, seqlen_q, seqlen_k, generator=generator) < 0.4
    keep[:, :, seqlen_q // 2] = False
    out, lse = attention_reference(q, k, v, keep, 0.3)
    expected_out, expected_lse = by_torch(q, k, v, keep, 0.3)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    assert (out[:, seqlen_q // 2] == 0).all()
    assert (lse[:, :, seqlen_q // 2] == -math.inf).all()
    torch.testing.assert_close(math_attention(q, k, v, keep, 0.3), expected_out)


@pytest.mark.parametrize("text", ["full", "causal", "window(5, 3)", "chunk(8)"])
def test_index_mask_gives_what_its_dense_form_gives(text: str) -> None:
    q, k, v = draw(SHAPES[2])
    keep = reference_mask(text)
    by_function = attention_reference(q, k, v, keep, 0.25)
    by_tensor = attention_reference(q, k, v, dense_mask(keep, 40, 23), 0.25)
    for x, y in zip(by_function, by_tensor, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_default_scale_is_the_inverse_root_of_the_head_dimension() -> None:
    q, k, v = draw(SHAPES[1])
    for x, y in zip(
        attention_reference(q, k, v), attention_reference(q, k, v, None, 0.25), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    torch.testing.assert_close(math_attention(q, k, v), math_attention(q, k, v, None, 0.25))


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "batch"), [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_empty_problems_give_zeros_and_minus_infinity(
    seqlen_q: int, seqlen_k: int, batch: int
) -> None:
    q, k, v = draw((batch, 2, 1, seqlen_q, seqlen_k, 8, 8), dtype=torch.bfloat16)
    out, lse = attention_reference(q, k, v, causal_mask(seqlen_q, seqlen_k))
    assert out.shape == (batch, seqlen_q, 2, 8)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    report = check_error(out.bfloat16(), lse.float(), q, k, v)
    assert report.ok, report


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(4, 4), (3, 6), (6, 3), (1, 5), (5, 1)])
def test_masks_element_by_element(seqlen_q: int, seqlen_k: int) -> None:
    rules: dict[str, Callable[[int, int], bool]] = {
        "full": lambda q, k: q == q and k == k,
        "causal": lambda q, k: k <= q,
        "window(1, 0)": lambda q, k: q - 1 <= k <= q,
        "window(-1, 2)": lambda q, k: k <= q + 2,
        "window(0,-1)": lambda q, k: k >= q,
        "chunk(2)": lambda q, k: q // 2 == k // 2,
        "causal | prefix(2)": lambda q, k: k <= q or k < 2,
        "(causal) & (window(1, -1) | chunk(2))": lambda q, k: (
            k <= q and (k >= q - 1 or q // 2 == k // 2)
        ),
        "causal and (q - k) % 2 == 0 or k < 1": lambda q, k: (k <= q and (q - k) % 2 == 0) or k < 1,
        "(abs(q // 3 - k // 3) <= 1) & (abs(q % 3 - k % 3) <= 1)": lambda q, k: (
            abs(q // 3 - k // 3) <= 1 and abs(q % 3 - k % 3) <= 1
        ),
        "k < seqlen_k - seqlen_q": lambda q, k: k < seqlen_k - seqlen_q,
    }
    for text, rule in rules.items():
        keep = reference_mask(text)
        mask = dense_mask(keep, seqlen_q, seqlen_k)
        expected = [
            [rule(row + seqlen_k - seqlen_q, k) for k in range(seqlen_k)] for row in range(seqlen_q)
        ]
        assert mask.tolist() == expected, text
        assert kept_pairs(keep, seqlen_q, seqlen_k) == sum(map(sum, expected)), text


def test_dense_masks_and_bounds() -> None:
    assert causal_mask(2, 3).tolist() == [[True, True, False], [True, True, True]]
    assert window_mask(2, 3, 0, 0).tolist() == [[False, True, False], [False, False, True]]
    assert window_bounds("window(1023, 0)") == (1023, 0)
    assert window_bounds("causal") == (-1, 0)
    assert window_bounds("full") == (-1, -1)
    assert window_bounds("chunk(8)") is None
    with pytest.raises(UnsupportedError, match="no hand-written reference"):
        reference_mask("k % 3 == 0")


@pytest.mark.parametrize(
    "text",
    ["", "causal &", "(causal", "causal)", "k < q", "k < seqlen_k", "causal & nothing", "()"],
)
def test_what_nobody_has_written_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="no hand-written reference"):
        reference_mask(text)


INPUTS = {
    "doc": torch.tensor([[3, 3, 4, 4, 4, 7], [0, 1, 1, 1, 2, 2]], dtype=torch.int32),
    "short": torch.tensor([[0, 0, 1]], dtype=torch.int32),
    "n": torch.tensor([2, 5], dtype=torch.int32),
    "reach": torch.tensor(1, dtype=torch.int32),
    "none": torch.tensor(-1, dtype=torch.int32),
    "tree": torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=torch.int32),
    "a": torch.tensor([0.5, -2.0, 1.0, 0.25]),
    "rel": torch.arange(20.0).view(4, 5),
    "bias": torch.arange(4 * 4 * 6.0).view(1, 4, 4, 6),
    "c": torch.tensor(3.0),
}


def clamped(table: Tensor, *indices: int) -> float:
    places = (min(max(i, 0), n - 1) for i, n in zip(indices, table.shape, strict=True))
    return table[tuple(places)].item()


def numbers(modify: Callable[[Tensor, Positions], Tensor], scores: Tensor) -> list[Any]:
    """A score function's, or a mask's, values at all places of scores (batch, heads, row, k)."""
    b, h, row, k = (
        torch.arange(n).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(scores.shape)
    )
    q = row + scores.shape[3] - scores.shape[2]
    at = Positions(b=b, h=h, hk=h // 2, row=row, q=q, k=k, inputs=INPUTS)
    found: list[Any] = modify(scores, at).expand(scores.shape).flatten().tolist()
    return found


def by_hand(rule: Callable[..., Any], scores: Tensor) -> list[Any]:
    places = itertools.product(*map(range, scores.shape))
    offset = scores.shape[3] - scores.shape[2]
    return [rule(scores[at].item(), *at, at[2] + offset) for at in places]


@pytest.mark.parametrize("seqlen_q", [4, 6])
def test_masks_of_inputs_element_by_element(seqlen_q: int) -> None:
    scores = torch.zeros(2, 4, seqlen_q, 5)
    rules: dict[str, Callable[..., bool]] = {
        "causal & document(doc)": lambda s, b, h, row, k, q: (
            k <= q and clamped(INPUTS["doc"], b, q) == clamped(INPUTS["doc"], b, k)
        ),
        "document(short)": lambda s, b, h, row, k, q: (
            clamped(INPUTS["short"], 0, q) == clamped(INPUTS["short"], 0, k)
        ),
        "causal | (k < n[b])": lambda s, b, h, row, k, q: k <= q or k < (2, 5)[b],
        "window(reach, none)": lambda s, b, h, row, k, q: k >= q - 1,
        "window(none, reach)": lambda s, b, h, row, k, q: k <= q + 1,
        "prefix(reach)": lambda s, b, h, row, k, q: k < 1,
        "tree[row, k - (seqlen_k - seqlen_q)] > 0": lambda s, b, h, row, k, q: (
            clamped(INPUTS["tree"], row, k - (q - row)) > 0
        ),
    }
    for text, rule in rules.items():
        keep = reference_mask(text)
        kept = numbers(lambda s, at, keep=keep: keep(at), scores)  # type: ignore[misc]
        assert kept == by_hand(rule, scores), text
        pairs = kept_pairs(keep, seqlen_q, 5, batch=2, inputs=INPUTS)
        assert 4 * pairs == sum(kept), text


def test_pairs_of_batches_that_keep_the_same() -> None:
    assert kept_pairs(reference_mask("causal"), 4, 4, batch=3) == 30
    assert kept_pairs(reference_mask("full"), 4, 4, batch=3) == 48
    assert kept_pairs(reference_mask("causal"), 4, 4, batch=0) == 0


def test_scores_element_by_element() -> None:
    scores = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    a, rel, bias = (INPUTS[name] for name in ("a", "rel", "bias"))
    rules: dict[str, Callable[..., float]] = {
        "5 * tanh(score / 5)": lambda s, b, h, row, k, q: 5 * math.tanh(s / 5),
        "c * tanh(score / c)": lambda s, b, h, row, k, q: 3 * math.tanh(s / 3),
        "2.5 * score": lambda s, b, h, row, k, q: 2.5 * s,
        "score * c": lambda s, b, h, row, k, q: 3 * s,
        "score + (k - q) / 8": lambda s, b, h, row, k, q: s + (k - q) / 8,
        "score + a[h] * (k - q)": lambda s, b, h, row, k, q: s + a[h].item() * (k - q),
        "score - a[h] * abs(q - k)": lambda s, b, h, row, k, q: s - a[h].item() * abs(q - k),
        "score + rel[h, k - q + 2]": lambda s, b, h, row, k, q: s + clamped(rel, h, k - q + 2),
        "score + bias[b, h, row, k]": lambda s, b, h, row, k, q: s + clamped(bias, b, h, row, k),
    }
    for text, rule in rules.items():
        modify = reference_score(text)
        assert modify is not None
        assert numbers(modify, scores) == pytest.approx(by_hand(rule, scores)), text
    assert reference_score(" score ") is None
    for text in (
        "5 * tanh(score / 6)",
        "a * tanh(score / c)",
        "score + q[h] * (k - q)",
        "score + 1",
    ):
        with pytest.raises(UnsupportedError, match="no hand-written reference"):
            reference_score(text)


@pytest.mark.parametrize("block", [50, 1 << 26])
def test_inputs_and_sinks_agree_with_torch(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_BLOCK", block)
    q, k, v = draw((2, 4, 2, 12, 9, 8, 8))
    keep = causal_mask(12, 9)
    inputs = {"bias": torch.randn(2, 4, 12, 9, dtype=torch.float64), "n": torch.tensor([2, 5])}
    sink = torch.tensor([0.5, -2.0, 3.0, -math.inf], dtype=torch.float64)
    modify = reference_score("score + bias[b, h, row, k]")
    out, lse = attention_reference(q, k, v, keep, 0.3, modify=modify, inputs=inputs, sink=sink)

    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    keys, values = (x.repeat_interleave(2, dim=1) for x in (keys, values))
    scores = (queries @ keys.mT * 0.3 + inputs["bias"]).masked_fill(~keep, -math.inf)
    scores = torch.cat((sink.view(1, 4, 1, 1).expand(2, 4, 12, 1), scores), -1)
    weights = scores.softmax(-1).nan_to_num()[..., 1:]
    torch.testing.assert_close(out, (weights @ values).transpose(1, 2))
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    assert (out[:, :3] == 0).all()
    assert (lse[:, :, 0] == sink).all()
    again = math_attention(q, k, v, keep, 0.3, modify, inputs=inputs, sink=sink)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5)  # the written steps are in fp32
    plain = attention_reference(q, k, v, keep, 0.3, inputs=inputs)[1]
    assert (plain[:, :, 0] == -math.inf).all()


def test_rows_without_keys_have_the_sink_as_their_lse() -> None:
    q, k, v = draw((1, 2, 1, 5, 3, 8, 8), dtype=torch.bfloat16)
    sink = torch.tensor([0.5, -1.0])
    judge = make_reference(q, k, v, causal_mask(5, 3), sink=sink)
    out, lse = attention_reference(q, k, v, causal_mask(5, 3), sink=sink)
    assert judge.compare(out.bfloat16(), lse.float()).ok
    out[0, 0] = 1e-30
    assert "1 rows" not in (problem := str(judge.compare(out.bfloat16(), lse.float()).problems))
    assert "2 rows without keys are not zero" in problem
    lse[0, :, 0] = -math.inf
    assert "lse of 2 rows is off" in str(judge.compare(out.bfloat16(), lse.float()).problems)
    empty = attention_reference(q, k[:, :0], v[:, :0], sink=sink)
    assert (empty[0] == 0).all()
    assert (empty[1] == sink.view(1, 2, 1)).all()


def test_an_input_that_is_missing_is_named() -> None:
    q, k, v = draw(SHAPES[0])
    with pytest.raises(InputError, match="doc: missing, and the mask or the score names it"):
        attention_reference(q, k, v, reference_mask("document(doc)"))


def rounded_kernel(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention with a kernel's rounding points: fp32 scores and sums, P in the operands' dtype."""
    group = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2).float() for x in (q, k, v))
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    s = (queries @ keys.mT * scale).masked_fill(~keep, -math.inf)
    row_max = s.amax(-1, keepdim=True)
    row_max = row_max.masked_fill(row_max == -math.inf, 0.0)
    p = torch.exp(s - row_max)
    row_sum = p.sum(-1, keepdim=True)
    o = (p.to(q.dtype).float() @ values) / row_sum.masked_fill(row_sum == 0, 1.0)
    return o.transpose(1, 2).to(q.dtype), (row_max + row_sum.log()).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.01, 0.09, 1.0])
def test_error_rule_accepts_a_kernels_rounding(dtype: torch.dtype, scale: float) -> None:
    q, k, v = draw((2, 4, 2, 130, 101, 128, 128), dtype=dtype)
    keep = causal_mask(130, 101)
    out, lse = rounded_kernel(q, k, v, keep, scale)
    report = check_error(out, lse, q, k, v, keep, scale)
    assert report.ok, report
    assert 0 < report.math_error < report.limit
    assert report.row_ratio < 1


class TestErrorRule:
    """What the rule must refuse, each as one change of a right result."""

    @pytest.fixture(autouse=True)
    def _right_result(self) -> None:
        shape = (1, 2, 1, 96, 80, 64, 64)  # the first 16 rows keep no key
        self.q, self.k, self.v = draw(shape, dtype=torch.bfloat16)
        self.keep = causal_mask(96, 80)
        self.reference = make_reference(self.q, self.k, self.v, self.keep, 0.125)
        self.out, self.lse = rounded_kernel(self.q, self.k, self.v, self.keep, 0.125)

    def problems(self) -> str:
        report = self.reference.compare(self.out, self.lse)
        assert report.ok == (not report.problems)
        return "; ".join(report.problems)

    def test_right(self) -> None:
        assert self.problems() == ""

    def test_mask_off_by_one(self) -> None:
        keep = window_mask(96, 80, -1, 1)
        self.out, self.lse = rounded_kernel(self.q, self.k, self.v, keep, 0.125)
        assert "max error" in self.problems()
        assert "not zero" in self.problems()

    def test_one_key_lost_from_every_row(self) -> None:
        keep = self.keep & (torch.arange(80) != 3)
        self.out, self.lse = rounded_kernel(self.q, self.k, self.v, keep, 0.125)
        assert "max error" in self.problems()

    def test_wrong_scale(self) -> None:
        self.out, self.lse = rounded_kernel(self.q, self.k, self.v, self.keep, 0.12)
        assert self.problems() != ""

    def test_nan(self) -> None:
        self.out[0, 50, 1, 7] = math.nan
        assert "1 NaN" in self.problems()

    def test_row_without_keys_not_zero(self) -> None:
        self.out[0, 2, 0, 0] = 1e-30
        assert "1 rows without keys are not zero" in self.problems()

    def test_small_error_in_a_small_row(self) -> None:
        q, k, v = draw((1, 1, 1, 512, 512, 64, 64), dtype=torch.bfloat16)
        out, lse = rounded_kernel(q, k, v, causal_mask(512, 512), 0.125)
        out[0, 500] *= 1.1  # the global rule, led by the first rows, would let this pass
        report = check_error(out, lse, q, k, v, causal_mask(512, 512), 0.125)
        assert report.max_error < report.limit
        assert "beyond its limit" in "; ".join(report.problems)

    def test_infinite_output(self) -> None:
        self.out[0, 40, 0, 0] = math.inf
        assert "max error" in self.problems()
        assert self.reference.compare(self.out, self.lse).to_json()["max_error"] is None

    def test_lse_off(self) -> None:
        self.lse[0, 0, 40] += 5e-4
        assert "lse of 1 rows is off" in self.problems()

    def test_lse_in_base_two(self) -> None:
        self.lse *= math.log2(math.e)
        assert "lse of 160 rows is off" in self.problems()

    def test_lse_nan(self) -> None:
        self.lse[0, 0, 40] = math.nan
        assert "lse has 1 NaN" in self.problems()

    def test_lse_of_a_row_without_keys(self) -> None:
        self.lse[0, 1, 3] = 0.0
        assert "lse of 1 rows without keys is not -inf" in self.problems()

    def test_shapes_and_dtypes(self) -> None:
        self.out = self.out.float()
        self.lse = self.lse.transpose(1, 2)
        problems = self.problems()
        assert "out is" in problems
        assert "lse is" in problems
