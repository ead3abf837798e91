"""The matrix in parts that can be carried: built on a machine without a GPU, judged on one.

A part is a folder with a bundle (``fa3gen.load_bundle``) and ``points.json``, which says which
kernel is which point. To judge parts needs torch alone::

    fa3gen test --matrix full --parts DIR                # here
    python -m fa3gen.matrix.parts DIR/* -o REPORT        # where the GPU is
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fa3gen.errors import InputError, UserError
from fa3gen.matrix.calls import parse_case
from fa3gen.matrix.execute import Run
from fa3gen.matrix.journal import Journal
from fa3gen.matrix.points import Point
from fa3gen.matrix.report import Summary, junit, machine, write
from fa3gen.matrix.run import Outcome, Subject, built_subject, refused
from fa3gen.matrix.worker import Worker
from fa3gen.progress import matrix_progress
from fa3gen.runtime.artifact import Artifact
from fa3gen.runtime.bundle import load_bundle

__all__ = ["main", "write_parts"]

_POINTS = "points.json"
_BUNDLE = "bundle"


@dataclass(frozen=True)
class _Part:
    """What ``points.json`` says: the set's name, keys of the points by the names of their specs,
    and which pairs are impossible."""

    directory: Path
    what: str
    keys: Mapping[str, str]
    impossible: Mapping[str, str]

    @staticmethod
    def read(directory: Path) -> _Part:
        """Raises InputError where there is none."""
        try:
            kept = json.loads((directory / _POINTS).read_text(encoding="utf-8"))
            return _Part(directory, kept["what"], kept["keys"], kept["impossible"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{directory}: no part of a matrix ({error}); make parts with "
                "`fa3gen test --matrix full --parts DIR`"
            ) from error

    def write(self) -> None:
        """Beside the bundle."""
        record = {"what": self.what, "keys": dict(self.keys), "impossible": dict(self.impossible)}
        text = json.dumps(record, indent=1) + "\n"
        (self.directory / _POINTS).write_text(text, encoding="utf-8")

    def subjects(self, point: str | None) -> Iterator[tuple[Subject, Artifact] | Outcome]:
        """The kernels of the bundle, which is checked, or that of one point."""
        for name, attention in load_bundle(self.directory / _BUNDLE).items():
            if point not in (None, self.keys[name]):
                continue
            artifact = attention.artifact
            assert artifact is not None
            key = self.keys[name]
            try:
                yield built_subject(key, Point.parse(key).spec(), artifact), artifact
            except UserError as error:
                yield refused(key, error)


def write_parts(
    points: Sequence[tuple[Point, Artifact]],
    what: str,
    impossible: Mapping[str, str],
    directory: Path,
    *,
    part_bytes: int,
) -> list[Path]:
    """Writes built points as parts ``part-1``, ``part-2`` ... of at most so many bytes each."""
    from fa3gen.bundle import Variant, write_bundle
    from fa3gen.spec import AttentionSpec

    written = []
    for count, some in enumerate(_split(points, part_bytes), 1):
        folder = directory / f"part-{count}"
        (folder / _BUNDLE).mkdir(parents=True)
        specs = (AttentionSpec(**point.spec()) for point, _ in some)
        variants = [
            Variant(spec.canonical(), built) for spec, (_, built) in zip(specs, some, strict=True)
        ]
        write_bundle(variants, folder / _BUNDLE)
        _Part(folder, what, {point.name: point.key for point, _ in some}, impossible).write()
        written.append(folder)
    return written


def _split(
    points: Sequence[tuple[Point, Artifact]], part_bytes: int
) -> Iterator[list[tuple[Point, Artifact]]]:
    part: list[tuple[Point, Artifact]] = []
    size = 0
    for point, artifact in points:
        more = sum(path.stat().st_size for path in artifact.directory.iterdir())
        if part and size + more > part_bytes:
            yield part
            part, size = [], 0
        part.append((point, artifact))
        size += more
    if part:
        yield part


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge parts on this machine's GPU; exit code 0 if every call is right, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.matrix.parts", description=__doc__)
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="report's folder (matrix; matrix/again for --point, --call)",
    )
    parser.add_argument("--point", help="judge this point alone")
    parser.add_argument("--call", type=parse_case, help="make this call alone")
    parser.add_argument("--junit", type=Path, help="write JUnit's XML here")
    parser.add_argument("--resume", action="store_true", help="keep what is right already")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = Path("matrix", *(["again"] if options.point or options.call else []))
    try:
        parts = [_Part.read(folder) for folder in options.parts]
        summary = _judged(parts, options)
    except UserError as error:
        print(f"fa3gen: {error}", file=sys.stderr)
        return 1
    write(summary, options.output)
    if options.junit:
        options.junit.write_bytes(junit(summary))
    print(f"{summary.verdict}; see {options.output / 'report.md'}")
    return 1 if summary.failed else 0


def _judged(parts: Sequence[_Part], options: argparse.Namespace) -> Summary:
    where = machine(options.device)
    resume = options.resume or options.call is not None
    journal = Journal(options.output / "outcomes.jsonl", resume=resume)
    total = 1 if options.point else sum(len(part.keys) for part in parts)
    with matrix_progress(total) as (report, done), Worker(device=options.device) as worker:
        run = Run(journal, options.call, report, lambda outcome: done(str(outcome)))
        subjects = (subject for part in parts for subject in part.subjects(options.point))
        outcomes = tuple(run.on_gpu(subjects, worker))
    if not outcomes:
        raise InputError(f"nothing to test: no part has the point {options.point}")
    return Summary(
        what=parts[0].what,
        where=where,
        command=shlex.join(["python", "-m", "fa3gen.matrix.parts", *sys.argv[1:]]),
        outcomes=outcomes,
        impossible=parts[0].impossible,
        again=("python", "-m", "fa3gen.matrix.parts", *map(str, options.parts)),
    )


if __name__ == "__main__":
    sys.exit(main())
