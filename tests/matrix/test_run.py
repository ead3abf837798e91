from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from fa3gen.cases import Case
from fa3gen.check import Variant
from fa3gen.errors import BuildError, InputError, PressureError, ScheduleError, ToolchainError
from fa3gen.matrix import worker as worker_module
from fa3gen.matrix.calls import Tile, parse_case
from fa3gen.matrix.journal import Journal
from fa3gen.matrix.points import Point
from fa3gen.matrix.report import Summary, junit, markdown, write
from fa3gen.matrix.run import Outcome, Subject, judge, outcome_from_json, refused
from fa3gen.matrix.worker import Worker

CASES = tuple(map(parse_case, ("b1-h2/1-q5-k7", "b2-h2/2-q3-k9-packed", "b1-h1/1-q4-k0")))
SUBJECT = Subject("plain", Variant(), "bfloat16", (16, 16), (Tile(64, 64),), "one")
RIGHT = Outcome("mask=causal", "one", 9, 1.5, worst=0.4, worst_call="b1", registers=(90,))


def right(
    q: Tensor, k: Tensor, v: Tensor, *, scale: Any, return_lse: bool
) -> tuple[Tensor, Tensor]:
    group = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(group, 2).float() for x in (k, v))
    s = torch.einsum("brhd,bkhd->bhrk", q.float(), keys) * (scale or q.shape[3] ** -0.5)
    lse = s.logsumexp(-1) if k.shape[1] else s.new_full(s.shape[:3], -math.inf)
    p = (s - lse[..., None]).exp().nan_to_num()
    return torch.einsum("bhrk,bkhd->brhd", p, values).to(q.dtype), lse


def wrong(
    q: Tensor, k: Tensor, v: Tensor, *, scale: Any, return_lse: bool
) -> tuple[Tensor, Tensor]:
    out, lse = right(q, k, v, scale=scale, return_lse=return_lse)
    return (out * 1.1 if k.shape[1] == 9 else out), lse


def outcome_of(op: Callable[..., Any], cases: Sequence[Case] = CASES) -> Outcome:
    outcome = Outcome("plain", "one")
    for result in judge(SUBJECT, op, cases, device="cpu"):
        outcome = outcome.with_result(result)
    return outcome


# --- outcomes -------------------------------------------------------------------------------------


def test_right_and_wrong() -> None:
    good, bad = outcome_of(right), outcome_of(wrong)
    assert good.ok
    assert good.calls == bad.calls == 3
    assert 0 < good.worst <= 1 < bad.worst
    assert bad.worst_call == "b2-h2/2-q3-k9-packed"
    (failure,) = bad.failures
    assert failure.call == bad.worst_call
    assert "max error" in failure.problems[0]
    assert not bad.ok


@pytest.mark.parametrize(
    ("error", "fault"),
    [(ScheduleError("no"), False), (PressureError("no"), False), (BuildError("no"), True)],
    ids=repr,
)
def test_whose_fault(error: Any, fault: bool) -> None:
    outcome = refused("plain", error)
    assert outcome.fault == fault
    assert not outcome.ok
    assert outcome.refusal == f"{type(error).__name__}: no"


@pytest.mark.parametrize("outcome", [outcome_of(wrong), RIGHT, refused("x", BuildError("no"))])
def test_json_and_back(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


# --- the journal ----------------------------------------------------------------------------------


def test_only_what_is_right_and_the_same_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new/outcomes.jsonl"
    journal = Journal(path, resume=True)
    journal.add(RIGHT)
    journal.add(outcome_of(wrong))
    with path.open("a") as stream:
        stream.write('{"key": "mask=cau')  # the power went
    for _ in range(2):
        journal = Journal(path, resume=True)
        assert journal.find("mask=causal", "one") == RIGHT
        assert journal.find("mask=causal", "other") is None
        assert journal.find("plain", "one") is None
    assert Journal(path, resume=False).find("mask=causal", "one") is None


# --- the report -----------------------------------------------------------------------------------


def summary(*outcomes: Outcome, refusals_fail: bool = True) -> Summary:
    where = {"device": "a GPU", "torch": "2"}
    return Summary("full", where, "fa3gen test", outcomes, {"a=1 b=2": "why"}, refusals_fail)


def test_failures_come_first_with_their_commands() -> None:
    fault = refused("mask=band", BuildError("it broke\nand more"))
    text = markdown(summary(RIGHT, outcome_of(wrong), fault))
    assert "**3 kernels, 12 calls: 2 kernels failed, 1 calls wrong**" in text
    broken = text.index("`fa3gen test --point mask=band`")
    call = text.index("`fa3gen test --point plain --call b2-h2/2-q3-k9-packed`")
    assert text.index("## Failures") < broken < call < text.index("## Right")
    assert "it broke (a fault of fa3gen's)" in text
    assert "- `a=1 b=2`: why" in text


def test_refusals_of_the_product_are_no_failures() -> None:
    refusal = refused("mask=band", ScheduleError("no room"))
    assert summary(refusal).failed == (refusal,)
    found = summary(RIGHT, refusal, refusals_fail=False)
    assert found.failed == ()
    assert found.verdict == "2 kernels, 9 calls: all right, 1 refused"
    assert "## Refused\n\n- `mask=band`: ScheduleError: no room" in markdown(found)


def test_pairs_of_points_that_are_right() -> None:
    count = len(Point.of({}).values)
    assert summary(RIGHT).pairs == count * (count - 1) // 2
    assert summary(RIGHT, dataclasses.replace(RIGHT, key="plain")).pairs == (
        count * (count - 1) // 2 + count - 1
    )
    assert summary(outcome_of(wrong), dataclasses.replace(RIGHT, key="my.yaml")).pairs == 0


def test_commands() -> None:
    found = summary(RIGHT)
    assert found.repeating("mask=causal") == "fa3gen test --point mask=causal"
    assert found.repeating("a dir/my.yaml", "b1") == "fa3gen test 'a dir/my.yaml' --call b1"
    parts = dataclasses.replace(found, again=("python", "-m", "fa3gen.matrix.parts", "part-1"))
    assert parts.repeating("plain", "b1") == (
        "python -m fa3gen.matrix.parts part-1 --point plain --call b1"
    )


def test_files(tmp_path: Path) -> None:
    found = summary(RIGHT, outcome_of(wrong))
    write(found, tmp_path / "new")
    record = json.loads((tmp_path / "new/report.json").read_text())
    assert record["ok"] is False
    assert [one["key"] for one in record["outcomes"]] == ["plain", "mask=causal"]
    assert (tmp_path / "new/report.md").read_text() == markdown(found)


def test_junit() -> None:
    refusal = refused("mask=band", ScheduleError("no room"))
    found = summary(RIGHT, outcome_of(wrong), refusal, refusals_fail=False)
    suite = ElementTree.fromstring(junit(found))
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    by_name = {case.get("name"): case for case in suite}
    assert list(by_name["mask=causal"]) == []
    failure = by_name["plain"].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "b2-h2/2-q3-k9-packed" in failure.text
    assert by_name["mask=band"].find("skipped") is not None


def test_junit_of_what_xml_cannot_hold() -> None:
    bold = refused("mask=band", BuildError("\x1b[1mno\x00"))
    (case,) = ElementTree.fromstring(junit(summary(bold)))
    assert case[0].get("message") == "BuildError: ?[1mno?"


# --- a process of its own -------------------------------------------------------------------------


def load_right(directory: Path) -> Any:
    return right


def load_unlucky(directory: Path) -> Any:
    """An op that ends its process, hangs or spoils the GPU, by the number of keys."""

    def op(q: Tensor, k: Tensor, v: Tensor, *, scale: Any, return_lse: bool) -> Any:
        if k.shape[1] == 7:
            os._exit(9)
        if k.shape[1] == 8:
            time.sleep(60)
        if k.shape[1] == 9:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return right(q, k, v, scale=scale, return_lse=return_lse)

    return op


def test_worker_judges(tmp_path: Path) -> None:
    names: list[str] = []
    with Worker(device="cpu", load=load_right) as worker:
        results = list(worker.judge(SUBJECT, tmp_path, CASES, names.append))
        again = list(worker.judge(SUBJECT, tmp_path, CASES[:1]))
    assert [result.ok for result in [*results, *again]] == [True] * 4
    assert names == [case.name for case in CASES]


def test_worker_goes_on_behind_a_call_that_ends_it(tmp_path: Path) -> None:
    names = ("b1-h1/1-q1-k7", "b1-h1/1-q1-k6", "b1-h1/1-q1-k8", "b1-h1/1-q1-k9", "b1-h1/1-q1-k5")
    with Worker(device="cpu", patience=3, load=load_unlucky) as worker:
        results = list(worker.judge(SUBJECT, tmp_path, tuple(map(parse_case, names))))
    assert [result.case.name for result in results] == list(names)
    ended, first, hung, spoilt, last = ("; ".join(result.problems) for result in results)
    assert ended == "its process ended with exit code 9"
    assert first == last == ""
    assert hung == "no result in 3 s: a deadlock?"
    assert "CUDA error" in spoilt


def end(*_: Any) -> None:
    os._exit(3)


def load_nothing(directory: Path) -> Any:
    raise InputError(f"{directory.name}: no artifact")


def test_worker_is_started_again_where_it_has_ended(tmp_path: Path) -> None:
    with Worker(device="cpu", load=load_right) as worker:
        for _ in range(2):
            (result,) = worker.judge(SUBJECT, tmp_path, CASES[:1])
            assert result.ok
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.join()


def test_an_artifact_that_cannot_be_loaded(tmp_path: Path) -> None:
    with Worker(device="cpu", load=load_nothing) as worker:
        for name in ("one", "two"):
            with pytest.raises(InputError, match=f"{name}: no artifact"):
                list(worker.judge(SUBJECT, tmp_path / name, CASES))


def test_a_worker_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_serve", end)
    with (
        Worker(device="cpu", load=load_right) as worker,
        pytest.raises(ToolchainError, match=r"did not start \(exit code 3\)"),
    ):
        list(worker.judge(SUBJECT, tmp_path, CASES))


def test_an_error_of_the_call_is_its_own(tmp_path: Path) -> None:
    def op(*tensors: Tensor, **keywords: Any) -> Any:
        raise InputError("q: no")

    (failure,) = outcome_of(op, CASES[:1]).failures
    assert failure.problems == ("raised InputError: q: no",)
