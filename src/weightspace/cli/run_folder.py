"""What `weightspace train` makes of a folder that is not empty: go on, start over, give back the result, or refuse.

Law: advice in an error works when it is followed, and no file is replaced that a user could miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from weightspace.cli.console import print_note
from weightspace.errors import RunError
from weightspace.files import JsonObject, read_json
from weightspace.training.logs import RUN_FILE
from weightspace.training.recipe import Recipe, run_fingerprint

_DECISIVE = ("data", "model", "train", "rules")
_SHOWN = 3  # differences named in a refusal; more of them hide the first


@dataclass(frozen=True)
class Found:
    """What a folder holds of an earlier run.

    Attributes:
        run: `run.json`, or None when it is missing or damaged.
        damage: The sentence about a damaged `run.json`, otherwise empty.
        has_checkpoint: Whether there is something to go on from.
        files: Names of the files that a new run would replace, `run.json` left out.
    """

    run: JsonObject | None
    damage: str
    has_checkpoint: bool
    files: tuple[str, ...]


def look(folder: Path) -> Found:
    """Look into a folder.

    Raises:
        RunError: It holds a comparison.
    """
    if (folder / "compare.json").exists():
        raise RunError(f"{folder} holds a comparison; choose another folder with --out")
    if (folder / "sample.json").exists():
        raise RunError(f"{folder} holds sampled chains; choose another folder with --out")
    run, damage = None, ""
    if (folder / RUN_FILE).exists():
        try:
            run = read_json(folder / RUN_FILE)
        except RunError as error:
            damage = str(error)
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*.safetensors"))
    files = [name for name in ("result.json", "model.safetensors", "metrics.jsonl") if (folder / name).exists()]
    return Found(run, damage, bool(checkpoints), (*files, *checkpoints))


def finished_or_refused(folder: Path, recipe: Recipe, seed: int, *, resume: bool) -> JsonObject | None:
    """Decide what becomes of a folder that is not to be cleared.

    A run that never saved anything does not stand in the way of the next one.

    Args:
        folder: The run's folder.
        recipe: What is to be trained.
        seed: Its seed.
        resume: Whether `--resume` was given.

    Returns:
        The result when this very run is finished there, None when training may begin or go on.

    Raises:
        RunError: The folder holds something that training would destroy; the sentence says what to do.
    """
    found, fingerprint = look(folder), run_fingerprint(recipe, seed)
    if found.run is None:
        return _unknown_run(folder, found, fingerprint, resume=resume)
    if found.run.get("fingerprint") != fingerprint:
        if set(found.files) <= {"metrics.jsonl"}:
            print_note(f"{folder} held another run that had saved nothing; this one takes its place")
            return None
        raise RunError(
            f"{folder} holds another run ({differences(found.run, recipe, seed)}); choose another folder with --out, "
            "or --fresh to replace it"
        )
    finished = _result(folder, fingerprint, can_go_on=resume)
    if finished is None and found.has_checkpoint and not resume:
        raise RunError(f"{folder} holds this run, unfinished; go on with --resume, or start it anew with --fresh")
    return finished


def differences(run: Mapping[str, Any], recipe: Recipe, seed: int) -> str:
    """What makes a recorded run another one than that asked for, as `"train.epochs: 2 -> 3"`.

    Args:
        run: The content of `run.json`.
        recipe: What is asked for now.
        seed: Its seed.
    """
    from weightspace.compare.opening import recipe_differences

    stored = run.get("recipe")
    if not isinstance(stored, dict):
        return "its settings are not recorded"
    old, new = cast("dict[str, Any]", stored), recipe.to_dict()
    pair = [{key: values.get(key) for key in _DECISIVE} for values in (old, new)]
    found = recipe_differences(*pair)
    if run.get("seed") != seed:
        found.insert(0, f"seed: {run.get('seed')} -> {seed}")
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more if found else "other settings"


def _unknown_run(folder: Path, found: Found, fingerprint: str, *, resume: bool) -> JsonObject | None:
    """A folder without a readable `run.json`: its checkpoints know which run they belong to."""
    if not found.files:
        return None
    if resume and found.has_checkpoint:
        if found.damage:
            print_note(f"{found.damage}; the checkpoint tells which run it is")
        return _result(folder, fingerprint, can_go_on=True)
    what = f"but no {RUN_FILE}" if not found.damage else f"and a damaged {RUN_FILE}"
    go_on = "go on with --resume if they are of this run, " if found.has_checkpoint else ""
    raise RunError(
        f"{folder} holds {', '.join(found.files[:2])} {what}; {go_on}choose another folder with --out, or replace "
        "them with --fresh"
    )


def _result(folder: Path, fingerprint: str, *, can_go_on: bool) -> JsonObject | None:
    from weightspace.training.loop import finished_result

    try:
        return finished_result(folder, fingerprint)
    except RunError as error:
        if can_go_on:  # `train_run` says that it is damaged, and goes on
            return None
        raise RunError(f"{error}; write it anew with --resume, or start anew with --fresh") from error
