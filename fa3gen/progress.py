"""Progress of long work on standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Report", "build_progress", "check_progress", "matrix_progress"]

Report = Callable[[str], None]

_STEP = re.compile(r"step (\d+)/(\d+): (.*)")  # as jit.compiler reports a step


@contextmanager
def build_progress() -> Iterator[Callable[[str], None]]:
    """What to give a build as ``progress``. The bar appears with the first line, so a kernel from
    the cache shows none."""
    if not sys.stderr.isatty():
        yield _print
        return
    with _bar() as bar:
        task = bar.add_task("", total=None, visible=False)

        def report(line: str) -> None:
            step = _STEP.match(line)
            if step:
                done, total, text = int(step[1]), int(step[2]), step[3]
                bar.update(task, completed=done, total=total, description=text)
            else:
                bar.update(task, description=line, visible=True)

        yield report


@contextmanager
def check_progress(total: int) -> Iterator[Callable[[str], None]]:
    """What to call with the name of each of ``total`` cases before it runs."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    with _bar() as bar:
        task = bar.add_task("", total=total, completed=-1)

        def report(name: str) -> None:
            bar.update(task, advance=1, description=name)

        yield report


@contextmanager
def matrix_progress(total: int | None) -> Iterator[tuple[Callable[[str], None], Report]]:
    """What to call with the name of each call before it is made, and with a line for each kernel
    that is done, of ``total``. Elsewhere than on a terminal the lines are printed."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        counted = itertools.count(1)
        of = "" if total is None else f"/{total}"
        yield lambda name: None, lambda line: _print(f"[{next(counted)}{of}] {line}")
        return
    with _bar() as bar:
        task = bar.add_task("", total=total)

        def done(line: str) -> None:
            bar.update(task, advance=1)

        yield lambda name: bar.update(task, description=name), done


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
