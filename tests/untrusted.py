"""What becomes of a spec from a stranger: a kernel, or an error of fa3gen's own, within limits."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from fa3gen.codegen import render
from fa3gen.errors import CompilerError, Fa3genError
from fa3gen.schedule import make_plan, verify
from fa3gen.schedule.lower import lower
from fa3gen.schedule.show import schedule_json, show_schedule
from fa3gen.spec import AttentionSpec, load_spec

__all__ = ["SECONDS", "TooLongError", "compile_text", "limited", "load_bytes"]

SECONDS = 5  # of one core, from bytes to kernel


class TooLongError(BaseException):
    """The limit is over; nothing on the way catches it."""


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raises TooLongError once the block has taken so many seconds of processor time."""

    def over(signum: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {seconds} s of one core")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def load_bytes(data: bytes, path: Path) -> AttentionSpec | None:
    """The spec in a file of these bytes, named in its canonical form; None where it is refused."""
    path.write_bytes(data)
    try:
        spec = load_spec(path)
    except Fa3genError as error:
        _check_message(error)
        return None
    assert load_spec(spec.model_dump(mode="json")).digest() == spec.digest()
    return spec


def compile_text(spec: AttentionSpec, *, prove: bool = True) -> bool:
    """Whether there is a kernel: all steps up to its text, with the proof of its Program."""
    try:
        plan = make_plan(spec)
        for schedule in plan:
            program = lower(schedule)
            if prove:
                verify(program)
            str(schedule_json(schedule, program)) + show_schedule(schedule) + str(program)
        source = render(plan)
    except Fa3genError as error:
        _check_message(error)
        return False
    for text in [source.host, *(unit.text for unit in source.units)]:
        assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    return True


def _check_message(error: Fa3genError) -> None:
    """A CompilerError is a fault of ours; a message reaches a terminal."""
    if isinstance(error, CompilerError):
        raise error
    text = str(error)
    assert all(char.isprintable() or char == "\n" for char in text), repr(text)
    assert len(text) < 2000, text
