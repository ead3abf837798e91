"""A bias that is loaded by tiles, on the CPU: Programs against attention by hand in torch."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fa3gen.driver import interpreted
from fa3gen.errors import ScheduleError, VerificationError
from fa3gen.runtime.reference import Positions, check_error
from fa3gen.schedule import make_schedule
from fa3gen.schedule.edit import sites, splice
from fa3gen.schedule.interpret import Execution, Interpreter, _Tensors, interpret
from fa3gen.schedule.lower import lower
from fa3gen.schedule.mutate import Mutant, alterations, deletions, misplacements
from fa3gen.schedule.program import Instruction, Program, Wait
from fa3gen.schedule.schedule import Schedule
from fa3gen.schedule.verify import verify
from fa3gen.spec import AttentionSpec

DIM, BATCH, HEADS, KV_HEADS = 64, 2, 2, 1
SCALE = 0.11  # not the default
SUM = "score + bias[b, h, row, k]"
BF16, FP16 = torch.bfloat16, torch.float16
NAMES = {BF16: "bf16", FP16: "fp16"}
Modify = Callable[[Tensor, Positions], Tensor]
Keep = Callable[[Positions], Tensor]

VARIANTS: dict[str, dict[str, Any]] = {
    "exact, overlap 1": {"maxima": "exact", "overlap": 1},
    "exact, overlap 2": {"maxima": "exact", "overlap": 2},
    "exact, overlap 3": {"maxima": "exact", "overlap": 3},
    "lazy, overlap 1": {"maxima": "lazy", "overlap": 1},
    "lazy, overlap 2": {"maxima": "lazy", "overlap": 2},
    "lazy, overlap 3": {"maxima": "lazy", "overlap": 3},
    "speculative, overlap 1": {"maxima": "speculative", "overlap": 1},
    "speculative, overlap 2": {"maxima": "speculative", "overlap": 2},
    "no producer": {"maxima": "speculative", "warp_specialized": False},
    "no producer, overlap 3": {"maxima": "lazy", "overlap": 3, "warp_specialized": False},
    "O over V": {"maxima": "lazy", "o_staging": "over_v"},
    "O over Q, overlap 3": {"maxima": "exact", "overlap": 3, "o_staging": "over_q"},
    "P shared, overlap 3": {"maxima": "lazy", "overlap": 3, "p_operand": "shared"},
    "three stages": {"maxima": "lazy", "overlap": 3, "pipeline_depth": 3},
    "one stage": {"maxima": "speculative", "pipeline_depth": 1},
    "ping-pong": {"maxima": "speculative", "tile": {"m": 128, "n": 64}, "pingpong": True},
    "wide tile": {"maxima": "lazy", "tile": {"m": 64, "n": 128}},
}
MAXIMA = ["exact", "lazy", "speculative"]


def spec_of(**keys: Any) -> AttentionSpec:
    """A spec with a bias: added to the score, of all four axes, in bf16, with small tiles, if its
    keys say nothing else."""
    declared = {"bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"}}
    inputs = {**declared, **keys.pop("inputs", {})}
    knobs = {"tile": {"m": 64, "n": 64}, **keys.pop("schedule", {})}
    return AttentionSpec(
        **{"head_dim": DIM, "score": SUM, "inputs": inputs, "schedule": knobs, **keys}
    )


@functools.cache
def schedule_of(spec: AttentionSpec) -> Schedule:
    return make_schedule(spec)


def program(variant: str, mask: str) -> Program:
    return lower(schedule_of(spec_of(mask=mask, schedule=VARIANTS[variant])))


def draw(
    lengths: tuple[int, int],
    heads: tuple[int, int] = (HEADS, KV_HEADS),
    dtype: torch.dtype = BF16,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    sizes = ((lengths[0], heads[0]), (lengths[1], heads[1]), (lengths[1], heads[1]))
    q, k, v = (torch.randn((BATCH, *n, DIM), generator=generator).to(dtype) for n in sizes)
    return q, k, v


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def bias_of(lengths: tuple[int, int], heads: int = HEADS, dtype: torch.dtype = BF16) -> Tensor:
    return normal(BATCH, heads, *lengths, dtype=dtype)


def added(bias: Tensor, factor: float = 1.0) -> Modify:
    """A bias of four axes, those of size 1 for all, beside the scores (b, h, row, k)."""

    def modify(s: Tensor, at: Positions) -> Tensor:
        parts = zip((at.b, at.h, at.row, at.k), bias.shape, strict=True)
        return s + factor * bias.to(s.dtype)[tuple(i.clamp(max=size - 1) for i, size in parts)]

    return modify


def causal(at: Positions) -> Tensor:
    return at.k <= at.q


def check(
    spec: AttentionSpec,
    tensors: tuple[Tensor, Tensor, Tensor],
    inputs: dict[str, Tensor],
    modify: Modify,
    keep: Keep | None = None,
    scale: float = SCALE,
) -> tuple[Tensor, Tensor]:
    """Run the Program of a spec, judge it by the error rule, and return the result."""
    more = (inputs[meta.name] for meta in spec.input_metas)
    out, lse = Interpreter(schedule_of(spec))(*tensors, scale, *more, None)
    report = check_error(out, lse, *tensors, keep, scale, modify)
    sizes = [tuple(x.shape) for x in tensors]
    assert report.ok, (spec.score, spec.mask, spec.schedule, sizes, scale, report)
    return out, lse


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, mask: str) -> None:
    spec = spec_of(mask=mask, schedule=VARIANTS[variant])
    bias = bias_of((70, 150)) * 3
    keep = causal if mask == "causal" else None
    check(spec, draw((70, 150)), {"bias": bias}, added(bias), keep)


@pytest.mark.parametrize(("own", "other"), [*itertools.product(NAMES, repeat=2)], ids=str)
def test_types(own: torch.dtype, other: torch.dtype) -> None:
    """A bias may be of another type than Q."""
    declared = {"bias": {"shape": ["b", "h", "row", "k"], "dtype": NAMES[other]}}
    spec = spec_of(dtype=NAMES[own], inputs=declared)
    bias = bias_of((40, 150), dtype=other)
    check(spec, draw((40, 150), dtype=own), {"bias": bias}, added(bias))


@pytest.mark.parametrize(
    "axes", [(), (0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2, 3)], ids=str
)
def test_axes_of_size_1_stand_for_all(axes: tuple[int, ...]) -> None:
    """As the op takes them, of more than one tile."""
    op = _op(spec_of(mask="causal"))
    sizes = [1 if axis in axes else n for axis, n in enumerate((BATCH, HEADS, 70, 150))]
    bias, tensors = normal(*sizes), draw((70, 150))
    out, lse = op(*tensors, scale=SCALE, return_lse=True, bias=bias)
    report = check_error(out, lse, *tensors, causal, SCALE, added(bias))
    assert report.ok, (sizes, report)


@functools.cache
def _op(spec: AttentionSpec) -> Any:
    return interpreted((schedule_of(spec),))


@pytest.mark.parametrize(
    "lengths",
    [(1, 1), (64, 64), (65, 129), (100, 7), (7, 200), (150, 70), (130, 130), (3, 0), (0, 3)],
    ids=str,
)
@pytest.mark.parametrize("variant", ["exact, overlap 3", "speculative, overlap 2", "no producer"])
def test_lengths(variant: str, lengths: tuple[int, int]) -> None:
    """Ragged tiles of rows and of keys; rows before the first key, which keep none."""
    bias = bias_of(lengths)
    spec = spec_of(mask="causal", schedule=VARIANTS[variant])
    out, lse = check(spec, draw(lengths), {"bias": bias}, added(bias), causal)
    keyless = max(lengths[0] - lengths[1], 0)
    assert bool((out[:, :keyless] == 0).all()), lengths
    assert bool((lse[..., :keyless] == -math.inf).all()), lengths


@pytest.mark.parametrize(
    "lookup", ["bias[b, h, row, k]", "bias[b, h // 2, row, k]", "bias[b, hk, row, k]"]
)
def test_query_heads_that_share_keys(lookup: str) -> None:
    """Each with a bias of its own, or two with one; a head beyond the table is its last."""
    spec = spec_of(score=f"score + {lookup}")
    bias = bias_of((40, 100), heads=4)

    def modify(s: Tensor, at: Positions) -> Tensor:
        h = at.h if "[b, h, " in lookup else at.h // 2
        return s + bias.to(s.dtype)[at.b, h, at.row, at.k]

    check(spec, draw((40, 100), heads=(4, 2)), {"bias": bias}, modify)


@pytest.mark.parametrize(
    ("lookup", "shape"),
    [
        ("[row, k]", ["row", "k"]),
        ("[h - 1, row, k]", ["h", "row", "k"]),
        ("[1, row, k]", [3, "row", "k"]),
    ],
)
def test_fewer_axes(lookup: str, shape: list[Any]) -> None:
    spec = spec_of(
        score=f"score + bias{lookup}", inputs={"bias": {"shape": shape, "dtype": "fp16"}}
    )
    bias = normal(*[{"h": HEADS, "row": 70, "k": 90}.get(n, n) for n in shape], dtype=FP16)

    def modify(s: Tensor, at: Positions) -> Tensor:
        of_row = bias.to(s.dtype)[..., at.row, at.k]
        return s + (of_row if len(shape) == 2 else of_row[1 if shape[0] == 3 else 0])

    check(spec, draw((70, 90)), {"bias": bias}, modify)


@pytest.mark.parametrize(
    "variant",
    [
        "exact, overlap 2",
        "lazy, overlap 1",
        "lazy, overlap 3",
        "speculative, overlap 1",
        "speculative, overlap 2",
        "no producer",
    ],
)
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_entries_of_minus_infinity_mask(mask: str, variant: str) -> None:
    """Some keys of each row, all that are visited first, a whole row, and a whole work tile's."""
    bias = bias_of((130, 200))
    bias[torch.rand(bias.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = -math.inf
    bias[0, 0, 3:40, 100:] = -math.inf  # the tiles with the last keys
    bias[0, 1, 17] = -math.inf
    bias[1, 1, 64:128] = -math.inf
    spec = spec_of(mask=mask, schedule=VARIANTS[variant])
    keep = causal if mask == "causal" else None
    out, lse = check(spec, draw((130, 200)), {"bias": bias}, added(bias), keep)
    assert bool((out[0, 17, 1] == 0).all()), variant
    assert bool((lse[1, 1, 64:128] == -math.inf).all()), variant
    assert bool(lse[0, 0].isfinite().all()), variant


FORMULAS: dict[str, tuple[str, Callable[[Tensor, Tensor, Positions], Tensor]]] = {
    "softcap": (
        "20 * tanh((score + bias[b, h, row, k]) / 20)",
        lambda s, bias, at: 20 * torch.tanh((s + bias) / 20),
    ),
    "multiple": ("2 * score + bias[b, h, row, k]", lambda s, bias, at: 2 * s + bias),
    "negative": ("0.5 * bias[b, h, row, k] - score", lambda s, bias, at: 0.5 * bias - s),
    "alibi": (
        "score + 0.5 * bias[b, h, row, k] + (k - q) / 16",
        lambda s, bias, at: s + 0.5 * bias + (at.k - at.q) / 16,
    ),
    "choice": (
        "where(k % 3 == 0, score + bias[b, h, row, k], -inf)",
        lambda s, bias, at: torch.where(at.k % 3 == 0, s + bias, -math.inf),
    ),
}


@pytest.mark.parametrize("maxima", MAXIMA)
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name: str, maxima: str) -> None:
    text, by_hand = FORMULAS[name]
    spec = spec_of(score=text, mask="causal", schedule={"maxima": maxima})
    bias = bias_of((70, 150)) * 4

    def modify(s: Tensor, at: Positions) -> Tensor:
        return by_hand(s, bias.to(s.dtype)[at.b, at.h, at.row, at.k], at)

    check(spec, draw((70, 150)), {"bias": bias}, modify, causal)


@pytest.mark.parametrize("maxima", MAXIMA)
def test_a_second_bias_is_looked_up(maxima: str) -> None:
    spec = spec_of(
        score="score + bias[b, h, row, k] - pair[row, k]",
        inputs={"pair": {"shape": ["row", "k"], "dtype": "bf16"}},
        schedule={"maxima": maxima},
    )
    bias, pair = bias_of((40, 150)), normal(40, 150)
    modify = lambda s, at: added(bias)(s, at) - pair.to(s.dtype)[at.row, at.k]  # noqa: E731
    check(spec, draw((40, 150)), {"bias": bias, "pair": pair}, modify)


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("overlap", [1, 2])
def test_speculation_that_is_redone(
    overlap: int, dtype: torch.dtype, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large scores, by the scale and by the bias: what is computed again has its bias, too."""
    redone = _count_redone(monkeypatch)
    spec = spec_of(dtype=NAMES[dtype], schedule={"maxima": "speculative", "overlap": overlap})
    bias = bias_of((70, 330)) * size
    check(spec, draw((70, 330), dtype=dtype), {"bias": bias}, added(bias), scale=2.0)
    assert 0 < sum(redone) < len(redone), (overlap, dtype, size)


def _count_redone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each tile that was speculated on, whether some of its maxima were raised."""
    redone: list[bool] = []
    right = _Tensors._redo

    def redo(self: Any, name: str, registers: dict[str, Tensor], place: Any) -> dict[str, Tensor]:
        found = right(self, name, registers, place)
        redone.append(not torch.equal(found["row_max"], registers["row_max"]))
        return found

    monkeypatch.setattr(_Tensors, "_redo", redo)
    return redone


@pytest.mark.parametrize(
    "variant", ["exact, overlap 1", "lazy, overlap 3", "lazy, overlap 2", "no producer"]
)
def test_listed_tiles(variant: str) -> None:
    """The bias of the KV tiles that a list names."""
    inputs = {"doc": {"shape": ["b", "k"], "dtype": "int32"}}
    knobs = VARIANTS[variant]
    spec = spec_of(mask="causal & document(doc)", inputs=inputs, schedule=knobs)
    assert lower(schedule_of(spec)).listed
    positions = torch.arange(300)
    doc = torch.stack([positions // 70 % 3, positions // 110]).int()  # one comes again
    bias = bias_of((130, 300))

    def keep(at: Positions) -> Tensor:
        return (doc[at.b, at.q] == doc[at.b, at.k]) & (at.k <= at.q)

    check(spec, draw((130, 300)), {"bias": bias, "doc": doc}, added(bias), keep)


# --- memory and order -----------------------------------------------------------------------------


def test_what_lies_around_a_bias_stays_out() -> None:
    """NaN beyond its last row and key, and strides of any order."""
    spec, tensors, bias = spec_of(mask="causal"), draw((70, 90)), bias_of((70, 90))
    run = Interpreter(schedule_of(spec))
    expected = run(*tensors, SCALE, bias)
    whole = torch.full((BATCH, HEADS + 1, 130, 140), math.nan, dtype=BF16)
    whole[:, :HEADS, :70, :90] = bias
    turned = bias.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    for other in (whole[:, :HEADS, :70, :90], turned):
        for found, right in zip(run(*tensors, SCALE, other), expected, strict=True):
            assert torch.equal(found, right), other.stride()


@pytest.mark.parametrize(
    "variant",
    [
        "exact, overlap 3",
        "lazy, overlap 1",
        "speculative, overlap 2",
        "no producer",
        "ping-pong",
        "O over V",
    ],
)
def test_every_interleaving_gives_the_same_bytes(variant: str) -> None:
    schedule = schedule_of(spec_of(mask="window(90, 20)", schedule=VARIANTS[variant]))
    tensors, bias = draw((130, 330)), bias_of((130, 330)) * 5
    expected, expected_lse = Interpreter(schedule)(*tensors, SCALE, bias)
    assert bool(expected.isfinite().all())
    for work_tiles, seed in [(1, None), (1, 0), (3, 1), (12, 2)]:
        out, lse = Interpreter(schedule, Execution(work_tiles, seed))(*tensors, SCALE, bias)
        assert torch.equal(out, expected), (work_tiles, seed)
        assert torch.equal(lse, expected_lse), (work_tiles, seed)


def test_a_bias_that_has_not_landed_is_nan() -> None:
    """Whichever wait for it is missing, in some interleaving; or the machine sees it."""
    schedule = schedule_of(spec_of(schedule=VARIANTS["exact, overlap 2"]))
    right = lower(schedule)
    tensors = (*draw((70, 200)), bias_of((70, 200)))

    def shows(faulty: Program, seed: int | None) -> bool:
        try:
            out, _ = interpret(faulty, schedule.bounds, tensors, SCALE, Execution(8, seed))
        except VerificationError:
            return seed is not None
        return bool(out.isnan().any())

    waits = [site for site in sites(right) if _waits_for_bias(site.instruction)]
    assert waits
    for site in waits:
        faulty = splice(right, site.path, 1, ())
        assert any(shows(faulty, seed) for seed in (None, *range(12))), site.words(right)


def _waits_for_bias(instruction: Instruction) -> bool:
    return isinstance(instruction, Wait) and instruction.barrier == "Bias_full"


# --- proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_programs_are_right(variant: str) -> None:
    for mask in ("full", "window(100, 20)"):
        assert verify(program(variant, mask)).runs > 0


_COMPLAINTS = [
    # fault, the hazard
    (r"Wait Bias_full Bias deleted", r"Calc BIAS Bias.*reads bytes before the load has landed"),
    (
        r"Wait Bias_empty Bias deleted",
        r"Load Bias_full.*no fence.proxy.async after|overwrites bytes",
    ),
    (
        r"Load Bias_full Bias with skew=1",
        r"wants Bias of work 0, tile 0; finds Bias of work 0, tile",
    ),
    (r"Expect Bias_full Bias with bytes=8176", r"deadlock: .*consumer at Wait Bias_full"),
    (r"Arrive Bias_empty Bias deleted", r"deadlock: producer at Wait Bias_empty"),
    (r"consumer .*Advance Bias deleted", r"Calc BIAS Bias.*reads bytes before the load has landed"),
    (r"ProxyFence moved before .*Calc (BIAS|REDO) Bias", r"Load Bias_full.*no fence\.proxy\.async"),
    (r"Calc REDO Bias with shift=1", r"Calc REDO Bias.*reads bytes before the load has landed"),
]


@pytest.mark.parametrize(("fault", "hazard"), _COMPLAINTS)
def test_a_fault_of_a_bias_is_told_in_words(fault: str, hazard: str) -> None:
    right = program("speculative, overlap 2", "causal")
    faults: list[Mutant] = [*deletions(right), *alterations(right), *misplacements(right)]
    mutant = next(m for m in faults if re.search(fault, m.description))
    with pytest.raises(VerificationError, match=hazard):
        verify(mutant.program)


@pytest.mark.parametrize("variant", ["lazy, overlap 3", "speculative, overlap 2"])
def test_each_tile_of_scores_needs_its_bias(variant: str) -> None:
    """Those that are masked next, and those that are not."""
    missing = [
        mutant
        for mutant in deletions(program(variant, "causal"))
        if mutant.description.endswith("Calc BIAS Bias deleted")
    ]
    assert len(missing) > 2
    for mutant in missing:
        with pytest.raises(VerificationError, match=r"(before|gone through) their formula"):
            verify(mutant.program)


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [16, 32, 80, 96, 160])
def test_tiles_of_cut_chunks_are_refused(keys: int) -> None:
    reason = f"tile 64x{keys} does not fit: tiles of bias are loaded in chunks of 64 keys: take a"
    with pytest.raises(ScheduleError, match=reason):
        make_schedule(spec_of(schedule={"tile": {"m": 64, "n": keys}}))
    looked_up = spec_of(score="score * bias[b, h, row, k]", schedule={"tile": {"m": 64, "n": keys}})
    assert make_schedule(looked_up).tiling.block_n == keys


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_the_chosen_tile_has_whole_chunks(dim: int, mask: str) -> None:
    """And every other that was weighed."""
    spec = spec_of(head_dim=dim, mask=mask, schedule={"tile": None})
    schedule = schedule_of(spec)
    assert schedule.tiling.block_n % 64 == 0, schedule.tiling
    assert schedule.choice is not None
    weighed = [candidate.tile for candidate in schedule.choice.candidates]
    assert all(keys % 64 == 0 for _, keys in weighed), weighed


def test_where_no_tile_fits_the_budget_is_told() -> None:
    """Not that fewer keys than a chunk would fit."""
    knobs = {"tile": None, "overlap": 3}
    with pytest.raises(ScheduleError, match=r"tile \d+x64 does not fit: \d+ of \d+ registers"):
        make_schedule(spec_of(head_dim=256, schedule=knobs))
