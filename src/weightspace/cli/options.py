"""Arguments and options that several commands share, and what they mean for a run's folder."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.errors import RunError
from weightspace.training.environment import is_started_by_torchrun
from weightspace.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from weightspace.compare.execution import Execution

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
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Runs at the same time, each in a process of its own.",
        show_default="one per GPU, or per core without one",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Who runs them: local (processes of this machine) or ray (a Ray cluster). The results are the same.",
    ),
]
EngineAddressOption = Annotated[
    str | None,
    typer.Option(
        "--engine-address",
        metavar="ADDRESS",
        help="Of a Ray cluster that is running, such as head:6379, or auto for that of this machine.",
        show_default="a cluster of this machine alone, which ends with the command",
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="Train with several processes: ddp (each has the whole model) or fsdp2 (each has a part of every weight).",
        show_default=False,
    ),
]
DevicesOption = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        metavar="N",
        help="With --strategy: how many processes to start on this machine. Default: one for each GPU; torchrun's.",
        show_default=False,
    ),
]


def checked_execution(workers: int | None, accelerator: str, engine: str, address: str | None) -> Execution:
    """Who carries out the runs, as the options say; what is not there is refused before anything is touched."""
    from weightspace.compare.execution import EngineChoice, Execution

    return Execution(workers, accelerator, EngineChoice(engine, address), command_line()).checked()


def refuse_folder_of(kind: str, folder: Path, file: str) -> None:
    """Raises RunError if the folder holds another command's work, which `file` gives away."""
    if (folder / file).exists():
        raise RunError(f"{folder} holds {kind}; choose another folder with --out")


def read_recipe_option(recipe: str, overrides: list[str] | None) -> Recipe:
    """The checked recipe that RECIPE and all `--set` name."""
    return load_recipe(recipe, overrides or [])


def command_line() -> str:
    """The command as the user would type it again."""
    return shlex.join(command_words())


def command_words() -> list[str]:
    """The command word by word; under torchrun with what it needs on one machine."""
    words = ["weightspace", *sys.argv[1:]]
    if not is_started_by_torchrun():
        return words
    return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", *words]
