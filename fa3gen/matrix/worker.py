"""Kernels judged in a process of their own, which a fault or a hang of a kernel may end.

After a GPU fault nothing runs in that process any more, and a deadlocked kernel never returns. So
the process is ended then, the call named, and another one goes on behind that call.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fa3gen.cases import Case
from fa3gen.check import CheckResult
from fa3gen.errors import Fa3genError, ToolchainError
from fa3gen.matrix.run import Report, Subject, judge
from fa3gen.runtime.attention import load as load_artifact

__all__ = ["Worker"]

_START = 120.0  # seconds for the process to import torch
_PATIENCE = 60.0  # seconds for a call, the references included; a first one starts CUDA too
REPEATS = 2  # calls that must agree

Load = Callable[[Path], Callable[..., Any]]  # an artifact's op


@dataclass(frozen=True)
class _Task:
    subject: Subject
    directory: Path
    cases: tuple[Case, ...]


class Worker:
    """A process that judges artifacts on a GPU, started when it is needed; a context manager."""

    def __init__(
        self, *, device: str = "cuda", patience: float = _PATIENCE, load: Load = load_artifact
    ) -> None:
        """``load`` is called in the process, which finds it by its module and name."""
        self._device, self._patience, self._load = device, patience, load
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def judge(
        self, subject: Subject, directory: Path, cases: Sequence[Case], report: Report | None = None
    ) -> Iterator[CheckResult]:
        """Check the artifact in ``directory`` in each case. A call that ends the process, or takes
        longer than there is patience, is a result like any other.

        Raises ToolchainError where the process does not start, and what ``load`` does.
        """
        left = list(cases)
        while left:
            pipe = self._started()
            with contextlib.suppress(OSError):  # it has just ended, as is seen below
                pipe.send(_Task(subject, directory, tuple(left)))
            while left:
                if report:
                    report(left[0].name)
                result = self._received(pipe) or self._lost(left[0])
                left.pop(0)
                yield result
                if self._pipe is None:
                    break

    def _received(self, pipe: Connection) -> CheckResult | None:
        """The next result; None if there will be none."""
        try:
            if not pipe.poll(self._patience):
                return None
            result: CheckResult | Fa3genError = pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(result, Fa3genError):
            raise result
        if _spoils(result):
            self._stop()
        return result

    def _lost(self, case: Case) -> CheckResult:
        """The verdict on a call that gave none; the process is ended."""
        assert self._process is not None
        self._process.join(1)
        code = self._process.exitcode
        self._stop()
        what = (
            f"no result in {self._patience:g} s: a deadlock?"
            if code is None
            else f"its process ended with exit code {code}"
        )
        return CheckResult(case, None, (what,))

    def _started(self) -> Connection:
        if self._pipe is not None and not self._process.is_alive():  # between two kernels
            self._stop()
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            arguments = (theirs, self._device, self._load)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
            self._pipe = ours
            self._await_start(ours)
        return self._pipe

    def _await_start(self, pipe: Connection) -> None:
        try:
            ready = pipe.poll(_START) and pipe.recv()
        except (EOFError, OSError):
            ready = None
        if not ready:
            self._process.join(1)
            self._stop()
            raise ToolchainError(
                f"the process that judges kernels did not start (exit code "
                f"{self._process.exitcode}); see what it said above"
            )

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = None


def _spoils(result: CheckResult) -> bool:
    """Whether a call left the GPU's context unusable."""
    return any("CUDA error" in problem for problem in result.problems)


def _serve(pipe: Connection, device: str, load: Load) -> None:
    """Judge what comes down the pipe until nobody holds its other end."""
    pipe.send("ready")
    while True:
        try:
            task: _Task = pipe.recv()
        except EOFError:
            return
        try:
            op = load(task.directory)
        except Fa3genError as error:
            pipe.send(error)
            continue
        results = judge(task.subject, op, task.cases, device=device, repeats=REPEATS)
        for result in results:
            pipe.send(_synchronized(result, device))


def _synchronized(result: CheckResult, device: str) -> CheckResult:
    """The result, with the fault that only shows once the GPU is waited for."""
    if device != "cpu":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            problems = (*result.problems, f"CUDA error: {str(error).splitlines()[0]}")
            return CheckResult(result.case, result.report, problems)
    return result
