"""`weightspace sample`: chains of a recipe, their samples on disk, and what averaging them is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from weightspace.cli.console import print_error, print_note, print_warning, progress_bar, stdout
from weightspace.cli.options import (
    AcceleratorOption,
    EngineAddressOption,
    EngineOption,
    OutOption,
    RecipeArgument,
    SetOption,
    WorkersOption,
    checked_execution,
    read_recipe_option,
)
from weightspace.training.lock import locked
from weightspace.training.recipe import Recipe, SampleSettings

DIVERGED = 1


def sample(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    chains: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many chains.", show_default="the recipe's, or 4")
    ] = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    accelerator: AcceleratorOption = "auto",
    engine: EngineOption = "local",
    engine_address: EngineAddressOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on with the chains in the folder, or delete them and start anew."),
    ] = True,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard curves.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", help="Save every STEPS steps too, not only after epochs."),
    ] = None,
) -> int:
    """Sample a recipe's weights with several chains, and average what the samples predict.

    Chain k is a run with seed k: its own initialization, order of batches and noise. Writes samples and logs to
    DIR/chain-k, then sample.json, sample.md, report.html and plots to DIR (default: runs/NAME-sample). Ctrl-C saves;
    the same command goes on from there, bit for bit. Any optimizer will do: without noise its snapshots are averaged,
    and with --set sample.max_samples=1 the chains are a deep ensemble.
    """
    settings = with_chains(read_recipe_option(recipe, set_), chains)
    folder = out if out is not None else Path("runs") / f"{settings.name}-sample"
    from weightspace.chains import run_sampling
    from weightspace.chains.records import delete_sampling
    from weightspace.report import write_report

    how = checked_execution(workers, accelerator, engine, engine_address)
    if not resume:
        with locked(folder, "sampling"):  # one that is sampling in there keeps its files
            delete_sampling(folder)
    with progress_bar("steps") as move:
        facts = run_sampling(
            settings,
            folder,
            replace(how, progress=move),
            checkpoint_every_steps=checkpoint_every,
            tensorboard=tensorboard,
        )
    report = write_report(folder)
    tell(facts["results"])
    print_note(f"report: {report}")
    diverged = facts["results"]["diverged"]
    if diverged:
        print_error(f"{len(diverged)} of {settings.sample.chains if settings.sample else 0} chains diverged")
    return DIVERGED if diverged else 0


def with_chains(recipe: Recipe, chains: int | None) -> Recipe:
    """The recipe with a `sample` part, and so many chains."""
    part = (recipe.sample or SampleSettings()).model_dump(mode="json")
    if chains is not None:
        part["chains"] = chains
    return Recipe.from_dict(recipe.to_dict() | {"sample": part}, source=f"recipe '{recipe.name}'")


def tell_results(folder: Path) -> None:
    """Print the table of the chains in a folder, if they have ended."""
    from weightspace.chains.records import read_facts
    from weightspace.compare.records import reading_damage

    results = read_facts(folder).get("results")
    if isinstance(results, dict):
        with reading_damage(folder):
            tell(cast("dict[str, Any]", results))


def tell(results: dict[str, Any]) -> None:
    """Print the table, what it means, and what to doubt."""
    from weightspace.chains.text import HEADINGS, concerns, table_notes, table_rows, temperature_line, verdict

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        table.add_column(Text(heading), justify="left" if place == 0 else "right", no_wrap=True)
    rows = table_rows(results)
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if row is rows[3] else "", end_section=row is rows[3])
    console = stdout()
    console.print(table)
    lines = [*table_notes(results), "", *verdict(results), *filter(None, [temperature_line(results)])]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in concerns(results):
        print_warning(line)
