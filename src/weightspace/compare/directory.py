"""A comparison's folder: made, locked, and refused when it belongs to another recipe."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from weightspace.compare.results import COMPARE_FILE
from weightspace.errors import RunError
from weightspace.training.environment import machine, versions
from weightspace.training.files import JsonObject, ensure_writable_folder, read_json, write_json_atomically
from weightspace.training.recipe import Recipe

LOCK_FILE = ".lock"
ERRORS_FILE = "errors.txt"
_SHOWN = 3  # differences named in a refusal; more of them hide the first
_WITHOUT_EFFECT = {"name", "description"}


def now() -> str:
    """The time as reports show it: UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


@contextmanager
def locked(run_dir: Path) -> Generator[None, None, None]:
    """Hold a comparison's folder for this process. The lock goes with the process, however that ends.

    Args:
        run_dir: The folder; made when missing.

    Raises:
        RunError: The folder cannot be written, or another process is running a comparison in it.
    """
    ensure_writable_folder(run_dir)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; two comparisons in one folder go unnoticed there
        yield
        return
    handle = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another process is running a comparison in {run_dir}; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)


def open_comparison(recipe: Recipe, run_dir: Path, *, command: str, workers: int, threads: int) -> JsonObject:
    """Start or continue a comparison in a folder.

    Args:
        recipe: The recipe.
        run_dir: An empty folder, or one where a comparison of the same recipe was started. New arms may have been
            added.
        command: The command line, for the report.
        workers: Worker processes, for the report: they decide the time per step.
        threads: Threads of each, likewise.

    Returns:
        The content of `compare.json`, as written.

    Raises:
        RunError: The folder holds something else, or a comparison of another recipe; the sentence names what differs.
    """
    path = run_dir / COMPARE_FILE
    facts: JsonObject
    if path.exists():
        facts = read_json(path)
        _refuse_other_recipe(facts, recipe, run_dir)
        session = {"at": now(), "command": command, "versions": versions()}
        facts["resumed"] = [*facts.get("resumed", []), session]
        facts["recipe"] = recipe.to_dict()
    else:
        strangers = sorted(entry.name for entry in run_dir.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise RunError(
                f"{run_dir} holds {strangers[0]} but no {COMPARE_FILE}: not a comparison; choose an empty folder"
            )
        facts = {
            "recipe": recipe.to_dict(),
            "command": command,
            "versions": versions(),
            "machine": machine(),
            "data": {"name": recipe.data.name},
            "created": now(),
            "resumed": [],
        }
    facts["workers"], facts["threads"] = workers, threads
    write_json_atomically(path, facts)
    (run_dir / ERRORS_FILE).unlink(missing_ok=True)
    return facts


def recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What decides numbers and differs between two recipes, as `"path: old -> new"`.

    Names and descriptions decide nothing, nor does the place of the data files (their check sum is compared instead).
    An arm that only the new recipe has is no difference: the others' runs stay valid.

    >>> recipe_differences({"train": {"epochs": 3}}, {"train": {"epochs": 4}})
    ['train.epochs: 3 -> 4']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    known_arms = _arms_of(old)
    found: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        if path[0] in _WITHOUT_EFFECT or path == ("data", "root") or before.get(path, path) == after.get(path, path):
            continue
        if path[:2] == ("compare", "arms") and path[2] not in known_arms:
            continue
        found.append(f"{'.'.join(path)}: {before.get(path, 'nothing')} -> {after.get(path, 'nothing')}")
    return found


def _refuse_other_recipe(facts: Mapping[str, Any], recipe: Recipe, run_dir: Path) -> None:
    stored = facts.get("recipe")
    if not isinstance(stored, dict):
        raise RunError(f"{run_dir / COMPARE_FILE} is damaged: it holds no recipe; compare into a new folder")
    differences = recipe_differences(cast("dict[str, Any]", stored), recipe.to_dict())
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise RunError(
            f"{run_dir} holds a comparison of another recipe ({'; '.join(differences[:_SHOWN])}{more}); "
            "choose another folder, or use the recipe that was started there"
        )


def _flat(value: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    if isinstance(value, Mapping) and value:
        entries = cast("Mapping[object, object]", value).items()
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        entries = list(enumerate(cast("Sequence[object]", value)))
    else:
        return [(path, value)]
    return [leaf for key, inner in entries for leaf in _flat(inner, (*path, str(key)))]


def _arms_of(recipe: Mapping[str, Any]) -> set[str]:
    return set(((recipe.get("compare") or {}).get("arms") or {}).keys())
