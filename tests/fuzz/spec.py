"""Fuzzes the way from a spec's bytes to a kernel's text with atheris (libFuzzer's coverage).

::

    pip install -e .[fuzz]
    mkdir -p /tmp/found
    python tests/fuzz/spec.py -max_total_time=1200 -dict=tests/fuzz/spec.dict /tmp/found \\
        tests/fuzz/corpus

Inputs that reach new code are kept in the first folder; one that fails is written to a file named
``crash-...``, ``timeout-...`` or ``oom-...`` and replayed by naming it instead of the folders. An
input is refused with an error of fa3gen's own or becomes a kernel, within 5 seconds of processor
time and 1 GiB; every ``FA3GEN_FUZZ_STEPS``-th valid one (default 8) takes all steps, the others end
with their canonical form and key bounds. What is worth keeping is copied into the corpus, which
tests/fuzz/test_corpus.py replays.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["fa3gen"]):
    from untrusted import SECONDS, compile_text, limited, load_bytes

    from fa3gen.schedule.patterns import row_pattern
    from fa3gen.schedule.ranges import key_bounds

_STEPS = int(os.environ.get("FA3GEN_FUZZ_STEPS", "8"))
_FOLDER = tempfile.TemporaryDirectory(prefix="fa3gen-fuzz-")
_valid = 0


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    global _valid
    with limited(SECONDS):
        spec = load_bytes(data, Path(_FOLDER.name) / "spec.yaml")
        if spec is None:
            return
        _valid += 1
        if _valid % _STEPS == 0:
            compile_text(spec)
        else:
            key_bounds(spec.mask_expr)
            row_pattern(spec.mask_expr)


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], "-timeout=200", "-rss_limit_mb=2048", *sys.argv[1:]], one_input)
    atheris.Fuzz()
