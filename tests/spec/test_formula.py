"""Formulas: their meaning against plain Python, their types, and what they refuse."""

import itertools
import math
import time

import pytest
import sympy

from fa3gen.errors import SpecError
from fa3gen.spec import InputSpec
from fa3gen.spec.canonical import canonical_text
from fa3gen.spec.formula import FloorDiv, b, h, k, parse_mask, parse_score, q, row, score

INPUTS = {
    "alpha": InputSpec(dtype="fp32"),
    "doc": InputSpec(shape=["b", "k"], dtype="int32"),
    "reach": InputSpec(dtype="int32"),
    "rel": InputSpec(shape=["h", 255], dtype="fp32"),
    "slopes": InputSpec(shape=["h"], dtype="fp32"),
}
QUERIES, KEYS = range(-3, 10), range(10)
DOCUMENTS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]


def refusal(parse, text):
    with pytest.raises(SpecError) as caught:
        parse(text, INPUTS)
    return caught.value


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("full", lambda q, k: True),
        ("causal", lambda q, k: k <= q),
        ("window(3, 0)", lambda q, k: q - 3 <= k <= q),
        ("window(2, 1)", lambda q, k: q - 2 <= k <= q + 1),
        ("window(-1, 2)", lambda q, k: k <= q + 2),
        ("window(2, -1)", lambda q, k: q - 2 <= k),
        ("window(-1, -1)", lambda q, k: True),
        ("chunk(4)", lambda q, k: q // 4 == k // 4),
        ("prefix(3)", lambda q, k: k < 3),
        ("causal | prefix(3)", lambda q, k: k <= q or k < 3),
        ("causal & ~window(1, 0)", lambda q, k: k < q - 1),
        ("not (causal or prefix(3))", lambda q, k: q < k and k >= 3),
        ("0 <= q - k < 4", lambda q, k: 0 <= q - k < 4),
        ("q % 3 == k % 3", lambda q, k: q % 3 == k % 3),
        ("q % -3 != -1", lambda q, k: q % -3 != -1),
        ("q // 2 >= k - 4 and q // -2 > -3", lambda q, k: q // 2 >= k - 4 and q // -2 > -3),
        ("floor((q - 1) / 3) == k", lambda q, k: (q - 1) // 3 == k),
        ("abs(q - k) <= 2", lambda q, k: abs(q - k) <= 2),
        ("(min(q, k) > 1) | (max(q, 3) == k)", lambda q, k: min(q, k) > 1 or max(q, 3) == k),
        ("where(q < 3, k < 3, causal)", lambda q, k: k < 3 if q < 3 else k <= q),
        ("k <= where(q > 5, q, 2 * q)", lambda q, k: k <= (q if q > 5 else 2 * q)),
        ("k * k - q ** 2 < 0.5", lambda q, k: k * k - q**2 < 0.5),
    ],
)
def test_masks_mean_what_python_means(text, meaning):
    mask = parse_mask(text, INPUTS)
    for i, j in itertools.product(QUERIES, KEYS):
        assert bool(mask.subs({q: i, k: j})) == meaning(i, j), f"{text} at q={i} k={j}: {mask}"


@pytest.mark.parametrize("reach", [-1, 0, 3])
def test_window_of_a_runtime_input(reach):
    mask = parse_mask("window(reach, 0)", INPUTS)
    (symbol,) = (symbol for symbol in mask.free_symbols if symbol.name == "reach")
    for i, j in itertools.product(QUERIES, KEYS):
        expected = j <= i and (reach == -1 or i - reach <= j)
        assert bool(mask.subs({q: i, k: j, symbol: reach})) == expected, (reach, i, j)


def test_document():
    mask = parse_mask("causal & document(doc)", INPUTS)
    table = {(0, j): value for j, value in enumerate(DOCUMENTS)}
    for i, j in itertools.product(KEYS, KEYS):
        here = mask.subs({b: 0, q: i, k: j})
        found = here.replace(
            lambda node: isinstance(node, sympy.core.function.AppliedUndef),
            lambda node: sympy.Integer(table[tuple(int(index) for index in node.args)]),
        )
        assert bool(found) == (j <= i and DOCUMENTS[i] == DOCUMENTS[j]), (i, j)


def test_causal_is_an_expression_like_any():
    assert parse_mask("causal", {}) == sympy.Le(k, q)
    assert parse_mask("causal", {}) == parse_mask("q >= k", {})
    assert parse_mask("chunk(8)", {}) == sympy.Eq(FloorDiv(q, 8), FloorDiv(k, 8))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("score", lambda s: s),
        ("50 * tanh(score / 50)", lambda s: 50 * math.tanh(s / 50)),
        ("where(score > 0, score, 0.1 * score)", lambda s: s if s > 0 else 0.1 * s),
        ("where(score > 0, score, -inf)", lambda s: s if s > 0 else -math.inf),
        ("sigmoid(score) + exp(-score)", lambda s: 1 / (1 + math.exp(-s)) + math.exp(-s)),
        ("sqrt(abs(score)) * log(2)", lambda s: math.sqrt(abs(s)) * math.log(2)),
        ("score // 2 - score % 2", lambda s: s // 2 - s % 2),
        ("max(score, -1, min(score ** 2, 3))", lambda s: max(s, -1, min(s**2, 3))),
        ("1 / (1 + where(score < 1, 1, 2))", lambda s: 1 / (1 + (1 if s < 1 else 2))),
        ("2 ** score", lambda s: 2**s),
    ],
)
def test_scores_mean_what_python_means(text, meaning):
    expr = parse_score(text, INPUTS)
    for value in (-2.5, -0.75, 0.0, 0.5, 3.25):
        found = float(expr.subs(score, sympy.Float(value)))
        assert found == pytest.approx(meaning(value), rel=1e-12), f"{text} at {value}: {expr}"


def test_inputs_become_symbols_and_functions():
    alpha, slopes = sympy.Symbol("alpha", real=True), sympy.Function("slopes", real=True)
    assert parse_score("alpha * score + slopes[h]", INPUTS) == alpha * score + slopes(h)
    (rel,) = parse_score("rel[h, k - q + 127]", INPUTS).atoms(sympy.core.function.AppliedUndef)
    assert rel.args == (h, k - q + 127)
    assert parse_score("where(row < 3, score, slopes[h])", INPUTS).diff(slopes(h)).subs(row, 4) == 1


@pytest.mark.parametrize(
    ("text", "column", "piece", "remedy"),
    [
        ("k <= q & k >= 3", 6, "q", "parenthesise the comparison"),
        ("~k", 2, "k", "parenthesise the comparison"),
        ("causal and k", 12, "k", "parenthesise the comparison"),
        ("causal & alpha", 10, "alpha", None),
        ("k", 1, "k", None),
        ("score > 0", 1, "score", "score formula"),
        ("causl", 1, "causl", "did you mean causal?"),
        ("k <= unheard", 6, "unheard", None),
        ("windw(1, 0)", 1, "windw(1, 0)", "did you mean window?"),
        ("causal(1)", 1, "causal(1)", "write causal"),
        ("window", 1, "window", "window(left, right)"),
        ("window(-2, 0)", 1, "window(-2, 0)", "-1"),
        ("window(1.5, 0)", 8, "1.5", None),
        ("window(k, 0)", 8, "k", None),
        ("window(k + 1, 0)", 8, "k + 1", None),
        ("window(l=1, r=2)", 1, "window(l=1, r=2)", None),
        ("chunk(0)", 1, "chunk(0)", "1"),
        ("document(alpha)", 10, "alpha", "shape: [b, k]"),
        ("document(doc[b, k])", 10, "doc[b, k]", None),
        ("doc == 1", 1, "doc", "doc[b, k]"),
        ("doc[b] == 1", 1, "doc[b]", None),
        ("doc[b, 0.5] == 1", 8, "0.5", None),
        ("k[0] == 1", 1, "k[0]", None),
        ("alpha[0] == 1", 1, "alpha[0]", None),
        ("causal == full", 1, "causal", "where"),
        ("k // 0 == 1", 6, "0", None),
        ("k if causal else q", 1, "k if causal else q", "where"),
        ("k in q", 1, "k in q", None),
        ("k < 2147483648", 5, "2147483648", "1e10"),
        ("k ^ q", 3, "^", "**"),
        ("é < k", 1, "é", None),
        ("k.real < q", 1, "k.real", None),
        ("(k for k in q)", 1, "(k for k in q)", None),
        ("k <", 1, "k <", None),
        ("", 1, "", None),
        ("min(" + ",".join(["q"] * 17) + ") < k", 1, None, None),
    ],
)
def test_mask_refusals(text, column, piece, remedy):
    error = refusal(parse_mask, text)
    assert error.key == "mask"
    assert error.rule.startswith(f"column {column}: "), f"{text}: {error}"
    assert piece is None or error.value == piece
    assert remedy is None or remedy in (error.remedy or ""), f"{text}: {error}"


@pytest.mark.parametrize(
    "text",
    [
        "causal",
        "inf",
        "score + inf",
        "score / 0",
        "score ** 65",
        "score ** -65",
        "(score ** 64) ** 2",
        "((2 * score) ** 60) ** -1 * ((2 * score) ** 60) ** -1",
        "exp(exp(exp(10)))",
        "(9 ** 60) ** 60",
        "1e39",
        "1e-39",
        "1e999",
        "log(0)",
        "sqrt(-1)",
        "(-8) ** (1 / 3)",
        "sqrt(-2 - score ** 2)",
        "where(score, 1, 2)",
        "where(causal, causal, 2)",
        "tanh",
        "tanh(causal)",
        "max(score)",
        "slopes",
        "1j",
        "'score'",
        "__import__('os')",
        "score" + " " * 2000 + "+ 1",
        "score" + "+ 1" * 50,
        "-" * 1900 + "score",
        "(" * 900 + "score" + ")" * 900,
    ],
)
def test_score_refusals(text):
    assert refusal(parse_score, text).key == "score"


def test_limits_are_exact():
    assert parse_score("score ** 64", {}) == score**64
    assert parse_score("score" + " + 1" * 49, {}) == score + 49
    assert parse_score("score" + " " * 1991 + "+ 1", {}) == score + 1
    assert parse_mask("k < 2147483647", {}) == sympy.Lt(k, 2147483647)


@pytest.mark.parametrize(
    "text",
    [
        "((q + k + b + h) ** 64) % ((q + k + 1) ** 63)",
        "max(" + ", ".join(f"score * {i} + q" for i in range(16)) + ")",
        "where(" * 15 + "k < q" + ", k, q) < h" * 14 + ", score, 1)",
        "abs(" * 24 + "score" + " - 1)" * 24,
        "sqrt(" * 40 + "2147483647 * score" + ")" * 40,
        "*".join(f"(score + {i}) ** 64" for i in range(40)),
    ],
)
def test_hostile_formulas_take_no_time(text):
    start = time.process_time()
    canonical_text(parse_score(text, INPUTS))
    assert time.process_time() - start < 5, text


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("0.5 * score", "score / 2"),
        ("2 * tanh(score)", "tanh(score) + tanh(score)"),
        ("where(k > q, 0, score)", "where(q < k, 0, score)"),
        ("max(k, q)", "max(q, k, q)"),
        ("floor(k / 3)", "k // 3"),
    ],
)
def test_canonical_text_unites_spellings(left, right):
    texts = {canonical_text(parse_score(text, INPUTS)) for text in (left, right)}
    assert len(texts) == 1, texts


@pytest.mark.parametrize(
    "text",
    [
        "window(reach, 3) & document(doc) | chunk(4)",
        "where(q % 3 < alpha, k // 2 == 1, abs(q) <= min(k, 5))",
        "true",
    ],
)
def test_canonical_text_is_a_formula(text):
    once = canonical_text(parse_mask(text, INPUTS))
    assert canonical_text(parse_mask(once, INPUTS)) == once
