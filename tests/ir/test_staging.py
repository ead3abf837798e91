"""Parts of formulas by how often they change: what is taken where, and that nothing is lost."""

from __future__ import annotations

import functools
import math
import operator
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sympy
from formulas import INPUTS, MASKS, SCALARS, SCORES, Drawn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sympy.core.function import AppliedUndef

from fa3gen.errors import SpecError
from fa3gen.inputs import by_key
from fa3gen.ir.score import LOG2E, PRODUCT, SCALE, SCALE_LOG2, ScoreForm, score_form
from fa3gen.ir.staging import OFFSET, Rate, Staged, stage_mask, stage_score
from fa3gen.spec import AttentionSpec, symbols
from fa3gen.spec.formula import parse_mask, parse_score
from fa3gen.spec.symbols import FloorDiv, FloorMod, Where

Values = Mapping[Any, Any]

# --- what is taken where --------------------------------------------------------------------------

W, R, C, B = Rate.WORK, Rate.ROW, Rate.COLUMN, Rate.BASE
Parts = list[tuple[Rate, str]]


def parts_of(staged: Staged) -> Parts:
    """The parts in short names."""
    return [(part.rate, short(part.expr, staged)) for part in staged.parts]


def short(expr: Any, staged: Staged) -> str:
    """An expression with parts named by their rates, and other atoms by letters."""
    names = {LOG2E: "log2e", OFFSET: "offset", PRODUCT: "s", SCALE: "scale", SCALE_LOG2: "scale2"}
    for rate, letter in ((W, "w"), (R, "r"), (C, "c"), (B, "b")):
        names |= {part.symbol: f"{letter}{i}" for i, part in enumerate(staged.of(rate))}
    return str(expr.xreplace({old: sympy.Symbol(new, real=True) for old, new in names.items()}))


@pytest.mark.parametrize(
    ("text", "parts", "value", "factor", "bias"),
    [
        (
            "score + slopes[h] * (k - q)",
            [(W, "log2e*slopes(h)"), (B, "w0*(k - q)")],
            *("s", "scale2", "offset*w0"),
        ),
        ("score + k / 4", [(B, "k*log2e/4")], "s", "scale2", "log2e*offset/4"),
        ("5 * tanh(score / 5)", [(W, "scale/5")], "tanh(s*w0)", "1", "0"),
        (
            "5 * tanh(score / 5) - k",
            [(W, "scale/5"), (B, "-k*log2e")],
            *("tanh(s*w0)", "5*log2e", "-log2e*offset"),
        ),
        (
            "score * log(q + 2)",
            [(W, "log2e*scale"), (R, "w0*log(q + 2)"), (B, "0")],
            *("s", "r0", "0"),
        ),
        (
            "score + rel[h, k - q + 127]",
            [(B, "0")],
            *("s", "scale2", "log2e*rel(h, k - q + 127)"),
        ),
        ("score + key[k]", [(B, "0"), (C, "log2e*key(k)")], "s", "scale2", "c0"),
        (
            "score + rows[h, row]",
            [(R, "rows(h, row)"), (B, "log2e*r0")],
            *("s", "scale2", "0"),
        ),
        ("alpha * score", [(W, "alpha*log2e*scale"), (B, "0")], "s", "w0", "0"),
        (
            "score + slopes[h] * doc[b, k] * (k - q)",
            [(B, "0"), (B, "k - q"), (W, "log2e*slopes(h)"), (C, "w0*doc(b, k)")],
            *("s", "scale2", "c0*(b1 + offset)"),
        ),
        (
            "score + alpha * k * q",
            [(W, "alpha*log2e"), (R, "q*w0"), (B, "k*r0")],
            *("s", "scale2", "offset*r0"),
        ),
        (
            "score + sqrt(abs(k - q))",
            [(B, "0"), (B, "k - q")],
            *("s", "scale2", "log2e*sqrt(Abs(b1 + offset))"),
        ),
        (
            "where(k > q - reach, score, -inf)",
            [(W, "-reach"), (R, "q + w0"), (W, "scale")],
            *("Where(r0 < k, s*w1, -oo)", "1", "0"),
        ),
    ],
)
def test_where_the_parts_of_scores_go(
    text: str, parts: Parts, value: str, factor: str, bias: str
) -> None:
    staged = stage_score(score_form(parse_score(text, INPUTS)))
    assert parts_of(staged) == parts
    ends = (staged.value, staged.factor, staged.bias)
    assert tuple(short(end, staged) for end in ends) == (value, factor, bias)


@pytest.mark.parametrize(
    ("text", "parts", "value"),
    [
        ("doc[b, q] == doc[b, k]", [(R, "doc(b, q)"), (C, "doc(b, k)")], "Eq(r0, c0)"),
        (
            "causal & document(doc)",
            [(R, "doc(b, q)"), (C, "doc(b, k)")],
            "Eq(r0, c0) & (k <= q)",
        ),
        ("causal", [], "k <= q"),
        ("k + q < 9", [], "k + q < 9"),
        (
            "q - reach <= k or reach < 0",
            [(W, "reach"), (W, "-reach"), (R, "q + w1")],
            "(r0 <= k) | (w0 < 0)",
        ),
        ("k >= q - span[h]", [(W, "-span(h)"), (R, "q + w0")], "r0 <= k"),
        ("abs(q - k) <= span[h]", [(W, "span(h)")], "Abs(k - q) <= w0"),
        ("chunk(4)", [(R, "FloorDiv(q, 4)"), (C, "FloorDiv(k, 4)")], "Eq(r0, c0)"),
        ("lut[k % 4] == 1", [(C, "lut(FloorMod(k, 4))")], "Eq(c0, 1)"),
        ("lut[k - q] == lut[0]", [(W, "lut(0)")], "Eq(lut(k - q), w0)"),
        (
            "slopes[h] * (k - q) >= -1",
            [(B, "k - q"), (W, "slopes(h)")],
            "-1 <= w0*(b0 + offset)",
        ),
        ("key[k] > rows[h, row]", [(R, "rows(h, row)"), (C, "key(k)")], "r0 < c0"),
        ("seqlen_k - k < 5", [], "-k + seqlen_k < 5"),
    ],
)
def test_where_the_parts_of_masks_go(text: str, parts: Parts, value: str) -> None:
    staged = stage_mask(parse_mask(text, INPUTS))
    assert parts_of(staged) == parts
    assert short(staged.value, staged) == value


def test_equal_parts_are_computed_once() -> None:
    text = "where(doc[b, k] > 2, tanh(score) * key[k], score * key[k])"
    staged = stage_score(score_form(parse_score(text, INPUTS)))
    assert [expr for _, expr in parts_of(staged)].count("key(k)") == 1
    staged = stage_mask(parse_mask("doc[b, k] == 1 or doc[b, k] == doc[b, q]", INPUTS))
    assert parts_of(staged) == [(C, "doc(b, k)"), (R, "doc(b, q)")]


def test_parts_print_themselves() -> None:
    staged = stage_mask(parse_mask("document(doc)", INPUTS))
    row, column, element = str(staged).splitlines()
    assert re.fullmatch(r"  row of a work tile: \S+ = doc\(b, q\)", row)
    assert re.fullmatch(r"  key of a KV tile: \S+ = doc\(b, k\)", column)
    assert element.startswith("  element: Eq(")
    assert staged.of(Rate.ROW) == (staged.parts[0],)


# --- values in float64 ----------------------------------------------------------------------------

_CALLS: dict[type[Any], Callable[..., Any]] = {
    sympy.Add: lambda *parts: sum(parts),
    sympy.Mul: lambda *parts: functools.reduce(operator.mul, parts),
    sympy.Pow: operator.pow,
    sympy.Min: min,
    sympy.Max: max,
    sympy.And: lambda *parts: all(parts),
    sympy.Or: lambda *parts: any(parts),
    sympy.Le: operator.le,
    sympy.Lt: operator.lt,
    sympy.Eq: operator.eq,
    sympy.Ne: operator.ne,
    sympy.Abs: abs,
    sympy.exp: math.exp,
    sympy.log: math.log,
    sympy.tanh: math.tanh,
    sympy.floor: math.floor,
    FloorDiv: operator.floordiv,
    FloorMod: operator.mod,
    Where: lambda condition, yes, no: yes if condition else no,
}


def table_value(name: str, indices: tuple[int, ...]) -> float | int:
    """An element of an input that goes on for ever: a quarter, or an integer."""
    assert all(isinstance(index, int) for index in indices), (name, indices)
    drawn = random.Random(f"{name} {indices}").randint(-8, 8)
    return drawn if INPUTS[name].dtype.value == "int32" else drawn / 4


def value(expr: Any, at: Values) -> Any:
    """An expression at one point: integers exactly, real numbers in float64."""
    if expr in (sympy.true, sympy.false):
        return bool(expr)
    if expr in (sympy.oo, -sympy.oo):
        return float(expr)
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Number):
        return float(expr)
    if expr in at:
        return at[expr]
    parts = [value(part, at) for part in expr.args]
    if isinstance(expr, AppliedUndef):
        return table_value(expr.func.__name__, tuple(parts))
    return _CALLS[expr.func](*parts)


def draw_point(pick: random.Random, form: ScoreForm) -> dict[Any, Any]:
    """A point of some call; its product is a multiple of 1/4 and so is its score."""
    seqlen_q, seqlen_k = pick.randint(1, 40), pick.randint(1, 60)
    row, h = pick.randrange(seqlen_q), pick.randrange(8)
    scale, log2e = 0.5, math.log2(math.e)
    constant = float(form.factor) if form.scales_products else 1.0
    integers = {
        **{symbols.row: row, symbols.q: row + seqlen_k - seqlen_q},
        **{symbols.k: pick.randrange(seqlen_k), symbols.b: pick.randrange(3)},
        **{symbols.h: h, symbols.hk: h // 2},
        **{symbols.seqlen_q: seqlen_q, symbols.seqlen_k: seqlen_k},
    }
    product = pick.randint(-12, 12) / 2
    scalars = {
        symbols.scalar_input(name, declared.dtype): SCALARS[name]
        for name, declared in INPUTS.items()
        if not declared.shape
    }
    return {
        **integers,
        **scalars,
        **{PRODUCT: product, SCALE: scale, symbols.score: product * scale},
        **{LOG2E: log2e, SCALE_LOG2: scale * log2e * constant},
    }


def put_together(staged: Staged, at: Values, first: int) -> Any:
    """An element from its parts, as a kernel computes it: bases at a thread's first key."""
    known = dict(at)
    for part in staged.parts:
        here = {**known, symbols.k: first} if part.rate is Rate.BASE else known
        known[part.symbol] = found = value(part.expr, here)
        assert not isinstance(found, bool), f"{part} is no number"
        assert isinstance(found, int) or not part.symbol.is_integer, part
    known[OFFSET] = at[symbols.k] - first
    element = value(staged.value, known)
    if staged.base is None:
        return element
    assert staged.base in known, "it is a part"
    return element * value(staged.factor, known) + (known[staged.base] + value(staged.bias, known))


KNOWN_EARLIER = {
    Rate.WORK: {Rate.WORK},
    Rate.ROW: {Rate.WORK, Rate.ROW},
    Rate.COLUMN: {Rate.WORK, Rate.COLUMN},
    Rate.BASE: {Rate.WORK, Rate.ROW, Rate.BASE},
    Rate.PAIR: {Rate.WORK, Rate.ROW},
    Rate.ELEMENT: set(),  # is nobody's part
}
UNKNOWN_YET = {
    Rate.WORK: {symbols.row, symbols.q, symbols.k},
    Rate.ROW: {symbols.k},
    Rate.COLUMN: {symbols.row, symbols.q},
    Rate.BASE: set(),
    Rate.PAIR: set(),
}
BY_KEY = [frozenset(), by_key(AttentionSpec(head_dim=64, inputs=INPUTS).input_metas)]


def check_parts(staged: Staged) -> None:
    """A part takes nothing that is not known when it is computed."""
    rates = {part.symbol: part.rate for part in staged.parts}
    assert len(rates) == len(staged.parts), "names are unique"
    before: set[Any] = set()
    for part in staged.parts:
        free = part.expr.free_symbols
        parts = free & set(rates)
        assert parts <= before, f"{part} comes before what it takes"
        assert {rates[symbol] for symbol in parts} <= KNOWN_EARLIER[part.rate], part
        assert not free & (UNKNOWN_YET[part.rate] | {PRODUCT, symbols.score, OFFSET}), part
        before.add(part.symbol)


def taken(staged: Staged) -> set[Any]:
    """The symbols that parts and elements take."""
    ends = [staged.value, staged.factor, staged.bias, *(part.expr for part in staged.parts)]
    ends += [] if staged.base is None else [staged.base]
    return set().union(*(end.free_symbols for end in ends))


def check_score(expr: Any, pick: random.Random, points: int = 12) -> None:
    """Whatever the point and the first key, the parts make the score."""
    form = score_form(expr)
    for keys in BY_KEY:
        staged = stage_score(form, keys)
        check_parts(staged)
        assert (staged.base is None) == (not form.biased)
        for _ in range(points):
            at = draw_point(pick, form)
            first = pick.randint(0, at[symbols.k])
            found = put_together(staged, at, first)
            found = found / at[LOG2E] if form.biased else found * float(form.factor)
            wanted = value(expr, at)
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9), (expr, str(staged), at)


def check_mask(expr: Any, pick: random.Random, points: int = 12) -> None:
    """Whatever the point, the parts make the mask."""
    for keys in BY_KEY:
        staged = stage_mask(expr, keys)
        check_parts(staged)
        for _ in range(points):
            at = draw_point(pick, score_form(symbols.score))
            first = pick.randint(0, at[symbols.k])
            assert put_together(staged, at, first) is value(expr, at), (expr, str(staged), at)


@pytest.mark.parametrize("text", SCORES)
def test_parts_of_scores_make_the_score(text: str) -> None:
    expr = parse_score(text, INPUTS)
    check_score(expr, random.Random(text))
    staged = stage_score(score_form(expr))
    assert {part.symbol for part in staged.parts} <= taken(staged), "parts that nobody takes"


@pytest.mark.parametrize("text", MASKS)
def test_parts_of_masks_make_the_mask(text: str) -> None:
    expr = parse_mask(text, INPUTS)
    check_mask(expr, random.Random(text))
    staged = stage_mask(expr)
    assert {part.symbol for part in staged.parts} <= taken(staged), "parts that nobody takes"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.randoms())
def test_parts_of_drawn_scores(pick: random.Random) -> None:
    try:
        expr = parse_score(Drawn(pick).score(), INPUTS)
    except SpecError:
        assume(False)  # nothing but -inf
    check_score(expr, random.Random(0), points=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.randoms())
def test_parts_of_drawn_masks(pick: random.Random) -> None:
    check_mask(parse_mask(Drawn(pick).condition(3), INPUTS), random.Random(0), points=4)
