"""The interpreter against a float64 reference: numerics, rounding points, poison, interleavings."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor

from fa3gen.errors import VerificationError
from fa3gen.runtime.reference import (
    IndexMask,
    Positions,
    check_error,
    reference_mask,
    reference_score,
)
from fa3gen.schedule import make_schedule
from fa3gen.schedule.interpret import Execution, Interpreter, evaluate, interpret
from fa3gen.schedule.program import (
    BLOCKS,
    Calc,
    CalcKind,
    Instruction,
    Node,
    Program,
    TmaStore,
    TmaStoreCommit,
    Wait,
)
from fa3gen.schedule.ranges import tile_range
from fa3gen.schedule.schedule import Schedule
from fa3gen.spec import AttentionSpec, symbols
from fa3gen.spec.formula import parse_mask

LENGTHS = [0, 1, 7, 64, 128, 129, 300]
UNEQUAL = [(0, 64), (64, 0), (1, 300), (300, 1), (7, 129), (129, 64), (200, 300), (300, 140)]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 0.11  # not the default, so that it shows if it is ignored


def schedule_of(**keys: Any) -> Schedule:
    """The schedule of a spec's keys; bf16, head_dim 128, full if they say nothing else."""
    return _schedule(AttentionSpec(**{"head_dim": 128, **keys}))


@functools.cache
def _schedule(spec: AttentionSpec) -> Schedule:
    return make_schedule(spec)


def draw(
    lengths: tuple[int, int],
    heads: tuple[int, int] = (2, 1),
    dims: tuple[int, int] = (128, 128),
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v; ``lengths`` and ``heads`` of q and of k, ``dims`` of qk and of v."""
    generator = torch.Generator().manual_seed(sum(lengths) + dims[0])
    sizes = (
        (batch, lengths[0], heads[0], dims[0]),
        (batch, lengths[1], heads[1], dims[0]),
        (batch, lengths[1], heads[1], dims[1]),
    )
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return q, k, v


def check(
    schedule: Schedule,
    inputs: tuple[Tensor, Tensor, Tensor],
    keep: IndexMask | None = None,
    execution: Execution | None = None,
) -> tuple[Tensor, Tensor]:
    """Interpret, judge by the error rule against the reference, and return the result."""
    out, lse = Interpreter(schedule, execution)(*inputs, SCALE)
    keep = keep or reference_mask(schedule.spec.mask)
    report = check_error(out, lse, *inputs, keep, SCALE)
    assert report.ok, (schedule.spec.name, [tuple(x.shape) for x in inputs], report)
    return out, lse


# --- numerics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("seqlen", LENGTHS)
def test_equal_lengths(mask: str, seqlen: int) -> None:
    check(schedule_of(mask=mask), draw((seqlen, seqlen)))


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("lengths", UNEQUAL)
def test_unequal_lengths(mask: str, lengths: tuple[int, int]) -> None:
    check(schedule_of(mask=mask), draw(lengths))


@pytest.mark.parametrize("knobs", [{}, {"o_staging": "over_v"}], ids=str)
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(300, 140), (64, 0), (129, 1), (900, 100)])
def test_rows_without_keys_are_zero(seqlen_q: int, seqlen_k: int, knobs: dict[str, Any]) -> None:
    """Also where a query tile without keys visits the tile past the last one."""
    out, lse = check(schedule_of(mask="causal", schedule=knobs), draw((seqlen_q, seqlen_k)))
    empty = seqlen_q - seqlen_k
    assert bool((out[:, :empty] == 0).all())
    assert bool((lse[..., :empty] == -math.inf).all())
    assert bool(lse[..., empty:].isfinite().all())


@pytest.mark.parametrize(
    "keys",
    [
        {"mask": "window(5, 0)"},
        {"mask": "window(-1, 2)"},
        {"mask": "window(70, 9)", "schedule": {"tile": {"n": 64}}},
        {"mask": "chunk(37)"},
        {"mask": "causal | prefix(50)"},
        {"mask": "causal", "dtype": "fp16"},
        {"mask": "causal", "head_dim": 64},
        {"mask": "causal", "head_dim": 40},
        {"mask": "causal", "head_dim": {"qk": 192, "v": 128}},
        {"mask": "full", "head_dim": {"qk": 64, "v": 128}, "dtype": "fp16"},
        {"mask": "causal", "schedule": {"warpgroups": 1}},
        {"mask": "causal", "schedule": {"warpgroups": 3}},
        {"mask": "causal", "schedule": {"overlap": 1}},
        {"mask": "full", "schedule": {"overlap": 1, "warpgroups": 3}},
        {"mask": "full", "schedule": {"tile": {"n": 64}}},
        {"mask": "causal", "schedule": {"tile": {"n": 64}, "pipeline_depth": 3}},
        {"mask": "full", "schedule": {"pingpong": False, "persistent": "false"}},
        {"mask": "window(9, 3)", "schedule": {"o_staging": "over_v", "overlap": 1}},
        {"mask": "full", "schedule": {"o_staging": "over_q", "persistent": "dynamic"}},
        {
            "mask": "full",
            "head_dim": {"qk": 192, "v": 128},
            "schedule": {"o_staging": "over_v", "tile": {"n": 96}},
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [(200, 300), (150, 33)])
def test_variants(keys: dict[str, Any], lengths: tuple[int, int]) -> None:
    schedule = schedule_of(**keys)
    dims = (schedule.spec.head_dim.qk, schedule.spec.head_dim.v)
    check(schedule, draw(lengths, (2, 2), dims, DTYPES[schedule.spec.dtype.value]))


@pytest.mark.parametrize("heads", [(6, 2), (4, 1), (3, 3)])
def test_grouped_heads_and_batches(heads: tuple[int, int]) -> None:
    check(schedule_of(mask="causal"), draw((70, 150), heads, batch=2))


def test_rings_wrap_many_times() -> None:
    schedule = schedule_of(mask="full", schedule={"tile": {"n": 16}, "pipeline_depth": 3})
    check(schedule, draw((140, 500)))


@pytest.mark.parametrize(
    ("mask", "keep"),
    [
        ("k <= q - h", lambda at: at.k <= at.q - at.h),
        ("k <= q + 30 * hk", lambda at: at.k <= at.q + 30 * (at.h // 2)),
        ("k < 20 + 90 * b", lambda at: at.k < 20 + 90 * at.b),
        ("k <= row", lambda at: at.k <= at.row),
        ("k % 3 == q % 3", lambda at: at.k % 3 == at.q % 3),
        ("where(h < 2, k <= q, k > q) | (k == 0)", None),
    ],
)
def test_masks_of_the_user(mask: str, keep: IndexMask | None) -> None:
    if keep is None:

        def keep(at: Any) -> Tensor:
            return torch.where(at.h < 2, at.k <= at.q, at.k > at.q) | (at.k == 0)

    check(schedule_of(mask=mask), draw((140, 200), (4, 2), batch=2), keep)


@pytest.mark.parametrize("empty", ["batch", "heads"])
def test_nothing_to_do(empty: str) -> None:
    batch, heads = (0, 2) if empty == "batch" else (2, 0)
    inputs = draw((70, 70), (heads, heads), batch=batch)
    out, lse = Interpreter(schedule_of(mask="causal"))(*inputs, SCALE)
    assert out.shape == (batch, 70, heads, 128)
    assert lse.shape == (batch, heads, 70)


def test_results_are_new_contiguous_and_of_the_stated_types() -> None:
    q, k, v = (x.requires_grad_() for x in draw((70, 70)))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = Interpreter(schedule_of(mask="causal"))(q, k, v, SCALE)
    expected = Interpreter(schedule_of(mask="causal"))(*draw((70, 70)), SCALE)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    assert not out.requires_grad
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])


# --- memory ---------------------------------------------------------------------------------------


def test_strides_do_not_matter() -> None:
    q, k, v = draw((129, 70), (4, 2), batch=2)
    interpreter = Interpreter(schedule_of(mask="causal"))
    expected, _ = interpreter(q, k, v, SCALE)
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    strided = [x.repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)]
    for inputs in (by_head, strided):
        assert torch.equal(interpreter(*inputs, SCALE)[0], expected)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_nan_behind_the_end_stays_out(mask: str) -> None:
    """Slices of larger tensors whose other rows and columns are NaN."""

    def surround(x: Tensor) -> Tensor:
        batch, seqlen, heads, dim = x.shape
        larger = torch.full((batch, seqlen + 200, heads, dim + 8), math.nan, dtype=x.dtype)
        larger[:, :seqlen, :, :dim] = x
        return larger[:, :seqlen, :, :dim]

    q, k, v = draw((70, 131))
    expected = check(schedule_of(mask=mask), (q, k, v))
    result = Interpreter(schedule_of(mask=mask))(surround(q), surround(k), surround(v), SCALE)
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


# --- rounding points ------------------------------------------------------------------------------


def test_p_is_rounded_and_its_sum_is_not() -> None:
    """Two keys of weights 1 and w; with values -bf16(w) and 1 a rounded P gives exactly 0."""
    weight = torch.tensor(2.0**-1.3)
    rounded = weight.bfloat16()
    assert abs(float(rounded - weight)) > 1e-4
    q = torch.zeros(1, 1, 1, 128, dtype=torch.bfloat16)
    k, v = (torch.zeros(1, 2, 1, 128, dtype=torch.bfloat16) for _ in range(2))
    q[..., 0], k[0, 1, 0, 0], v[0, 0], v[0, 1] = 1, -1, -rounded, 1
    out, lse = Interpreter(schedule_of(mask="full"))(q, k, v, 1.3 * math.log(2))
    assert bool((out == 0).all())
    assert float(lse) == pytest.approx(math.log1p(2.0**-1.3), abs=1e-6)


# --- interleavings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"mask": "causal"},
        {"mask": "full", "schedule": {"tile": {"n": 64}, "warpgroups": 3}},
        {"mask": "window(40, 10)", "schedule": {"overlap": 1}},
        {"mask": "full", "schedule": {"tile": {"n": 64}}, "head_dim": {"qk": 192, "v": 128}},
    ],
    ids=str,
)
def test_every_interleaving_gives_the_same_bytes(keys: dict[str, Any]) -> None:
    schedule = schedule_of(**keys)
    inputs = draw((300, 200), (3, 1), (schedule.spec.head_dim.qk, 128))
    expected, expected_lse = check(schedule, inputs)
    for work_tiles, seed in [(1, None), (20, None), (1, 0), (3, 1), (8, 2), (20, 3)]:
        out, lse = Interpreter(schedule, Execution(work_tiles, seed))(*inputs, SCALE)
        assert torch.equal(out, expected), (work_tiles, seed)
        assert torch.equal(lse, expected_lse), (work_tiles, seed)


# --- poison ---------------------------------------------------------------------------------------


def without(program: Program, dropped: Callable[[Instruction], bool]) -> Program:
    """The Program without the instructions that a test names."""

    def prune(nodes: tuple[Node, ...]) -> Iterator[Node]:
        for node in nodes:
            if isinstance(node, BLOCKS):
                yield replace(node, body=tuple(prune(node.body)))
            elif not dropped(node):
                yield node

    roles = tuple(replace(role, body=tuple(prune(role.body))) for role in program.roles)
    return replace(program, roles=roles)


def nth_wait(index: int) -> Callable[[Instruction], bool]:
    """Holds for the Wait of an ordinal in the Program's text order."""
    count = itertools.count()
    return lambda node: isinstance(node, Wait) and next(count) == index


def count_waits(program: Program) -> int:
    """How many Waits a Program holds."""
    found: list[Instruction] = []
    without(program, lambda node: bool(found.append(node)))
    return sum(isinstance(node, Wait) for node in found)


def shows(program: Program, schedule: Schedule) -> bool:
    """Whether some interleaving gives NaN or an error; one CTA runs several work tiles."""
    for lengths, seed in itertools.product([(300, 420), (300, 128), (300, 60)], [None, *range(12)]):
        try:
            inputs = draw(lengths, (3, 3))
            out, _ = interpret(program, schedule.bounds, inputs, SCALE, Execution(20, seed))
        except VerificationError:
            return True
        if bool(out.isnan().any()):
            return True
    return False


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_every_missing_wait_shows(mask: str, overlap: int) -> None:
    schedule = schedule_of(mask=mask, schedule={"overlap": overlap, "tile": {"n": 64}})
    program = Interpreter(schedule).program
    assert not shows(program, schedule)
    total = count_waits(program)
    assert total >= 7
    mutants = [without(program, nth_wait(index)) for index in range(total)]
    hidden = [index for index, mutant in enumerate(mutants) if not shows(mutant, schedule)]
    assert not hidden, f"nothing shows that Waits {hidden} are missing"


def test_a_load_that_has_not_landed_is_nan() -> None:
    """Loads land as late as they can unless a seed says otherwise, so this needs no luck."""
    schedule = schedule_of(mask="full")
    program = without(
        Interpreter(schedule).program,
        lambda node: isinstance(node, Wait) and node.barrier in ("Q_full", "K_full", "V_full"),
    )
    out, _ = interpret(program, schedule.bounds, draw((64, 64)), SCALE, Execution(1))
    assert bool(out.isnan().all())


@pytest.mark.parametrize(
    ("maxima", "kind"),
    [
        ("lazy", CalcKind.CLEAR_SHIFTED),
        ("lazy", CalcKind.CONVERT),
        ("speculative", CalcKind.CLEAR),
        ("speculative", CalcKind.SPECULATE),
    ],
)
def test_registers_never_written_are_nan(maxima: str, kind: CalcKind) -> None:
    schedule = schedule_of(mask="full", schedule={"maxima": maxima})
    program = without(
        Interpreter(schedule).program, lambda node: isinstance(node, Calc) and node.kind is kind
    )
    out, _ = interpret(program, schedule.bounds, draw((200, 200)), SCALE)
    assert bool(out.isnan().all())


# --- score formulas -------------------------------------------------------------------------------


KNOBS = ({"maxima": "exact", "overlap": 3}, {"maxima": "lazy"}, {"maxima": "speculative"})


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: knobs["maxima"])
@pytest.mark.parametrize("factor", [1.0, 20.0])
@pytest.mark.parametrize(
    "score", ["50 * tanh(score / 50)", "2 * score", "score + (k - q) / 16", "score + (k - q) / 0.3"]
)
def test_score_formulas(score: str, factor: float, knobs: dict[str, Any]) -> None:
    """Large scores have tiles done again, through the formula; other lengths move positions."""
    knobs = {**knobs, "tile": {"n": 64}}
    q, k, v = draw((130, 300))
    inputs = ((q * factor).to(q.dtype), k, v)
    for mask in ("causal", "full"):
        schedule = schedule_of(mask=mask, score=score, schedule=knobs)
        out, lse = Interpreter(schedule)(*inputs, SCALE)
        modify = reference_score(score)
        report = check_error(out, lse, *inputs, reference_mask(mask), SCALE, modify)
        assert report.ok, report.problems


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: knobs["maxima"])
def test_formulas_may_mask(knobs: dict[str, Any]) -> None:
    """Rows then keep nothing of tiles that need no mask, visited before those that they keep."""
    q, k, v = draw((300, 300))
    text = "where(k > q, -inf, score)"
    schedule = schedule_of(mask="full", score=text, schedule={**knobs, "tile": {"n": 64}})
    out, lse = Interpreter(schedule)(q, k, v, SCALE)
    report = check_error(out, lse, q, k, v, reference_mask("causal"), SCALE)
    assert report.ok, report.problems


def test_formulas_of_heads_and_choices() -> None:
    """Written out in torch: every index that a formula may name."""
    q, k, v = draw((70, 90), heads=(4, 2))
    text = "where(k > q + 3, -inf, score * (1 + h) - abs(q - k) * (b + hk) / seqlen_k + row)"
    schedule = schedule_of(mask="full", score=text)
    out, lse = Interpreter(schedule)(q, k, v, SCALE)

    def modify(s: Tensor, at: Positions) -> Tensor:
        s = s * (1 + at.h) - (at.q - at.k).abs() * (at.b + at.h // 2) / 90 + at.row
        return s.masked_fill(at.k > at.q + 3, -math.inf)

    report = check_error(out, lse, q, k, v, None, SCALE, modify)
    assert report.ok, report.problems


# --- lazy and speculative maxima ------------------------------------------------------------------


LAX = pytest.mark.parametrize("maxima", ["lazy", "speculative"])


@LAX
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("factor", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("mask", ["full", "causal", "window(300, 20)"])
def test_maxima_follow_scores_of_any_size(
    mask: str, factor: float, dtype: str, maxima: str
) -> None:
    """With ``factor`` 40 exponents differ by thousands: maxima grow in most tiles."""
    q, k, v = draw((200, 500), dtype=DTYPES[dtype])
    knobs = {"maxima": maxima, "tile": {"n": 64}}
    schedule = schedule_of(mask=mask, dtype=dtype, schedule=knobs)
    tiles = tile_range(schedule.bounds, 300, 427, (200, 500), 64)
    assert tiles.full_end - tiles.full_begin > 1, "some tiles need no mask"
    check(schedule, ((q * factor).to(q.dtype), k, v))


@LAX
@pytest.mark.parametrize("key", [0, 40, 130, 299])
def test_a_key_that_outweighs_all_others_is_found(key: int, maxima: str) -> None:
    """In the first or the second part of a tile, visited early or late."""
    q, k, v = draw((64, 300), heads=(1, 1))
    k[:, key] = q[:, 0] * 6
    check(schedule_of(mask="full", schedule={"maxima": maxima}), (q, k, v))


@LAX
def test_rows_of_low_scores_alone_do_not_vanish(maxima: str) -> None:
    """Every exponent is far below 0: a shift that stayed at 0 would leave nothing of them."""
    q, k, v = draw((64, 200), heads=(1, 1))
    k = (k * 0.05 - q[:, :1] * 8).to(k.dtype)
    q = q[:, :1].expand(-1, 64, -1, -1)
    out, lse = check(schedule_of(mask="full", schedule={"maxima": maxima}), (q, k, v))
    assert float(lse.max()) < -50
    assert bool(out.any())


@LAX
def test_lax_maxima_change_little(maxima: str) -> None:
    """The same function, but for rounding: other shifts, the same O and LSE."""
    inputs = draw((300, 300))
    (out, lse), (lax_out, lax_lse) = (
        Interpreter(schedule_of(mask="causal", schedule={"maxima": way}))(*inputs, SCALE)
        for way in ("exact", maxima)
    )
    assert not torch.equal(lse, lax_lse)
    torch.testing.assert_close(lse, lax_lse, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(out, lax_out, atol=2e-2, rtol=2e-2)


def test_speculation_repairs_rows_that_kept_nothing_before() -> None:
    """The last keys are masked for the first queries, whose first kept tile is a whole one."""
    schedule = schedule_of(mask="causal", schedule={"tile": {"n": 128}, "maxima": "speculative"})
    assert tile_range(schedule.bounds, 127, 254, (128, 255), 128).full_end == 1
    check(schedule, draw((128, 255)))


def test_a_query_of_nan_spoils_its_row_alone() -> None:
    """Though the whole warp would compute its scores again for it."""
    q, k, v = draw((64, 300), heads=(1, 1))
    q[:, 5] = math.nan
    out, lse = Interpreter(schedule_of(mask="full"))(q, k, v, SCALE)
    assert bool(out[:, 5].isnan().all())
    assert bool(lse[..., 5].isnan().all())
    assert not bool(out[:, :5].isnan().any())


def test_rows_never_stored_are_nan() -> None:
    schedule = schedule_of(mask="causal")
    program = without(
        Interpreter(schedule).program,
        lambda node: isinstance(node, (TmaStore, TmaStoreCommit)),
    )
    out, lse = interpret(program, schedule.bounds, draw((70, 70)), SCALE)
    assert bool(out.isnan().all())
    assert bool(lse.isfinite().all())


def test_a_deadlock_is_described() -> None:
    schedule = schedule_of(mask="causal")
    program = without(
        Interpreter(schedule).program,
        lambda node: type(node).__name__ == "Arrive" and getattr(node, "barrier", "") == "K_empty",
    )
    for seed in (None, 0):
        with pytest.raises(VerificationError, match="deadlock"):
            interpret(program, schedule.bounds, draw((500, 500)), SCALE, Execution(8, seed))


# --- the evaluator --------------------------------------------------------------------------------

FORMULAS = [
    "true",
    "k <= q",
    "(k <= q) & (q < k + 5) | (k == 3)",
    "not (k <= q and row != 2)",
    "q // 3 == k // 3",
    "(q - k) % 4 == 1",
    "q // -2 < k % -3",
    "q * q - 3 * k >= seqlen_k - seqlen_q",
    "abs(q - k) < min(3, k + 1, row)",
    "max(q, k) == q",
    "where(k < 4, q, k) <= 3",
    "q ** 3 < k ** 2",
    "k / 3 < q / 2",
    "floor(q / 2.5) == k",
    "exp(k) < 2 ** q",
    "log(k + 1) > 1.5",
    "tanh(q) < 0.5 * k",
    "sqrt(k) > 1.5",
    "(h + hk) % 2 == b",
    "k // row < 1",
]


def by_python(text: str, values: dict[str, int]) -> bool:
    """The same text evaluated by Python, one element at a time."""
    names = {name: getattr(math, name) for name in ("exp", "floor", "log", "sqrt", "tanh")}
    names |= {"where": lambda condition, yes, no: yes if condition else no, "true": True}
    return bool(eval(text, {"__builtins__": {"abs": abs, "max": max, "min": min}}, names | values))


@pytest.mark.parametrize("text", FORMULAS)
def test_masks_evaluate_as_python_reads_them(text: str) -> None:
    rows, keys, lengths, heads = 9, 12, (9, 7), {"b": 1, "h": 5, "hk": 2}
    expr = parse_mask(text, {})
    row, k = torch.arange(rows)[:, None], torch.arange(keys)[None, :]
    shift = lengths[1] - lengths[0]
    values = {symbols.row: row, symbols.q: row + shift, symbols.k: k}
    scalars = {"seqlen_q": lengths[0], "seqlen_k": lengths[1], **heads}
    values |= {symbols.INDICES[name]: torch.tensor(value) for name, value in scalars.items()}
    found = evaluate(expr, values).expand(rows, keys)
    assert found.dtype is torch.bool
    for i, j in itertools.product(range(rows), range(keys)):
        if "// row" in text and i == 0:
            continue  # a division by zero has no value, and does not stop the others
        expected = by_python(text, {"row": i, "q": i + shift, "k": j, **scalars})
        assert bool(found[i, j]) == expected, (text, i, j)


def test_relations_that_only_sympy_makes() -> None:
    values = {symbols.q: torch.tensor([-3, 0, 4]), symbols.k: torch.tensor([1, 0, 3])}
    q, k = symbols.q, symbols.k
    for expr, expected in [
        (sympy.Not(sympy.Eq(k, q), evaluate=False), [True, False, True]),
        (sympy.Ge(q, k), [False, True, True]),
        (sympy.Gt(q, k), [False, False, True]),
        (sympy.Eq(sympy.Mod(q, 5), 2), [True, False, False]),
        (sympy.Lt(q, sympy.oo, evaluate=False), [True, True, True]),
    ]:
        assert evaluate(expr, values).tolist() == expected, expr


def test_an_unknown_atom_is_refused() -> None:
    with pytest.raises(VerificationError, match="no value of gamma"):
        evaluate(sympy.gamma(symbols.k), {symbols.k: torch.tensor(1)})
