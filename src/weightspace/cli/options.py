"""Arguments and options that several commands share, and what they mean for a run's folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from weightspace.errors import RunError
from weightspace.training.files import read_json
from weightspace.training.recipe import Recipe, load_recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe (see `weightspace recipes`) or a .yaml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe, e.g. train.epochs=3. Repeatable."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run.", show_default=False)]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Delete what the folder holds of an earlier run and start anew.")
]
AcceleratorOption = Annotated[
    str,
    typer.Option(
        "--accelerator", "--device", metavar="NAME", help="auto, cpu, cuda or mps (Lightning Fabric's names)."
    ),
]


def read_recipe_option(recipe: str, overrides: list[str] | None) -> Recipe:
    """The checked recipe that RECIPE and all `--set` name."""
    return load_recipe(recipe, overrides or [])


def recorded(folder: Path, name: str) -> dict[str, object] | None:
    """What a run recorded about itself in `folder/name`, or None when there is no such file.

    Raises:
        RunError: The file is damaged: a half-written run.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        return read_json(path)
    except RunError as error:
        raise RunError(f"{folder} holds a damaged run: {error}, or start it anew with --fresh") from error


def command_line() -> str:
    """The command as the user would type it again."""
    return shlex.join(["weightspace", *sys.argv[1:]])
