"""The expression printer: its texts, and their values in compiled C++ against Python's."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch

from fa3gen.codegen.cpp import Names, print_cpp, print_cpp_real
from fa3gen.codegen.elements import runtime_name
from fa3gen.errors import RenderError
from fa3gen.schedule.integers import TYPICAL, compiled
from fa3gen.schedule.interpret import evaluate
from fa3gen.schedule.ranges import key_bounds
from fa3gen.spec.formula import parse_mask, parse_score
from fa3gen.spec.symbols import k, q, score, seqlen_k, seqlen_q

MASKS = {
    "k <= q": "k <= q",
    "k < 17 - q": "k < 17 - q",
    "k <= row + seqlen_k - seqlen_q": "k <= row + seqlen_k - seqlen_q",
    "not (k < q or k == 3)": "k != 3 && q <= k",
    "causal or window(3, 0)": "(k <= q && q - 3 <= k) || k <= q",
    "chunk(4)": "fa3gen::floor_div(q, 4) == fa3gen::floor_div(k, 4)",
    "(q - k) % 3 == 0": "fa3gen::floor_mod(q - k, 3) == 0",
    "k <= where(q < 2, 1, -q)": "k <= (q < 2 ? 1 : -q)",
    "2 * k * q - k ** 2 >= -(q + k)": "-k - q <= 2 * q * k - k * k",
    "abs(q - k) < max(q, k, 2)": "abs(k - q) < max(max(2, k), q)",
}

# What Python computes from the names q and k, and print_cpp's text must as well.
INTEGERS = [
    "-q",
    "-(q - k)",
    "3 - (q - 2 * (k - q))",
    "-2 * q - 3 * k",
    "q - (k - (q - 5)) * 7",
    "-(q * k) - -k",
    "(q + k) * (q - k)",
    "q * (k + 2) * -3",
    "(q - 3) ** 3 - (k + q) ** 2",
    "q // 3",
    "(q - k) // 5 * 5 - q % 4",
    "-(q // -3)",
    "(-q) // 7 % 3",
    "(-q % 5) * -2 - q",
    "q % -3 - k % (k + 1)",
    "(q // 2 - k // 3) // 4",
    "min(q, k) - max(q, -k, 2)",
    "max(min(q, 4, k), min(-q, 7 - k), -3)",
    "2 * min(q - 3, max(k, 5) - q) - 1",
    "q - max(q, k) * min(2, q)",
    "abs(q - k) * -1 + abs(-q)",
    "where(q < k, q, where(q == 3, k, -k)) * 2",
    "where(q < k or k > 5 and q != 2, 1 - q, where(k <= 2, 3, 4) - 1)",
    "min(where(q <= k, q, k), 3)",
]

BOOLEANS = [
    "(q < 3 or k == 2) and q != 4 or k > q",
    "not (q < 3 and (k > 4 or q == k)) or k == 0",
    "q // 4 == k // 4 or not (k <= q and k % 3 == q % 3)",
    "q - k < 3 <= k + q or k * k <= -q",
    "k <= where(q < 5 or k == 1, q, 2) and (q < 1 or where(k < q, k != 3, q > 4))",
    "abs(q - k) // 2 != min(q, 3) and max(q, k) % 4 > 0",
]

# Key bounds of sequences as long as can be: no intermediate value may overflow.
LONG_MASKS = [
    "causal",
    "window(1073741824, 1073741822)",
    "chunk(1000003)",
    "chunk(2147483647)",
    "causal or prefix(1073741824)",
    "k <= 2 * q",
    "k <= 2 * q + 5",
    "k >= 2 * q",
    "k < 4 * row + 4",
    "3 * k >= 7 * q - 1000000000",
    "5 * k <= 3 * q",
    "3 * k < 2 * q + 2147483647",
    "k // 7 <= 2 * (q // 5)",
    "k <= q + 2147483647",
    "k <= row + 1073741823",
    "k >= row - 1073741823 and k + q >= 1073741824",
    "q >= 1000000000 and causal or row < 7",
    "k <= where(q < 5, 3, q + 9)",
    "k <= -q",
    "k >= row - seqlen_k",
    "4 * k == 8 - 8 * q",
]

NAMES = Names(runtime_name)

PRELUDE = """\
#include <algorithm>
#include <cstdio>
#include <cstdlib>
namespace fa3gen {
int floor_div(int a, int b) {
  int const quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0));
}
int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }
}  // namespace fa3gen
using std::abs;
using std::max;
using std::min;
struct Params {
  int seqlen_q;
  int seqlen_k;
};
"""


def run(
    folder: Path, signature: str, texts: Sequence[str], calls: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The value of each C++ text for each call's arguments; overflow and warnings are errors."""
    lines = [PRELUDE]
    lines += [f"int f{i}({signature}) {{ return {text}; }}" for i, text in enumerate(texts)]
    count = len(calls[0])
    lines.append(f"int (*const functions[])({signature}) = {{")
    lines += [f"  f{i}," for i in range(len(texts))]
    lines += ["};", f"int const calls[][{count}] = {{"]
    lines += ["  {" + ", ".join(map(str, call)) + "}," for call in calls]
    arguments = ", ".join(f"a[{i}]" for i in range(count))
    if "Params" in signature:
        arguments = "a[0], a[1], Params{a[2], a[3]}"
    loop = f'for (auto f : functions) for (auto& a : calls) std::printf("%d\\n", f({arguments}));'
    lines += ["};", f"int main() {{ {loop} }}"]
    source, program = folder / "main.cpp", folder / "main"
    source.write_text("\n".join(lines))
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command += [
        "-Wno-unused-parameter",
    ]
    command += ["-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    values = [int(line) for line in printed.split()]
    return [values[i * len(calls) : (i + 1) * len(calls)] for i in range(len(texts))]


def in_cpp(text: str) -> str:
    """C++ of a condition or, by way of a comparison with another symbol, of an integer."""
    if text in BOOLEANS:
        return print_cpp(parse_mask(text, {}))
    return print_cpp(parse_mask(f"{text} <= b", {}).lhs)


@pytest.mark.parametrize("mask", MASKS)
def test_texts_of_masks(mask: str) -> None:
    assert print_cpp(parse_mask(mask, {})) == MASKS[mask]


def test_texts_of_sums_begin_with_a_positive_term_and_end_with_the_constant() -> None:
    assert print_cpp(q - seqlen_q + seqlen_k + 1) == "q + seqlen_k - seqlen_q + 1"
    assert print_cpp(5 - q - k) == "5 - k - q"
    assert print_cpp(-q - 5) == "-q - 5"
    assert print_cpp(q - 2**31) == "q + (-2147483647 - 1)"


def test_texts_of_bounds() -> None:
    bounds = key_bounds(parse_mask("causal and chunk(64) or prefix(9)", {}))
    assert print_cpp(bounds.some_end, NAMES) == "max(9, q_last + 1)"
    bounds = key_bounds(parse_mask("k < row or q < 3", {}))
    assert print_cpp(bounds.every_end, NAMES) == (
        "max(q_first + params.seqlen_q - params.seqlen_k, q_last <= 2 ? params.seqlen_k : 0)"
    )


def test_what_has_no_integer_form_is_refused() -> None:
    for expr in (q / 2, sympy.sqrt(k), sympy.exp(q), 1 / k, sympy.Integer(2**31), q**k):
        with pytest.raises(RenderError, match="no C\\+\\+ form"):
            print_cpp(expr)


def test_values_on_a_grid(tmp_path: Path) -> None:
    grid = list(itertools.product(range(-8, 9), range(8)))
    functions: dict[str, Any] = {
        "abs": abs,
        "max": max,
        "min": min,
        "where": lambda condition, yes, no: yes if condition else no,
    }
    texts = [*INTEGERS, *BOOLEANS]
    printed = [in_cpp(text) for text in texts]
    found = run(tmp_path, "int q, int k", printed, grid)
    for text, cpp, values in zip(texts, printed, found, strict=True):
        code = compile(text, text, "eval")
        expected = [int(eval(code, {**functions, "q": x, "k": y})) for x, y in grid]
        assert values == expected, f"{text}: {cpp}"


def test_bounds_of_long_sequences_stay_within_int32(tmp_path: Path) -> None:
    longest = 2**30
    lengths = (0, 1, 127, 5000, 10**9, longest - 1, longest)
    tiles = [
        (first + shift, min(first + 128, seqlen_q) - 1 + shift, seqlen_q, seqlen_q + shift)
        for seqlen_q, keys in itertools.product(lengths[1:], lengths)
        for shift in (keys - seqlen_q,)
        for first in sorted({0, seqlen_q // 2, max(seqlen_q - 128, 0), seqlen_q - 1})
    ]
    kept = [key_bounds(parse_mask(mask, {})) for mask in LONG_MASKS]
    ends = [
        end
        for bounds in kept
        for end in (bounds.some_begin, bounds.every_begin, bounds.every_end, bounds.some_end)
        if end is not None
    ]
    assert len(ends) > 1.5 * len(LONG_MASKS)
    printed = [print_cpp(end, NAMES) for end in ends]
    signature = "int q_first, int q_last, Params params"
    for end, cpp, values in zip(
        ends, printed, run(tmp_path, signature, printed, tiles), strict=True
    ):
        assert values == [compiled(end)(tile, TYPICAL) for tile in tiles], f"{end}: {cpp}"
        assert max(values) < 2**31 - 256, f"not to be rounded up to a tile: {cpp}"


# --- formulas -------------------------------------------------------------------------------------

REALS = {
    "tanh(score / 50)": "fa3gen::tanh_approx(0.02f * score)",
    "score + (k - q) / 16": "score + 0.0625f * float(k - q)",
    "score * 2 - k": None,
    "(score + k) / (q + 1)": None,
    "score ** 3 - score ** 2 / 4": None,
    "1 / score + sigmoid(score) + sqrt(score ** 2 + 1)": None,
    "-(score - k) * -(score + q)": None,
    "exp(-abs(score - k)) * log(score ** 2 + k + 1)": None,
    "max(score, k, 3) - min(score, q, -1.5)": None,
    "where(score > k and q != 2, score, -score / 3)": None,
    "where(k > q, k // 2, score - q % 3) + (score + q) % 1.5": None,
    "floor(score) + floor(score * k / 3)": None,
    "score ** 1.5 + 2 ** (k - q)": None,
    "0 * score + 1e-7": None,
}
REAL_PRELUDE = """\
#include <cmath>
namespace fa3gen {
float tanh_approx(float x) { return std::tanh(x); }
float exp_approx(float x) { return std::exp(x); }
float log_approx(float x) { return std::log(x); }
float floor_mod(float x, float y) { return x - y * std::floor(x / y); }
}  // namespace fa3gen
"""


def test_formulas_in_cpp_have_the_values_of_the_interpreter(tmp_path: Path) -> None:
    exprs = [parse_score(text, {}) for text in REALS]
    texts = [print_cpp_real(expr) for expr in exprs]
    for text, wanted in zip(texts, REALS.values(), strict=True):
        assert wanted is None or text == wanted
    scores, places = (0.3, 1.7, 4.25), list(itertools.product(range(4), repeat=2))
    lines = [PRELUDE, REAL_PRELUDE]
    lines += [
        f"float f{i}([[maybe_unused]] float score, [[maybe_unused]] int q, "
        f"[[maybe_unused]] int k) {{ return {text}; }}"
        for i, text in enumerate(texts)
    ]
    calls = [
        f'std::printf("%.9g\\n", double(f{i}({s}f, {a}, {b})));'
        for i, _ in enumerate(texts)
        for s in scores
        for a, b in places
    ]
    lines += ["int main() {", *calls, "}"]
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text("\n".join(lines))
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    found = iter(float(line) for line in done.stdout.split())
    for text, expr in zip(REALS, exprs, strict=True):
        for s, (a, b) in itertools.product(scores, places):
            at = {score: torch.tensor(s), q: torch.tensor(a), k: torch.tensor(b)}
            wanted = float(evaluate(expr, at))
            assert next(found) == pytest.approx(wanted, rel=2e-5, abs=2e-6), (text, s, a, b)


def test_what_has_no_real_form() -> None:
    with pytest.raises(RenderError, match="no C\\+\\+ form"):
        print_cpp_real(sympy.sin(score))
