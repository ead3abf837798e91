"""Write the stored answers of the solver (``store``), or check that they are complete.

::

    python -m fa3gen.schedule.solutions             # whether the file holds every problem below
    python -m fa3gen.schedule.solutions --write     # solves them again

Stored are the problems of the shipped specs, and of head dims 16, 32 ... 256 and 192/128 with full,
causal and windowed masks, under the default or the tuned knobs. Equal problems are stored once:
fp16 and bf16 have the same, and so have masks that leave the same registers.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from fa3gen.paths import SPECS
from fa3gen.progress import check_progress
from fa3gen.schedule.loop import steady_step
from fa3gen.schedule.passes import start_plan
from fa3gen.schedule.step import Step
from fa3gen.schedule.store import SOLUTIONS, stored_keys
from fa3gen.spec import AttentionSpec
from fa3gen.spec.load import load_spec

__all__ = ["main", "stored_problems"]

_HEAD_DIMS = (*((d, d) for d in range(16, 257, 16)), (192, 128))
_MASKS = ("full", "causal", "window(1023, 0)")


def stored_problems() -> dict[str, Step]:
    """The problems that the file is for, by key in order."""
    specs = [load_spec(path.stem) for path in sorted(SPECS.glob("*.yaml"))]
    for (qk, v), mask in itertools.product(_HEAD_DIMS, _MASKS):
        specs.append(AttentionSpec(head_dim={"qk": qk, "v": v}, mask=mask))
    started = itertools.chain.from_iterable(start_plan(spec) for spec in specs)
    steps = [step for schedule in started if (step := steady_step(schedule))]
    return dict(sorted((step.key(), step) for step in steps))


def _write() -> None:
    """Solve every problem and write the file, an answer a line."""
    from fa3gen.schedule.solve import solve

    problems = stored_problems()
    lines = []
    with check_progress(len(problems)) as report:
        for key, step in problems.items():
            report(f"{step.warpgroups} warpgroups, products of {step.qk} and {step.pv}")
            lines.append(f'"{key}":{solve(step).to_json()}')
    SOLUTIONS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{SOLUTIONS.name}: {len(lines)} problems, {SOLUTIONS.stat().st_size} bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or check that it holds its problems and no others; exit code 1 if not."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--write"]:
        _write()
        return 0
    if words:
        print("usage: python -m fa3gen.schedule.solutions [--write]", file=sys.stderr)
        return 2
    wrong = stored_keys() ^ set(stored_problems())
    print(f"{SOLUTIONS.name}: {len(stored_keys())} problems, {len(wrong)} missing or out of date")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
