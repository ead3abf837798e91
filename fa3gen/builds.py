"""Many kernels built side by side, each through the cache, so that a run cut off goes on there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from fa3gen.driver import SpecLike, build_here
from fa3gen.errors import Fa3genError
from fa3gen.runtime.artifact import Artifact

__all__ = ["Built", "build_many", "default_jobs"]


class Built(NamedTuple):
    """What became of the spec at ``place``: an artifact in the cache, or the error of its build."""

    place: int  # among the specs
    result: Artifact | Fa3genError


def default_jobs() -> int:
    """Builds at a time: one for each core, as a build is a compiler and, for a while, Python."""
    return max(1, len(os.sched_getaffinity(0)))


def build_many(
    specs: Sequence[SpecLike],
    *,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Built]:
    """Build the kernels of ``specs``, ``jobs`` at a time, and yield each as it is done.

    ``progress`` receives a line ``step DONE/ALL: ...`` after each. An error of fa3gen's is a
    result and stops nothing; any other ends the run, as does closing the iterator: what is being
    built is finished, nothing more is begun.
    """
    with ThreadPoolExecutor(jobs or default_jobs()) as pool:
        builds = {pool.submit(_build, spec): place for place, spec in enumerate(specs)}
        try:
            for done, build in enumerate(as_completed(builds), 1):
                built = Built(builds[build], build.result())
                if progress:
                    progress(f"step {done}/{len(builds)}: {_summary(built)}")
                yield built
        finally:
            pool.shutdown(cancel_futures=True)


def _build(spec: SpecLike) -> Artifact | Fa3genError:
    try:
        return build_here(spec)
    except Fa3genError as error:
        return error


def _summary(built: Built) -> str:
    if isinstance(built.result, Artifact):
        return built.result.op_name
    return f"refused: {str(built.result).splitlines()[0]}"
