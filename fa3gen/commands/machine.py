"""What is on this machine: doctor, and the cache of built kernels."""

from __future__ import annotations

import sys
import time

import typer

from fa3gen.commands.app import Json, app, print_json

__all__ = ["cache_clear", "cache_list", "cache_path", "doctor"]

cache_app = typer.Typer(no_args_is_help=True, help="Built kernels kept on this machine.")
app.add_typer(cache_app, name="cache")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has to build and run kernels, and how to get what is missing."""
    from fa3gen.jit.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.verdict:8s} {finding.part:16s} {finding.detail}")
    if not all(finding.works for finding in findings if finding.needed):
        raise typer.Exit(1)


@cache_app.command("path")
def cache_path() -> None:
    """Print where built kernels are kept."""
    from fa3gen.jit.entries import cache_directory

    print(cache_directory())


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List the built kernels, and what builds that failed or were killed have left."""
    from fa3gen.jit.entries import cache_directory
    from fa3gen.jit.inventory import take_stock

    found = take_stock(cache_directory())
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines(time.time()):
            print(line)


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove the built kernels; those that a process has loaded stay usable there."""
    from fa3gen.jit.entries import cache_directory
    from fa3gen.jit.inventory import clear

    cleared = clear(cache_directory())
    print(f"{cleared.kernels} kernels removed")
    if cleared.busy:
        print(f"fa3gen: being built, so left alone: {', '.join(cleared.busy)}", file=sys.stderr)
    if cleared.stuck:
        names = ", ".join(map(str, cleared.stuck))
        print(f"fa3gen: cannot be removed: {names}; remove them by hand", file=sys.stderr)
    if cleared.busy or cleared.stuck:
        raise typer.Exit(1)
