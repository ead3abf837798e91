"""Targets: what the matrix judges, made into ops for the interpreter or into built kernels."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fa3gen.builds import build_many
from fa3gen.cases import Case
from fa3gen.driver import SpecLike, interpreted, plan_of
from fa3gen.errors import Fa3genError, UserError
from fa3gen.jit.index import package_fingerprint
from fa3gen.matrix.calls import few_calls, tiles_of
from fa3gen.matrix.covering import Row
from fa3gen.matrix.points import Point
from fa3gen.matrix.run import Outcome, Subject, built_subject, refused, variant_of
from fa3gen.runtime.artifact import Artifact
from fa3gen.spec import AttentionSpec, load_spec

__all__ = ["Interpretable", "Target", "built", "interpretable"]


@dataclass(frozen=True)
class Target:
    """A point of the matrix, or a spec as the user named it."""

    key: str
    spec: SpecLike
    row: Row  # its choices, which the calls are to meet

    @staticmethod
    def of_point(point: Point) -> Target:
        """The point as a target."""
        return Target(point.key, point.spec(), point.chosen)

    @staticmethod
    def of_spec(name: str) -> Target:
        """A spec file or a shipped spec as a target."""
        return Target(name, name, {"spec": name})


@dataclass(frozen=True)
class Interpretable:
    """A target for the interpreter: its calls, and what makes its op, for that takes a second."""

    subject: Subject
    cases: tuple[Case, ...]
    op: Callable[[], Callable[..., Any]]


def interpretable(targets: Sequence[Target]) -> Iterator[Interpretable | Outcome]:
    """The targets with a few calls each, which all of them share out among themselves; in place of
    one that the scheduler refuses its outcome."""
    identity = package_fingerprint()
    planned = [_planned(target, identity) for target in targets]
    ready = [one for one in planned if not isinstance(one, Outcome)]
    rows = [(target.row, subject.tiles) for target, subject, _ in ready]
    calls = iter(few_calls(rows))
    for one in planned:
        if isinstance(one, Outcome):
            yield one
        else:
            _, subject, plan = one
            cases = next(calls)
            made = functools.partial(interpreted, plan)
            yield Interpretable(_identified(subject, cases), cases, made)


def _identified(subject: Subject, cases: Sequence[Case]) -> Subject:
    """The subject, told from itself with other calls: which it has depends on its neighbours."""
    names = hashlib.sha256(" ".join(case.name for case in cases).encode()).hexdigest()
    return replace(subject, identity=f"{subject.identity} {names[:16]}")


def built(
    targets: Sequence[Target],
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[tuple[Subject, Artifact] | Outcome]:
    """The targets built, ``jobs`` at a time, each as it is done; in place of one that cannot be
    built its outcome."""
    specs = [target.spec for target in targets]
    for place, result in build_many(specs, jobs=jobs, progress=progress):
        target = targets[place]
        if isinstance(result, Fa3genError):
            yield refused(target.key, result)
            continue
        try:
            asked = _asked(_loaded(target.spec))
            yield built_subject(target.key, asked, result), result
        except UserError as error:
            yield refused(target.key, error)


def _planned(target: Target, identity: str) -> tuple[Target, Subject, Any] | Outcome:
    try:
        spec = _loaded(target.spec)
        plan = plan_of(spec)
        subject = Subject(
            target.key,
            variant_of(_asked(spec), spec.input_metas),
            spec.dtype.torch_name,
            (spec.head_dim.qk, spec.head_dim.v),
            tiles_of((one.tiling.block_m, one.tiling.block_n, one.max_keys) for one in plan),
            identity,
        )
        return target, subject, plan
    except Fa3genError as error:
        return refused(target.key, error)


def _asked(spec: AttentionSpec) -> Mapping[str, Any]:
    return spec.model_dump(mode="json", include={"mask", "score", "sink", "inputs"})


def _loaded(spec: SpecLike) -> AttentionSpec:
    return spec if isinstance(spec, AttentionSpec) else load_spec(spec)
