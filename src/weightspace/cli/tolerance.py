"""`weightspace tolerance`: how strong may a penalty be, always on and under gates?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from weightspace.cli.compare import run_progress
from weightspace.cli.console import print_note, stdout
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
from weightspace.errors import RecipeError, nearest

if TYPE_CHECKING:
    from weightspace.compare.tolerance import Tolerance
    from weightspace.training.recipe import Recipe


def tolerance(
    recipe: RecipeArgument,
    *,
    rule: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="The penalty, such as L1 or L2.", show_default="the recipe's, or L1"),
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Weakest and strongest; an octave apart in between.",
            show_default="the recipe's, or 1e-4:1.28e-2",
        ),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Gates with commas between them, of the recipe's or of always, delayed, coherent-total, "
            "coherent-history, coherent-previous, coherent-lookahead, random, random-history, cautious.",
            show_default="the recipe's, or always,delayed,coherent-total,coherent-history,random",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs of each arm.", show_default="the recipe's, or 1")
    ] = None,
    out: OutOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    accelerator: AcceleratorOption = "auto",
    engine: EngineOption = "local",
    engine_address: EngineAddressOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Keep the finished runs of this sweep, or delete it and start anew."),
    ] = True,
) -> None:
    """Find the strength of a penalty above which the recipe's network stops learning, under each gate.

    Trains the recipe without the penalty, and with it at every strength and gate. Writes every run, tolerance.md,
    tolerance.png and tolerance.json to DIR (default: runs/NAME-tolerance). The recipe should train briefly: see --set
    train.epochs. After an interruption the same command, without --fresh, goes on where it stopped.
    """
    settings = with_sweep(read_recipe_option(recipe, set_), rule, strengths, gates, seeds)
    folder = out if out is not None else Path("runs") / f"{settings.name}-tolerance"
    how = checked_execution(workers, accelerator, engine, engine_address)
    _prepare(settings, folder, resume=resume)
    from weightspace.compare.tolerance import run_tolerance
    from weightspace.report.tolerance import write_tolerance

    with run_progress() as move:
        found = run_tolerance(settings, folder, replace(how, progress=move))
    page = write_tolerance(found, folder)
    _tell(found)
    print_note(f"page: {page}")


def _prepare(settings: Recipe, folder: Path, *, resume: bool) -> None:
    """Refuse what cannot be run before anything is touched; then delete an earlier sweep if asked to."""
    from weightspace.compare._sweep import sweep_of
    from weightspace.compare.directory import delete_comparison
    from weightspace.training.lock import locked

    sweep_of(settings)
    refuse_folder_of("a single training run", folder, RUN_FILE)
    if not resume:
        with locked(folder, "running a comparison"):  # one that is running in there keeps its files
            delete_comparison(folder)


def with_sweep(recipe: Recipe, rule: str | None, strengths: str | None, gates: str | None, seeds: int | None) -> Recipe:
    """The recipe with its `sweep` as the options change it; one of its own where it has none.

    Raises:
        RecipeError: An option is out of range, or names an unknown gate.
    """
    from weightspace.training.recipe import Recipe

    sweep: dict[str, Any] = {} if recipe.sweep is None else recipe.sweep.model_dump(mode="json")
    if rule is not None:
        sweep["rule"] = {"rule": rule}
    if strengths is not None:
        sweep["strengths"] = _ends(strengths)
    if seeds is not None:
        sweep["seeds"] = seeds
    if gates is not None:
        sweep["gates"] = _chosen(gates, sweep.get("gates", {}))
    return Recipe.from_dict(recipe.to_dict() | {"sweep": sweep}, source="the sweep")


def _ends(text: str) -> list[float]:
    parts = text.split(":")
    try:
        low, high = (float(part) for part in parts)
    except ValueError as error:
        raise RecipeError(f"--strengths {text} should be two numbers and a colon, such as 1e-4:1e-2") from error
    return [low, high]


def _chosen(text: str, own: dict[str, Any]) -> dict[str, Any]:
    """The named gates, of the recipe's own and the known ones; a recipe's own goes first."""
    from weightspace.training.recipe_sweep import GATE_PRESETS

    known = {**GATE_PRESETS, **own}
    chosen: dict[str, Any] = {}
    for name in (part.strip() for part in text.split(",")):
        if name not in known:
            guess = nearest(name, known, "did you mean '{}'?")
            raise RecipeError(f"--gates: there is no gate '{name}', {guess or 'known are ' + ', '.join(known)}")
        chosen[name] = known[name]
    return chosen


def _tell(found: Tolerance) -> None:
    from weightspace.compare._tolerance_text import table_cells, theory_lines, verdict_lines

    headings, rows = table_cells(found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for row in rows:
        table.add_row(*(Text("\n".join(cell), style="red" if cell and cell[0].endswith(" x") else "") for cell in row))
    console = stdout()
    console.print(table)
    for line in (*verdict_lines(found), *theory_lines(found)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
