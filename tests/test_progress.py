"""Progress: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import sys

import pytest

from fa3gen.progress import build_progress, check_progress

LINES = ("small_1: compiling with nvcc 13.0", "step 1/4: kernel.cu -> kernel.cubin", "done")


class Terminal(io.StringIO):
    """Takes text as a terminal would."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard error a terminal; in the test itself, for pytest sets it before each."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with build_progress() as progress:
        for line in LINES:
            progress(line)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == list(LINES)


def test_bar_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with build_progress() as progress:
        for line in LINES:
            progress(line)
    assert "1/4" in terminal.getvalue()


def test_no_bar_without_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with build_progress():
        pass
    assert "0/" not in terminal.getvalue()


def test_bar_of_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with check_progress(2) as progress:
        progress("first")
        progress("second")
    assert "1/2" in terminal.getvalue()


def test_a_check_without_a_terminal_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with check_progress(1) as progress:
        progress("first")
    assert capsys.readouterr() == ("", "")
