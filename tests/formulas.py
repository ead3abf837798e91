"""Formulas and masks with inputs: by hand and at random, and Python's own reading of their text.

What is drawn is well typed and of three kinds: integers; *exact* numbers, multiples of 1/16 that
fp32 holds in whatever order they are added, so that comparisons of them must agree; and other real
numbers. Every float of a drawn table is a multiple of 1/4, which bf16 holds too.
"""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fa3gen.dtypes import DType
from fa3gen.spec import AttentionSpec, InputSpec, symbols

INPUTS = {
    name: InputSpec(shape=shape, dtype=dtype)
    for name, shape, dtype in (
        ("alpha", (), "fp32"),
        ("bias", ("b", "h", "row", "k"), "bf16"),
        ("doc", ("b", "k"), "int32"),
        ("grid", (3, 4), "fp16"),
        ("key", ("k",), "fp32"),
        ("kvs", ("hk",), "fp16"),
        ("lengths", ("b",), "int32"),
        ("lut", (4,), "int32"),
        ("r0", (), "int32"),  # named like a part of a formula
        ("reach", (), "int32"),
        ("rel", ("h", 9), "bf16"),
        ("rows", ("h", "row"), "fp32"),
        ("slopes", ("h",), "fp32"),
        ("span", ("h",), "int32"),
        ("w0", (), "fp32"),
    )
}

SCALARS = {"alpha": 1.25, "reach": 2, "r0": 3, "w0": 0.75}

SCORES = [
    "score + slopes[h] * (k - q)",
    "score + slopes[h] * k",
    "score - (k - slopes[h]) / 4 + (k - q) * kvs[hk]",
    "score - slopes[h] * abs(q - k)",
    "score + rel[h, k - q + 4]",
    "score + rel[h, max(min(k - q, 4), -4) + 4]",
    "score + alpha * rel[h, k - q + 40] - rel[h, q - k + 60]",
    "score + rel[hk, 2 * k - q - 60] * key[k]",
    "score + bias[b, h, row, k]",
    "score + bias[b, h, row - k, k]",  # another row for each key: no pair
    "score + key[k]",
    "score + rows[h, row]",
    "score * log(q + 30)",
    "score * alpha",
    "score * kvs[hk] + alpha",
    "2 * alpha * score + 3 * (k - q) / 7",
    "5 * tanh(score / 5)",
    "5 * tanh(score / 5) + slopes[h] * (k - q)",
    "alpha * tanh(score / alpha)",
    "score + where(k > q - reach, slopes[h], -1)",
    "where(doc[b, q] == doc[b, k], score, -inf)",
    "where(k <= q, score, -inf) + key[k]",
    "score + key[lut[k % 4]]",
    "score + lut[doc[b, k]] * 0.5",
    "score + slopes[h] * doc[b, k] * (k - q)",
    "score + (k - q) ** 2 / 8",
    "score + slopes[h] * sqrt(abs(k - q))",
    "score * (1 + key[k] * rows[h, row])",
    "score * key[k] * rows[h, row] * alpha",
    "exp(score) * slopes[h] + k / 3",
    "score + k // 2 - q % 3 * alpha",
    "score + k * q * alpha",
    "score / (1 + key[k] ** 2)",
    "score + floor(k / 3 - q / 2) * slopes[h]",
    "-score",
    "3 * score",
    "score + alpha * (2 * k + 3 * row - 5)",
    "score + (seqlen_k - k) * slopes[h] / (q + 30)",
    "max(score, key[k], rows[h, row]) - min(k, q, 3) * alpha",
    "sigmoid(score + slopes[h]) * 3 + b - hk",
    "score + grid[k - 2, q - 1]",
    "score + where((k - q) % 2 == 0 and score > alpha, alpha, key[k])",
    "alpha + k * slopes[h]",
    "score + span[h] * (k - q)",
    "(score + key[k]) * rows[h, row] + kvs[hk]",
    "score + w0 * (k - q) - alpha",
    "score + lut[where(key[h] <= 0.25, h, 2)]",
    "where(score < where(k < q, key[k], 0.5), score, -inf)",
    "score * 2 ** h",  # an integer to sympy, and none to kernels
    "score + lut[floor(key[k] * 2) + 1] + grid[floor(alpha), q - 1]",
    "score + floor(score * 3) // 2",
]

MASKS = [
    "document(doc)",
    "causal & document(doc)",
    "causal | document(doc)",
    "not document(doc)",
    "k >= q - reach",
    "window(reach, 0)",
    "window(reach, reach) or k == 0",
    "k >= q - span[h]",
    "k < lengths[b]",
    "k < reach",
    "grid[k, q] > 0",
    "abs(q - k) <= span[h] and causal",
    "where(h < 2, causal, document(doc))",
    "k % 2 == lut[h] % 2",
    "key[k] > rows[h, row]",
    "key[k] + rows[h, row] > 0.5 or k == q",
    "(q - k) // 2 <= span[h]",
    "slopes[h] * (k - q) >= -1",
    "lut[doc[b, k]] != lut[doc[b, q]]",
    "causal and k % (reach + 1) == 0",
    "tanh(key[k]) < 0.5",
    "bias[b, h, row, k] > 0 and doc[b, k] < 3",
    "alpha * q < k",
    "k <= q and (q - k) % 3 == hk",
    "chunk(4) or k < span[h] * b",
    "k <= where(doc[b, q] < 3, k - h, q)",
    "k >= q - r0",
    "key[k] < where(k < q, 0.5, alpha)",
    "where(doc[b, q] < 3 and k < q, k // 2, q) > where(key[k] > 0, h, k)",
]


# --- one call -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call."""

    b: int = 2
    h: int = 4
    hk: int = 2
    row: int = 5
    k: int = 7

    def of(self, shape: tuple[str | int, ...]) -> tuple[int, ...]:
        """A declared shape in numbers."""
        return tuple(getattr(self, axis) if isinstance(axis, str) else axis for axis in shape)

    @property
    def all(self) -> tuple[int, int, int, int]:
        """Of the scores."""
        return self.b, self.h, self.row, self.k


def spec_of(**keys: Any) -> AttentionSpec:
    """A spec that declares the inputs."""
    return AttentionSpec(**{"head_dim": 64, "inputs": INPUTS, **keys})


def draw_inputs(sizes: Sizes, seed: int, single: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """A tensor for each input, by name; ``single``: those whose axes of a call have one element."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, declared in INPUTS.items():
        size = sizes.of(declared.shape)
        if name in single:
            size = tuple(
                1 if isinstance(axis, str) else n
                for axis, n in zip(declared.shape, size, strict=True)
            )
        dtype = getattr(torch, declared.dtype.torch_name)
        if declared.dtype is DType.INT32:
            found[name] = torch.randint(-1, 5, size, generator=generator, dtype=dtype)
        else:
            found[name] = (torch.randint(-8, 9, size, generator=generator) / 4).to(dtype)
    return found | {name: torch.tensor(x).to(found[name].dtype) for name, x in SCALARS.items()}


def draw_scores(sizes: Sizes, seed: int) -> Tensor:
    """Scores (b, h, row, k), multiples of 1/4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-12, 13, sizes.all, generator=generator) / 4


def positions(sizes: Sizes) -> dict[str, Tensor]:
    """The indices of formulas, which broadcast to (b, h, row, k), and the lengths."""
    b, h, row, k = (
        torch.arange(n).view([-1 if i == axis else 1 for i in range(4)])
        for axis, n in enumerate(sizes.all)
    )
    lengths = {"seqlen_q": torch.tensor(sizes.row), "seqlen_k": torch.tensor(sizes.k)}
    hk = h // (sizes.h // sizes.hk)
    return {"b": b, "h": h, "hk": hk, "row": row, "q": row + sizes.k - sizes.row, "k": k, **lengths}


def symbolic(sizes: Sizes, inputs: Mapping[str, Tensor]) -> dict[Any, Tensor]:
    """What ``fa3gen.schedule.interpret.evaluate`` takes: values by symbol, tables by name."""
    values: dict[Any, Tensor] = {
        symbols.INDICES[name]: value for name, value in positions(sizes).items()
    }
    for name, tensor in inputs.items():
        declared = INPUTS[name]
        key = name if declared.shape else symbols.scalar_input(name, declared.dtype)
        values[key] = tensor if declared.dtype is DType.INT32 else tensor.float()
    return values


# --- Python's own reading -------------------------------------------------------------------------


class Table:
    """An input as formulas index it: outside, what is nearest; zero if there is nothing."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, index: Any) -> Tensor:
        indices = index if isinstance(index, tuple) else (index,)
        if not self.tensor.numel():
            return self.tensor.new_zeros(())
        return self.tensor[
            tuple(
                torch.as_tensor(i).clamp(0, size - 1)
                for i, size in zip(indices, self.tensor.shape, strict=True)
            )
        ]


class _Elementwise(ast.NodeTransformer):
    """``and or not`` as ``& | ~``, which tensors have."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        values = map(self.visit, node.values)
        return functools.reduce(lambda left, right: ast.BinOp(left, operator, right), values)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operator = ast.Invert() if isinstance(node.op, ast.Not) else node.op
        return ast.UnaryOp(operator, self.visit(node.operand))


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64) if isinstance(x, float) else torch.as_tensor(x)


def _joined(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *parts: functools.reduce(function, map(_tensor, parts))


def direct(
    text: str, sizes: Sizes, inputs: Mapping[str, Tensor], scores: Tensor | None = None
) -> Tensor:
    """A formula's or a mask's values (b, h, row, k), as Python evaluates its text: in float64."""
    at = positions(sizes)
    q, k = at["q"], at["k"]
    tables = {
        name: tensor.double() if tensor.is_floating_point() else tensor.long()
        for name, tensor in inputs.items()
    }

    def window(left: Any, right: Any) -> Tensor:
        left, right = _tensor(left), _tensor(right)
        return ((left == -1) | (q - left <= k)) & ((right == -1) | (k <= q + right))

    names: dict[str, Any] = {
        **at,
        **{name: Table(t) if INPUTS[name].shape else t for name, t in tables.items()},
        "score": None if scores is None else scores.double(),
        "inf": torch.tensor(torch.inf, dtype=torch.float64),
        "abs": torch.abs,
        "exp": torch.exp,
        "floor": lambda x: torch.floor(x).long(),
        "log": torch.log,
        "sigmoid": torch.sigmoid,
        "sqrt": torch.sqrt,
        "tanh": torch.tanh,
        "max": _joined(torch.maximum),
        "min": _joined(torch.minimum),
        "where": lambda condition, yes, no: torch.where(condition, _tensor(yes), _tensor(no)),
        "causal": k <= q,
        "window": window,
        "document": lambda ids: ids[at["b"], q] == ids[at["b"], k],
        "chunk": lambda size: q // size == k // size,
    }
    tree = ast.fix_missing_locations(_Elementwise().visit(ast.parse(text, mode="eval")))
    value = eval(compile(tree, text, "eval"), names)
    return _tensor(value).expand(sizes.all)


# --- at random ------------------------------------------------------------------------------------

_POSITIONS = ("k", "q", "row", "h", "hk", "b", "(k - q)", "(q - k)")
_INTEGER_LOOKUPS = ("doc[b, {}]", "lut[{}]", "span[{}]", "lengths[b]", "doc[b, k]", "doc[b, q]")
_EXACT_LOOKUPS = (
    *("bias[b, h, row, {}]", "grid[{}, {}]", "key[{}]", "rel[h, {}]", "rows[h, {}]"),
    *("slopes[h]", "kvs[hk]", "key[k]", "rows[h, row]", "bias[b, h, row, k]", "rel[h, k - q + 4]"),
)


class Drawn:
    """Draws texts of formulas and masks; ``pick`` is any source of choices, hypothesis's too."""

    def __init__(self, pick: random.Random) -> None:
        self.pick = pick

    def score(self) -> str:
        """A formula of scores, which as a whole may mask."""
        text = self.pick.choice(
            (
                "score + {real}",
                "score * {real} + {real}",
                "{real}",
                "score * {real}",
                "tanh(score) * {real} + {exact} * (k - q)",
            )
        ).format(real=self.real(2), exact=self.exact(1))
        masks = self.pick.random() < 0.2
        return f"where({self.condition(1)}, {text}, -inf)" if masks else text

    def condition(self, depth: int) -> str:
        """A condition, with comparisons in parentheses."""
        kind = self.pick.randrange(6) if depth else self.pick.randrange(2)
        compare = self.pick.choice(("<", "<=", ">", ">=", "==", "!="))
        match kind:
            case 0:
                return f"({self.position()} {compare} {self.integer(depth)})"
            case 1:
                return f"({self._lookup(_EXACT_LOOKUPS, 0)} {compare} {self.exact(depth)})"
            case 2:
                return f"({self.condition(depth - 1)} & {self.condition(depth - 1)})"
            case 3:
                return f"({self.condition(depth - 1)} | {self.condition(depth - 1)})"
            case 4:
                return f"~{self.condition(depth - 1)}"
        named = ("causal", "document(doc)", "window(reach, 1)", "window(2, -1)", "chunk(3)")
        return self.pick.choice(named)

    def position(self) -> str:
        """A position, or what one looks up."""
        lookup = self.pick.random() < 0.3
        return self._lookup(_INTEGER_LOOKUPS, 0) if lookup else self.pick.choice(_POSITIONS)

    def integer(self, depth: int) -> str:
        """An integer."""
        kind = self.pick.randrange(9) if depth else self.pick.randrange(3)
        match kind:
            case 0:
                return str(self.pick.randrange(9))
            case 1 | 2:
                return self.pick.choice((*_POSITIONS, "reach", "seqlen_k"))
            case 3:
                return self._lookup(_INTEGER_LOOKUPS, depth - 1)
            case 4:
                divisor = self.pick.choice((2, 3, 4, -3))
                return f"({self.position()} {self.pick.choice(('//', '%'))} {divisor})"
            case 5:
                return f"abs({self.position()} - {self.integer(depth - 1)})"
            case 6:
                sides = f"{self.position()}, {self.integer(depth - 1)}"
                return f"{self.pick.choice(('min', 'max'))}({sides})"
            case 7:
                branches = f"{self.integer(depth - 1)}, {self.integer(depth - 1)}"
                return f"where({self.condition(depth - 1)}, {branches})"
        operator = self.pick.choice(("+", "-", "* 2 +"))
        return f"({self.integer(depth - 1)} {operator} {self.integer(depth - 1)})"

    def exact(self, depth: int) -> str:
        """A multiple of 1/16."""
        kind = self.pick.randrange(8) if depth else self.pick.randrange(3)
        match kind:
            case 0:
                return self.pick.choice(("0.25", "1.5", "-2", "alpha", "3"))
            case 1:
                return self._lookup(_EXACT_LOOKUPS, 0)
            case 2 | 3:
                return self.integer(depth)
            case 4:
                factor = self.pick.choice(("2", "alpha", "k", "(k - q)", "slopes[h]", "key[k]"))
                return f"({self._lookup(_EXACT_LOOKUPS, depth - 1)} * {factor})"
            case 5:
                sides = f"{self._lookup(_EXACT_LOOKUPS, 0)}, {self.exact(depth - 1)}"
                return f"{self.pick.choice(('min', 'max'))}({sides})"
            case 6:
                branches = f"{self.exact(depth - 1)}, {self.exact(depth - 1)}"
                return f"where({self.condition(depth - 1)}, {branches})"
        operator = self.pick.choice(("+", "-"))
        return f"({self.exact(depth - 1)} {operator} {self.exact(depth - 1)})"

    def real(self, depth: int) -> str:
        """A real number of moderate size."""
        kind = self.pick.randrange(10) if depth else 0
        match kind:
            case 0 | 1 | 2:
                return self.exact(depth)
            case 3:
                return f"tanh({self.real(depth - 1)} + {self._lookup(_EXACT_LOOKUPS, 0)})"
            case 4:
                return f"exp(min({self.real(depth - 1)}, score, 1.5))"
            case 5:
                return f"sqrt(abs(score - {self.real(depth - 1)}) + 1)"
            case 6:
                return f"log(abs({self.position()}) + 2)"
            case 7:
                return f"(score / {self.pick.choice(('3', '(k + 1)', '(key[k] ** 2 + 1)'))})"
            case 8:
                branches = f"{self.real(depth - 1)}, {self.real(depth - 1)}"
                return f"where({self.condition(depth - 1)}, {branches})"
        operator = self.pick.choice(("+", "-", "* 0.3 +"))
        return f"({self.real(depth - 1)} {operator} {self.real(depth - 1)})"

    def _lookup(self, forms: tuple[str, ...], depth: int) -> str:
        form = self.pick.choice(forms)
        return form.format(*(self.integer(depth) for _ in range(form.count("{}"))))
