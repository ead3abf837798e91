"""FA3GEN_DEBUG: what each level shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fa3gen.debug import debug_level


@pytest.mark.parametrize(
    ("text", "level"), [(None, 0), ("", 0), ("0", 0), ("1", 1), ("4", 4), ("9", 4), ("yes", 1)]
)
def test_level(monkeypatch: pytest.MonkeyPatch, text: str | None, level: int) -> None:
    monkeypatch.delenv("FA3GEN_DEBUG", raising=False)
    if text is not None:
        monkeypatch.setenv("FA3GEN_DEBUG", text)
    assert debug_level() == level


def shown(level: int) -> str:
    """What a compilation for the interpreter logs."""
    program = "import fa3gen; fa3gen.compile({'head_dim': 64, 'name': 'debugged'})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "FA3GEN_DEBUG": str(level), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def test_levels_add_up() -> None:
    texts = [shown(level) for level in range(4)]
    assert texts[0] == ""
    choices, source, program = "fa3gen.schedule: debugged:", "kernel.cu:", "role consumer"
    assert [choices in text for text in texts] == [False, True, True, True]
    assert [source in text for text in texts] == [False, False, True, True]
    assert [program in text for text in texts] == [False, False, False, True]
