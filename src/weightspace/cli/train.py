"""`weightspace train`: one run."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

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
    read_recipe_option,
    recorded,
)
from weightspace.errors import RunError
from weightspace.training.files import JsonObject, ensure_writable_folder, write_json_atomically
from weightspace.training.recipe import Recipe, run_fingerprint

RUN_FILE = "run.json"
DIVERGED = 1


def train(
    recipe: RecipeArgument,
    *,
    out: OutOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides initial weights, dropout and order of the images.")] = 0,
    set_: SetOption = None,
    resume: ResumeOption = False,
    fresh: FreshOption = False,
    accelerator: AcceleratorOption = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard curves.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Save every STEPS steps besides every epoch's end.")
    ] = None,
) -> int:
    """Train a recipe once, with its own `rules` and no tuning.

    Writes metrics.jsonl, result.json, model.safetensors and checkpoints to DIR (default: runs/NAME-train).
    Ctrl-C saves; the same command with --resume goes on, bit for bit.
    """
    settings = read_recipe_option(recipe, set_)
    if resume and fresh:
        raise RunError("--resume continues a run and --fresh deletes it; give one of them")
    folder = out if out is not None else Path("runs") / f"{settings.name}-train"
    ensure_writable_folder(folder)
    fingerprint = run_fingerprint(settings, seed)
    finished = None if fresh else _check_folder(folder, fingerprint, resume=resume)
    if finished is not None:
        print_note(f"{folder} holds this run, already finished; --fresh trains it again")
        return _tell(folder, finished)
    result = _run(
        settings,
        folder,
        seed,
        command_resume=resume and not fresh,
        options=(accelerator, tensorboard, checkpoint_every),
    )
    return _tell(folder, result)


def _check_folder(folder: Path, fingerprint: str, *, resume: bool) -> JsonObject | None:
    """Refuse a folder with another run in it; the result if this very run is finished there."""
    from weightspace.training.loop import finished_result

    if (folder / "compare.json").exists():
        raise RunError(f"{folder} holds a comparison; choose another folder with --out")
    run = recorded(folder, RUN_FILE)
    if run is None:
        left = [n for n in ("result.json", "metrics.jsonl", "model.safetensors") if (folder / n).exists()]
        left += [p.name for p in folder.glob("checkpoint-*.safetensors")]
        if left and not resume:
            raise RunError(
                f"{folder} holds {left[0]} but no {RUN_FILE}; choose another folder with --out, go on with --resume, "
                "or replace it with --fresh"
            )
        return None
    if run.get("fingerprint") != fingerprint:
        raise RunError(
            f"{folder} holds a run with other settings or another seed; choose another folder with --out, "
            "or --fresh to replace it"
        )
    finished = finished_result(folder, fingerprint)
    if finished is None and not resume:
        raise RunError(f"{folder} holds this run, unfinished; go on with --resume, or --fresh to start it anew")
    return finished


def _run(
    recipe: Recipe, folder: Path, seed: int, *, command_resume: bool, options: tuple[str, bool, int | None]
) -> JsonObject:
    from weightspace.training.environment import machine, versions
    from weightspace.training.loop import train_run
    from weightspace.training.session import load_recipe_data

    accelerator, tensorboard, checkpoint_every = options
    data = load_recipe_data(recipe)
    run = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "fingerprint": run_fingerprint(recipe, seed),
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
        "data": {
            "name": data.name,
            "label": data.label,
            "source": data.source,
            "train": len(data.train_labels),
            "test": len(data.test_labels),
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json_atomically(folder / RUN_FILE, run)
    with progress_bar("steps") as move:
        return train_run(
            recipe,
            folder,
            seed=seed,
            data=data,
            progress=lambda done, total: move(recipe.name, done, total),
            resume=command_resume,
            checkpoint_every_epochs=1,
            checkpoint_every_steps=checkpoint_every,
            tensorboard=tensorboard,
            accelerator=accelerator,
        )


def _tell(folder: Path, result: JsonObject) -> int:
    if result["status"] == "diverged":
        print_error(f"the run diverged: {result['reason']}; what was reached is in {folder}")
        return DIVERGED
    stdout().print(
        f"test accuracy {result['test_accuracy']:.2%} after {result['epochs']} epochs ({result['steps']} steps, "
        f"{result['seconds']:.1f} s, {1000 * result['seconds_per_step']:.2f} ms a step) in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0
