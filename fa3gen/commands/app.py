"""What the commands share: the application, arguments of theirs, and how JSON is printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = ["Json", "Spec", "Specs", "app", "numbers", "print_json"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Spec = Annotated[str, typer.Argument(help="a spec file, or the name of a shipped spec")]
Specs = Annotated[list[str], typer.Argument(help="spec files, or names of shipped specs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def numbers(text: str) -> list[int]:
    """Sequence lengths of an option. Raises BadParameter for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--lengths: positive integers joined by commas (got {text!r})")
    return [int(part) for part in parts]


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    print(json.dumps(value, indent=1))
