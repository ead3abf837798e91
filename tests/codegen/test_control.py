"""The rendered control flow does what the Program says, in the Program's order.

A kernel's text is read as a tree of loops, branches and statements and walked for given KV tile
ranges; what it loads, waits for, issues and computes must be the Program's events one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fa3gen.codegen.render import render
from fa3gen.paths import SPECS
from fa3gen.schedule import make_schedule
from fa3gen.schedule.flatten import Event, flatten
from fa3gen.schedule.lower import lower
from fa3gen.schedule.program import (
    Arrive,
    Calc,
    CalcKind,
    Expect,
    Gemm,
    Load,
    NamedArrive,
    NamedSync,
    StageOut,
    TmaStore,
    Wait,
    WgmmaWait,
)
from fa3gen.schedule.ranges import TileRange
from fa3gen.schedule.schedule import Schedule
from fa3gen.spec import AttentionSpec
from fa3gen.spec.load import load_spec

Happening = tuple[Any, ...]

INPUTS = {
    "bias": {"shape": ["b", "h", "row", "k"], "dtype": "bf16"},
    "doc": {"shape": ["b", "k"], "dtype": "int32"},
    "reach": {"shape": ["h"], "dtype": "int32"},
    "slopes": {"shape": ["h"], "dtype": "fp32"},
}
KNOBS: dict[str, dict[str, Any]] = {
    "window": {"mask": "window(100, 20)"},
    "overlap 1": {"mask": "causal", "schedule": {"overlap": 1}},
    "formula, lazy": {
        "mask": "window(100, 20)",
        "score": "score + (k - q) / 16",
        "schedule": {"maxima": "lazy"},
    },
    "formula, overlap 3": {"score": "exp(score)", "schedule": {"overlap": 3}},
    "biased, speculative": {"mask": "causal", "score": "score + (k - q) / 16"},
    "elements": {"mask": "(q - k) % 3 == 0"},
    "inputs, speculative": {
        "mask": "causal | document(doc)",
        "score": "score + slopes[h] * (k - q)",
        "inputs": INPUTS,
        "schedule": {"maxima": "speculative"},
    },
    "inputs, by rows": {
        "mask": "causal & (k >= q - reach[h])",
        "score": "score + slopes[h] * (k - q)",
        "inputs": INPUTS,
    },
    "inputs, listed": {
        "mask": "causal & document(doc)",
        "score": "score + slopes[h] * (k - q)",
        "inputs": INPUTS,
        "schedule": {"maxima": "speculative"},
    },
    "inputs, lazy": {
        "mask": "document(doc)",
        "score": "score * slopes[h]",
        "inputs": INPUTS,
        "schedule": {"maxima": "lazy", "overlap": 3},
    },
    "bias, overlap 1": {
        "mask": "window(100, 20)",
        "score": "score + bias[b, h, row, k]",
        "inputs": INPUTS,
        "schedule": {"overlap": 1, "maxima": "speculative"},
    },
    "bias, overlap 3": {
        "mask": "causal",
        "score": "score + bias[b, h, row, k]",
        "inputs": INPUTS,
        "schedule": {"overlap": 3, "maxima": "lazy"},
    },
    "bias, formula": {
        "mask": "causal",
        "score": "20 * tanh((score - bias[b, h, row, k]) / 20)",
        "inputs": INPUTS,
        "schedule": {"maxima": "speculative"},
    },
    "bias, listed": {
        "mask": "causal & document(doc)",
        "score": "2 * score + bias[b, h // 2, row, k]",
        "inputs": INPUTS,
    },
    "bias, no producer": {
        "mask": "causal",
        "score": "score + bias[b, h, row, k]",
        "inputs": INPUTS,
        "schedule": {"warp_specialized": False, "overlap": 3},
    },
    "overlap 3": {"mask": "window(100, 20)", "schedule": {"overlap": 3}},
    "overlap 3, full": {"schedule": {"overlap": 3, "pipeline_depth": 3}},
    "P shared": {"mask": "causal", "schedule": {"p_operand": "shared"}},
    "no producer": {"mask": "window(100, 0)", "schedule": {"warp_specialized": False}},
    "no producer, overlap 3": {
        "mask": "causal",
        "schedule": {"warp_specialized": False, "overlap": 3, "p_operand": "shared"},
    },
}
SHIPPED = sorted(path.stem for path in SPECS.glob("*.yaml"))


def schedule_of(name: str) -> Schedule:
    if name in KNOBS:
        return make_schedule(AttentionSpec(**{"head_dim": 64, "dtype": "bf16", **KNOBS[name]}))
    return make_schedule(load_spec(SPECS / f"{name}.yaml"))


# --- the Program ----------------------------------------------------------------------------------

_CALCS = {
    CalcKind.BIAS: "add_bias",
    CalcKind.ROW_MAX: "update_max",
    CalcKind.EXP: "exponentiate",
    CalcKind.ROW_SUM: "update_sum",
    CalcKind.CONVERT: "convert",
    CalcKind.RESCALE: "rescale",
    CalcKind.NORMALIZE: "normalize",
    CalcKind.SPECULATE: "speculate",
    CalcKind.ADD_SUM: "add_sum",
    CalcKind.RESCALE_GROWN: "rescale",
    CalcKind.NORMALIZE_SHIFTED: "normalize",
}


def meant(event: Event, work: list[TileRange]) -> Happening | None:
    """An event of the Program as the text would show it; None for what is not compared."""

    def index() -> int:  # of the KV tile, tiles being visited from the last down
        return work[event.work].end - 1 - event.tile

    match event.instruction:
        case Wait(barrier=barrier) | Expect(barrier=barrier) | Arrive(barrier=barrier) as i:
            return (type(i).__name__, barrier.lower())
        case NamedSync(barrier=barrier) | NamedArrive(barrier=barrier) as i:
            return (type(i).__name__, barrier)
        case Load(buffer=buffer):
            return ("Load", buffer.lower(), None if buffer == "Q" else index())
        case Gemm(kind=kind):
            return ("Gemm", kind.name)
        case WgmmaWait(pending=pending):
            return ("WgmmaWait", pending)
        case Calc(kind=CalcKind.MASK):
            return ("mask", index())
        case Calc(kind=CalcKind.SCORE):
            return ("score", index())
        case Calc(kind=CalcKind.SPECULATE_SCORE):
            return ("speculate_scores", index())
        case Calc(kind=CalcKind.ROWS):
            return ("rows",)
        case Calc(kind=CalcKind.SHIFT | CalcKind.EXP2 as kind, keys=(begin, end)):
            name = "shift" if kind is CalcKind.SHIFT else "raise"
            return (name, begin // 4, end // 4)  # 4 lanes share a row
        case Calc(kind=CalcKind.REDO):
            return ("redo", index())
        case Calc(kind=kind) if kind in _CALCS:
            return (_CALCS[kind],)
        case StageOut(buffer=buffer):
            return ("StageOut", buffer)
        case TmaStore():
            return ("TmaStore",)
    return None


def spelled(
    happening: Happening, overshot: bool, structs: tuple[str, ...], biased: bool
) -> list[Happening]:
    """What the text shows of a computation that it spells out: what is done again is a step with
    exact maxima, and what is kept of rows are the structs of the formula and of the mask."""
    if happening[0] == "rows":
        return [("rows", name) for name in structs]
    if happening[0] != "redo":
        return [happening]
    if not overshot:
        return [("add_tile_sum",)]
    again = ("update_max", "rescale", "exponentiate", "update_sum", "convert")
    bias = [("add_bias",)] if biased else []
    score = [("score", happening[1])] if "Score" in structs else []
    return [happening, *bias, *score, *((name,) for name in again)]


# --- the text -------------------------------------------------------------------------------------


def _index(text: str, n: int) -> int:
    """A KV tile's index; of listed tiles, their place in the list."""
    return int(eval(text, {"n": n, "kv": SimpleNamespace(tile=lambda place: place)}))


_INDEX = r"(n|\(n [+-] \d+\)|kv\.tile\(n(?: [+-] \d+)?\)) \* kBlockN"  # of a KV tile
_FORMS = [
    (r"wait_barrier\((\w+)\[", lambda m, n: ("Wait", m[1])),
    (r"expect_bytes\((\w+)\[", lambda m, n: ("Expect", m[1])),
    (r"arrive_(?:each_warp|barrier)\((\w+)\[", lambda m, n: ("Arrive", m[1])),
    (r"named_sync\((\w+)_barrier", lambda m, n: ("NamedSync", m[1])),
    (r"named_arrive\((\w+)_barrier", lambda m, n: ("NamedArrive", m[1])),
    (r"tma_load<.*tma_q,", lambda m, n: ("Load", "q", None)),
    (
        r"tma_load<.*tma_(\w+),.*, " + _INDEX,
        lambda m, n: ("Load", m[1], _index(m[2], n)),
    ),
    (r"issue_gemm\w*<Product(\w+),", lambda m, n: ("Gemm", m[1])),
    (r"wgmma_wait<(\d)>", lambda m, n: ("WgmmaWait", int(m[1]))),
    (
        r"mask_(?:scores|rows<\w+>|pattern<\w+, \d+>)\(.*, " + _INDEX,
        lambda m, n: ("mask", _index(m[1], n)),
    ),
    (r"fa3gen::(convert|speculate)<Element>\((?:tSr|scores)", lambda m, n: (m[1],)),
    (
        r"fa3gen::(add_bias|update_max|exponentiate|update_sum|rescale|normalize|add_sum|add_tile_sum)(?:_with_sink|<\w+>)?\(",
        lambda m, n: (m[1],),
    ),
    (
        r"modify_scores\(.*, " + _INDEX,
        lambda m, n: ("score", _index(m[1], n)),
    ),
    (
        r"speculate_scores\(.*, " + _INDEX,
        lambda m, n: ("speculate_scores", _index(m[1], n)),
    ),
    (r"^(\w+) const \w+\(tile, first_row\(tile\), params\)", lambda m, n: ("rows", m[1])),
    (
        r"fa3gen::recompute_scores<.*, " + _INDEX,
        lambda m, n: ("redo", _index(m[1], n)),
    ),
    (r"fa3gen::(shift|raise)<(\d+), (\d+)>\(", lambda m, n: (m[1], int(m[2]), int(m[3]))),
    (r"store_operand<", lambda m, n: ("StageOut", "P")),
    (r"store_matrix\(", lambda m, n: ("StageOut", "O")),
    (r"tma_store<", lambda m, n: ("TmaStore",)),
]


@dataclass
class Block:
    """A statement, or a loop or branch with its body."""

    head: str
    body: list[Block] = field(default_factory=list)


def parsed(text: str) -> list[Block]:
    """The statements of a text up to the brace that closes it."""
    text = re.sub(r"//[^\n]*|#pragma[^\n]*", "", text)
    stack: list[list[Block]] = [[]]
    for part in re.findall(r"\s*for \([^)]*\) \{|[^;{}]*\{\}?;|[^;{}]+[;{]|\}", text):
        part = " ".join(part.split())
        if part == "}":
            if len(stack) == 1:
                break
            stack.pop()
        elif part.endswith("{"):
            stack[-1].append(Block(part))
            stack.append(stack[-1][-1].body)
        else:
            stack[-1].append(Block(part))
    return stack[0]


class _LastWorkError(Exception):
    """Leaves the loop over work tiles."""


@dataclass
class Walk:
    """Walks a role's text over the CTA's work tiles."""

    program_work: list[TileRange]
    peeled: int
    lag: int
    consumer: int
    overshot: bool  # speculation
    followed: int = 0
    names: dict[str, Any] = field(default_factory=dict)
    works: int = 0  # begun

    def run(self, blocks: list[Block]) -> Iterator[Happening]:
        taken = False  # whether the branch before was
        for block in blocks:
            head = block.head
            if head.startswith("for (int index") or head == "for (;;) {":
                yield from self._each_work(block, static="int index" in head)
            elif head.startswith("for ("):
                condition = head.split(";")[1]
                while self._holds(condition):
                    yield from self.run(block.body)
                    self.names["n"] -= 1
            elif head.startswith("if ("):
                taken = self._holds(head[len("if (") : head.rindex(")")])
                yield from self.run(block.body) if taken else ()
            elif head == "else {":
                yield from self.run(block.body) if not taken else ()
            elif head.endswith("{"):
                yield from ()  # a lambda
            else:
                yield from self._statement(head)

    def _each_work(self, block: Block, static: bool) -> Iterator[Happening]:
        if static:
            for _ in self.program_work:
                self._begin()
                yield from self.run(block.body)
            return
        try:
            while True:
                self._begin()
                yield from self.run(block.body)
        except _LastWorkError:
            return

    def _begin(self) -> None:
        self.names["index"] = self.works
        if self.works < len(self.program_work):
            tiles = self.program_work[self.works]

            def late(tile: int) -> int:
                return max(tile - self.lag, tiles.begin)

            self.names["kv"] = SimpleNamespace(
                begin=tiles.begin,
                full_begin=late(tiles.full_begin),
                full_end=late(max(min(tiles.full_end, tiles.end - self.followed), tiles.begin)),
                end=tiles.end,
            )
            self.names["n"] = tiles.end - 1
        self.works += 1

    def _holds(self, condition: str) -> bool:
        names = {
            "params": SimpleNamespace(work_tiles=len(self.program_work)),
            "consumer": self.consumer,
            "elected": True,
            "rows": SimpleNamespace(grown=True),
            "overshot": lambda rows: self.overshot,
        }
        condition = condition.replace("&&", " and ")
        condition = condition.replace("fa3gen::overshot<Element>", "overshot")
        return bool(eval(condition, {**names, **self.names}))

    def _statement(self, text: str) -> Iterator[Happening]:
        if text == "--n;":
            self.names["n"] -= 1
        if text == "break;":
            raise _LastWorkError
        for form, make in _FORMS:
            if match := re.search(form, text):
                yield make(match, self.names.get("n"))
                return


def role_text(kernel: str, role: str) -> str:
    """The body of a role's branch."""
    if role == "producer":
        start = kernel.index("if (threadIdx.x == 0) {", kernel.index("// TMA warpgroup"))
        return kernel[kernel.index("{", start) + 1 :]
    start = kernel.index("auto const first_row")
    if "auto const kept" in kernel:
        start = kernel.index("auto const kept")
    return kernel[kernel.index("};", start) + 2 :]


@pytest.mark.parametrize("name", [*SHIPPED, *KNOBS])
def test_the_text_does_what_the_program_says(name: str) -> None:
    schedule = schedule_of(name)
    program = lower(schedule)
    kernel = render((schedule,)).kernels[0].text
    right = schedule.bounds.masks_right
    structs = tuple(re.findall(r"^struct (Score|Mask) ", kernel, re.MULTILINE))
    assert ("Score" in structs) == (not program.score.plain)
    for tiles in range(8):
        full_end = max(tiles - (2 if right else 1), 0)
        shape = TileRange(0, min(1, full_end), full_end, tiles)
        if not schedule.bounds.masks_left:
            shape = TileRange(0, 0, full_end, tiles)
        work = [
            shape.at_least(program.peeled),
            TileRange(0, 0, 0, 0),
            shape.at_least(program.peeled),
        ]
        for role in program.roles:
            for instance in range(role.instances):
                overshot = instance == 0
                walk = Walk(work, program.peeled, program.lag, instance, overshot, program.followed)
                said = list(walk.run(parsed(role_text(kernel, role.name))))
                events = flatten(program, role, instance, work)
                happenings = [h for h in (meant(event, work) for event in events) if h is not None]
                wanted = [
                    part
                    for happening in happenings
                    for part in spelled(happening, overshot, structs, program.bias is not None)
                ]
                assert said == wanted, (name, tiles, role.name, instance)
