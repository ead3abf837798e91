"""check() with stand-in ops: a right one passes, and each kind of broken one fails."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.check import (
    Case,
    CheckResult,
    Layout,
    Variant,
    call_inputs,
    cases,
    check,
    draw_inputs,
    main,
    render_table,
    run_case,
)
from fa3gen.dtypes import DType
from fa3gen.errors import InputError, UnsupportedError
from fa3gen.inputs import InputMeta
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.call_inputs import Sizes
from fa3gen.runtime.examples import InputExample, draw_examples, examples_of
from fa3gen.runtime.reference import attention_reference, reference_mask, reference_score


class StandIn:
    """A right op in torch, with places to break it."""

    def __init__(
        self,
        mask: str,
        spoil: Callable[[Tensor, Tensor], None] = lambda out, lse: None,
        default_scale: float | None = None,
    ) -> None:
        self.keep, self.spoil, self.default_scale = reference_mask(mask), spoil, default_scale

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        out: Tensor | None = None,
    ) -> Any:
        scale = self.default_scale if scale is None else scale
        right, lse = attention_reference(q, k, v, self.keep, scale, torch.float32)
        result = right.to(q.dtype) if out is None else out.copy_(right)
        self.spoil(result, lse)
        return (result, lse) if return_lse else result


@pytest.mark.parametrize("mask", ["full", "causal", "window(40, 3)"])
@pytest.mark.parametrize("head_dims", [(64, 64), (24, 16)])
def test_a_right_op_passes(mask: str, head_dims: tuple[int, int]) -> None:
    results = check(StandIn(mask), mask, device="cpu", head_dims=head_dims)
    assert len(results) == len(cases("small"))
    assert [r.problems for r in results if not r.ok] == []
    assert json.loads(json.dumps([r.to_json() for r in results], allow_nan=False))


def failures(op: Any, mask: str = "causal") -> list[CheckResult]:
    return [r for r in check(op, mask, device="cpu", head_dims=(32, 32)) if not r.ok]


def problems(op: Any, case: Case, calls: int = 1, mask: str = "causal") -> str:
    result = run_case(op, mask, case, device="cpu", head_dims=(32, 32), calls=calls)
    assert result.ok == (not result.problems)
    return "; ".join(result.problems)


SQUARE = Case(1, 2, 1, 70, 70)


def test_another_mask_fails() -> None:
    names = {r.case.name for r in failures(StandIn("window(-1, 1)"))}
    square_or_wide = {
        c.name for c in cases("small") if c.batch and c.seqlen_q > 1 and c.seqlen_k > 1
    }
    assert names >= square_or_wide


def test_top_left_causal_alignment_fails_where_lengths_differ() -> None:
    class TopLeft(StandIn):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            self.keep = lambda at: at.k <= at.row
            return super().__call__(q, k, v, **options)

    assert problems(TopLeft("causal"), SQUARE) == ""
    assert problems(TopLeft("causal"), Case(1, 1, 1, 40, 70)) != ""


def test_unwritten_rows_fail() -> None:
    class LastRowsMissing(StandIn):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            before = options["out"].clone()
            result = super().__call__(q, k, v, **options)
            result[0][:, -3:] = before[:, -3:]
            return result

    assert "NaN" in problems(LastRowsMissing("causal"), SQUARE)


def test_writes_outside_of_the_output_fail() -> None:
    def overrun(out: Tensor, lse: Tensor) -> None:
        torch.as_strided(out, (1,), (1,), out.storage_offset() + out.numel()).fill_(0)

    assert "memory outside of out" in problems(StandIn("causal", overrun), SQUARE)


def test_an_ignored_out_fails() -> None:
    class NewTensor(StandIn):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            return super().__call__(q, k, v, **{**options, "out": None})

        __signature__ = None

    def op(q: Tensor, k: Tensor, v: Tensor, out: Tensor, **options: Any) -> Any:
        return NewTensor("causal")(q, k, v, **options)

    assert "out= is not the one returned" in problems(op, SQUARE)


def test_changed_inputs_fail() -> None:
    class Scribbler(StandIn):
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            result = super().__call__(q, k, v, **options)
            v[0, 0, 0, 0] += 1
            return result

    assert "an input was changed" in problems(Scribbler("causal"), SQUARE)


def test_a_moving_result_fails() -> None:
    generator = torch.Generator().manual_seed(0)

    def jitter(out: Tensor, lse: Tensor) -> None:
        lse += 1e-6 * torch.randn(lse.shape, generator=generator)

    op = StandIn("causal", jitter)
    assert problems(op, SQUARE) == ""
    assert "different results" in problems(op, SQUARE, calls=3)


def test_a_wrong_default_scale_fails() -> None:
    op = StandIn("causal", default_scale=0.2)
    assert problems(op, SQUARE) != ""
    assert problems(op, Case(1, 1, 1, 70, 70, scale=0.5)) == ""


def test_an_op_that_raises_fails_with_its_message() -> None:
    def op(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        raise InputError("q: head dimension must be 128")

    assert problems(op, SQUARE) == "raised InputError: q: head dimension must be 128"
    assert len(failures(op)) == len(cases("small"))


def test_an_op_without_out_is_checked_too() -> None:
    op = StandIn("causal")

    def no_out(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, return_lse: bool) -> Any:
        return op(q, k, v, scale=scale, return_lse=return_lse)

    assert problems(no_out, SQUARE) == ""


def test_unknown_masks_and_sets_are_refused() -> None:
    with pytest.raises(UnsupportedError):
        check(StandIn("full"), "k != 3", device="cpu")
    with pytest.raises(ValueError, match="small or large"):
        cases("huge")


def test_sets_cover_what_they_promise() -> None:
    small, large = cases("small"), cases("large")
    assert len(small) <= 20
    assert max(max(c.seqlen_q, c.seqlen_k) for c in small) <= 400
    assert large[: len(small)] == small
    for chosen in (small, large):
        assert len({c.name for c in chosen}) == len(chosen)
        assert {c.layout for c in chosen} == set(Layout)
        assert {0, 1} <= {c.seqlen_q for c in chosen} & {c.seqlen_k for c in chosen}
        assert {1, 4} <= {c.heads // c.kv_heads for c in chosen}
        assert any(c.seqlen_q > c.seqlen_k > 1 for c in chosen)
        assert any(1 < c.seqlen_q < c.seqlen_k for c in chosen)
    assert max(c.seqlen_q for c in large) >= 16384


def test_each_kernel_of_a_plan_meets_every_residue() -> None:
    large, more = cases("large"), cases("large", (512, 4000))
    assert more[: len(large)] == large
    assert len({c.name for c in more}) == len(more)
    for limit in (512, 4000):
        beyond = [c for c in more[len(large) :] if limit < c.seqlen_k <= limit + 200]
        assert {(c.seqlen_k - limit - 1) % 128 for c in beyond} >= {0, 1, 63, 64, 127}
    assert cases("small", (512,)) == cases("small")


def test_rising_scores_rise_from_the_last_key_on() -> None:
    case = Case(1, 1, 1, 3, 50, rising=1000.0)
    q, k, _ = draw_inputs(case, device="cpu", dtype=torch.bfloat16, head_dims=(64, 64))
    scores = (q[0, :, 0].double() @ k[0, :, 0].double().T) / 8
    assert bool((scores.diff(dim=1) < 14).any())
    assert bool((scores[:, 0] - scores[:, -1] > 900).all())


@pytest.mark.parametrize("layout", list(Layout))
def test_layouts_lie_in_memory_as_they_say(layout: Layout) -> None:
    case = Case(2, 4, 2, 6, 6, layout)
    q, k, v = draw_inputs(case, device="cpu", dtype=torch.bfloat16, head_dims=(16, 16))
    assert (q.shape, k.shape, v.shape) == ((2, 6, 4, 16), (2, 6, 2, 16), (2, 6, 2, 16))
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert all(x.is_contiguous() == (layout.value in ("contiguous", "unaligned")) for x in (k, v))
    aligned = all(x.storage_offset() * 2 % 16 == 0 for x in (q, k, v))
    assert aligned == (layout is not Layout.UNALIGNED)
    again = draw_inputs(case, device="cpu", dtype=torch.bfloat16, head_dims=(16, 16))
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), again, strict=True))


def test_table_shows_every_case_and_each_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(out: Tensor, lse: Tensor) -> None:
        lse.fill_(math.nan)

    op = StandIn("full", spoil)
    results = [run_case(op, "full", case, device="cpu") for case in cases("small")[:6]]
    render_table(results)
    text = capsys.readouterr().out
    assert "1 of 6 cases pass" in text
    assert "q128-k128" in text.replace("\n", "")
    assert "NaN" in text


# --- inputs ---------------------------------------------------------------------------------------

DOC = InputExample(InputMeta("doc", DType.INT32, ("b", "k")), "segments", 20)
SLOPES = InputExample(InputMeta("slopes", DType.FP32, ("h",)), "uniform", 1)
CAP = InputExample(InputMeta("cap", DType.FP32, ()), "uniform", 9)
SINKS = InputExample(InputMeta("sinks", DType.BF16, ("h",)))


class WithInputs:
    """A right op of a variant with inputs, and places to break it."""

    def __init__(self, variant: Variant, planned: float | None = None) -> None:
        self.variant, self.planned = variant, planned
        self.passed: list[dict[str, Any]] = []
        self.planned_for: list[dict[str, Any]] = []

    def plan(self, **given: Any) -> Any:
        self.planned_for.append(given)
        lists = None if self.planned is None else torch.full((1,), self.planned)
        return SimpleNamespace(lists=lists)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        return_lse: bool = False,
        out: Tensor | None = None,
        plan: Any = None,
        **inputs: Any,
    ) -> Any:
        self.passed.append(inputs)
        tensors = {name: torch.as_tensor(x) for name, x in inputs.items()}
        variant = self.variant
        result, lse = attention_reference(
            q,
            k,
            v,
            reference_mask(variant.mask),
            scale,
            torch.float32,
            reference_score(variant.score),
            inputs=tensors,
            sink=tensors[variant.sink] if variant.sink else None,
        )
        result = result if plan is None else result * plan.lists
        return result.to(q.dtype) if out is None else out.copy_(result), lse


VARIANTS = [
    Variant("causal & document(doc)", "score + slopes[h] * (k - q)", (DOC, SLOPES)),
    Variant("window(9, 0)", "cap * tanh(score / cap)", (CAP, SINKS), "sinks"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.mask)
def test_a_right_op_with_inputs_passes(variant: Variant) -> None:
    op = WithInputs(variant, planned=1.0)
    results = check(op, variant, device="cpu", head_dims=(32, 32))
    assert [r for r in results if not r.ok] == []
    assert len(op.planned_for) == len(results)


@pytest.mark.parametrize(
    "other",
    [
        Variant("causal", VARIANTS[0].score, VARIANTS[0].inputs),
        Variant(VARIANTS[0].mask, "score", VARIANTS[0].inputs),
        Variant(VARIANTS[0].mask, VARIANTS[0].score, (DOC, SLOPES, SINKS), "sinks"),
    ],
    ids=["mask", "score", "sink"],
)
def test_another_variant_fails(other: Variant) -> None:
    op = WithInputs(other)
    expected = Variant(VARIANTS[0].mask, VARIANTS[0].score, other.inputs)
    result = run_case(op, expected, SQUARE, device="cpu", head_dims=(32, 32))
    assert not result.ok


def test_another_result_with_a_plan_fails() -> None:
    op = WithInputs(VARIANTS[0], planned=1.01)
    result = run_case(op, VARIANTS[0], SQUARE, device="cpu", head_dims=(32, 32))
    assert result.problems == ("a call with a plan gave another result",)
    sizes = {"batch": 1, "heads": 2, "heads_k": 1, "seqlen_q": 70, "seqlen_k": 70}
    (given,) = op.planned_for
    assert {name: given[name] for name in sizes} == sizes
    assert given.keys() - sizes.keys() == {"device", "doc", "slopes"}


def test_scalars_are_tensors_and_in_one_case_numbers() -> None:
    (numbers,) = [case for case in cases("small") if case.numbers]
    op = WithInputs(VARIANTS[1])
    for case in (SQUARE, numbers):
        run_case(op, VARIANTS[1], case, device="cpu", head_dims=(32, 32))
    tensor, number = (passed["cap"] for passed in op.passed)
    assert isinstance(tensor, Tensor)
    assert tensor.shape == ()
    assert isinstance(number, float)


def test_inputs_have_the_sizes_of_the_case() -> None:
    shapes = {"a": ("b", "h", "hk", 3), "c": ("row", "k")}
    examples = [InputExample(InputMeta(name, DType.FP32, axes)) for name, axes in shapes.items()]
    for case in cases("small"):
        drawn = call_inputs(examples, case, "cpu")
        batch = 1 if case.layout is Layout.EXPANDED else case.batch
        assert drawn["a"].shape == (batch, case.heads, case.kv_heads, 3)
        assert drawn["c"].shape == (case.seqlen_q, case.seqlen_k)
        again = call_inputs(examples, case, "cpu")
        assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def drawn(dtype: DType, example: str | None, size: int | None) -> Tensor:
    one = InputExample(InputMeta("x", dtype, ("b", "k")), example, size)
    sizes = Sizes(b=3, h=1, hk=1, row=1, k=2000)
    return draw_examples([one], sizes, 0, "cpu")["x"]


def test_examples_are_spread_as_they_say() -> None:
    assert drawn(DType.INT32, None, None).unique().tolist() == [0, 1]
    assert drawn(DType.INT32, "uniform", 5).unique().tolist() == [0, 1, 2, 3, 4]
    assert 0.9 < drawn(DType.BF16, None, None).float().std() < 1.1
    assert 6 < drawn(DType.FP32, "normal", 7).std() < 8
    assert 2 < drawn(DType.INT32, "normal", 3).double().std() < 4
    real = drawn(DType.FP32, "uniform", None)
    assert real.min() >= 0
    assert 0.9 < real.max() < 1
    assert drawn(DType.FP16, "uniform", 8).max() > 7


def test_segments_are_sorted_and_differ_between_batches() -> None:
    ids = drawn(DType.INT32, "segments", 50)
    steps = ids.diff(dim=1)
    assert ids.dtype == torch.int32
    assert steps.unique().tolist() == [0, 1]
    assert not torch.equal(ids[0], ids[1])
    lengths = torch.cat([row.unique(return_counts=True)[1][:-1] for row in ids])
    assert 1 <= lengths.min() < 30 < 70 < lengths.max() <= 99
    assert 35 < lengths.double().mean() < 65
    assert drawn(DType.INT32, "segments", 1).diff(dim=1).unique().tolist() == [1]


def test_examples_are_read_by_name() -> None:
    metas = [DOC.meta, SLOPES.meta]
    found = examples_of(metas, {"doc": {"example": "segments", "size": 20}})
    assert found == (DOC, InputExample(SLOPES.meta))
    for given, message in (
        ({"dog": {}}, "dog: no input of this variant"),
        ({"doc": {"length": 3}}, "doc: length is neither example nor size"),
        ({"doc": {"example": "gamma"}}, "doc: its example must be one of normal"),
    ):
        with pytest.raises(InputError, match=message):
            examples_of(metas, given)


def test_an_artifact_says_which_inputs_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metas = (DOC.meta, SLOPES.meta)
    facts = SimpleNamespace(inputs=metas, dtype=DType.BF16, head_dim_qk=32, head_dim_v=32)
    monkeypatch.setattr(Artifact, "read", lambda folder: facts)
    op = WithInputs(VARIANTS[0])
    monkeypatch.setattr("fa3gen.runtime.attention.load", lambda folder: op)
    words = ["--artifact", "somewhere", "--mask", VARIANTS[0].mask, "--score", VARIANTS[0].score]
    words += ["--device", "cpu", "--sizes", "small"]
    assert main([*words, "--inputs", '{"doc": {"example": "segments", "size": 20}}']) == 0
    assert op.passed[3]["doc"].max() > 3
    for wrong in ('{"doc": 3}', "[]", "{", '{"dog": {}}'):
        with pytest.raises(SystemExit) as left:
            main([*words, "--inputs", wrong])
        assert left.value.code == 2
    assert "dog: no input of this variant" in capsys.readouterr().err


def test_the_check_needs_torch_alone() -> None:
    code = (
        "import sys\n"
        "names = 'yaml pydantic sympy networkx jinja2 typer rich filelock ortools'.split()\n"
        "sys.modules.update(dict.fromkeys(names))\n"
        "import fa3gen.check, fa3gen.runtime.attention, fa3gen.runtime.artifact"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
