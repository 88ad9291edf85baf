"""A comparison's folder: what is in it, what does not belong there, what is moved aside and what is deleted.

- `compare.json`: recipe, folder names of the arms, data, versions, machine, sessions;
- `arms/SLUG/tune/TRIAL-seedK/` and `arms/SLUG/final/seedK/`: one run each, `metrics.jsonl` and `result.json`;
- `superseded/`: finished runs whose settings no longer belong to the comparison;
- `table.json`, `table.md`, `report.html`, `plots/`, `errors.txt`; `tolerance.*` of a sweep of strengths.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from weightspace.compare.records import COMPARE_FILE
from weightspace.errors import RunError
from weightspace.files import delete_leftovers, reason_of, write_text_atomically

ERRORS_FILE = "errors.txt"
ARMS_FOLDER = "arms"
SUPERSEDED_FOLDER = "superseded"
INCOMING_FOLDER = ".incoming"  # files of a run that was trained elsewhere, until all of them are there
_WRITTEN_UNDER_LOCK = (COMPARE_FILE, ERRORS_FILE, "table.json", "table.md")
# What a comparison writes: `delete_comparison` deletes these and nothing else.
_FILES = (*_WRITTEN_UNDER_LOCK, "report.html", "tolerance.json", "tolerance.md", "tolerance.png")
_FOLDERS = (ARMS_FOLDER, SUPERSEDED_FOLDER, "plots")
_RUN_FOLDERS = {"tune": re.compile(r"\d+-seed\d+"), "final": re.compile(r"seed\d+")}


def remove_leftovers(run_dir: Path) -> None:
    """Delete half-written temporary files of a process that was killed. Only for the holder of the lock.

    Only files that nobody but the holder writes: a report may be in the making at the same time. What a killed worker
    left goes when its run is trained again.
    """
    delete_leftovers(run_dir, *_WRITTEN_UNDER_LOCK)
    shutil.rmtree(run_dir / INCOMING_FOLDER, ignore_errors=True)


def strangers(run_dir: Path) -> list[str]:
    """Names in a folder without `compare.json` that do not look like the work of a comparison; hidden ones aside.

    An empty folder has none. Tables and plots alone could be anybody's, so they are strangers unless `arms` is there
    and holds nothing but folders of runs.
    """
    names = _shown(run_dir)
    if ARMS_FOLDER not in names:
        return names
    found = [name for name in names if name not in (*_FILES, *_FOLDERS)]
    arms = run_dir / ARMS_FOLDER
    for arm in _shown(arms):
        stages = _shown(arms / arm)
        for stage in stages:
            pattern = _RUN_FOLDERS.get(stage)
            runs = _shown(arms / arm / stage)
            if pattern is None or not all(pattern.fullmatch(run) for run in runs):
                found.append(f"{ARMS_FOLDER}/{arm}/{stage}")
        if not (arms / arm).is_dir():
            found.append(f"{ARMS_FOLDER}/{arm}")
    return found


def write_errors(run_dir: Path, text: str) -> str:
    """Write tracebacks to `errors.txt`.

    Returns:
        Where they are, as a part of a sentence; empty if they could not be written: what fails on a full disk is then
        also what failed before, and that is the sentence to show.
    """
    try:
        write_text_atomically(run_dir / ERRORS_FILE, text)
    except RunError:
        return ""
    return f"the traceback is in {run_dir / ERRORS_FILE}, "


def has_finished_runs(run_dir: Path, slug: str) -> bool:
    """Whether any run of an arm has ended, of tuning or final."""
    return any((run_dir / ARMS_FOLDER / slug).glob("*/*/result.json"))


def discard_arms(run_dir: Path, slugs: Sequence[str]) -> None:
    """Delete the half-written runs of arms that the recipe no longer has.

    Raises:
        RunError: They cannot be deleted.
    """
    _delete(run_dir, [run_dir / ARMS_FOLDER / slug for slug in slugs])


def set_aside(run_dir: Path, directory: str) -> Path:
    """Move a finished run, whose settings are no longer those asked for, out of the way: nothing finished is deleted.

    Args:
        run_dir: Folder of the comparison.
        directory: The run's folder below it.

    Returns:
        Where it is now: `superseded/<directory>`, with `-2`, `-3`, ... when that exists.

    Raises:
        OSError: It cannot be moved.
    """
    first = run_dir / SUPERSEDED_FOLDER / directory
    target, number = first, 1
    while target.exists():
        number += 1
        target = first.with_name(f"{first.name}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return (run_dir / directory).rename(target)


def delete_comparison(run_dir: Path) -> None:
    """Delete what a comparison has written to a folder, and nothing else; a folder without one stays as it is.

    Raises:
        RunError: The folder holds files like a comparison's, but no comparison; or something cannot be deleted.
    """
    if not (run_dir / COMPARE_FILE).exists():
        present = [name for name in (*_FILES, *_FOLDERS) if (run_dir / name).exists()]
        unknown = [name for name in strangers(run_dir) if name.partition("/")[0] in present]
        if unknown:
            raise RunError(
                f"{run_dir} holds {unknown[0]} but no {COMPARE_FILE}; --fresh deletes only comparisons, "
                "choose another folder"
            )
    _delete(run_dir, [run_dir / name for name in (*_FILES, *_FOLDERS)])


def _delete(run_dir: Path, paths: Sequence[Path]) -> None:
    try:
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot delete the earlier comparison in {run_dir}: {reason_of(error)}") from error


def _shown(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
