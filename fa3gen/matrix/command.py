"""``fa3gen test``: specs or points of the matrix, judged here or built as parts to be carried."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fa3gen.builds import build_many
from fa3gen.cases import Case
from fa3gen.driver import has_hopper
from fa3gen.errors import Fa3genError, InputError, PressureError, UserError
from fa3gen.matrix import sets
from fa3gen.matrix.execute import Run
from fa3gen.matrix.journal import Journal
from fa3gen.matrix.parts import write_parts
from fa3gen.matrix.points import Point
from fa3gen.matrix.report import Summary, junit, machine, write
from fa3gen.matrix.run import Outcome
from fa3gen.matrix.sets import PointSet
from fa3gen.matrix.targets import Target, built, interpretable
from fa3gen.matrix.worker import Worker
from fa3gen.progress import build_progress, matrix_progress
from fa3gen.runtime.artifact import Artifact

__all__ = ["PRODUCT", "Request", "execute", "make_parts"]

PRODUCT = "product"
_CHUNK = 64  # points of the product that share out their calls


@dataclass(frozen=True)
class Request:
    """What to test: ``specs`` and single ``points``, or the set ``matrix``, of which ``where``
    leaves only some values of a factor and ``limit`` only the first points."""

    specs: Sequence[str] = ()
    points: Sequence[Point] = ()
    matrix: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = None

    @property
    def what(self) -> str:
        """A title."""
        named = [self.matrix] if self.matrix else []
        named += [f"{factor}={'|'.join(values)}" for factor, values in self.where.items()]
        named += ["specs"] if self.specs else []
        return " ".join([*named, *(["points"] if self.points else [])])

    @property
    def point_set(self) -> PointSet:
        """The points of a set that was found, those of ``where``."""
        if self.matrix is None or self.matrix == PRODUCT:
            return PointSet(())
        found = sets.read(self.matrix)
        points = islice(filter(self._wanted, found.points), self.limit)
        return PointSet(tuple(points), found.impossible)

    def targets(self) -> Iterator[Target]:
        """One by one, each once: the product has no end for practical purposes."""
        known = set()
        for target in self._asked():
            if target.key not in known:
                known.add(target.key)
                yield target

    def _asked(self) -> Iterator[Target]:
        yield from map(Target.of_spec, self.specs)
        yield from map(Target.of_point, self.points)
        if self.matrix == PRODUCT:
            yield from map(Target.of_point, islice(sets.product(self.where), self.limit))
        yield from map(Target.of_point, self.point_set.points)

    def _wanted(self, point: Point) -> bool:
        return all(point.chosen[factor] in values for factor, values in self.where.items())


def execute(
    request: Request,
    folder: Path,
    *,
    case: Case | None = None,
    resume: bool = False,
    junit_file: Path | None = None,
    jobs: int | None = None,
) -> Summary:
    """Judge what is asked for, on the GPU if there is one and else on the interpreter, and write
    the report into ``folder``. Raises InputError where nothing is asked for."""
    journal = Journal(folder / "outcomes.jsonl", resume=resume or case is not None)
    targets = request.targets()
    total = None
    if request.matrix != PRODUCT or request.limit is not None:
        kept = list(targets)
        targets, total = iter(kept), len(kept)
        if not kept:
            raise InputError("nothing to test: no point of the matrix has the values of --where")
    on_gpu = has_hopper()
    with matrix_progress(total) as (report, done):
        run = Run(journal, case, report, lambda outcome: done(str(outcome)))
        outcomes = tuple(_outcomes(run, targets, jobs=jobs, on_gpu=on_gpu))
    summary = Summary(
        what=request.what,
        where=machine("cuda" if on_gpu else "cpu"),
        command=shlex.join(["fa3gen", *sys.argv[1:]]),
        outcomes=outcomes,
        impossible=request.point_set.impossible,
        refusals_fail=request.matrix != PRODUCT,
    )
    write(summary, folder)
    if junit_file is not None:
        junit_file.write_bytes(junit(summary))
    return summary


def _outcomes(
    run: Run, targets: Iterator[Target], *, jobs: int | None, on_gpu: bool
) -> Iterator[Outcome]:
    while chunk := list(islice(targets, _CHUNK)):
        if on_gpu:
            with Worker() as worker:
                yield from run.on_gpu(built(chunk, jobs=jobs), worker)
        else:
            yield from run.interpreted(interpretable(chunk))


def make_parts(
    request: Request, directory: Path, *, jobs: int | None = None, part_bytes: int
) -> list[Path]:
    """Build the points of a set and write them as parts to be carried to a GPU.

    Raises InputError where ``directory`` is not empty or something else than a set is asked for,
    and the first error of a build.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"--parts: {directory} must not exist, or be an empty folder")
    if request.specs or request.points:
        raise InputError("--parts: takes a set, --matrix quick or full, without specs and points")
    found = request.point_set
    if not found.points:
        raise InputError("--parts: needs --matrix quick or full, and points that --where leaves")
    artifacts: dict[int, Artifact] = {}
    with build_progress() as progress:
        specs = [point.spec() for point in found.points]
        for place, result in build_many(specs, jobs=jobs, progress=progress):
            if isinstance(result, Fa3genError):
                raise _named(found.points[place], result)
            artifacts[place] = result
    pairs = [(point, artifacts[place]) for place, point in enumerate(found.points)]
    return write_parts(pairs, request.what, found.impossible, directory, part_bytes=part_bytes)


def _named(point: Point, error: Fa3genError) -> Fa3genError:
    """The error with the point it is of."""
    if isinstance(error, UserError | PressureError):
        return InputError(
            f"{point.key}: {error}; find the points anew with `python -m fa3gen.matrix.sets "
            "--write --build`"
        )
    return error
