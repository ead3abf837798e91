"""A run of the matrix: targets to outcomes, one kernel after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fa3gen.cases import Case
from fa3gen.check import CheckResult
from fa3gen.errors import Fa3genError
from fa3gen.matrix.calls import all_calls
from fa3gen.matrix.journal import Journal
from fa3gen.matrix.run import Outcome, Report, Subject, judge, refused
from fa3gen.matrix.worker import Worker
from fa3gen.runtime.artifact import Artifact

if TYPE_CHECKING:
    from fa3gen.matrix.targets import Interpretable

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """How kernels are judged. ``case``: the one call to make (all), of which the journal is not
    told. ``report``: gets the name of a call before it is made; ``done``: gets an outcome."""

    journal: Journal
    case: Case | None = None
    report: Report = lambda name: None
    done: Callable[[Outcome], None] = lambda outcome: None

    def interpreted(self, targets: Iterable[Interpretable | Outcome]) -> Iterator[Outcome]:
        """Outcomes on the interpreter."""
        for target in targets:
            if isinstance(target, Outcome):
                yield self._kept(target)
            else:
                results = self._interpreted(target, self._cases(target.cases))
                yield self._outcome(target.subject, results)

    def on_gpu(
        self, targets: Iterable[tuple[Subject, Artifact] | Outcome], worker: Worker
    ) -> Iterator[Outcome]:
        """Outcomes of built kernels."""
        for target in targets:
            if isinstance(target, Outcome):
                yield self._kept(target)
                continue
            subject, artifact = target
            cases = self._cases(all_calls(subject.tiles))
            results = worker.judge(subject, artifact.directory, cases, self.report)
            yield self._outcome(subject, results)

    def _cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        return cases if self.case is None else (self.case,)

    def _interpreted(self, target: Interpretable, cases: Sequence[Case]) -> Iterator[CheckResult]:
        op = target.op()  # proves the Programs
        yield from judge(target.subject, op, cases, device="cpu", report=self.report)

    def _outcome(self, subject: Subject, results: Iterator[CheckResult]) -> Outcome:
        """The outcome of results that are yet to be made, or what is known of it."""
        if self.case is None and (known := self.journal.find(subject.key, subject.identity)):
            self.done(known)
            return known
        started = time.monotonic()
        outcome = Outcome(subject.key, subject.identity, registers=subject.registers)
        try:
            for result in results:
                outcome = outcome.with_result(result)
        except Fa3genError as error:
            outcome = refused(subject.key, error)
        seconds = round(time.monotonic() - started, 2)
        return self._kept(replace(outcome, seconds=seconds))

    def _kept(self, outcome: Outcome) -> Outcome:
        if self.case is None:
            self.journal.add(outcome)
        self.done(outcome)
        return outcome
