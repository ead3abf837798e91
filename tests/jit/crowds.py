"""Many processes on one cache, forked from one that has imported all: ``crowds.py DIR SCENE``."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conftest import LOG, ScriptedToolchain
from faults import SOURCE, prepare_forks, quick_toolchain

from fa3gen.errors import InputError
from fa3gen.jit import index
from fa3gen.jit.cache import build_cached
from fa3gen.jit.inventory import clear, take_stock
from fa3gen.jit.toolchain import Toolchain
from fa3gen.runtime.artifact import Artifact

STARTERS = 16
_STRESS_S = 2.0
_SOURCES = [replace(SOURCE, host=f"{SOURCE.host}// {number}\n") for number in range(3)]
_KEYS = [f"{number}" * 64 for number in range(3)]


def start(work: Callable[[], object], report: Path) -> int:
    """A process that reports what ``work`` returns, or its traceback."""
    child = os.fork()
    if child == 0:
        warnings.simplefilter("error")
        signal.alarm(50)
        try:
            text = json.dumps(work())
        except BaseException:
            text = json.dumps(traceback.format_exc())
        report.write_text(text)
        os._exit(0)
    return child


def cold_start(folder: Path, *, kill: bool) -> dict[str, object]:
    """All start at once; the one that builds may be killed while the compilers run."""
    scripted = ScriptedToolchain(folder)
    scripted.script("nvcc", LOG, seconds=1)

    def work() -> str:
        def progress(line: str) -> None:
            if "compiling" in line:
                (folder / f"builder.{os.getpid()}").touch()
            if "another process" in line:
                (folder / f"waiter.{os.getpid()}").touch()

        made = build_cached(SOURCE, toolchain=scripted.toolchain, progress=progress)
        made.verify_library()
        return str(made.directory)

    reports = [folder / f"report.{number}" for number in range(STARTERS)]
    children = [start(work, report) for report in reports]
    if kill:
        while not scripted.calls:
            time.sleep(0.02)
        (builder,) = folder.glob("builder.*")
        os.kill(int(builder.suffix[1:]), signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    left = take_stock(folder / "cache")
    return {
        "made": [json.loads(report.read_text()) for report in reports if report.exists()],
        "waiters": len(list(folder.glob("waiter.*"))),
        "builders": len(list(folder.glob("builder.*"))),
        "compiled": sum(call.startswith("nvcc") for call in scripted.calls),
        "kernels": [entry.fault for entry in left.kernels],
        "leftovers": [one.name for one in left.leftovers],
    }


def taken(root: Path, toolchain: Toolchain, number: int) -> bool:
    """Whether a kernel is found or built, as a compile does it, and is the right one."""
    source, key = _SOURCES[number], _KEYS[number]
    artifact = index.find(root, key)
    for _ in range(4):  # it may be cleared before it is loaded
        if artifact is None:
            artifact = build_cached(source, toolchain=toolchain)
            index.record(root, key, artifact)
        if (data := library(artifact)) is not None:
            return data == source.host.encode()
        artifact = None
    return False


def library(artifact: Artifact) -> bytes | None:
    """What is loaded, if it is still there."""
    try:
        artifact.verify_library()
        return artifact.library_path.read_bytes()
    except (InputError, FileNotFoundError):
        return None


def stress(folder: Path) -> dict[str, object]:
    """Some build and read, some clear."""
    root, toolchain = folder / "cache", quick_toolchain(folder)
    ninja = folder / "ninja"
    ninja.write_text(ninja.read_text() + f"cp host.cpp {SOURCE.meta.op_name}.so\n")
    end = time.monotonic() + _STRESS_S

    def read(number: int) -> list[int]:
        choice = random.Random(number)
        right = rounds = 0
        while time.monotonic() < end:
            rounds += 1
            right += taken(root, toolchain, choice.randrange(len(_SOURCES)))
        return [right, rounds]

    def empty(number: int) -> list[int]:
        removed = rounds = 0
        while time.monotonic() < end:
            rounds += 1
            cleared = clear(root)
            assert not cleared.stuck, cleared
            removed += cleared.kernels
            time.sleep(0.02 * (1 + number % 2))
        return [removed, rounds]

    roles = [read] * 4 + [empty] * 2
    reports = [folder / f"report.{number}" for number in range(len(roles))]
    children = [
        start(lambda role=role, number=number: role(number), reports[number])  # type: ignore[misc]
        for number, role in enumerate(roles)
    ]
    for child in children:
        os.waitpid(child, 0)
    said = [json.loads(report.read_text()) for report in reports]
    clear(root)
    return {"read": said[:4], "cleared": said[4:], "left": sorted(os.listdir(root))}


def main(name: str, scene: str) -> None:
    """One scene; prints what came of it as JSON."""
    folder = Path(name)
    os.environ["FA3GEN_CACHE_DIR"] = str(folder / "cache")
    prepare_forks()
    result = stress(folder) if scene == "stress" else cold_start(folder, kill=scene == "killed")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
