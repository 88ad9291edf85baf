"""`weightspace compare`: arms x seeds, tuned at equal budget, ending in a table and a report."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.console import print_note, progress_bar, stderr, stdout
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
    refuse_folder_of,
)
from weightspace.cli.run_folder import RUN_FILE
from weightspace.training.lock import locked


def compare(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    accelerator: AcceleratorOption = "auto",
    engine: EngineOption = "local",
    engine_address: EngineAddressOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Keep the finished runs of this comparison and train the others, or delete it and start anew.",
        ),
    ] = True,
) -> None:
    """Compare the recipe's arms over paired seeds, each tuned with the same budget.

    Writes every run, table.json, table.md and report.html to DIR (default: runs/NAME). After an interruption the
    same command, without --fresh, goes on where it stopped: finished runs are never trained again.
    """
    settings = read_recipe_option(recipe, set_)
    from weightspace.compare import comparison_table, run_comparison
    from weightspace.compare.directory import delete_comparison
    from weightspace.compare.plan import make_plan
    from weightspace.report import write_report

    make_plan(settings)  # a recipe without a comparison, or a missing accelerator, is refused
    how = checked_execution(workers, accelerator, engine, engine_address)
    folder = out if out is not None else Path("runs") / settings.name
    refuse_folder_of("a single training run", folder, RUN_FILE)
    refuse_folder_of("sampled chains", folder, "sample.json")
    if not resume:
        with locked(folder, "running a comparison"):  # one that is running in there keeps its files
            delete_comparison(folder)
    with run_progress() as move:
        run_comparison(settings, folder, replace(how, progress=move))
    stdout().print(comparison_table(folder))
    print_note(f"report: {write_report(folder)}")


@contextmanager
def run_progress() -> Generator[Callable[[str, int, int], None], None, None]:
    """A bar on a terminal; in a file or pipe (a batch job's log) one line for every run that has ended."""
    if stderr().is_terminal:
        with progress_bar("runs") as move:
            yield move
    else:
        from weightspace.compare.runner import LOADING

        def line(text: str, done: int, total: int) -> None:
            if text != LOADING:
                print_note(f"[{done}/{total}] {text}")

        yield line
