"""Prints what the program ``attention`` must be told of a variant of a bundle.

``python variant.py BUNDLE [NAME]``; without a name, of the first that is plain attention.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MASKS = {"true": "full", "k - q <= 0": "causal"}  # as bundle.json has them


def is_plain(spec: dict[str, Any]) -> bool:
    """Whether the program computes the same: no formula, no input, a mask that it knows."""
    return spec["score"] == "score" and not spec["inputs"] and spec["mask"] in MASKS


def main(folder: str, name: str | None = None) -> None:
    """Print the program's arguments."""
    ops = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))["ops"]
    plain = [op for op in ops if is_plain(op["spec"]) and name in (None, op["name"])]
    if not plain:
        what = "variant" if name is None else f"variant {name}"
        sys.exit(f"{folder} has no {what} of plain attention (full or causal, without inputs)")
    op = plain[0]
    library = Path(folder).resolve() / op["op_name"] / op["library"]
    dims = op["spec"]["head_dim"]
    words = (library, f"fa3gen::{op['op_name']}", dims["qk"], dims["v"], op["spec"]["dtype"])
    print(*words, MASKS[op["spec"]["mask"]])


if __name__ == "__main__":
    main(*sys.argv[1:])
