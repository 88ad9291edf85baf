"""Reads what runs have logged: curves over epochs, and per-layer measurements over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightspace.compare.plan import final_jobs
from weightspace.compare.results import ArmResult, Comparison
from weightspace.errors import RunError
from weightspace.files import JsonObject
from weightspace.training.json_lines import read_whole_lines

METRICS_FILE = "metrics.jsonl"
_HUGE = 1 << 63  # no count or loss; a longer integer is no float


@dataclass(frozen=True)
class Curve:
    """One run over its epochs. `accuracy` is 0 to 1; what was not finite is NaN."""

    label: str
    epochs: tuple[int, ...]
    accuracy: tuple[float, ...]
    test_loss: tuple[float, ...]
    train_loss: tuple[float, ...]


@dataclass(frozen=True)
class LayerTable:
    """Per-layer measurements, averaged over runs.

    Attributes:
        title: The arm or run.
        names: Layers, first to last.
        steps: Steps at which they were measured.
        rho: Mean part of the gradient along the channel axis, shape `(layers, steps)`, 0 to 1; NaN where missing.
        shrinkage: Length of the transformed gradient over that of the loss gradient, likewise.
        factor: r, the largest factor that steps on a manifold were divided by, at least 1, likewise.
    """

    title: str
    names: tuple[str, ...]
    steps: tuple[int, ...]
    rho: NDArray[np.float64]
    shrinkage: NDArray[np.float64]
    factor: NDArray[np.float64] | None = None


def arm_curves(comparison: Comparison, arm: ArmResult, damage: list[str]) -> list[Curve]:
    """Curves of an arm's finished final runs that did not diverge, seed by seed.

    Args:
        comparison: The comparison.
        arm: One of its arms.
        damage: Gets a sentence for every damaged file; its whole records are used.
    """
    curves: list[Curve] = []
    for job in final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice is not None else None):
        if job.seed in arm.accuracy and job.seed not in arm.diverged_seeds:
            curve = read_curve(comparison.run_dir / job.directory, f"seed {job.seed}", damage)
            if curve.epochs and curve.epochs[-1] == job.recipe.train.epochs:
                curves.append(curve)
    return curves


def arm_layers(comparison: Comparison, arm: ArmResult, damage: list[str]) -> LayerTable | None:
    """Per-layer measurements of an arm's finished final runs, or None when it has none.

    Args:
        comparison: The comparison.
        arm: One of its arms.
        damage: Gets a sentence for every damaged file; its whole records are used.
    """
    jobs = final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice is not None else None)
    folders = [comparison.run_dir / job.directory for job in jobs if job.seed in arm.accuracy]
    return read_layers(folders, arm.arm.name, damage)


def read_curve(directory: Path, label: str, damage: list[str]) -> Curve:
    """The epochs of one run, as far as it has come.

    Args:
        directory: The run's folder.
        label: Name of the curve.
        damage: Gets a sentence when `metrics.jsonl` is damaged; its whole records are used.
    """
    records = _records(directory, "epoch", ("epoch",), damage)
    return Curve(
        label,
        tuple(int(record["epoch"]) for record in records),
        *(tuple(number_of(record, key) for record in records) for key in ("test_accuracy", "test_loss", "train_loss")),
    )


def read_layers(directories: Sequence[Path], title: str, damage: list[str]) -> LayerTable | None:
    """Per-layer measurements of some runs, averaged; None when none has any.

    Args:
        directories: Folders of runs with the same settings.
        title: Name of the arm or run.
        damage: Gets a sentence for every damaged file; its whole records are used.
    """
    records = [record for directory in directories for record in _records(directory, "layer", ("step", "name"), damage)]
    if not records:
        return None
    names = tuple(dict.fromkeys(str(record["name"]) for record in records))
    steps = tuple(sorted({int(record["step"]) for record in records}))
    rows, columns = {n: i for i, n in enumerate(names)}, {s: i for i, s in enumerate(steps)}
    sums = np.zeros((3, len(names), len(steps)))
    counts = np.zeros_like(sums)
    for record in records:
        where = rows[str(record["name"])], columns[int(record["step"])]
        for index, key in enumerate(("rho", "shrinkage", "r")):
            value = number_of(record, key)
            if math.isfinite(value):
                sums[(index, *where)] += value
                counts[(index, *where)] += 1
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return LayerTable(title, names, steps, *means)


def _records(directory: Path, kind: str, keys: Sequence[str], damage: list[str]) -> list[JsonObject]:
    """The whole records of one kind that have these keys; what is wrong with the others goes to `damage`."""
    path = directory / METRICS_FILE
    try:
        records, problem = read_whole_lines(path)
    except RunError as error:
        damage.append(f"{error}.")
        return []
    if problem:
        damage.append(f"{path} is damaged at {problem}; what it held there is missing in the plots.")
    found = [record for record in records if record.get("kind") == kind]
    whole = [record for record in found if all(_is_whole(record.get(key), key) for key in keys)]
    if len(whole) < len(found):
        damage.append(f"{path} has {len(found) - len(whole)} records without {' or '.join(keys)}; they are left out.")
    return whole


def _is_whole(value: object, key: str) -> bool:
    return isinstance(value, str) if key == "name" else isinstance(value, int) and not isinstance(value, bool)


def number_of(record: JsonObject, key: str) -> float:
    """A number in a record; NaN when it is missing or something else."""
    value = record.get(key)
    return float(value) if isinstance(value, float) or (isinstance(value, int) and abs(value) < _HUGE) else math.nan
