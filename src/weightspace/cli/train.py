"""`weightspace train`: one run."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightspace.cli.console import print_error, print_note, progress_bar, stdout
from weightspace.cli.options import (
    AcceleratorOption,
    FreshOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    command_line,
    command_words,
    read_recipe_option,
)
from weightspace.cli.run_folder import RUN_FILE, finished_or_refused, look
from weightspace.errors import RunError
from weightspace.files import JsonObject, write_json_atomically
from weightspace.training.checkpoint import has_checkpoint
from weightspace.training.interrupt import INTERRUPTED, Interrupted
from weightspace.training.lock import locked
from weightspace.training.recipe import Recipe, run_fingerprint
from weightspace.training.sparsity import sparsity_text

if TYPE_CHECKING:
    from weightspace.training.data import Data

__all__ = ["RUN_FILE", "train"]

DIVERGED = 1


def train(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Decides initial weights, dropout and the order of the batches.")
    ] = 0,
    set_: SetOption = None,
    resume: ResumeOption = False,
    fresh: FreshOption = False,
    accelerator: AcceleratorOption = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard curves.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", help="Save every STEPS steps too, not only after epochs."),
    ] = None,
) -> int:
    """Train a recipe once, with its own `rules` and no tuning.

    Writes metrics.jsonl, result.json, model.safetensors and checkpoints to DIR (default: runs/NAME-train).
    Ctrl-C saves the state; the same command with --resume goes on from there, bit for bit.
    """
    settings = read_recipe_option(recipe, set_)
    if resume and fresh:
        raise RunError("--resume continues a run and --fresh deletes it; give one of them")
    folder = out if out is not None else Path("runs") / f"{settings.name}-train"
    with locked(folder, "training"):
        if fresh:
            look(folder)  # refuses a comparison
        else:
            finished = finished_or_refused(folder, settings, seed, resume=resume)
            if finished is not None:
                print_note(f"{folder} holds this run, already finished; --fresh trains it again")
                return _tell(folder, finished)
        options = (accelerator, tensorboard, checkpoint_every)
        begun: list[int] = []
        try:
            result = _run(settings, folder, seed, begun, resume=resume, options=options)
        except KeyboardInterrupt as error:
            raise _with_advice(error, folder, begun=bool(begun)) from error
    return _tell(folder, result)


def _with_advice(error: KeyboardInterrupt, folder: Path, *, begun: bool) -> KeyboardInterrupt:
    """The interruption with the command that goes on, whether the state was saved or a second Ctrl-C left no time."""
    words = command_words()
    if begun:  # before that the folder is as it was, and the same command does the same
        words = [word for word in words if word not in {"--resume", "--fresh"}]
        words += ["--resume"] if has_checkpoint(folder) else []
    number = int(getattr(error, "exit_code", INTERRUPTED)) - 128
    return Interrupted(f"{str(error) or 'interrupted'}; go on with: {shlex.join(words)}", number)


def _run(
    recipe: Recipe,
    folder: Path,
    seed: int,
    begun: list[int],
    *,
    resume: bool,
    options: tuple[str, bool, int | None],
) -> JsonObject:
    """Load the data and train; `begun` gets the steps done before as soon as the folder is this run's."""
    from weightspace.training.last_records import temperature_text
    from weightspace.training.loop import train_run
    from weightspace.training.session import load_recipe_data

    accelerator, tensorboard, checkpoint_every = options
    data = load_recipe_data(recipe)

    def started(steps: int) -> None:
        begun.append(steps)
        if resume and steps == 0:
            print_note(f"{folder} holds no checkpoint: training starts from the beginning")
        _record(folder, recipe, seed, data, steps)

    with progress_bar("steps") as move:
        return train_run(
            recipe,
            folder,
            seed=seed,
            data=data,
            progress=lambda done, total: move(f"{recipe.name}{temperature_text(folder)}", done, total),
            started=started,
            resume=resume,
            checkpoint_every_epochs=1,
            checkpoint_every_steps=checkpoint_every,
            tensorboard=tensorboard,
            accelerator=accelerator,
        )


def _record(folder: Path, recipe: Recipe, seed: int, data: Data, steps: int) -> None:
    """Write `run.json`; a resumed run keeps what is there and adds when, how and with what it went on."""
    from weightspace.training.environment import machine, versions

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    earlier = look(folder).run if steps else None
    if earlier is not None:
        session = {"at": now, "step": steps, "command": command_line(), "versions": versions()}
        resumed = earlier.get("resumed")
        earlier["resumed"] = [*(resumed if isinstance(resumed, list) else []), session]
        write_json_atomically(folder / RUN_FILE, earlier)
        return
    run = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "fingerprint": run_fingerprint(recipe, seed),
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
        "data": data.describe(),
        "created": now,
    }
    write_json_atomically(folder / RUN_FILE, run)


def _tell(folder: Path, result: JsonObject) -> int:
    if result["status"] == "diverged":
        print_error(f"the run diverged: {result['reason']}; what was reached is in {folder}")
        return DIVERGED
    stdout().print(
        f"test accuracy {result['test_accuracy']:.2%}{_of_text(result)} after {result['epochs']} epochs "
        f"({result['steps']} steps, {result['seconds']:.1f} s, {1000 * result['seconds_per_step']:.2f} ms a step) "
        f"in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if text := sparsity_text(result):
        print_note(text)
    return 0


def _of_text(result: JsonObject) -> str:
    """The numbers that only a run on text has, as the end of a phrase; empty for images."""
    if result.get("perplexity") is None:
        return ""
    return f", perplexity {result['perplexity']:.3f} ({result['bits_per_character']:.3f} bits per character)"
