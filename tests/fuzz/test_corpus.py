"""The fuzzer's corpus (spec.py) again: each input becomes a kernel or is refused in time."""

from __future__ import annotations

from pathlib import Path

from untrusted import compile_text, limited, load_bytes

from fa3gen.schedule.ranges import key_bounds

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
WHOLE = 12  # of so many inputs, one takes all steps


def test_corpus(tmp_path: Path) -> None:
    valid = 0
    for entry in CORPUS:
        with limited():
            spec = load_bytes(entry.read_bytes(), tmp_path / "spec.yaml")
            if spec is None:
                continue
            valid += 1
            if valid % WHOLE == 0:
                compile_text(spec, prove=False)
            else:
                key_bounds(spec.mask_expr)
    assert valid > 50


def test_corpus_is_small() -> None:
    assert sum(entry.stat().st_size for entry in CORPUS) < 100_000
