"""`sample.json`: which recipe the chains of a folder have, what ran where, and at the end what came of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from weightspace.compare.opening import recipe_differences
from weightspace.errors import RunError
from weightspace.files import JsonObject, delete_leftovers, read_json, reason_of
from weightspace.training.environment import machine, versions
from weightspace.training.logs import RUN_FILE
from weightspace.training.recipe import Recipe

SAMPLE_FILE = "sample.json"
PAGE_FILE = "sample.md"
PLOTS_FOLDER = "plots"
REPORT_FILE = "report.html"
_SHOWN = 3  # differences named in a refusal; more of them hide the first
_DECISIVE = ("data", "model", "train", "rules", "sample")
_ANY_TIME = {"chains", "level", "renew_batch_norm"}  # what may change between two calls: no sample depends on it


def now() -> str:
    """The time, as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def open_folder(recipe: Recipe, run_dir: Path, command: str) -> JsonObject:
    """What `sample.json` should hold at the start: of a new folder, or of one where this recipe was begun.

    Nothing is written yet. The number of chains may differ from the last time.

    Raises:
        RunError: The folder holds something else, or chains of another recipe; the sentence names what differs.
    """
    refuse_others(run_dir)
    session = {"at": now(), "command": command, "versions": versions()}
    path = run_dir / SAMPLE_FILE
    if not path.exists():
        if chain_folders(run_dir):
            raise RunError(f"{run_dir} holds chains but no {SAMPLE_FILE}; restore it, or choose another folder")
        first = {key: value for key, value in session.items() if key != "at"}
        return {"recipe": recipe.to_dict(), **first, "machine": machine(), "created": session["at"], "resumed": []}
    facts = read_facts(run_dir)
    found = differences(facts, recipe)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise RunError(
            f"{run_dir} holds chains of another recipe ({'; '.join(found[:_SHOWN])}{more}); choose another folder with "
            "--out, or --fresh to replace them"
        )
    resumed = cast("list[Any]", facts.get("resumed") or [])
    old = {key: value for key, value in facts.items() if key not in {"results", "finished"}}
    return {**old, "recipe": recipe.to_dict(), "resumed": [*resumed, session]}


def read_facts(run_dir: Path) -> JsonObject:
    """The content of `sample.json`.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        facts = read_json(run_dir / SAMPLE_FILE)
    except RunError as error:
        raise RunError(f"{error}; restore a copy, or sample anew with --fresh") from error
    if not isinstance(facts.get("recipe"), dict):
        raise RunError(f"{run_dir / SAMPLE_FILE} is damaged: it holds no recipe; sample anew with --fresh")
    return facts


def differences(facts: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What decides numbers and differs from the recorded recipe, as `"train.epochs: 2 -> 3"`."""
    stored = Recipe.from_dict(facts["recipe"], source=SAMPLE_FILE)
    old, new = ({key: values[key] for key in _DECISIVE} for values in (stored.to_dict(), recipe.to_dict()))
    for values in (old, new):
        values["sampling"] = {k: v for k, v in (values.pop("sample") or {}).items() if k not in _ANY_TIME}
    return [text.replace("sampling.", "sample.", 1) for text in recipe_differences(old, new)]


def refuse_others(run_dir: Path) -> None:
    """Refuse a folder of a comparison or of a single run.

    Raises:
        RunError: It is one.
    """
    for name, what in (("compare.json", "a comparison"), (RUN_FILE, "a single training run")):
        if (run_dir / name).exists():
            raise RunError(f"{run_dir} holds {what}; choose another folder with --out")


def chain_folders(run_dir: Path) -> list[Path]:
    """The folders of chains, by name."""
    return sorted(path for path in run_dir.glob("chain-*") if path.is_dir() and path.name[6:].isdigit())


def delete_sampling(run_dir: Path) -> None:
    """Delete what sampling has written to a folder, and nothing else; a folder without `sample.json` stays as it is.

    Raises:
        RunError: The folder holds something else, or cannot be cleared.
    """
    refuse_others(run_dir)
    if not (run_dir / SAMPLE_FILE).exists():
        if chain_folders(run_dir):
            raise RunError(f"{run_dir} holds chains but no {SAMPLE_FILE}; --fresh deletes only what sampling wrote")
        return
    try:
        for folder in [*chain_folders(run_dir), run_dir / PLOTS_FOLDER]:
            shutil.rmtree(folder, ignore_errors=not folder.exists())
        for name in (PAGE_FILE, REPORT_FILE, SAMPLE_FILE):  # the record last: what it belongs to is gone by then
            (run_dir / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot delete the earlier chains in {run_dir}: {reason_of(error)}") from error


def remove_leftovers(run_dir: Path, names: Sequence[str] = (SAMPLE_FILE, PAGE_FILE)) -> None:
    """Delete half-written files of a process that was killed. Only for the holder of the lock."""
    delete_leftovers(run_dir, *names)
