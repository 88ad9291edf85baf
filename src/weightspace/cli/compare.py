"""`weightspace compare`: arms x seeds, tuned at equal budget, ending in a table and a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from weightspace.cli.console import print_note, progress_bar, stdout
from weightspace.cli.options import OutOption, RecipeArgument, SetOption, command_line, read_recipe_option
from weightspace.cli.train import RUN_FILE
from weightspace.errors import RunError
from weightspace.training.files import ensure_writable_folder

# What a comparison writes: --fresh deletes these and nothing else.
_FILES = ("compare.json", "errors.txt", "table.json", "table.md", "report.html")
_FOLDERS = ("arms", "plots")


def compare(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    set_: SetOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Processes that train at the same time. Default: one per GPU, or per core."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Keep finished runs of this comparison, or delete them first.")
    ] = True,
) -> None:
    """Compare the recipe's arms over paired seeds, each tuned with the same budget.

    Writes every run, table.json, table.md and report.html to DIR (default: runs/NAME). After an interruption the
    same command goes on without redoing finished runs.
    """
    settings = read_recipe_option(recipe, set_)
    from weightspace.compare import comparison_table, run_comparison
    from weightspace.compare.directory import locked
    from weightspace.compare.plan import make_plan
    from weightspace.report import write_report

    make_plan(settings)  # a recipe without a comparison is refused before anything is touched
    folder = out if out is not None else Path("runs") / settings.name
    ensure_writable_folder(folder)
    if (folder / RUN_FILE).exists():
        raise RunError(f"{folder} holds a single training run; choose another folder with --out")
    if not resume:
        with locked(folder):  # a comparison that is running in there keeps its files
            _delete_comparison(folder)
    with progress_bar("runs") as move:
        run_comparison(settings, folder, workers=workers, command=command_line(), progress=move)
    stdout().print(comparison_table(folder))
    print_note(f"report: {write_report(folder)}")


def _delete_comparison(folder: Path) -> None:
    if not (folder / "compare.json").exists():
        strangers = [name for name in (*_FILES, *_FOLDERS) if (folder / name).exists()]
        if strangers:
            raise RunError(
                f"{folder} holds {strangers[0]} but no compare.json; --fresh deletes only comparisons, "
                "choose another folder"
            )
        return
    try:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    except OSError as error:
        raise RunError(f"cannot delete the earlier comparison in {folder}: {error.strerror or error}") from error
