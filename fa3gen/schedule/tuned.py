"""Tables of what ``fa3gen tune`` measured: for a problem class and GPU, kernels by length class.

A problem class is the head dims in whole blocks of the products, the bytes of an element and the
mask. An entry lists knobs in the order in which a call tries them, each with the most keys of a
call that it is for. The table that ships with the package is ``tuned.json``.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa3gen.errors import InputError
from fa3gen.ir.score import score_form
from fa3gen.schedule.needs import product_dim
from fa3gen.spec import AttentionSpec
from fa3gen.spec.canonical import canonical_text
from fa3gen.spec.model import ScheduleKnobs

__all__ = ["SHIPPED", "Entry", "TunedKernel", "find", "gpu_class", "read", "write"]

SHIPPED = Path(__file__).with_name("tuned.json")
_DEFAULT_GPU = "H200"  # whose entries serve where the GPU is not known, or has none
_FORMAT = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TunedKernel:
    """Knobs of a kernel, and the most keys of a call that it is for; None: any number."""

    max_keys: int | None
    knobs: ScheduleKnobs


@dataclass(frozen=True)
class Entry:
    """What was found for a problem class on a GPU; ``measured`` says how it was."""

    head_dim: tuple[int, int]  # of q and k, of v
    element_bytes: int
    mask: str  # canonical
    gpu: str
    kernels: tuple[TunedKernel, ...]
    measured: Mapping[str, Any]

    @staticmethod
    def of(
        spec: AttentionSpec,
        gpu: str,
        kernels: Sequence[TunedKernel],
        measured: Mapping[str, Any],
    ) -> Entry:
        """The entry of a spec's problem class."""
        return Entry(*_problem(spec), gpu, tuple(kernels), measured)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the other entries."""
        return (self.head_dim, self.element_bytes, self.mask, self.gpu)


def find(
    spec: AttentionSpec, gpu: str | None = None, tables: Iterable[Path] = (SHIPPED,)
) -> tuple[TunedKernel, ...]:
    """The kernels of a spec's problem class in the first table that has it; none if none has.

    ``gpu`` is a device name as CUDA gives it.
    """
    if not score_form(spec.score_expr).plain:
        return ()  # nothing was measured with a formula
    problem = _problem(spec)
    gpus = dict.fromkeys((gpu_class(gpu or _DEFAULT_GPU), _DEFAULT_GPU))
    for table in tables:
        entries = {entry.key: entry for entry in read(table)}
        for name in gpus:
            if found := entries.get((*problem, name)):
                return found.kernels
    return ()


def gpu_class(name: str) -> str:
    """GPUs that share entries: the model's name, as H200 of ``NVIDIA H200``."""
    model = re.search(r"\b[A-Z]{1,2}\d{2,4}\b", name)
    return model[0] if model else name


def read(table: Path) -> tuple[Entry, ...]:
    """The entries of a table; none if there is no such file, or only one of an earlier fa3gen,
    whose knobs and measurements are not of these kernels. Raises InputError for another file."""
    try:
        text = table.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return _parsed(text, table)


def write(table: Path, entries: Iterable[Entry]) -> None:
    """Write a table, whole or not at all; each problem class and GPU once, in order."""
    ordered = sorted({entry.key: entry for entry in entries}.values(), key=lambda e: repr(e.key))
    record = {"format": _FORMAT, "entries": [_plain(entry) for entry in ordered]}
    temporary = table.with_name(f"{table.name}.part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(table)


@functools.lru_cache(maxsize=8)
def _parsed(text: str, table: Path) -> tuple[Entry, ...]:
    try:
        record = json.loads(text)
        if record["format"] in range(1, _FORMAT):
            _log.warning("%s is of an earlier fa3gen and not used; tune again", table)
            return ()
        if record["format"] != _FORMAT:
            raise ValueError(f"format must be {_FORMAT} (got {record['format']!r})")
        return tuple(_entry(entry) for entry in record["entries"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{table}: no table of tuned kernels ({error})") from error


def _problem(spec: AttentionSpec) -> tuple[tuple[int, int], int, str]:
    dims = (product_dim(spec.head_dim.qk), product_dim(spec.head_dim.v))
    return dims, spec.dtype.bytes, canonical_text(spec.mask_expr)


def _plain(entry: Entry) -> dict[str, Any]:
    kernels = [
        {
            "max_keys": kernel.max_keys,
            "schedule": kernel.knobs.model_dump(mode="json", exclude_none=True),
        }
        for kernel in entry.kernels
    ]
    return {
        "head_dim": list(entry.head_dim),
        "element_bytes": entry.element_bytes,
        "mask": entry.mask,
        "gpu": entry.gpu,
        "kernels": kernels,
        "measured": dict(entry.measured),
    }


def _entry(record: Mapping[str, Any]) -> Entry:
    kernels = tuple(
        TunedKernel(kernel["max_keys"], ScheduleKnobs(**kernel["schedule"]))
        for kernel in record["kernels"]
    )
    limits = [kernel.max_keys for kernel in kernels]
    bounded = [limit for limit in limits if limit is not None]
    if limits != [*sorted({*bounded}), None]:
        raise ValueError(f"max_keys must rise, and end with null (got {limits})")
    qk, v = record["head_dim"]
    return Entry(
        (qk, v),
        record["element_bytes"],
        record["mask"],
        record["gpu"],
        kernels,
        record["measured"],
    )
