"""What a run of the matrix found: Markdown for people, JSON and JUnit's XML for programs."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from fa3gen._version import __version__
from fa3gen.errors import InputError, ToolchainError
from fa3gen.matrix.covering import pairs_of
from fa3gen.matrix.points import Point
from fa3gen.matrix.run import Outcome

__all__ = ["Summary", "junit", "machine", "markdown", "write"]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_TITLES = ("kernel", "calls", "worst of its limit", "registers", "seconds")


@dataclass(frozen=True)
class Summary:
    """A run. ``what`` was run, ``where``, by which ``command``; ``impossible``: pairs of choices
    that the scheduler refuses, with the reason; ``refusals_fail``: whether a refusal is a failure;
    ``again``: what begins the command that repeats some of it.
    """

    what: str
    where: Mapping[str, str]
    command: str
    outcomes: Sequence[Outcome]
    impossible: Mapping[str, str]
    refusals_fail: bool = True
    again: Sequence[str] = ("fa3gen", "test")

    @property
    def pairs(self) -> int:
        """How many pairs of choices the points have that were found right."""
        right = (one.key for one in self.outcomes if one.ok and _is_point(one.key))
        return len({pair for key in right for pair in pairs_of(Point.parse(key).chosen)})

    def repeating(self, key: str, call: str = "") -> str:
        """The command that repeats a kernel's calls, or one of them."""
        words = [*self.again, *(["--point"] if _is_point(key) else []), key]
        return shlex.join([*words, *(["--call", call] if call else [])])

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The outcomes that make the run fail, faults of fa3gen's first."""
        found = (one for one in self.outcomes if self._fails(one))
        return tuple(sorted(found, key=lambda one: not one.fault))

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """Targets without a kernel, for a reason that is no fault."""
        return tuple(one for one in self.outcomes if one.refusal and not self._fails(one))

    @property
    def verdict(self) -> str:
        """One line."""
        calls = sum(one.calls for one in self.outcomes)
        wrong = sum(len(one.failures) for one in self.outcomes)
        text = f"{len(self.outcomes)} kernels, {calls} calls: "
        text += f"{len(self.failed)} kernels failed" if self.failed else "all right"
        text += f", {wrong} calls wrong" if wrong else ""
        return text + (f", {len(self.refused)} refused" if self.refused else "")

    def _fails(self, outcome: Outcome) -> bool:
        if outcome.refusal:
            return outcome.fault or self.refusals_fail
        return bool(outcome.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the failures first."""
        rest = [one for one in self.outcomes if one not in self.failed]
        return {
            "what": self.what,
            "verdict": self.verdict,
            "ok": not self.failed,
            "command": self.command,
            "where": dict(self.where),
            "pairs": self.pairs,
            "impossible": dict(self.impossible),
            "outcomes": [one.to_json() for one in (*self.failed, *rest)],
        }


def machine(device: str) -> dict[str, str]:
    """What a run's figures depend on. Raises ToolchainError for ``cuda`` without a GPU."""
    found = {"fa3gen": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if device == "cpu":
        return {"device": "the CPU interpreter", **found}
    if not torch.cuda.is_available():
        raise ToolchainError("the kernels need a GPU, and torch sees none; see `fa3gen doctor`")
    return {"device": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda), **found}


def _is_point(key: str) -> bool:
    try:
        Point.parse(key)
    except InputError:
        return False
    return True


def write(summary: Summary, folder: Path) -> None:
    """Writes ``report.md`` and ``report.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(summary), encoding="utf-8")
    text = json.dumps(summary.to_json(), indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")


def markdown(summary: Summary) -> str:
    """The report, the failures first."""
    where = ", ".join(f"{key} {value}" for key, value in summary.where.items() if key != "device")
    lines = [
        f"# Test matrix: {summary.what}",
        "",
        f"**{summary.verdict}**, on {summary.where['device']} ({where}).",
        "",
        f"    {summary.command}",
        "",
        f"Pairs of choices of a kernel that are right: {summary.pairs}; that no kernel can have: "
        f"{len(summary.impossible)}.",
        "",
        *_failures(summary, summary.failed),
        *_refusals(summary.refused),
        *_kernels([one for one in summary.outcomes if one.ok]),
        *_impossible(summary.impossible),
    ]
    return "\n".join(lines)


def _failures(summary: Summary, failed: Sequence[Outcome]) -> Iterator[str]:
    if not failed:
        return
    yield from ("## Failures", "")
    for outcome in failed:
        yield f"- `{outcome.key}`"
        if outcome.refusal:
            fault = " (a fault of fa3gen's)" if outcome.fault else ""
            yield f"  - {_first_line(outcome.refusal)}{fault}: `{summary.repeating(outcome.key)}`"
        for one in outcome.failures:
            problems = "; ".join(map(_first_line, one.problems))
            yield f"  - {one.call}: {problems}: `{summary.repeating(outcome.key, one.call)}`"
    yield ""


def _refusals(refused: Sequence[Outcome]) -> Iterator[str]:
    if refused:
        yield from ("## Refused", "")
        yield from (f"- `{one.key}`: {_first_line(one.refusal)}" for one in refused)
        yield ""


def _kernels(right: Sequence[Outcome]) -> Iterator[str]:
    if not right:
        return
    yield from ("## Right", "")
    yield "| " + " | ".join(_TITLES) + " |"
    yield "|" + "---|" * len(_TITLES)
    for one in right:
        registers = ", ".join(map(str, one.registers)) or "-"
        worst = f"{one.worst:.2f} ({one.worst_call})" if one.worst_call else "-"
        yield f"| {one.key} | {one.calls} | {worst} | {registers} | {one.seconds:.1f} |"
    yield ""


def _impossible(impossible: Mapping[str, str]) -> Iterator[str]:
    if impossible:
        yield from ("## Pairs that no kernel can have", "")
        yield from (f"- `{pair}`: {reason}" for pair, reason in impossible.items())
        yield ""


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _printable(text: str) -> str:
    """The text, with question marks for what XML cannot hold."""
    return _CONTROL.sub("?", text)


def junit(summary: Summary) -> bytes:
    """JUnit's XML: a suite a run, a case a kernel, with its wrong calls in the failure's text."""
    suite = ElementTree.Element("testsuite", name=_printable(f"fa3gen {summary.what}"))
    failed = set(summary.failed)
    for outcome in summary.outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname="fa3gen.matrix",
            name=_printable(outcome.key),
            time=f"{outcome.seconds:.2f}",
        )
        if outcome in failed:
            text = _printable("\n".join(_failures(summary, [outcome])))
            message = _first_line(outcome.refusal) or f"{len(outcome.failures)} calls are wrong"
            ElementTree.SubElement(case, "failure", message=_printable(message)).text = text
        elif outcome.refusal:
            message = _printable(_first_line(outcome.refusal))
            ElementTree.SubElement(case, "skipped", message=message)
    counts = {"tests": len(summary.outcomes), "failures": len(failed), "errors": 0}
    counts["skipped"] = len(summary.refused)
    for name, count in counts.items():
        suite.set(name, str(count))
    suite.set("time", f"{sum(one.seconds for one in summary.outcomes):.2f}")
    ElementTree.indent(suite)
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
