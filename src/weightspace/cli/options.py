"""Arguments and options that several commands share, and what they mean for a run's folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from weightspace.training.recipe import Recipe, load_recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe (see `weightspace recipes`) or a .yaml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the recipe, such as train.epochs=3. Repeatable.",
    ),
]


def _folder(text: str) -> Path:
    if not text.strip():  # it would be the folder that the shell is in
        raise typer.BadParameter("an empty name is no folder; write . for the current one")
    return Path(text)


OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=_folder, help="Folder to write to.", show_default=False),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Delete the earlier run in the folder and start anew.")]
AcceleratorOption = Annotated[
    str,
    typer.Option("--accelerator", "--device", metavar="NAME", help="Where to train: auto, cpu, cuda or mps."),
]


def read_recipe_option(recipe: str, overrides: list[str] | None) -> Recipe:
    """The checked recipe that RECIPE and all `--set` name."""
    return load_recipe(recipe, overrides or [])


def command_line() -> str:
    """The command as the user would type it again."""
    return shlex.join(command_words())


def command_words() -> list[str]:
    """The command word by word."""
    return ["weightspace", *sys.argv[1:]]
