"""Stored answers of the solver, so that the shipped kernels, and most others, never wait for it.

``solutions.json`` maps a problem's key (``Step.key``) to its answer; ``solutions`` writes it. A
problem that is not stored is solved on the spot, which takes less than a second. Without OR-tools
it is left open: the answer of another problem is no guess at it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

from fa3gen.schedule.modulo import ModuloSchedule, Origin
from fa3gen.schedule.step import Step

__all__ = ["SOLUTIONS", "answer", "stored", "stored_keys"]

SOLUTIONS = Path(__file__).with_name("solutions.json")


def answer(step: Step) -> tuple[ModuloSchedule | None, Origin]:
    """The solved loop of a problem and where it is from; None if it can be had nowhere."""
    found = stored(step)
    if found is not None:
        return found, Origin.STORED
    if importlib.util.find_spec("ortools") is None:
        return None, Origin.UNSOLVED
    return _solved(step), Origin.SOLVED


def stored(step: Step) -> ModuloSchedule | None:
    """The stored answer of a problem, if there is one."""
    fields = _records().get(step.key())
    return None if fields is None else ModuloSchedule.from_fields(fields)


@functools.lru_cache(maxsize=256)
def _solved(step: Step) -> ModuloSchedule:
    from fa3gen.schedule.solve import solve

    return solve(step)


@functools.cache
def _records() -> dict[str, Any]:
    """The file's answers by key; none before it is first written."""
    records: dict[str, Any] = json.loads(SOLUTIONS.read_text()) if SOLUTIONS.exists() else {}
    return records


def stored_keys() -> frozenset[str]:
    """The keys of the problems that are stored."""
    return frozenset(_records())
