"""A build, or a clearing of the cache, that meets a fault at its n-th step, for every n.

A program, so that it has one thread and may fork: ``faults.py FOLDER OPERATION`` prints what became
of each n as JSON. A step is whatever touches the cache: each call that Python's audit events tell,
each fsync, and each line that the build reports while compilers run. After the fault a process
without one must succeed, with the right kernel and nothing left behind.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
from conftest import LOG, ScriptedToolchain
from standin import META, standin_source

from fa3gen.errors import Fa3genError
from fa3gen.jit import index
from fa3gen.jit.cache import build_cached
from fa3gen.jit.entries import look
from fa3gen.jit.inventory import clear
from fa3gen.jit.toolchain import Toolchain
from fa3gen.runtime.artifact import Artifact

KEY = "ab" * 32
SOURCE = standin_source()
LIBRARY = b"made\n"
TRIALS = {
    "build": [
        ("kill", "empty"),
        ("kill", "damaged"),
        ("full", "damaged"),
        ("interrupt", "damaged"),
    ],
    "clear": [("kill", "whole"), ("full", "whole"), ("interrupt", "whole")],
}
_CALLS = ("open", "os.", "shutil.", "tempfile.", "subprocess.Popen", "fcntl.flock", "step.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PATIENCE_S = 20  # of a process that should meet no obstacle

# Instead of ninja and its compilers, for there are hundreds of builds.
_NINJA = f"""#!/bin/sh
cd "$2" || exit 1
echo "{LOG}" > kernel.cubin.log
echo made > {META.op_name}.so
echo made > kernel.cubin
echo made > kernel.o
echo made > host.o
echo made > .ninja_log
echo 'step 1/2: compiled'
echo 'step 2/2: linked'
"""


class Faults:
    """Does something to the n-th step. ``met``: whether there was one."""

    def __init__(self, root: Path, number: int, fault: str) -> None:
        self.root, self.number, self.fault = str(root), number, fault
        self.count = 0
        self.met = self.busy = False

    def watch(self) -> None:
        """From now on; a hook cannot be taken away."""
        os.fsync = lambda fd: sys.audit("step.fsync", self.root)
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.met or self.busy or not event.startswith(_CALLS):
            return
        if not any(map(self._is_inside, arguments[:1] if event == "open" else arguments)):
            return
        if event == "step.progress" and self.fault == "full":
            return  # nothing is written there
        self._step(lambda: None)
        if event == "open" and self.fault == "kill" and arguments[2] & _WRITING:
            self._step(lambda: self._tear(arguments[0]))

    def _is_inside(self, argument: Any) -> bool:
        """Whether an argument is a path in the cache, or relative to an open folder of it."""
        if isinstance(argument, (list, tuple)):
            return any(map(self._is_inside, argument))
        if isinstance(argument, (str, bytes, os.PathLike)):
            path = os.fsdecode(argument)
            return path.startswith(self.root) or not (os.path.isabs(path) or path.startswith("-"))
        return False

    def _step(self, before: Callable[[], None]) -> None:
        self.count += 1
        if self.met or self.count <= self.number:
            return
        self.met = self.busy = True
        before()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _tear(self, path: Any) -> None:
        """Half of a file, as if its writer were killed at that."""
        if not isinstance(path, int) and not os.path.isdir(path):
            Path(os.fsdecode(path)).write_bytes(b'{"half')


def build(root: Path, toolchain: Toolchain) -> Artifact:
    """What a compile does with the cache."""
    artifact = index.find(root, KEY)
    if artifact is None or look(artifact.directory) is None:
        artifact = build_cached(
            SOURCE, toolchain=toolchain, progress=lambda line: sys.audit("step.progress", str(root))
        )
        index.record(root, KEY, artifact)
    return artifact


def is_right(artifact: Artifact) -> bool:
    """Whether it is the kernel that was asked for."""
    return artifact.op_name == META.op_name and artifact.library_path.read_bytes() == LIBRARY


def forked(work: Callable[[], str]) -> str:
    """What ``work`` says in a process of its own; ``killed`` if it could not say anything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_PATIENCE_S)
        try:
            said = work()
        except BaseException:
            said = f"failed: {traceback.format_exc()}"
        os.write(writer, said.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "failed: it waits"
    return said or "killed"


class Trial:
    """An operation on a cache in a state, with faults of a kind."""

    def __init__(self, folder: Path, operation: str, fault: str, state: str) -> None:
        self.operation, self.fault = operation, fault
        self.root, self.model = folder / "cache", folder / "model"
        (folder / "tmp").mkdir(parents=True)
        tempfile.tempdir = str(folder / "tmp")
        os.environ["FA3GEN_CACHE_DIR"] = str(self.root)
        self.toolchain = quick_toolchain(folder)
        forked(lambda: str(build(self.root, self.toolchain)))
        (self.entry,) = (path.parent for path in self.root.glob("*/artifact.json"))
        if state != "empty":
            self._leave(damaged=state == "damaged")
            self.root.rename(self.model)

    def _leave(self, *, damaged: bool) -> None:
        """What builds that were killed have left, and a damaged entry that no index names."""
        left = self.root / f".building-{self.entry.name}.killed"
        left.mkdir(mode=0o700)
        (left / "kernel.cu").write_text("half")
        (self.root / f"index/.{KEY[:32]}.json.killed").write_text("half")
        if damaged:
            (self.root / f"index/{KEY[:32]}.json").unlink()
            (self.entry / f"{META.op_name}.so").write_bytes(b"damaged")

    def run(self) -> dict[str, Any]:
        """Step after step, until the operation is done before its fault: how each ended, and what
        was wrong."""
        outcomes: Counter[str] = Counter()
        wrong = []
        for number in itertools.count():
            shutil.rmtree(self.root, ignore_errors=True)
            if self.model.exists():
                shutil.copytree(self.model, self.root)
            outcome = forked(lambda at=number: self.attempt(at))  # type: ignore[misc]
            if outcome == "survived":
                return {"steps": number, "outcomes": outcomes, "wrong": wrong}
            after = outcome if outcome.startswith("failed") else self.after()
            if after != "right":
                wrong.append(f"step {number}, {outcome}: {after}")
            outcomes[outcome.split(":")[0]] += 1
        raise AssertionError

    def attempt(self, number: int) -> str:
        """What became of the operation with a fault at a step, in words."""
        warnings.simplefilter("error" if self.fault == "kill" else "ignore")
        faults = Faults(self.root, number, self.fault)
        faults.watch()
        try:
            made = build(self.root, self.toolchain) if self.operation == "build" else None
            if self.operation == "clear":
                clear(self.root)
        except Fa3genError:
            return "refused"
        except KeyboardInterrupt:
            return "interrupted" if faults.met else "failed: nobody has interrupted it"
        faults.busy = True
        if made is not None and not is_right(made):
            return "failed: another kernel"
        return "right" if faults.met else "survived"

    def after(self) -> str:
        """A build without a fault, and what it leaves."""
        warnings.simplefilter("error")
        signal.alarm(_PATIENCE_S)
        if self.operation == "clear" and clear(self.root).stuck:
            return "failed: something cannot be removed"
        if not is_right(build(self.root, self.toolchain)):
            return "failed: another kernel"
        if look(self.entry) is None:
            return "failed: no entry"
        left = sorted(path.name for path in self.root.rglob("*") if path.parent != self.entry)
        expected = [self.entry.name, f"{self.entry.name}.lock", "index", f"{KEY[:32]}.json"]
        if left != sorted(expected):
            return f"failed: left {left}"
        cleared = clear(self.root)
        left = [path.name for path in self.root.iterdir()]
        return "right" if cleared == (1, [], []) and not left else f"failed: {cleared}, {left}"


def quick_toolchain(folder: Path) -> Toolchain:
    """A ninja that has no compilers run."""
    ninja = folder / "ninja"
    ninja.write_text(_NINJA)
    ninja.chmod(0o755)
    return replace(ScriptedToolchain(folder).toolchain, ninja=ninja)


def prepare_forks() -> None:
    """What every fork would do again."""
    os.fsync = lambda descriptor: None
    filelock.FileLock("none")  # imports its parts
    gc.collect()
    gc.freeze()


def main(folder: str, operation: str) -> None:
    """All trials of an operation."""
    prepare_forks()
    trials = {}
    for fault, state in TRIALS[operation]:
        trial = Trial(Path(folder) / f"{fault}-{state}", operation, fault, state)
        trials[f"{fault} {state}"] = trial.run()
    print(json.dumps(trials, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
