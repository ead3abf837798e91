"""The cache among processes: many at once, killed, interrupted or out of room at every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crowds import STARTERS
from faults import TRIALS


def program(name: str, folder: Path, argument: str) -> Any:
    """What one of the programs beside this file prints."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(here / name), str(folder), argument],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scene", ["whole", "killed"])
def test_many_processes_build_once(tmp_path: Path, scene: str) -> None:
    """Killed while it builds, the builder is followed by exactly one of those that wait."""
    found = program("crowds.py", tmp_path, scene)
    killed = scene == "killed"
    (entry,) = set(found["made"])
    assert Path(entry).parent == tmp_path / "cache", entry
    assert len(found["made"]) == STARTERS - killed
    assert found["builders"] == found["compiled"] == 1 + killed
    assert found["waiters"] > 0, "those that wait say so"
    assert (found["kernels"], found["leftovers"]) == ([None], [])


def test_building_reading_and_clearing_at_once(tmp_path: Path) -> None:
    found = program("crowds.py", tmp_path, "stress")
    assert not any(isinstance(said, str) for said in found["read"] + found["cleared"]), found
    for right, rounds in found["read"]:
        assert right == rounds > 0, found
    assert sum(removed for removed, _ in found["cleared"]) > 10, "else nothing was tried"
    assert found["left"] == []


@pytest.mark.parametrize("operation", list(TRIALS))
def test_a_fault_at_any_step(tmp_path: Path, operation: str) -> None:
    """SIGKILL, a full disk or Ctrl-C: the operation succeeds or says so, and so does the next."""
    endings = {"kill": {"killed"}, "full": {"right", "refused"}, "interrupt": {"interrupted"}}
    found = program("faults.py", tmp_path, operation)
    assert len(found) == len(TRIALS[operation])
    for name, trial in found.items():
        assert trial["wrong"] == [], name
        assert trial["steps"] > 20, f"{name}: not all steps were seen"
        assert set(trial["outcomes"]) <= endings[name.split()[0]], trial
