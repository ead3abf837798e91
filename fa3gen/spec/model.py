"""AttentionSpec: what the user asked for, checked, frozen and hashable, with a canonical form."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from fa3gen.dtypes import DType
from fa3gen.errors import SpecError
from fa3gen.inputs import MAX_INPUTS, InputMeta
from fa3gen.spec.rules import (
    check_input_name,
    check_name,
    check_string_keys,
    one_line,
    shortened,
    spec_error,
)

__all__ = [
    "AttentionSpec",
    "HeadDim",
    "InputSpec",
    "InputTable",
    "Maxima",
    "OStaging",
    "POperand",
    "Persistent",
    "ScheduleKnobs",
    "TileKnob",
]

_DIMENSIONS = ("b", "h", "hk", "row", "k")
_MAX_RANK = 4


class _Record(BaseModel):
    """A part of a spec: frozen, without unknown keys, raising SpecError."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, /, **data: Any) -> None:
        try:
            check_string_keys(data)
            super().__init__(**data)
        except ValidationError as error:
            raise spec_error(error, type(self)) from None


_Integer = Annotated[int, Field(strict=True)]
_HeadSize = Annotated[_Integer, Field(ge=8, le=256, multiple_of=8)]


class HeadDim(_Record):
    """Elements of a head: of queries and keys, and of values."""

    qk: _HeadSize
    """the head dimension of q and k: a multiple of 8 from 8 to 256"""
    v: _HeadSize
    """the head dimension of v and the output: a multiple of 8 from 8 to 256"""


class TileKnob(_Record):
    """Sizes of a work tile: query rows and keys."""

    m: Annotated[_Integer, Field(ge=64, le=192, multiple_of=64)] | None = None
    """query rows: 64 a consumer warpgroup, so 64, 128 or 192"""
    n: Annotated[_Integer, Field(ge=16, le=256, multiple_of=16)] | None = None
    """keys: a multiple of 16 from 16 to 256"""


class POperand(enum.Enum):
    """Where the second GEMM reads P from."""

    REGISTERS = "registers"
    SHARED = "shared"


class OStaging(enum.Enum):
    """Where O lies in shared memory on its way out: in bytes of its own, or over a buffer that the
    work tile has read."""

    APART = "apart"
    OVER_Q = "over_q"
    OVER_V = "over_v"


class Maxima(enum.Enum):
    """How the softmax follows its row maxima: in each step; only where exponents grow large; or
    found wanting by the sums of exponentials that were taken without the tile's own maxima."""

    EXACT = "exact"
    LAZY = "lazy"
    SPECULATIVE = "speculative"


class Persistent(enum.Enum):
    """How work tiles reach CTAs: one CTA a tile, a fixed stride, or a queue."""

    NONE = "false"
    STATIC = "static"
    DYNAMIC = "dynamic"


def _persistent(value: object) -> object:
    return "false" if value is False else value


class ScheduleKnobs(_Record):
    """Choices the user makes for the scheduler; None leaves the choice to it."""

    tile: TileKnob | None = None
    """the tile's sizes, like {m: 128, n: 176}"""
    warpgroups: Annotated[_Integer, Field(ge=1, le=3)] | None = None
    """the number of consumer warpgroups, 1 to 3"""
    pipeline_depth: Annotated[_Integer, Field(ge=1, le=4)] | None = None
    """the number of buffers of K and, separately, of V: 1 to 4"""
    overlap: Annotated[_Integer, Field(ge=1, le=3)] | None = None
    """1: a tile's GEMMs and softmax in sequence, 2: PV under softmax, 3: QK and PV under softmax"""
    pingpong: StrictBool | None = None
    """true to order the softmax of one warpgroup against the GEMMs of the others"""
    p_operand: POperand | None = None
    """registers or shared"""
    persistent: (
        Annotated[
            Persistent,
            BeforeValidator(_persistent),
            WithJsonSchema({"enum": [False, "static", "dynamic"]}),
        ]
        | None
    ) = None
    """false, static or dynamic"""
    warp_specialized: StrictBool | None = None
    """false for no producer warpgroup"""
    o_staging: OStaging | None = None
    """apart, over_q or over_v: where O is staged for its store"""
    ctas_per_sm: Annotated[_Integer, Field(ge=1, le=2)] | None = None
    """the number of CTAs that share an SM, 1 or 2"""
    maxima: Maxima | None = None
    """exact, lazy or speculative: a row's maximum, by which O is scaled, is raised in each step; or
    only where powers of two would grow large, which is seen before they are taken, or after"""

    @model_validator(mode="after")
    def _warpgroups_agree(self) -> ScheduleKnobs:
        tile_m = self.tile.m if self.tile else None
        if tile_m and self.warpgroups and tile_m != 64 * self.warpgroups:
            raise SpecError(
                f"the tile has 64 rows a warpgroup, {64 * self.warpgroups} here",
                key="tile.m",
                value=tile_m,
                remedy=f"write {64 * self.warpgroups}, or leave out one of tile.m and warpgroups",
            )
        if self.pingpong and self.consumer_warpgroups == 1:
            raise SpecError(
                "ping-pong needs at least 2 consumer warpgroups",
                key="pingpong",
                value=True,
                remedy="write warpgroups: 2, or pingpong: false",
            )
        return self

    @property
    def consumer_warpgroups(self) -> int | None:
        """``warpgroups``, or what ``tile.m`` implies; None where neither is given."""
        if self.warpgroups or not (self.tile and self.tile.m):
            return self.warpgroups
        return self.tile.m // 64


def _check_dimension(value: object) -> object:
    sized = type(value) is int and 1 <= value < 2**31
    if not (sized or (isinstance(value, str) and value in _DIMENSIONS)):
        remedy = "per-query data has row, per-key data k, a fixed size is an integer"
        rule = f"a dimension is one of {', '.join(_DIMENSIONS)} or a positive integer"
        raise SpecError(rule, value=value, remedy=remedy)
    return value


_Dimension = Annotated[
    str | int,
    BeforeValidator(_check_dimension),
    WithJsonSchema({"anyOf": [{"enum": list(_DIMENSIONS)}, {"type": "integer", "minimum": 1}]}),
]


class InputSpec(_Record):
    """A tensor or scalar that formulas name, passed to the op as a keyword argument."""

    shape: Annotated[tuple[_Dimension, ...], Field(max_length=_MAX_RANK)] = ()
    """a list of b, h, hk, row, k and integers; left out for a scalar"""
    dtype: DType
    """fp32, bf16, fp16 or int32"""
    example: Literal["normal", "uniform", "segments"] | None = None
    """how checks draw it: normal, uniform or segments (of document ids)"""
    size: Annotated[_Integer, Field(ge=1, lt=2**31)] | None = None
    """what checks pass to the example: its spread, or the length of a segment"""

    @model_validator(mode="after")
    def _elements(self) -> InputSpec:
        if self.dtype is DType.E4M3:
            raise SpecError("inputs are fp32, bf16, fp16 or int32", key="dtype", value="e4m3")
        if self.example == "segments" and self.dtype is not DType.INT32:
            raise SpecError("segments are int32", key="dtype", value=self.dtype.value)
        return self


class InputTable(Mapping[str, InputSpec]):
    """The declared inputs, immutable, sorted by name."""

    def __init__(self, inputs: Mapping[str, InputSpec]) -> None:
        self._items = tuple(sorted(inputs.items()))

    def __getitem__(self, name: str) -> InputSpec:
        return dict(self._items)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return repr(dict(self._items))


def _input_table(inputs: Mapping[str, InputSpec]) -> InputTable:
    if len(inputs) > MAX_INPUTS:
        raise SpecError(f"there are at most {MAX_INPUTS} inputs", value=len(inputs))
    for name in inputs:
        try:
            check_input_name(name)
        except SpecError as error:
            raise SpecError(
                error.rule, key=name[:64], value=error.value, remedy=error.remedy
            ) from None
    return InputTable(inputs)


def _both_sizes(value: object) -> object:
    if isinstance(value, HeadDim | Mapping):
        return value
    if type(value) is not int or value % 8 or not 8 <= value <= 256:
        raise SpecError(
            "a head dimension is a multiple of 8 from 8 to 256",
            value=shortened(value),
            remedy="write the next multiple of 8, or {qk: 192, v: 128}",
        )
    return {"qk": value, "v": value}


def _nothing_is_empty(value: object) -> object:
    """YAML reads a key with nothing behind it as null."""
    return {} if value is None else value


def _formula_text(value: object) -> object:
    """YAML reads ``true`` and ``0`` as what they are; a formula is text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        raise SpecError("a formula is text", value=shortened(value))
    return str(value) if isinstance(value, int | float) else value


_Formula = Annotated[str, BeforeValidator(_formula_text), AfterValidator(one_line)]
_SIZE_SCHEMA = {"type": "integer", "minimum": 8, "maximum": 256, "multipleOf": 8}
_HEAD_SCHEMA = {
    "type": "object",
    "properties": {"qk": _SIZE_SCHEMA, "v": _SIZE_SCHEMA},
    "required": ["qk", "v"],
    "additionalProperties": False,
}


class AttentionSpec(_Record):
    """An attention variant.

    ``AttentionSpec(head_dim=128, mask="causal")``: the keys are those of the YAML form. Raises
    SpecError with the key, rule, value and remedy.
    """

    name: str = ""
    """a C identifier of at most 64 characters; left out, it follows from the variant"""
    head_dim: Annotated[
        HeadDim,
        BeforeValidator(_both_sizes),
        WithJsonSchema({"anyOf": [_SIZE_SCHEMA, _HEAD_SCHEMA]}),
    ]
    """a multiple of 8 from 8 to 256, or {qk: 192, v: 128}"""
    dtype: Annotated[DType, WithJsonSchema({"enum": ["bf16", "fp16", "e4m3"]})] = DType.BF16
    """bf16, fp16 or e4m3: the type of q, k, v and the output"""
    score: _Formula = "score"
    """a formula in score, the indices and the inputs, like 50 * tanh(score / 50)"""
    mask: _Formula = "full"
    """a condition, true where a query sees a key, like causal or window(1023, 0)"""
    passes: tuple[Literal["forward", "backward"], ...] = ("forward",)
    """[forward] or [forward, backward]"""
    inputs: Annotated[
        Mapping[str, InputSpec],
        BeforeValidator(_nothing_is_empty),
        AfterValidator(_input_table),
        PlainSerializer(dict),
    ] = Field(default_factory=lambda: InputTable({}))
    """the inputs that formulas name, like {slopes: {shape: [h], dtype: fp32}}"""
    sink: str | None = None
    """the name of an input of shape [h]"""
    schedule: Annotated[ScheduleKnobs, BeforeValidator(_nothing_is_empty)] = ScheduleKnobs()
    """choices taken from the scheduler"""

    def __init__(self, /, **data: Any) -> None:
        super().__init__(**data)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: DType) -> DType:
        if dtype not in (DType.BF16, DType.FP16, DType.E4M3):
            raise SpecError("q, k and v are bf16, fp16 or e4m3", value=dtype.value)
        return dtype

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, passes: tuple[str, ...]) -> tuple[str, ...]:
        if "forward" not in passes or len(set(passes)) != len(passes):
            raise SpecError(
                "passes are forward, or forward and backward, once each",
                value=list(passes),
                remedy="write [forward] or [forward, backward]",
            )
        return tuple(sorted(passes, reverse=True))

    @model_validator(mode="after")
    def _check_formulas(self) -> AttentionSpec:
        """Parse both formulas now, so that a bad one is reported with its line."""
        self._check_sink()
        _ = self.mask_expr, self.score_expr
        if not self.name:
            from fa3gen.spec.canonical import derived_name

            self.__dict__["name"] = derived_name(self)
        return self

    def _check_sink(self) -> None:
        if self.sink is None:
            return
        declared = self.inputs.get(self.sink)
        if declared is None or declared.shape != ("h",) or declared.dtype is DType.INT32:
            raise SpecError(
                "the sink is a declared input of shape [h] and a floating-point type",
                key="sink",
                value=shortened(self.sink),
                remedy="write inputs: {sinks: {shape: [h], dtype: fp32}}, and sink: sinks",
            )

    @functools.cached_property
    def mask_expr(self) -> Any:
        """The mask as a sympy Boolean of ``formula``'s symbols; ``causal`` is ``Le(k, q)``."""
        from fa3gen.spec.formula import parse_mask

        return parse_mask(self.mask, self.inputs)

    @functools.cached_property
    def score_expr(self) -> Any:
        """The score formula as a sympy expression of ``formula``'s symbols."""
        from fa3gen.spec.formula import parse_score

        return parse_score(self.score, self.inputs)

    @property
    def input_metas(self) -> tuple[InputMeta, ...]:
        """The declared inputs in the order of the op's arguments."""
        from sympy.core.function import AppliedUndef

        mask = self.mask_expr
        named = {symbol.name for symbol in mask.free_symbols}
        named |= {table.func.__name__ for table in mask.atoms(AppliedUndef)}
        return tuple(
            InputMeta(name, one.dtype, one.shape, name in named)
            for name, one in self.inputs.items()
        )

    def canonical(self) -> str:
        """JSON with sorted keys and defaults filled in: the same for all spellings of a variant."""
        from fa3gen.spec.canonical import canonical_text

        record = self.model_dump(mode="json")
        record["mask"] = canonical_text(self.mask_expr)
        record["score"] = canonical_text(self.score_expr)
        record["schedule"] = self._canonical_schedule()
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    def _canonical_schedule(self) -> dict[str, Any]:
        """The knobs that are set, and those that follow from them."""
        knobs = self.schedule.model_dump(mode="json", exclude_none=True)
        tile = knobs.pop("tile", {})
        if warpgroups := self.schedule.consumer_warpgroups:
            knobs["warpgroups"], tile["m"] = warpgroups, 64 * warpgroups
        return {**knobs, "tile": tile} if tile else knobs

    def digest(self) -> str:
        """sha256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> AttentionSpec:
        """The spec with other values, checked like a new one; a derived name is derived anew."""
        given = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        return AttentionSpec(**{**given, **(update or {})})

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of a spec's YAML form."""
        return cls.model_json_schema()
