"""Aten operations as pieces of formulas: what ``fa3gen.flex`` makes of a traced callable."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fa3gen.errors import UnsupportedError
from fa3gen.spec.operations import MAX_INTEGER
from fa3gen.spec.symbols import Kind

__all__ = [
    "CONVERSIONS",
    "FRESH",
    "KNOWN",
    "Piece",
    "constant",
    "kind_of_dtype",
    "operation_piece",
    "refused",
]

_MAX_TEXT = 20_000  # characters of a piece; a formula has far fewer, less parentheses


@dataclass(frozen=True)
class Piece:
    """The text of what a 0-d tensor holds, in parentheses where it is not a name or a call."""

    text: str
    kind: Kind  # integer also for a floating-point tensor of whole numbers
    value: bool | int | float | None = None  # of a constant

    @property
    def number(self) -> str:
        """The text as a number's: 1 for true, 0 for false."""
        if self.kind is not Kind.BOOLEAN:
            return self.text
        return f"where({self.text}, 1, 0)" if self.value is None else str(int(self.value))

    @property
    def condition(self) -> str:
        """The text as a condition's: true but for zero."""
        return self.text if self.kind is Kind.BOOLEAN else f"({self.text} != 0)"


def constant(value: object) -> Piece:
    if isinstance(value, bool):
        return Piece(str(value).lower(), Kind.BOOLEAN, value)
    if not isinstance(value, int | float) or math.isnan(value):
        raise UnsupportedError(f"formulas are of real numbers and -inf, and {value!r} is neither")
    kind = Kind.INTEGER if isinstance(value, int) else Kind.REAL
    if math.isinf(value):
        text = "inf"
    elif value == int(value) and abs(value) <= MAX_INTEGER:
        text = str(abs(int(value)))
    else:
        text = repr(abs(_shortest(value)))
    return Piece(text if value >= 0 else f"(-{text})", kind, value)


def _shortest(value: int | float) -> int | float:
    """Of a number from an fp32 tensor, the shortest decimal that rounds to it: 0.1 for 0.1."""
    if isinstance(value, int) or abs(value) > 3e38 or _fp32(value) != value:
        return value
    decimals = (float(f"{value:.{digits}g}") for digits in range(6, 18))
    return next(decimal for decimal in decimals if _fp32(decimal) == value)


def _fp32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


# --- operations -----------------------------------------------------------------------------------


def _plus(sign: str) -> Callable[..., str]:
    def text(x: str, y: str, alpha: str = "1") -> str:
        return f"({x} {sign} {y})" if alpha == "1" else f"({x} {sign} {alpha} * {y})"

    return text


def _divided(x: str, y: str, rounding_mode: str | None = None) -> str:
    match rounding_mode:
        case None:
            return f"({x} / {y})"
        case "floor":
            return f"({x} // {y})"
    return f"where({x} // {y} < 0, -(-{x} // {y}), {x} // {y})"


def _truncated(x: str) -> str:
    return f"where({x} < 0, -floor(-{x}), floor({x}))"


def _clamped(x: str, least: str | None = None, most: str | None = None) -> str:
    x = x if least is None else f"max({x}, {least})"
    return x if most is None else f"min({x}, {most})"


def _power(base: Piece, exponent: Piece) -> str:
    if exponent.value is not None:
        return f"({base.number} ** {exponent.number})"
    if base.value is not None and base.value > 0:
        return f"exp({exponent.number} * log({base.number}))"
    raise UnsupportedError("aten.pow has a constant exponent, or a constant base above 0, here")


def _shifted(sign: str) -> Callable[[Piece, Piece], str]:
    def text(x: Piece, bits: Piece) -> str:
        if isinstance(bits.value, int) and 0 <= bits.value <= 30:
            return f"({x.number} {sign} {1 << bits.value})"
        raise UnsupportedError("shifts are by a constant of 0 to 30 bits; use * and // for others")

    return text


def _chosen(condition: Piece, yes: Piece, no: Piece) -> str:
    booleans = yes.kind is no.kind is Kind.BOOLEAN
    branches = (yes.text, no.text) if booleans else (yes.number, no.number)
    return f"where({condition.condition}, {', '.join(branches)})"


def _joined(sign: str, neutral: bool) -> Callable[[Piece, Piece], str]:
    def text(x: Piece, y: Piece) -> str:
        parts = [part.condition for part in (x, y) if part.value is not neutral]
        return f"({f' {sign} '.join(parts)})" if parts else str(neutral).lower()

    return text


def _cast(x: Piece, dtype: torch.dtype) -> str:
    """As torch converts: towards zero to an integer."""
    if dtype is torch.bool:
        return x.condition
    exact = dtype.is_floating_point or x.kind is not Kind.REAL
    return x.number if exact else _truncated(x.text)


_CALLS = ("abs", "exp", "floor", "log", "sigmoid", "sqrt", "tanh")
_SIGNS = {"floor_divide": "//", "mul": "*", "remainder": "%"}
_RELATIONS = {"eq": "==", "ge": ">=", "gt": ">", "le": "<=", "lt": "<", "ne": "!="}

_OF_NUMBERS: dict[str, Callable[..., str]] = {
    **{name: f"{name}({{}})".format for name in _CALLS},
    **{name: f"({{}} {sign} {{}})".format for name, sign in (_SIGNS | _RELATIONS).items()},
    "add": _plus("+"),
    "ceil": "(-floor(-{}))".format,
    "clamp": _clamped,
    "clamp_max": "min({}, {})".format,
    "clamp_min": "max({}, {})".format,
    "div": _divided,
    "exp2": "exp({} * log(2))".format,
    "log2": "(log({}) / log(2))".format,
    "maximum": "max({}, {})".format,
    "minimum": "min({}, {})".format,
    "neg": "(-{})".format,
    "reciprocal": "(1 / {})".format,
    "relu": "max({}, 0)".format,
    "rsqrt": "(1 / sqrt({}))".format,
    "rsub": lambda x, y, alpha="1": _plus("-")(y, x, alpha),
    "sub": _plus("-"),
    "trunc": _truncated,
}
_OF_PIECES: dict[str, Callable[..., str]] = {
    "__lshift__": _shifted("*"),
    "__rshift__": _shifted("//"),
    "bitwise_left_shift": _shifted("*"),
    "bitwise_right_shift": _shifted("//"),
    "logical_and": _joined("&", True),
    "logical_not": lambda x: f"(~{x.condition})",
    "logical_or": _joined("|", False),
    "logical_xnor": lambda x, y: f"where({x.condition}, {y.condition}, ~{y.condition})",
    "logical_xor": lambda x, y: f"where({x.condition}, ~{y.condition}, {y.condition})",
    "masked_fill": lambda x, condition, value: _chosen(condition, value, x),
    "pow": _power,
    "where": _chosen,
}
_OF_BOOLEANS = {  # what an operation from booleans to a boolean is
    "add": "logical_or",
    "bitwise_and": "logical_and",
    "bitwise_not": "logical_not",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "eq": "logical_xnor",
    "maximum": "logical_or",
    "minimum": "logical_and",
    "mul": "logical_and",
    "ne": "logical_xor",
}
_NARROW = {torch.int8, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_WHOLE = {"ceil", "floor", "trunc"}
CONVERSIONS = {"_to_copy", "alias", "clone", "detach", "expand", "squeeze", "view"}
KNOWN = {*_OF_NUMBERS, *_OF_PIECES, *_OF_BOOLEANS, *CONVERSIONS}
FRESH = {  # made from shape and type alone
    *("empty_like", "full_like", "lift_fresh", "new_empty", "new_full", "new_ones", "new_zeros"),
    *("ones_like", "zeros_like"),
}
_REMEDIES = {
    **dict.fromkeys(("isfinite", "isinf", "isnan"), "compare with a number"),
    **dict.fromkeys(("bitwise_and", "bitwise_not", "bitwise_or"), "integers have // % and shifts"),
    **dict.fromkeys(("embedding", "gather", "index_select", "take"), "write table[h, q_idx]"),
    "bitwise_xor": "integers have // % and shifts, booleans !=",
    "fmod": "use torch.remainder, which has the divisor's sign",
    "round": "use torch.floor(x + 0.5)",
}


def refused(name: str) -> UnsupportedError:
    remedy = _REMEDIES.get(name, "write it with the operations that fa3gen.flex lists")
    if name == "_local_scalar_dense":
        return UnsupportedError(
            "aten._local_scalar_dense: the callable asks for the value of a tensor that has none "
            "yet, as `if`, `and`, min() and list indices do; write torch.where(condition, a, b), "
            "&, torch.minimum or a captured tensor"
        )
    if name.endswith("_") and not name.startswith("_"):
        remedy = f"write it out of place, like x = x.{name[:-1]}(...)"
    return UnsupportedError(f"aten.{name} has no form in formulas; {remedy}")


def operation_piece(
    name: str, dtype: torch.dtype, operands: Sequence[Any], options: Mapping[str, Any]
) -> Piece:
    """The piece of an aten operation, by its name and result's type; operands may be None."""
    kind, whole = kind_of_dtype(dtype), name in _WHOLE
    if {kind, *(x.kind for x in operands if x)} == {Kind.BOOLEAN}:
        name = _OF_BOOLEANS.get(name, name)
    if name in CONVERSIONS:
        text, whole = _cast(operands[0], dtype), operands[0].kind is Kind.INTEGER
    elif name in _OF_PIECES:
        text = _OF_PIECES[name](*operands)
    elif name in _OF_NUMBERS:
        text = _OF_NUMBERS[name](*(x and x.number for x in operands), **options)
    else:
        raise refused(name)
    if len(text) > _MAX_TEXT:
        rule = f"the formula grows beyond {_MAX_TEXT} characters"
        raise UnsupportedError(f"{rule}, as what is used twice is written twice; simplify it")
    if dtype in _NARROW:
        raise UnsupportedError(f"aten.{name} in {dtype} wraps around; convert to torch.int32 first")
    return Piece(text, Kind.INTEGER if whole and kind is Kind.REAL else kind)


def kind_of_dtype(dtype: torch.dtype) -> Kind:
    if dtype.is_complex:
        raise UnsupportedError(f"formulas are real, and {dtype} is not")
    if dtype is torch.bool:
        return Kind.BOOLEAN
    return Kind.REAL if dtype.is_floating_point else Kind.INTEGER
