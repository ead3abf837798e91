"""FlexAttention's callables (``torch.nn.attention.flex_attention``) as specs.

A callable runs once, on tensors without values. Each aten operation that depends on an argument
becomes a piece of a formula's text; what depends on captured tensors alone is computed at once.
The text is parsed and typed like any formula that a user writes.

Known are ``+ - * / // %``, powers with a constant exponent or base, ``abs neg minimum maximum clamp
relu floor ceil trunc exp exp2 log log2 sqrt rsqrt reciprocal tanh sigmoid``, comparisons, logical
(and, of booleans, bitwise) operations, shifts by constants, ``where``, ``masked_fill``,
conversions, and captured tensors with an index for each dimension.

Formulas are of real numbers: conversions to another floating-point type do not round. A computed
index is clamped to the table; a negative one does not count from the end, but for a constant.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import itertools
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fa3gen.dtypes import DType
from fa3gen.errors import SpecError, UnsupportedError, UserError
from fa3gen.flex_operations import (
    CONVERSIONS,
    FRESH,
    KNOWN,
    Piece,
    constant,
    kind_of_dtype,
    operation_piece,
    refused,
)
from fa3gen.spec import AttentionSpec, HeadDim, ScheduleKnobs
from fa3gen.spec.operations import MAX_INTEGER
from fa3gen.spec.rules import check_input_name
from fa3gen.spec.symbols import Kind

__all__ = ["FlexVariant", "from_flex"]

ScoreMod: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]
MaskMod: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Any]

_INDICES = ("b", "h", "row", "k")  # b, h, q_idx and kv_idx of FlexAttention
_INPUT_DTYPES: dict[torch.dtype, DType] = {
    getattr(torch, dtype.torch_name): dtype for dtype in DType if dtype is not DType.E4M3
}


@dataclass(frozen=True, eq=False)
class FlexVariant:
    """A spec, and the tensors that its callables captured, by the names of its inputs.

    ``op = fa3gen.compile(variant.spec)``, then ``op(q, k, v, **variant.inputs)``.
    """

    spec: AttentionSpec
    inputs: dict[str, Tensor]


def from_flex(
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    *,
    head_dim: int | Mapping[str, int] | HeadDim,
    dtype: str = "bf16",
    name: str = "",
    passes: Sequence[Literal["forward", "backward"]] = ("forward",),
    schedule: ScheduleKnobs | Mapping[str, Any] | None = None,
) -> FlexVariant:
    """The variant of FlexAttention's ``score_mod(score, b, h, q_idx, kv_idx)`` and
    ``mask_mod(b, h, q_idx, kv_idx)``::

        variant = fa3gen.from_flex(score_mod, mask_mod, head_dim=128)
        op = fa3gen.compile(variant.spec)
        out = op(q, k, v, **variant.inputs)

    ``q_idx`` is the spec's ``row``, ``kv_idx`` its ``k``. A captured tensor is an input, named like
    the variable or attribute that holds it (else ``input_0``); it is passed on as it is, but for
    booleans and other integers, which become int32, and other floating-point types, which become
    fp32. Its dimension is ``b``, ``h``, ``row`` or ``k`` where nothing but that index is applied to
    it (``k`` where both ``row`` and ``k`` are), and of its present size elsewhere. What a callable
    computes of captured tensors alone is such an input too, with the values that it has now.

    Raises:
        UnsupportedError: an operation, or what it is applied to, has no form in formulas.
        SpecError: an argument breaks a rule of specs.
    """
    tracer = _Tracer(_captured_names(score_mod, mask_mod))
    formulas = {
        "score": ast.Name("score") if score_mod is None else tracer.trace(score_mod, "score_mod"),
        "mask": ast.Name("full") if mask_mod is None else tracer.trace(mask_mod, "mask_mod"),
    }
    tensors = _used(formulas.values(), tracer.inputs)
    record: dict[str, Any] = {key: ast.unparse(tree) for key, tree in formulas.items()}
    record["inputs"] = {
        key: {"shape": _dimensions(key, tensor, formulas.values()), "dtype": _input_dtype(tensor)}
        for key, tensor in tensors.items()
    }
    record |= {"name": name} if name else {}
    record |= {"head_dim": head_dim, "dtype": dtype, "passes": passes, "schedule": schedule}
    try:
        spec = AttentionSpec(**record)
    except SpecError as error:
        if error.key and error.key.split(".")[0] in ("score", "mask", "inputs"):
            raise UnsupportedError(f"what was traced is not a formula of fa3gen: {error}") from None
        raise
    return FlexVariant(spec, {key: _converted(key, tensor) for key, tensor in tensors.items()})


# --- inputs ---------------------------------------------------------------------------------------


def _used(trees: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that formulas name, sorted."""
    nodes = itertools.chain.from_iterable(ast.walk(tree) for tree in trees)
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return {name: inputs[name] for name in sorted(names & set(inputs))}


def _dimensions(name: str, tensor: Tensor, trees: Any) -> list[str | int]:
    """The declared shape of an input, from how formulas index it."""
    applied: list[set[str]] = [set() for _ in tensor.shape]
    for node in itertools.chain.from_iterable(ast.walk(tree) for tree in trees):
        match node:
            case ast.Subscript(value=ast.Name(id=table), slice=index) if table == name:
                parts = index.elts if isinstance(index, ast.Tuple) else [index]
                for texts, part in zip(applied, parts, strict=True):
                    texts.add(ast.unparse(part))
    plain = [{"k"} if texts == {"row", "k"} else texts for texts in applied]
    return [
        texts.pop() if len(texts) == 1 and texts <= set(_INDICES) else int(size)
        for size, texts in zip(tensor.shape, plain, strict=True)
    ]


def _input_dtype(tensor: Tensor) -> str:
    """The declared type of what ``_converted`` gives."""
    other = DType.FP32 if tensor.dtype.is_floating_point else DType.INT32
    return _INPUT_DTYPES.get(tensor.dtype, other).value


def _converted(name: str, tensor: Tensor) -> Tensor:
    """The tensor as it is passed to the op: itself where its type is one of inputs."""
    if tensor.dtype in _INPUT_DTYPES:
        return tensor
    if tensor.dtype.is_floating_point:
        return tensor.to(torch.float32)
    if tensor.dtype.itemsize >= 4 and tensor.numel() and not isinstance(tensor, FakeTensor):
        least, most = int(tensor.min()), int(tensor.max())
        if not -MAX_INTEGER <= least <= most <= MAX_INTEGER:
            raise UnsupportedError(
                f"inputs are of 32 bits, and {name} holds integers from {least} to {most}; "
                "capture a tensor of smaller integers, or of float32"
            )
    return tensor.to(torch.int32)


def _captured_names(*callables: object) -> dict[Tensor, str]:
    """Names of the tensors in closures, globals, defaults and attributes, nearest first."""
    names: dict[Tensor, str] = {}
    pending: list[tuple[str, object, int]] = [("", item, 0) for item in callables]
    seen: set[int] = set()
    for name, item, depth in pending:  # which grows
        if isinstance(item, Tensor):
            names.setdefault(item, name)
        elif id(item) not in seen and depth < 6 and len(pending) < 100_000:
            seen.add(id(item))
            pending += [(key or name, part, depth + 1) for key, part in _parts(item)]
    return names


def _parts(item: object) -> Iterator[tuple[str, object]]:
    """What an object holds, with names where they have any."""
    match item:
        case types.FunctionType():
            code, found = item.__code__, item.__globals__
            for name, cell in zip(code.co_freevars, item.__closure__ or (), strict=True):
                with contextlib.suppress(ValueError):  # of a variable not assigned yet
                    yield name, cell.cell_contents
            parameters = code.co_varnames[: code.co_argcount]
            yield from zip(parameters[::-1], (item.__defaults__ or ())[::-1], strict=False)
            yield from (item.__kwdefaults__ or {}).items()
            yield from ((name, found[name]) for name in code.co_names if name in found)
        case types.MethodType():
            yield from (("", item.__self__), ("", item.__func__))
        case functools.partial():
            yield from (("", item.func), ("", item.args), ("", item.keywords))
        case list() | tuple():
            yield from (("", part) for part in item)
        case dict():
            yield from ((key, part) for key, part in item.items() if isinstance(key, str))
        case types.ModuleType() | type():
            return
        case _ if hasattr(item, "__dict__"):
            yield from vars(item).items()


# --- the trace ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A captured tensor with some of its dimensions indexed; None stands for the others."""

    table: str
    indices: tuple[str | None, ...]


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs callables and writes down what each tensor is that they make of their arguments.

    Tensors are known by identity. A tensor in none of the tables has been captured.
    """

    def __init__(self, names: Mapping[Tensor, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names  # of captured tensors, where known
        self.inputs: dict[str, Tensor] = {}  # captured tensors that were used
        self.pieces: dict[Tensor, Piece] = {}  # what depends on arguments
        self.views: dict[Tensor, _View] = {}  # the same with dimensions left
        self.constants: set[Tensor] = set()  # made by a callable of nothing

    def trace(self, function: Callable[..., Any], role: str) -> ast.expr:
        """The formula of a ``score_mod`` or ``mask_mod``."""
        arguments = [self._new(Piece(index, Kind.INTEGER), torch.int32) for index in _INDICES]
        if role == "score_mod":
            arguments.insert(0, self._new(Piece("score", Kind.REAL), torch.float32))
        try:
            with self, _Lookups(self):
                result = function(*arguments)
        except UserError:
            raise
        except Exception as error:
            message = f"{role} cannot be traced: {type(error).__name__}: {error}"
            raise UnsupportedError(message) from error
        made = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if made not in ((), "bool", "int", "float"):
            raise UnsupportedError(f"{role} returns one element, a 0-d tensor (got {made})")
        piece = self.piece(result)
        if role == "mask_mod" and piece.kind is not Kind.BOOLEAN:
            raise UnsupportedError("mask_mod returns a boolean (got a number); compare it with 0")
        try:
            text = piece.text if role == "mask_mod" else piece.number
            return ast.parse(text, mode="eval").body
        except (SyntaxError, RecursionError, MemoryError):
            raise UnsupportedError(f"{role} nests too deep for a formula") from None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UnsupportedError(f"aten.{name} draws random numbers, which formulas cannot")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fresh = func.namespace == "aten" and name in FRESH
        if fresh or not any(self._is_unknown(tensor, name) for tensor in tensors):
            result = func(*args, **kwargs)
            if fresh or self.constants.issuperset(tensors):
                self.constants.update(x for x in tree_leaves(result) if isinstance(x, Tensor))
            return result
        if func.namespace != "aten":
            raise UnsupportedError(f"{func} has no form in formulas; use operations of torch")
        if name == "index":
            return self.lookup(args[0], args[1])
        if name == "select":
            return self.lookup(args[0], [None] * (args[1] % args[0].dim()) + [args[2]])
        return self._computed(func, name, args, kwargs)

    def _is_unknown(self, tensor: Tensor, name: str) -> bool:
        """Whether a tensor's value is left to the kernel; a captured scalar's is but in item()."""
        if tensor.dim() == 0 and tensor not in self.constants and name != "_local_scalar_dense":
            return True
        return tensor in self.pieces or tensor in self.views

    def _computed(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A tensor that stands for the result of an operation on 0-d tensors and numbers."""
        if name not in KNOWN:
            raise refused(name)
        operands = args[:1] if name in CONVERSIONS else args
        pieces = [operand if operand is None else self.piece(operand) for operand in operands]
        dtype = _result_dtype(func, args, kwargs)
        options = {key: value for key, value in kwargs.items() if key == "rounding_mode"}
        if "alpha" in kwargs:
            options["alpha"] = self.piece(kwargs["alpha"]).number
        return self._new(operation_piece(name, dtype, pieces, options), dtype)

    def piece(self, value: Any) -> Piece:
        """What a 0-d tensor or a number is in a formula; a captured tensor becomes an input."""
        if not isinstance(value, Tensor):
            return constant(value)
        if value in self.pieces:
            return self.pieces[value]
        if value.dim():
            rule = "only elements of a captured tensor enter a formula"
            raise UnsupportedError(f"{rule}; index all dimensions of {tuple(value.shape)} first")
        if value in self.constants:
            return constant(value.item())
        return _element(self._name(value), value.dtype)

    def lookup(self, table: Tensor, indices: Sequence[Tensor | int | None]) -> Tensor:
        """``table[indices]``, where None leaves a dimension to further indices."""
        if table in self.pieces:
            raise UnsupportedError("only captured tensors are indexed, and this one is computed")
        view = self.views.get(table) or _View(self._name(table), (None,) * table.dim())
        source = self.inputs[view.table]
        texts = list(view.indices)
        left = [dimension for dimension, text in enumerate(texts) if text is None]
        if len(indices) > len(left):
            raise UnsupportedError(f"{view.table} takes {len(left)} indices, not {len(indices)}")
        for dimension, index in zip(left, indices, strict=False):
            if index is not None:
                texts[dimension] = self._index(index, source.shape[dimension])
        if None not in texts:
            text = f"{view.table}[{', '.join(text for text in texts if text)}]"
            return self._new(_element(text, table.dtype), table.dtype)
        shape = [size for size, text in zip(source.shape, texts, strict=True) if text is None]
        made = torch.zeros((), dtype=table.dtype, device="cpu").expand(shape)
        self.views[made] = _View(view.table, tuple(texts))
        return made

    def _index(self, index: Tensor | int, size: int) -> str:
        piece = self.piece(index)
        if piece.kind is not Kind.INTEGER:
            raise UnsupportedError(f"an index is an integer, and {piece.text} is not")
        if piece.value is not None and piece.value < 0:
            return str(int(piece.value) + size)
        return piece.text

    def _new(self, piece: Piece, dtype: torch.dtype) -> Tensor:
        """A tensor that stands for a piece."""
        made = torch.zeros((), dtype=dtype, device="cpu")
        self.pieces[made] = piece
        return made

    def _name(self, tensor: Tensor) -> str:
        """The input that a captured tensor is."""
        for name, known in self.inputs.items():
            if known is tensor:
                return name
        stem = _legal_stem(self.names.get(tensor, ""))
        numbered = (f"{(stem or 'input').rstrip('_')}_{number}" for number in itertools.count())
        names = itertools.chain([stem] if stem else [], numbered)
        name = next(name for name in names if name not in self.inputs)
        self.inputs[name] = tensor
        return name


class _Lookups(TorchFunctionMode):
    """Gives ``table[h, q_idx]`` to the tracer, where torch would ask for the indices' values."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            table, index = args
            indices = index if isinstance(index, tuple) else (index,)
            if any(isinstance(part, Tensor) and part in self.tracer.pieces for part in indices):
                return self.tracer.lookup(table, _positions(indices, table.dim()))
        return func(*args, **(kwargs or {}))


def _positions(indices: tuple[Any, ...], rank: int) -> list[Tensor | int | None]:
    """One index a dimension: None for ``:`` and what ``...`` stands for."""
    positions: list[Tensor | int | None] = []
    for index in indices:
        if index is Ellipsis:
            positions += [None] * (rank - len(indices) + 1)
        elif isinstance(index, Tensor | int):
            positions.append(index)
        elif index == slice(None):
            positions.append(None)
        else:
            raise UnsupportedError(f"tables are indexed by integers and `:`, not by {index!r}")
    return positions


def _element(text: str, dtype: torch.dtype) -> Piece:
    """An input's element; booleans are passed as int32."""
    kind = kind_of_dtype(dtype)
    return Piece(f"({text} != 0)" if kind is Kind.BOOLEAN else text, kind)


def _result_dtype(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
    """The type that torch gives to an operation's result, of one element."""

    def empty(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    placed = {key: "meta" if key == "device" else value for key, value in kwargs.items()}
    result: Tensor = func(*tree_map(empty, args), **tree_map(empty, placed))
    if result.dim():
        raise UnsupportedError(f"{func} makes more of one element, and formulas have no tensors")
    return result.dtype


def _legal_stem(name: str) -> str:
    """The name that an input may have, as close as can be to a variable's; or none."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name).lstrip("_0123456789")[:56].rstrip("_")
    for candidate in (word, f"{word}_"):
        try:
            return check_input_name(candidate)
        except SpecError:
            continue
    return ""
