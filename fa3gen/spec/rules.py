"""Names that a spec may use, and pydantic's complaints in the words of SpecError."""

from __future__ import annotations

import difflib
import keyword
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from fa3gen.errors import SpecError

__all__ = [
    "check_input_name",
    "check_name",
    "check_string_keys",
    "one_line",
    "shortened",
    "spec_error",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CPP_KEYWORDS = _words(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
    return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile
    wchar_t while xor xor_eq
    """
)
_FORMULA_WORDS = _words(
    """
    row q k b h hk score seqlen_q seqlen_k inf tanh exp log abs min max where sqrt sigmoid floor
    and or not true false full causal window chunk prefix document
    """
)
_CALL_WORDS = _words(
    "v o out lse scale return_lse self plan like batch heads heads_k"
)  # arguments of the op
_INCLUDE_GUARD = re.compile(r"[A-Z0-9_]+_(H|HH|HPP|CUH|INL)")  # CU_COMPLEX_H_ is CUDA's


def check_name(name: str) -> str:
    """A spec's name: it becomes a C++ identifier, a file name and part of a torch op's name."""
    return _identifier(name, _CPP_KEYWORDS, "a C++ keyword")


def check_input_name(name: str) -> str:
    """An input's name: it becomes a keyword argument, a name in formulas and a C++ identifier."""
    _identifier(name, _FORMULA_WORDS, "a word of the formula language")
    _identifier(name, _CALL_WORDS, "an argument of every attention op")
    if _INCLUDE_GUARD.fullmatch(name):
        raise SpecError(
            "the name, with an underscore behind it, may be the include guard of a C++ header",
            value=name,
            remedy="write it in small letters",
        )
    return _identifier(name, _CPP_KEYWORDS | set(keyword.kwlist), "a C++ or Python keyword")


def _identifier(name: str, reserved: frozenset[str] | set[str], why: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name) or "__" in name:
        raise SpecError(
            "a name is a letter and up to 63 letters, digits and single underscores",
            value=shortened(name),
            remedy="write it like causal_d128",
        )
    if name in reserved:
        raise SpecError(f"the name is {why}", value=name, remedy=f"write {name}_ or another name")
    return name


def one_line(text: str) -> str:
    """A formula's text as it may stand in a comment, its columns where they were."""
    return re.sub(r"\s", " ", text, flags=re.ASCII).strip(" ")


def check_string_keys(value: object) -> None:
    """Refuse mappings with keys that are not text, at any depth."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    raise SpecError("keys are text", value=shortened(key))
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item


def spec_error(error: ValidationError, model: type[BaseModel]) -> SpecError:
    """The most telling of a ValidationError's complaints: an unknown key, else the first."""
    found = error.errors(include_url=False)
    unknown = [entry for entry in found if entry["type"] == "extra_forbidden"]
    entry: Any = (unknown or found)[0]
    key = ".".join(str(part) for part in entry["loc"])
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        inner = ".".join(part for part in (key, cause.key) if part)
        return SpecError(cause.rule, key=inner or None, value=cause.value, remedy=cause.remedy)
    if unknown:
        return _unknown_key(key, sorted(model.model_fields))
    if entry["type"] == "missing":
        return SpecError("this key is required", key=key, remedy=_remedy(model, entry["loc"]))
    rule = str(entry["msg"]).replace("Input should", "it should", 1)
    rule = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", rule)
    rule = rule.replace("a valid tuple", "a list").replace("a valid string", "text")
    return SpecError(
        rule, key=key, value=shortened(entry["input"]), remedy=_remedy(model, entry["loc"])
    )


def _unknown_key(key: str, known: list[str]) -> SpecError:
    close = difflib.get_close_matches(key, known, 1)
    remedy = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
    return SpecError("unknown key", key=shortened(key), remedy=remedy)


def _remedy(model: type[BaseModel], place: tuple[object, ...]) -> str | None:
    """The description of the field at fault."""
    field = model.model_fields.get(str(place[0])) if place else None
    return f"it is {field.description}" if field and field.description else None


def shortened(value: Any) -> Any:
    """The value, or where it is long its beginning."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, bool | int | float | None):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
