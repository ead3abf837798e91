"""What a spec becomes, without building it: show, schema, generate, verify."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fa3gen.commands.app import Json, Spec, Specs, app, print_json

__all__ = ["generate", "schema", "show", "verify"]


@app.command()
def show(
    spec: Spec,
    plot: Annotated[
        Path | None, typer.Option(help="draw graph and timeline here (.svg or .png)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a spec, its graph, schedule, budgets, modelled occupancy and Program."""
    from fa3gen.driver import plan_of
    from fa3gen.schedule.lower import lower
    from fa3gen.schedule.show import schedule_json, show_schedule
    from fa3gen.timeline import simulate

    made = [(schedule, lower(schedule)) for schedule in plan_of(spec)]
    timelines = [simulate(program, schedule.graph) for schedule, program in made]
    if plot is not None:
        from fa3gen.plot import draw

        draw(made[-1][0].graph, timelines[-1], plot)
    if as_json:
        print_json([schedule_json(schedule, program) for schedule, program in made])
        return
    for (schedule, program), timeline in zip(made, timelines, strict=True):
        if schedule.max_keys is not None:
            print(f"==== the kernel of calls with up to {schedule.max_keys} keys\n")
        print(show_schedule(schedule))
        print(f"\n== units of one SM, modelled\n{timeline}\n\n{program}\n")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec."""
    from fa3gen.spec import AttentionSpec

    print_json(AttentionSpec.json_schema())


@app.command()
def generate(
    specs: Annotated[list[str] | None, typer.Argument(help="specs (all shipped ones)")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder")] = Path("generated"),
    check: Annotated[bool, typer.Option(help="compare instead of writing")] = False,
) -> None:
    """Render specs to CUDA and C++ text, a folder each."""
    from fa3gen.driver import source_of
    from fa3gen.paths import SPECS
    from fa3gen.schedule import make_plan
    from fa3gen.spec import load_spec

    stale = []
    for spec in specs or sorted(path.stem for path in SPECS.glob("*.yaml")):
        source = source_of(make_plan(load_spec(spec)))
        folder = output / source.meta.name
        texts = {f"{kernel.meta.stem}.cu": kernel.text for kernel in source.units}
        for name, text in {**texts, "host.cpp": source.host}.items():
            path = folder / name
            if check and (not path.is_file() or path.read_text() != text):
                stale.append(str(path))
            if not check:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                print(path)
    if stale:
        print("differs from what the compiler renders: " + ", ".join(stale), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def verify(specs: Specs, as_json: Json = False) -> None:
    """Prove the Programs of specs free of deadlocks and races."""
    from fa3gen.driver import plan_of
    from fa3gen.schedule import verify as prove
    from fa3gen.schedule.lower import lower
    from fa3gen.schedule.show import plain

    proofs: list[Any] = []
    plans = ((spec, schedule) for spec in specs for schedule in plan_of(spec))
    for spec, schedule in plans:
        started = time.perf_counter()
        proof = prove(lower(schedule))
        seconds = round(time.perf_counter() - started, 3)
        if as_json:
            proofs.append({"spec": spec, "proof": plain(proof), "seconds": seconds})
        else:
            print(f"{proof} in {seconds:.2f} s")
    if as_json:
        print_json(proofs)
