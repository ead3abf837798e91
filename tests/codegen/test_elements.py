"""Formulas and masks as C++ structs: compiled for a CPU, each element against the interpreter.

What is compiled is the text that kernels have, by the headers that kernels include; a few functions
of PTX alone are replaced, and loads are checked to stay inside their tables.
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from formulas import (
    INPUTS,
    MASKS,
    SCORES,
    Drawn,
    Sizes,
    draw_inputs,
    draw_scores,
    spec_of,
    symbolic,
)
from torch import Tensor

from fa3gen.codegen.elements import ElementsView, elements_view, far_view
from fa3gen.codegen.render import _environment, render
from fa3gen.errors import RenderError, SpecError
from fa3gen.inputs import by_key
from fa3gen.ir.far import far_form
from fa3gen.ir.score import LOG2E, ScoreForm, score_form
from fa3gen.ir.staging import stage_mask, stage_score
from fa3gen.paths import TEMPLATES
from fa3gen.schedule import make_schedule
from fa3gen.schedule.interpret import evaluate
from fa3gen.spec import symbols
from fa3gen.spec.formula import parse_mask, parse_score

HERE = Path(__file__).parent / "cpu"
METAS = spec_of().input_metas
SIZES = Sizes(b=2, h=4, hk=2, row=13, k=21)
BLOCK_M, BLOCK_N, KV_TILES = 16, 16, 2
SCALE, SHIFT, CAP = 0.5, 1.5, 20.0
DRAWN = 40
ROW_MASKS = [
    "causal & (k >= q - reach)",
    "causal and window(reach, 0)",
    "causal & (q - span[h] <= k)",
    "causal & (k < lengths[b] + h)",
    "k <= q - lut[h] and k >= lut[b + 1]",
]
PATTERN_MASKS = [
    "causal & ((q - k) % 4 == 0)",
    "window(9, 2) & ((q + k) % 3 != 1)",
    "(abs(q // 8 - k // 8) <= 1) & (abs(q % 8 - k % 8) <= 2)",
    "(k < 17) & ((k - lut[h]) % 6 <= row % 5)",
    "(3 * k + span[h]) % 10 < 7",
]
PLANE = (SIZES.b, SIZES.h, BLOCK_M, KV_TILES * BLOCK_N)


def drawn_scores() -> list[str]:
    """Formulas at random; those that the spec refuses have no number but -inf."""
    found = []
    for seed in range(DRAWN):
        text = Drawn(random.Random(seed)).score()
        try:
            parse_score(text, INPUTS)
        except SpecError:
            continue
        found.append(text)
    return found


DRAWN_SCORES = drawn_scores()
DRAWN_MASKS = [Drawn(random.Random(seed)).condition(3) for seed in range(DRAWN)]
TABLES = {
    "full": draw_inputs(SIZES, 0),
    "single": draw_inputs(SIZES, 0, ("bias", "doc", "key", "kvs", "lengths", "rows", "slopes")),
}


# --- the text -------------------------------------------------------------------------------------


def struct_text(view: ElementsView) -> str:
    macro = '//% from "forward/elements.j2" import elements_struct\n'
    template = _environment().from_string(macro + '{{ elements_struct(view, "Params") }}')
    return template.render(view=view)


def score_form_of(text: str) -> ScoreForm:
    return score_form(parse_score(text, INPUTS))


@dataclass
class Piece:
    """A formula or mask, and the calls that print its values; {} is its namespace."""

    text: str
    source: str
    calls: dict[str, str]  # by what they print


def score_piece(text: str) -> Piece:
    form = score_form_of(text)
    view = elements_view("Score", "", stage_score(form, by_key(METAS)), METAS)
    scale = form.constant * (SCALE if form.scales_products else 1.0) * math.log2(math.e)
    source = ""
    if far := far_form(form, METAS):
        view = replace(view, far=far_view(far, METAS))
        source = struct_text(view.far.elements)
    piece = Piece(text, source + struct_text(view), {"score": f"scores<{{}}::Score>({scale}f)"})
    if form.biased:
        piece.calls["shifted"] = f"shifted_scores<{{}}::Score>({SHIFT}f)"
    if far:
        piece.calls["far"] = "far_scores<{}::Score>()"
    if view.slope:
        piece.calls["capped"] = f"capped_scores<{{}}::Score>({CAP}f, {SHIFT}f)"
    return piece


def mask_piece(text: str) -> Piece:
    staged = stage_mask(parse_mask(text, INPUTS), by_key(METAS))
    view = elements_view("Mask", "", staged, METAS, keep=True)
    return Piece(text, struct_text(view), {"mask": "masked<{}::Mask>()"})


def row_mask_piece(text: str) -> Piece:
    """A mask that knows the interval of a row's keys, from its kernel."""
    knobs = {"tile": {"m": 128, "n": 64}, "overlap": 1, "pingpong": False}
    kernel = render((make_schedule(spec_of(mask=text, schedule=knobs)),)).kernels[0].text
    start = kernel.index("struct Mask {")
    source = kernel[start : kernel.index("\n};\n", start) + 4]
    assert "RowKeys" in source, text
    return Piece(text, source, {"mask": "kept_rows<{}::Mask>()"})


def pattern_piece(text: str) -> Piece:
    """A mask that repeats along rows, from its kernel."""
    knobs = {"tile": {"m": 128, "n": 128}, "overlap": 1, "pingpong": False}
    kernel = render((make_schedule(spec_of(mask=text, schedule=knobs)),)).kernels[0].text
    start = kernel.index("struct Mask {")
    keep = kernel.index("CUTE_DEVICE fa3gen::RowKeys keep", start)
    source = kernel[start : kernel.index("\n}\n", keep) + 3]
    arguments = re.search(r"mask_pattern<(true|false), (\d+)>", kernel)
    assert arguments is not None, text
    call = f"pattern<{{0}}::Mask, {arguments[1]}, {arguments[2]}>({{0}}::keep)"
    return Piece(text, source, {"mask": call})


def pieces() -> tuple[list[Piece], dict[str, str]]:
    """Everything that is compiled, and what is said of the rest, by its text."""
    texts = {
        score_piece: [*SCORES, *DRAWN_SCORES],
        mask_piece: [*MASKS, *DRAWN_MASKS],
        row_mask_piece: ROW_MASKS,
        pattern_piece: PATTERN_MASKS,
    }
    found, refused = [], {}
    for make, those in texts.items():
        for text in dict.fromkeys(those):
            try:
                found.append(make(text))
            except RenderError as error:
                refused[text] = str(error)
    return found, refused


def as_read(name: str, tensor: Tensor) -> Tensor:
    """An input's memory as the host passes it on: a last axis of rows or keys has the call's
    length, rows of keys lie an even number apart."""
    shape = INPUTS[name].shape
    if shape[-1:] in (("k",), ("row",)):
        tensor = tensor.expand(*tensor.shape[:-1], SIZES.of(shape)[-1])
    odd = shape[-1:] == ("k",) and tensor.shape[-1] % 2 == 1
    return torch.nn.functional.pad(tensor, (0, 1)) if odd else tensor.contiguous()


def table_text(name: str, memory: Tensor) -> str:
    """A table's elements, and what the kernel is told of it."""
    tensor = memory[..., : SIZES.k] if memory.dim() else memory
    flat = memory.flatten()
    kinds = {torch.bfloat16: "uint16_t", torch.float16: "__half", torch.int32: "int"}
    kind = kinds.get(tensor.dtype, "float")
    if tensor.dtype is torch.bfloat16:
        flat = flat.view(torch.int16).int() & 0xFFFF
    strides = [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
    beyond = [0] * 64  # apart from other tables
    lists = ([*flat.tolist(), *beyond], strides, tensor.shape)
    data, stride_list, sizes = (", ".join(map(str, numbers)) for numbers in lists)
    return (
        f"{kind} const {name}_data[] = {{{data}}};\n"
        f"fa3gen::InputTensor const {name}_table{{{name}_data, {{{stride_list}}}, {{{sizes}}}}};\n"
    )


_UNARY = r'asm\("{}\.approx\.ftz\.f32 %0, %1;" : "=f"\((\w+)\) : "f"\((.*)\)\);'
INSTRUCTIONS = {  # of PTX, as a CPU does them
    _UNARY.format("rcp"): r"\1 = 1.f / (\2);",
    _UNARY.format("lg2"): r"\1 = std::log2(\2);",
    r"asm volatile\((?:.|\n)*?ld\.global(?:.|\n)*?int\(wanted\)\)\);": "bits = {};\n"
    "  if (wanted) memcpy(&bits, readable(from, sizeof bits), sizeof bits);",
    r"constexpr float kLog2e = .*": "",  # in the softmax's header
}


def header(name: str) -> str:
    """A header of kernels for a CPU."""
    text = (TEMPLATES / "include/fa3gen" / name).read_text(encoding="utf-8")
    for instruction, meaning in INSTRUCTIONS.items():
        text = re.sub(instruction, meaning, text)
    assert "asm" not in text
    return text


def program_text(made: dict[str, Piece]) -> str:
    """The translation unit: two sets of tables, every piece with both."""
    inputs = _environment().get_template("forward/inputs.j2")
    padded = torch.zeros(PLANE)
    padded[:, :, : SIZES.row, : SIZES.k] = draw_scores(SIZES, 1) / SCALE
    values = ", ".join(f"{x}f" for x in padded.flatten().tolist())
    lines = [
        "#include <fa3gen/elements.cuh>",
        "#include <fa3gen/score.cuh>",
        "using fa3gen::ForwardParams;",
        inputs.render(kernel=SimpleNamespace(program=SimpleNamespace(inputs=METAS))),
        f"constexpr int kBatch = {SIZES.b}, kHeads = {SIZES.h}, kGroup = {SIZES.h // SIZES.hk};",
        f"constexpr int kBlockM = {BLOCK_M}, kBlockN = {BLOCK_N}, kKvTiles = {KV_TILES};",
        f"float const products[kBatch][kHeads][kBlockM][kKvTiles * kBlockN] = {{{values}}};",
        "Params params;",
        '#include "walk.h"',
    ]
    lines += [f"namespace {name} {{\n{piece.source}}}" for name, piece in made.items()]
    calls = [
        f"  {call.format(name)};" for name, piece in made.items() for call in piece.calls.values()
    ]
    lines += ["void all() {", *calls, "}"]
    for suffix, tables in TABLES.items():
        lines += [table_text(name + suffix, as_read(name, one)) for name, one in tables.items()]
    lines += [
        "int main() {",
        f"  params.seqlen_q = {SIZES.row}, params.seqlen_k = {SIZES.k}, params.scale = {SCALE}f;",
    ]
    for suffix, tables in TABLES.items():
        for name, tensor in tables.items():
            data = f"{name}{suffix}_data"
            lines.append(f"  params.inputs.{name}_ = {name}{suffix}_table;")
            end = f"{data} + {as_read(name, tensor).numel()}"
            lines.append(f"  memories.push_back({{{data}, {end}}});")
        lines.append("  all();")
    return "\n".join([*lines, "}"])


# --- the values -----------------------------------------------------------------------------------


@dataclass
class Results:
    """What the program printed, by text, kind and set of tables; and what is no C++."""

    planes: dict[tuple[str, str, str], Tensor]
    refused: dict[str, str]

    def of(self, text: str, kind: str, tables: str) -> Tensor:
        """The elements of a call."""
        if text in self.refused:
            pytest.fail(f"{text}: {self.refused[text]}")
        return self.planes[text, kind, tables][:, :, : SIZES.row, : SIZES.k]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("elements")
    (folder / "fa3gen").mkdir()
    for name in ("elements.cuh", "score.cuh"):
        (folder / "fa3gen" / name).write_text(header(name), encoding="utf-8")
    found, refused = pieces()
    made = {f"n{i}": piece for i, piece in enumerate(found)}
    while errors := compiled(folder, made):  # warnings come after errors
        for part in re.split(r"(?m)^(?=\S+: In )", errors)[1:]:
            if match := re.search(r"\b(n\d+)::", part):
                refused[made[match[1]].text] = part
        right = {name: piece for name, piece in made.items() if piece.text not in refused}
        assert len(right) < len(made), errors
        made = right
    printed = subprocess.run([folder / "main"], check=True, capture_output=True).stdout
    planes = iter(torch.frombuffer(bytearray(printed), dtype=torch.float32).view(-1, *PLANE))
    values = {
        (piece.text, kind, tables): next(planes)
        for tables in TABLES
        for piece in made.values()
        for kind in piece.calls
    }
    assert next(planes, None) is None
    return Results(values, refused)


def compiled(folder: Path, made: dict[str, Piece]) -> str:
    """Compiles the program; what the compiler says of errors."""
    (folder / "main.cpp").write_text(program_text(made), encoding="utf-8")
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O0", "-fmax-errors=0"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    command += ["-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
    command += [f"-I{place}" for place in (folder, HERE, TEMPLATES / "include")]
    done = subprocess.run(
        [*command, "main.cpp", "-o", "main"], cwd=folder, capture_output=True, text=True
    )
    return done.stderr if done.returncode else ""


def interpreted(expr: Any, tables: str) -> Tensor:
    values = symbolic(SIZES, TABLES[tables])
    values |= {symbols.score: draw_scores(SIZES, 1), LOG2E: torch.tensor(math.log2(math.e))}
    return evaluate(expr, values).expand(SIZES.all)


def agree(found: Tensor, wanted: Tensor, text: str) -> None:
    torch.testing.assert_close(
        found, wanted.float(), rtol=3e-5, atol=3e-5, msg=lambda m: f"{text}: {m}"
    )


def check_score(results: Results, text: str, tables: str) -> None:
    form = score_form_of(text)
    wanted = interpreted(form.value, tables)
    agree(results.of(text, "score", tables), wanted, text)
    if form.biased:
        agree(results.of(text, "shifted", tables), wanted - SHIFT, text)


def check_mask(results: Results, text: str, tables: str) -> None:
    kept = results.of(text, "mask", tables) != -math.inf
    assert torch.equal(kept, interpreted(parse_mask(text, INPUTS), tables)), text


each_set = pytest.mark.parametrize("tables", TABLES)


@each_set
@pytest.mark.parametrize("text", SCORES)
def test_scores(results: Results, text: str, tables: str) -> None:
    check_score(results, text, tables)


@each_set
@pytest.mark.parametrize("text", MASKS)
def test_masks(results: Results, text: str, tables: str) -> None:
    check_mask(results, text, tables)


@each_set
@pytest.mark.parametrize("text", ROW_MASKS)
def test_masks_by_rows(results: Results, text: str, tables: str) -> None:
    check_mask(results, text, tables)


@each_set
@pytest.mark.parametrize("text", PATTERN_MASKS)
def test_masks_that_repeat(results: Results, text: str, tables: str) -> None:
    check_mask(results, text, tables)


@each_set
def test_drawn_scores_and_masks(results: Results, tables: str) -> None:
    for text in DRAWN_SCORES:
        check_score(results, text, tables)
    for text in DRAWN_MASKS:
        check_mask(results, text, tables)


@each_set
def test_far_formulas(results: Results, tables: str) -> None:
    """Where a formula's tables end, in tiles that are far enough: the same values."""
    far = {text for text, kind, _ in results.planes if kind == "far"}
    assert far
    assert far <= {text for text in [*SCORES, *DRAWN_SCORES] if "rel[" in text or "grid[" in text}
    used = 0
    for text in far:
        found = results.of(text, "far", tables)
        wanted = results.of(text, "score", tables)
        agree(torch.where(found.isnan(), wanted, found), wanted, text)
        used += int(found.isfinite().sum())
    assert used > SIZES.b * SIZES.h * SIZES.row * SIZES.k


@each_set
def test_short_tanh(results: Results, tables: str) -> None:
    """What speculation has in place of a soft cap's tanh, up to its end."""
    capped = [text for text, kind, _ in results.planes if kind == "capped"]
    assert {"5 * tanh(score / 5)", "alpha * tanh(score / 8)"} & set(capped)
    for text in capped:
        found = results.of(text, "capped", tables)
        wanted = CAP * results.of(text, "score", tables) - SHIFT
        assert bool((found != 0).any()), text
        agree(found, torch.where(found == 0, 0.0, wanted), text)


def test_keys_beyond_the_end_are_masked(results: Results) -> None:
    for text in {*MASKS, *ROW_MASKS} - set(results.refused):
        beyond = results.planes[text, "mask", "full"][..., SIZES.k :]
        assert bool((beyond == -math.inf).all()), text
