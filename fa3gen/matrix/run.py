"""The calls of the matrix's kernels, judged one by one; needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fa3gen.cases import Case
from fa3gen.check import CheckResult, Variant, run_case
from fa3gen.errors import Fa3genError, PressureError, UserError
from fa3gen.inputs import InputMeta
from fa3gen.matrix.calls import Tile, tiles_of
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.examples import examples_of
from fa3gen.runtime.reference import reference_mask, reference_score

__all__ = [
    "Failure",
    "Outcome",
    "Report",
    "Subject",
    "built_subject",
    "judge",
    "outcome_from_json",
    "refused",
    "variant_of",
]

Report = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A kernel to judge.

    ``key`` names it in the report: a point's key, or a spec as the user gave it. ``identity`` is of
    what runs, so that an outcome is kept only for the same: a library's SHA-256, or one of fa3gen.
    """

    key: str
    variant: Variant
    dtype: str  # torch's name
    head_dims: tuple[int, int]
    tiles: tuple[Tile, ...]
    identity: str
    registers: tuple[int, ...] = ()  # of a thread at entry, of each built kernel


@dataclass(frozen=True)
class Failure:
    """A call that broke a rule."""

    call: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a kernel.

    ``refusal``: why there is none, by fa3gen's error; ``fault``: whether that is a fault of
    fa3gen's. ``worst``: the largest error over its limit, of all calls, and ``worst_call`` whose.
    """

    key: str
    identity: str = ""
    calls: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    refusal: str = ""
    fault: bool = False
    worst: float = 0.0
    worst_call: str = ""
    registers: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """Judged, and every call is right."""
        return not self.refusal and not self.failures

    def __str__(self) -> str:
        if self.refusal:
            return f"{self.key}: {self.refusal.splitlines()[0]}"
        wrong = f"{len(self.failures)} WRONG of " if self.failures else ""
        worst = f", at most {self.worst:.2f} of the limit" if self.worst_call else ""
        return f"{self.key}: {wrong}{self.calls} calls{worst}, {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def with_result(self, result: CheckResult) -> Outcome:
        """The outcome after one call more."""
        problems = result.problems
        failed = (Failure(result.case.name, problems),) if problems else ()
        share = _share(result)
        worse = share > self.worst
        return replace(
            self,
            calls=self.calls + 1,
            failures=(*self.failures, *failed),
            worst=share if worse else self.worst,
            worst_call=result.case.name if worse else self.worst_call,
        )


def refused(key: str, error: Fa3genError) -> Outcome:
    """The outcome of what has no kernel."""
    fault = not isinstance(error, UserError | PressureError)
    return Outcome(key, refusal=f"{type(error).__name__}: {error}", fault=fault)


def outcome_from_json(values: Mapping[str, Any]) -> Outcome:
    """What ``to_json`` gave. Raises TypeError or KeyError for anything else."""
    failures = (Failure(one["call"], tuple(one["problems"])) for one in values["failures"])
    registers = tuple(values["registers"])
    return Outcome(**{**values, "failures": tuple(failures), "registers": registers})


def built_subject(key: str, spec: Mapping[str, Any], artifact: Artifact) -> Subject:
    """A built kernel, and what its spec, as a mapping, asks for.

    Raises what ``variant_of`` does.
    """
    kernels = artifact.kernels
    return Subject(
        key,
        variant_of(spec, artifact.inputs),
        artifact.dtype.torch_name,
        (artifact.head_dim_qk, artifact.head_dim_v),
        tiles_of((one.block_m, one.block_n, one.max_keys) for one in kernels),
        artifact.library_sha256,
        tuple(kernel.registers for kernel in kernels),
    )


def judge(
    subject: Subject,
    op: Callable[..., Any],
    cases: Iterable[Case],
    *,
    device: torch.device | str,
    report: Report | None = None,
    repeats: int = 1,
) -> Iterator[CheckResult]:
    """Check ``op``, the subject's, in each case; ``repeats`` calls must agree to the last bit.

    ``report`` receives each case's name before it runs.
    """
    for case in cases:
        if report:
            report(case.name)
        yield run_case(
            op,
            subject.variant,
            case,
            device=device,
            dtype=getattr(torch, subject.dtype),
            head_dims=subject.head_dims,
            calls=repeats,
        )


def variant_of(spec: Mapping[str, Any], metas: Sequence[InputMeta]) -> Variant:
    """What a spec, given as a mapping, asks for; ``metas`` are the inputs of its op.

    Raises UnsupportedError where nobody has written the mask or the score by hand.
    """
    declared: Mapping[str, Mapping[str, Any]] = spec.get("inputs") or {}
    drawn = {
        name: {key: one[key] for key in ("example", "size") if one.get(key) is not None}
        for name, one in declared.items()
    }
    mask, score = spec.get("mask", "full"), spec.get("score", "score")
    reference_mask(mask)
    reference_score(score)
    return Variant(mask, score, examples_of(metas, drawn), spec.get("sink"))


def _share(result: CheckResult) -> float:
    """The largest error over what it may be; 0 where there is nothing to be wrong."""
    report = result.report
    if report is None or not report.limit > 0 or not report.max_error >= 0:
        return 0.0
    return report.max_error / report.limit
