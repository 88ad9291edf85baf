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
from weightspace.training.files import JsonObject, read_json_lines

METRICS_FILE = "metrics.jsonl"


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
    """

    title: str
    names: tuple[str, ...]
    steps: tuple[int, ...]
    rho: NDArray[np.float64]
    shrinkage: NDArray[np.float64]


def arm_curves(comparison: Comparison, arm: ArmResult) -> list[Curve]:
    """Curves of an arm's finished final runs that did not diverge, seed by seed."""
    curves: list[Curve] = []
    for job in final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice is not None else None):
        if job.seed in arm.accuracy and job.seed not in arm.diverged_seeds:
            curve = read_curve(comparison.run_dir / job.directory, f"seed {job.seed}")
            if curve.epochs and curve.epochs[-1] == job.recipe.train.epochs:
                curves.append(curve)
    return curves


def arm_layers(comparison: Comparison, arm: ArmResult) -> LayerTable | None:
    """Per-layer measurements of an arm's finished final runs, or None when it has none."""
    jobs = final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice is not None else None)
    folders = [comparison.run_dir / job.directory for job in jobs if job.seed in arm.accuracy]
    return read_layers(folders, arm.arm.name)


def read_curve(directory: Path, label: str) -> Curve:
    """The epochs of one run, as far as it has come.

    Raises:
        RunError: `metrics.jsonl` is damaged.
    """
    records = [record for record in read_json_lines(directory / METRICS_FILE) if record.get("kind") == "epoch"]
    return Curve(
        label,
        tuple(int(record["epoch"]) for record in records),
        *(tuple(_number(record, key) for record in records) for key in ("test_accuracy", "test_loss", "train_loss")),
    )


def read_layers(directories: Sequence[Path], title: str) -> LayerTable | None:
    """Per-layer measurements of some runs, averaged; None when none has any.

    Args:
        directories: Folders of runs with the same settings.
        title: Name of the arm or run.

    Raises:
        RunError: A `metrics.jsonl` is damaged.
    """
    records = [
        record
        for directory in directories
        for record in read_json_lines(directory / METRICS_FILE)
        if record.get("kind") == "layer"
    ]
    if not records:
        return None
    names = tuple(dict.fromkeys(str(record["name"]) for record in records))
    steps = tuple(sorted({int(record["step"]) for record in records}))
    rows, columns = {n: i for i, n in enumerate(names)}, {s: i for i, s in enumerate(steps)}
    sums = np.zeros((2, len(names), len(steps)))
    counts = np.zeros_like(sums)
    for record in records:
        where = rows[str(record["name"])], columns[int(record["step"])]
        for index, key in enumerate(("rho", "shrinkage")):
            value = _number(record, key)
            if math.isfinite(value):
                sums[(index, *where)] += value
                counts[(index, *where)] += 1
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return LayerTable(title, names, steps, means[0], means[1])


def _number(record: JsonObject, key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
