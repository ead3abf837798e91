"""How long bundles take to build, with an empty cache, and to load.

::

    python -m fa3gen.bench.bundles -o benchmarks/results/bundles

Ten forward variants are built from the command line; then fifty kernels of the full test matrix are
built into one bundle, which fresh processes load. A load is timed without ``import torch``. Needs
no GPU: libraries are opened and their ops registered, nothing is launched.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fa3gen._version import __version__
from fa3gen.bundle import build_bundle
from fa3gen.jit.toolchain import find_toolchain
from fa3gen.matrix import sets
from fa3gen.progress import build_progress

__all__ = ["main", "render"]

FORWARD = (
    *("causal_d128_bf16", "causal_d64_bf16", "causal_d96_bf16", "full_d128_bf16"),
    *("full_d256_fp16", "mla_prefill_d192_128_bf16", "window_d128_bf16"),
    *("alibi", "document_causal", "softcap"),
)
_LOADED = 50
_LOADS = 7
_LOAD = """
import sys, time
import torch
from fa3gen.runtime.bundle import load_bundle
begin = time.perf_counter()
bundle = load_bundle(sys.argv[1])
print(len(bundle), time.perf_counter() - begin)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write JSON and a table."""
    parser = argparse.ArgumentParser(prog="python -m fa3gen.bench.bundles", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fa3gen-bundles-") as temporary:
        os.environ["FA3GEN_CACHE_DIR"] = f"{temporary}/cache"
        results = {**_facts(), **_built(Path(temporary)), **_loaded(Path(temporary))}
    options.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(render(results))
    print(render(results))
    return 0


def render(results: Mapping[str, Any]) -> str:
    """The table."""
    loads = results["load_seconds"]
    spread = f"{min(loads):.2f} to {max(loads):.2f}"
    return (
        "# Bundles\n\n"
        f"    {results['command']}\n\n"
        f"{results['cores']} cores, nvcc {results['nvcc']}, torch {results['torch']}, Python "
        f"{results['python']}, fa3gen {results['fa3gen']}.\n\n"
        "| what | seconds |\n|---|---|\n"
        f"| `{results['build_command']}`, {results['built']} variants, empty cache | "
        f"{results['build_seconds']:.0f} |\n"
        f"| `load_bundle`, {results['loaded']} variants, {results['loaded_mib']:.0f} MiB, median "
        f"of {len(loads)} processes | {statistics.median(loads):.2f} ({spread}) |\n"
    )


def _facts() -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "fa3gen.bench.bundles", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "nvcc": find_toolchain().nvcc_version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "fa3gen": __version__,
    }


def _built(folder: Path) -> dict[str, Any]:
    words = ["bundle", *FORWARD, "-o"]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fa3gen.cli", *words, str(folder / "ten")], check=True)
    seconds = time.perf_counter() - started
    command = shlex.join(["fa3gen", *words, "DIR"])
    return {"build_command": command, "built": len(FORWARD), "build_seconds": round(seconds, 1)}


def _loaded(folder: Path) -> dict[str, Any]:
    bundle = folder / "many"
    points = sets.read("full").points[:_LOADED]
    with build_progress() as progress:
        build_bundle([point.spec() for point in points], bundle, progress=progress)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    loads = [_load(bundle) for _ in range(_LOADS)]
    return {"loaded": len(points), "loaded_mib": round(size / 2**20, 1), "load_seconds": loads}


def _load(bundle: Path) -> float:
    command = [sys.executable, "-c", _LOAD, str(bundle)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    count, seconds = done.stdout.split()
    assert int(count) == _LOADED, count
    return round(float(seconds), 3)


if __name__ == "__main__":
    sys.exit(main())
