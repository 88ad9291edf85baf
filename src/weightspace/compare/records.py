"""Reads the files that a comparison leaves: `compare.json`, and the `result.json` of every run."""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from weightspace.compare.plan import Job, make_slugs
from weightspace.errors import RecipeError, RunError, WeightspaceError
from weightspace.files import JsonObject, read_json
from weightspace.training.recipe import Recipe, run_fingerprint

COMPARE_FILE = "compare.json"
"""What a comparison's folder says of itself: recipe, data, versions, duration."""
_ADVICE = "delete it and run `compare` with its recipe again, which keeps the finished runs"
_DEFAULT_CLASSES = 10  # only until the data have been loaded for the first time


def now() -> str:
    """The time as reports show it: UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def read_facts(run_dir: Path) -> tuple[JsonObject, Recipe]:
    """Read and check `compare.json`.

    Args:
        run_dir: Folder of a comparison.

    Returns:
        Its content, with `data`, `resumed` and `slugs` always there, and the recipe in it.

    Raises:
        RunError: The file is damaged; deleting it keeps the finished runs, and the sentence says so.
    """
    path = run_dir / COMPARE_FILE
    try:
        facts = read_json(path)
    except RunError as error:
        raise RunError(f"{error}; {_ADVICE}") from error
    try:
        if not isinstance(facts.get("recipe"), dict):
            raise _damaged(path, "it holds no recipe")
        recipe = Recipe.from_dict(facts["recipe"], source="its recipe")
    except RecipeError as error:
        raise _damaged(path, str(error)) from error
    if recipe.compare is None:
        raise _damaged(path, "its recipe compares nothing")
    for key, empty in (("data", {}), ("resumed", []), ("slugs", {})):
        if not isinstance(facts.setdefault(key, empty), type(empty)):
            raise _damaged(path, f"its '{key}' is not a {type(empty).__name__}")
    if len(set(facts["slugs"].values())) < len(facts["slugs"]) or not all(map(_is_slug, facts["slugs"].values())):
        raise _damaged(path, "its 'slugs' are not different folder names")
    # Before slugs were written down they followed from the order of the arms.
    facts["slugs"] = make_slugs(recipe.compare.arms, facts["slugs"])
    return facts, recipe


@contextmanager
def reading_damage(folder: Path) -> Generator[None, None, None]:
    """Where files of a run are made into words: an entry of a kind that nobody wrote becomes one sentence.

    Raises:
        RunError: Something in the folder is damaged in a way that no reader has a sentence of its own for.
    """
    try:
        yield
    except WeightspaceError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"a file in {folder} is damaged ({reason}); restore a copy, or run the command again") from error


def read_result(run_dir: Path, job: Job) -> JsonObject | None:
    """The whole result of a job with its very settings, or None."""
    result = finished_run(run_dir / job.directory)
    return result if result and result.get("fingerprint") == run_fingerprint(job.recipe, job.seed) else None


def finished_run(directory: Path) -> JsonObject | None:
    """The whole result in a run's folder, of whatever settings, or None: a half-written run counts as none."""
    try:
        result = read_json(directory / "result.json")
    except RunError:
        return None
    return result if result.get("status") in ("done", "diverged") else None


def accuracy_of(result: JsonObject, chance: float) -> float:
    """Accuracy that a result counts with: chance level when it diverged, whatever weights it ended with."""
    value = result.get("test_accuracy")
    if result["status"] == "diverged" or not isinstance(value, int | float) or not math.isfinite(value):
        return chance
    return float(value)


def loss_of(result: JsonObject) -> float:
    """Loss that a result counts with: infinite when it diverged."""
    loss = result.get("test_loss")
    usable = result["status"] == "done" and isinstance(loss, int | float) and math.isfinite(loss)
    return float(loss) if usable and loss is not None else math.inf


def perplexity_of(result: JsonObject, chance: float) -> float | None:
    """Perplexity that a result counts with: that of guessing when the run diverged; None for runs on images."""
    value = result.get("perplexity")
    if result["status"] == "diverged":
        return 1.0 / chance
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def chance_of(facts: JsonObject) -> float:
    """Accuracy of guessing on the comparison's data."""
    data = cast("dict[str, Any]", facts.get("data") or {})
    return 1.0 / int(data.get("classes") or _DEFAULT_CLASSES)


def _is_slug(slug: object) -> bool:
    return isinstance(slug, str) and re.fullmatch("[a-z0-9-]+", slug) is not None


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path} is damaged: {what}; {_ADVICE}")
