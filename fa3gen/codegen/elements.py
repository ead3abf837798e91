"""Formulas and masks as C++ structs: what they keep of a work tile, and an element's value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from fa3gen.codegen.cpp import Names, print_cpp, print_cpp_condition, print_cpp_real
from fa3gen.dtypes import DType
from fa3gen.errors import RenderError
from fa3gen.inputs import InputMeta, by_key
from fa3gen.ir.far import FarForm
from fa3gen.ir.score import LOG2E, PRODUCT, SCALE, SCALE_LOG2
from fa3gen.ir.staging import OFFSET, Part, Rate, Staged, rate_of, stage_score
from fa3gen.spec import symbols

__all__ = [
    "ElementsView",
    "FarView",
    "FieldView",
    "KernelNames",
    "elements_view",
    "far_view",
    "runtime_name",
]

_TYPES = {
    DType.FP32: "float",
    DType.BF16: "__nv_bfloat16",
    DType.FP16: "__half",
    DType.INT32: "int",
}
_ATOMS = {
    PRODUCT.name: "product",
    SCALE.name: "params.scale",
    SCALE_LOG2.name: "params.scale_log2",
    LOG2E.name: "fa3gen::kLog2e",
    OFFSET.name: "offset",
}


@dataclass(frozen=True)
class FieldView:
    """A value that is kept: its C++ type, name and text."""

    type: str
    name: str
    text: str


@dataclass(frozen=True)
class FarLookupView:
    """A lookup that gives an end of its table beyond some indices."""

    name: str
    least: str
    most: str
    last: int
    first_end: str
    last_end: str


@dataclass(frozen=True)
class FarView:
    """The formula where its tables end, and what tells where that is."""

    elements: ElementsView
    lookups: tuple[FarLookupView, ...]


@dataclass(frozen=True)
class ElementsView:
    """A struct that computes elements of a tile of scores."""

    name: str
    comment: str
    work: tuple[FieldView, ...]
    row: tuple[FieldView, ...]
    base: tuple[FieldView, ...]
    column: tuple[FieldView, ...]
    pair: tuple[FieldView, ...]
    type: str  # of an element's value
    parameters: str  # before the position
    value: str
    heads: tuple[str, ...]  # of b, h and hk, what elements take
    biased: bool = False
    far: FarView | None = None  # the formula where its tables end
    ends: tuple[str, ...] = ()  # of tables, that such a formula is given
    slope: str = ""  # of a soft cap, an element's value being tanh(slope * product)


class KernelNames(Names):
    """The names inside a kernel: lengths are parameters, tables inputs, parts members; ``bounded``:
    integers that are looked up are clamped as ``fa3gen.schedule.integers`` takes them."""

    def __init__(
        self,
        inputs: Sequence[InputMeta] = (),
        staged: Staged | None = None,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.bounded = bounded
        self.offsets = staged is not None  # keys have an offset from a thread's first
        self.inputs = {meta.name: meta for meta in inputs}
        self.parts = {part.symbol.name: part for part in staged.parts} if staged else {}
        self.pairs = {part.expr for part in staged.of(Rate.PAIR)} if staged else set()
        self.base = staged.base.name if staged and staged.base is not None else ""

    def symbol(self, name: str) -> str:
        """A length, an index, an atom of scores, a scalar input or a part."""
        if name in _ATOMS:
            return _ATOMS[name]
        if name in self.parts:
            return self._part(self.parts[name])
        if name in self.inputs:
            meta = self.inputs[name]
            return self._bound(f"fa3gen::look_up<{_TYPES[meta.dtype]}>(params.inputs.{name}_)")
        return runtime_name(name.removeprefix("_"))

    def type_of(self, name: str) -> str:
        """The C++ type of an input's elements."""
        return _TYPES[self.inputs[name].dtype]

    def _part(self, part: Part) -> str:
        name = self.field(part)
        match part.rate:
            case Rate.ROW:
                return f"{name}[r]"
            case Rate.BASE:
                return f"base.{name}"
            case Rate.COLUMN:
                return f"column.{name}"
            case Rate.PAIR:
                return f"pair.{name}[i]"
        return name

    def field(self, part: Part) -> str:
        """A part's name in the struct that has it."""
        return "bias" if part.symbol.name == self.base else _spelled(part.symbol)

    def lookup(self, table: AppliedUndef, indices: list[str]) -> str:
        """An element of an input; indices that may leave it are clamped."""
        meta = self.inputs.get(table.func.__name__)
        if meta is None:
            raise RenderError(f"no input {table.func.__name__} for {table}")
        place = f"params.inputs.{meta.name}_"
        own_key = meta.shape[-1] == "k" and table.args[-1] == symbols.k
        clamped = [
            _clamped(index, text, axis, f"{place}.sizes[{dim}]")
            for dim, (index, text, axis) in enumerate(
                zip(table.args, indices, meta.shape, strict=True)
            )
        ]
        if own_key and self.offsets:
            along = ", ".join([place, "params.seqlen_k, k, offset", *clamped[:-1]])
            call = "look_up_pair" if table in self.pairs else "look_up_key"
            return f"fa3gen::{call}<{_TYPES[meta.dtype]}>({along})"
        call = "look_up" if meta.shape[-1] in _HEADS else "look_up_along"
        return self._bound(f"fa3gen::{call}<{_TYPES[meta.dtype]}>({', '.join([place, *clamped])})")

    def _bound(self, text: str) -> str:
        return f"fa3gen::bounded({text})" if self.bounded else text


def _spelled(symbol: Any) -> str:
    """A part's symbol without what sets it apart from inputs."""
    return str(symbol.name).removeprefix("_")


_HEADS = ("b", "h", "hk")  # indices that never leave a tensor


def _clamped(index: Any, text: str, axis: str | int, size: str) -> str:
    """An index as it may be used: inside the table, or clamped to it."""
    if axis in _HEADS and index == symbols.INDICES[str(axis)]:
        return text
    if isinstance(axis, int):
        if index.is_Integer:
            return str(min(max(int(index), 0), axis - 1))
        size = str(axis)
    if index.is_nonnegative:
        return f"fa3gen::at_most({text}, {size} - 1)"
    return f"fa3gen::inside({text}, {size})"


def runtime_name(symbol: str) -> str:
    """Lengths are kernel parameters; everything else is a local of the same name."""
    return f"params.{symbol}" if symbol in ("seqlen_q", "seqlen_k") else symbol


def elements_view(
    name: str,
    comment: str,
    staged: Staged,
    inputs: Sequence[InputMeta],
    *,
    keep: bool = False,
    bounded: bool = True,
) -> ElementsView:
    """The struct of a staged score formula, or (``keep``) mask, ``bounded`` by seqlen_k."""
    names = KernelNames(inputs, staged)

    def fields(rate: Rate) -> tuple[FieldView, ...]:
        return tuple(_field(part, names) for part in staged.of(rate))

    if keep:
        kind, parameters = "bool", ""
        value = _kept(staged.value, names) if bounded else print_cpp_condition(staged.value, names)
    else:
        kind, parameters = "float", "float product, "
        value = print_cpp_real(staged.value, names)
    biased = staged.base is not None
    if biased:
        bias = sympy.Add(staged.base, staged.bias)
        slope = print_cpp_real(staged.factor, names)
        value = f"fmaf({value}, {slope}, {print_cpp_real(bias, names)})"
    return ElementsView(
        name=name,
        comment=comment,
        work=fields(Rate.WORK),
        row=fields(Rate.ROW),
        base=fields(Rate.BASE),
        column=fields(Rate.COLUMN),
        pair=fields(Rate.PAIR),
        type=kind,
        parameters=parameters,
        value=value,
        heads=_heads(staged),
        biased=biased,
        slope="" if keep or biased else _slope(staged, names),
    )


def _slope(staged: Staged, names: Names) -> str:
    """The slope of a soft cap: what elements of Q K^T are multiplied by before tanh; nothing where
    the value is another."""
    value = staged.value
    if not isinstance(value, sympy.tanh):
        return ""
    slope = value.args[0] / PRODUCT
    fixed = rate_of(slope) is Rate.WORK and PRODUCT not in slope.free_symbols
    return print_cpp_real(slope, names) if fixed else ""


def _heads(staged: Staged) -> tuple[str, ...]:
    """The indices of heads and batches that are used after the work tile's start."""
    rates = (Rate.BASE, Rate.COLUMN, Rate.PAIR)
    late = [part.expr for part in staged.parts if part.rate in rates]
    late += [staged.value, staged.factor, staged.bias]
    free = set().union(*(expr.free_symbols for expr in late))
    return tuple(name for name in _HEADS if symbols.INDICES[name] in free)


def far_view(far: FarForm, inputs: Sequence[InputMeta]) -> FarView:
    """The struct of a formula where its tables end, and what tells where that is."""
    names = KernelNames(inputs)
    comment = "The score where every lookup gives an end of its table."
    staged = stage_score(far.form, by_key(inputs))
    elements = elements_view("FarScore", comment, staged, inputs)
    lookups = tuple(
        FarLookupView(
            name=_spelled(one.symbol),
            least=print_cpp(one.least, names),
            most=print_cpp(one.most, names),
            last=one.last,
            first_end=print_cpp_real(one.ends[0], names),
            last_end=print_cpp_real(one.ends[1], names),
        )
        for one in far.lookups
    )
    ends = tuple(one.name for one in lookups)
    return FarView(replace(elements, ends=ends, slope=""), lookups)


def _field(part: Part, names: KernelNames) -> FieldView:
    if part.symbol.is_integer:
        return FieldView("int", names.field(part), print_cpp(part.expr, names))
    return FieldView("float", names.field(part), print_cpp_real(part.expr, names))


def _kept(keep: sympy.Basic, names: Names) -> str:
    """The mask with the bound by seqlen_k first."""
    inside = sympy.Lt(symbols.k, symbols.seqlen_k)
    rest = sympy.And(*(part for part in sympy.And.make_args(keep) if part != inside))
    text = print_cpp(inside, names)
    if rest is sympy.true:
        return text
    more = print_cpp_condition(rest, names)
    return f"{text} && {more}"
