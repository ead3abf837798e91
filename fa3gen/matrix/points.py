"""Point: a kernel of the matrix, by one value of each factor of a spec."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fa3gen.errors import InputError
from fa3gen.matrix.factors import SPEC

__all__ = ["Point", "parse_choices"]

_DEFAULTS = {factor: next(iter(values)) for factor, values in SPEC.items()}


@dataclass(frozen=True)
class Point:
    """One value of each factor, in the factors' order."""

    values: tuple[str, ...]

    @staticmethod
    def of(chosen: Mapping[str, str]) -> Point:
        """The point with these values, and defaults for the other factors."""
        return Point(tuple({**_DEFAULTS, **chosen}.values()))

    @staticmethod
    def parse(key: str) -> Point:
        """The point of a key. Raises InputError for unknown factors and values."""
        chosen = parse_choices([] if key == _PLAIN else key.split(","))
        if twice := [factor for factor, values in chosen.items() if len(values) > 1]:
            raise InputError(f"{twice[0]}: a point has one value of a factor")
        return Point.of({factor: values[0] for factor, values in chosen.items()})

    @property
    def chosen(self) -> dict[str, str]:
        """The values by factor."""
        return dict(zip(SPEC, self.values, strict=True))

    @property
    def key(self) -> str:
        """The values that are no defaults, as ``head_dim=64,mask=causal``."""
        chosen = (
            f"{factor}={value}"
            for factor, value in self.chosen.items()
            if value != _DEFAULTS[factor]
        )
        return ",".join(chosen) or _PLAIN

    @property
    def name(self) -> str:
        """An identifier that follows from the key."""
        return f"point_{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"

    def spec(self) -> dict[str, Any]:
        """The spec as a mapping; its name tells it from those of the other points."""
        made: dict[str, Any] = {"name": self.name}
        for factor, value in self.chosen.items():
            _merge(made, SPEC[factor][value])
        return made


_PLAIN = "plain"  # the key of all defaults


def parse_choices(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``FACTOR=VALUE`` texts as values by factor. Raises InputError for unknown ones."""
    chosen: dict[str, tuple[str, ...]] = {}
    for text in texts:
        factor, _, value = text.partition("=")
        if factor not in SPEC:
            raise InputError(f"{text!r}: no factor of that name; {_nearest(factor, SPEC)}")
        if value not in SPEC[factor]:
            hint = _nearest(value, SPEC[factor])
            raise InputError(f"{text!r}: {factor} has no such value; {hint}")
        chosen[factor] = (*chosen.get(factor, ()), value)
    return chosen


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def _merge(made: dict[str, Any], piece: Mapping[str, Any]) -> None:
    for key, value in piece.items():
        if isinstance(value, Mapping) and isinstance(made.get(key), dict):
            _merge(made[key], value)
        else:
            made[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return value
