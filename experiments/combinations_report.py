"""Effects, table and pictures of `experiments.combinations`: `python -m experiments.combinations_report DIR`.

Reads DIR/results.json, which has one entry a cell and one row a seed; writes effects.json (see
`experiments.combinations_effects`, in percentage points of test accuracy and in nats of test loss), table.md,
combinations.png (every cell against the plain one) and interactions.png.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from experiments import combinations_pictures
from experiments.combinations_effects import FACTORS, Design, Levels, effects
from weightspace.files import JsonObject, read_json, write_json_atomically, write_text_atomically

POINTS = 100.0
COLLAPSED = 2.0  # times chance: below it a network has learned hardly anything


def write(results: JsonObject, folder: Path) -> None:
    """effects.json, table.md and both pictures."""
    found = analyze(results)
    write_json_atomically(folder / "effects.json", found)
    tables = [cell_table(found), effect_table(found), interaction_table(found), gate_table(found)]
    write_text_atomically(folder / "table.md", "\n".join(tables))
    combinations_pictures.write(found, folder)


def analyze(results: JsonObject) -> JsonObject:
    """All effects of accuracy and loss, and what else was measured of each cell."""
    cells = {name: cell for name, cell in results["cells"].items() if cell["runs"]}
    names = {levels(cell): name for name, cell in cells.items()}
    grid = tuple(tuple(results["factors"][factor]) for factor in FACTORS)
    every = [f"{a} / {b} / {c}" for a in grid[0] for b in grid[1] for c in grid[2] if (a, b, c) not in names]
    quantities: JsonObject = {}
    for key, scale, sign in (("accuracy", POINTS, 1), ("loss", 1.0, -1)):
        values = {levels(cell): {run["seed"]: scale * run[key] for run in cell["runs"]} for cell in cells.values()}
        quantities[key] = effects(Design(grid, results["gates"], values, results["level"], sign), names)
    return {
        "units": {"accuracy": "percentage points", "loss": "nats, lower is better"},
        "level": results["level"],
        "seeds": sorted({run["seed"] for cell in cells.values() for run in cell["runs"]}),
        "runs": sum(len(cell["runs"]) for cell in cells.values()),
        "factors": results["factors"],
        "missing": every,
        "cells": {name: facts(cell, results["chance"]) for name, cell in cells.items()},
        **quantities,
    }


def levels(cell: JsonObject) -> Levels:
    """The place of a cell in the matrix."""
    return tuple(cell["levels"][factor] for factor in FACTORS)


def facts(cell: JsonObject, chance: float) -> JsonObject:
    """Levels, learning rate and means over seeds of what is no accuracy; None where nothing was measured."""
    runs, rates = cell["runs"], sorted(trial["lr"] for trial in cell["trials"])
    singular = sum(run.get("singular", False) for run in runs)
    spreads = known(runs, "spread") + [math.inf] * singular
    return {
        "levels": cell["levels"],
        "lr": cell["lr"],
        "lr_at_edge": len(rates) > 1 and cell["lr"] in (rates[0], rates[-1]),
        "n": len(runs),
        "zeros": fmean(run["zeros"] for run in runs),
        "zeros_convolutions": zeros(runs, "features."),
        "zeros_linear": zeros(runs, "classifier."),
        "duty": mean(known(runs, "duty")),
        "violation": max(known(runs, "violation"), default=None),
        "spread": finite(median(spreads)) if spreads else None,
        "singular": singular,
        "diverged": sum(run["status"] == "diverged" for run in runs),
        "collapsed": sum(run["accuracy"] < COLLAPSED * chance for run in runs),
        "train_loss": mean(known(runs, "train_loss")),
        "ms_per_step": 1000 * min(known(runs, "seconds_per_step"), default=math.nan),
    }


def finite(number: float) -> float | None:
    """The number, or None where JSON has none."""
    return number if math.isfinite(number) else None


def known(runs: Sequence[JsonObject], key: str) -> list[float]:
    """The values of those runs that have one."""
    return [run[key] for run in runs if run.get(key) is not None]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None


def zeros(runs: Sequence[JsonObject], prefix: str) -> float | None:
    """Mean share of exact zeros over seeds and over the layers with this prefix, each layer counting once."""
    return mean([share for run in runs for name, share in run["zeros by layer"].items() if name.startswith(prefix)])


def cell_table(found: JsonObject) -> str:
    """One row a cell."""
    lines = [
        "| metric | manifold | penalty | learning rate | accuracy, % | minus plain, points | p (Holm) | minus best part | loss | minus plain | zeros, % | gate open, % | spread of σ |",
        "|:---|:---|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cell in found["cells"].items():
        accuracy, loss = found["accuracy"], found["loss"]
        difference = accuracy["differences"].get(name)
        cells = [
            *(cell["levels"][factor] for factor in FACTORS),
            f"{cell['lr']:g}" + (r" \*" if cell["lr_at_edge"] else ""),
            f"{accuracy['means'][name]['mean']:.2f}",
            "baseline" if difference is None else written(difference),
            probability(difference),
            written(accuracy["over best part"].get(name)),
            f"{loss['means'][name]['mean']:.3f}",
            written(loss["differences"].get(name), 3),
            f"{POINTS * cell['zeros']:.1f}",
            "–" if cell["duty"] is None else f"{POINTS * cell['duty']:.0f}",
            ("∞" if cell["singular"] else "–") if cell["spread"] is None else f"{cell['spread']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def effect_table(found: JsonObject) -> str:
    """One row a level: against none, averaged over all levels of the other factors."""
    lines = ["| on average | accuracy, points | p (Holm) | loss | p (Holm) |", "|:---|---:|---:|---:|---:|"]
    for row, loss in zip(found["accuracy"]["effects"], found["loss"]["effects"], strict=True):
        first, second = row["effect"], loss["effect"]
        cells = [row["level"], written(first), probability(first), written(second, 3), probability(second)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gate_table(found: JsonObject) -> str:
    """One row a penalty, metric and manifold: gated minus always on."""
    lines = [
        "| penalty | metric | manifold | gated minus always, points | p (Holm) | zeros, always → gated, % |",
        "|:---|:---|:---|---:|---:|---:|",
    ]
    for row in found["accuracy"]["gates"]:
        pair = [
            zeros_at(found, {**{factor: row[factor] for factor in FACTORS[:2]}, "penalty": row["penalty"] + suffix})
            for suffix in ("", " gated")
        ]
        cells = [row["penalty"], row["metric"], row["manifold"], written(row["change"]), probability(row["change"])]
        lines.append("| " + " | ".join([*cells, " → ".join(pair)]) + " |")
    return "\n".join(lines) + "\n"


def zeros_at(found: JsonObject, at: Mapping[str, str]) -> str:
    """Percent of exact zeros in the cell at these levels."""
    shares = [cell["zeros"] for cell in found["cells"].values() if cell["levels"] == at]
    return f"{POINTS * shares[0]:.1f}" if shares else "–"


def interaction_table(found: JsonObject) -> str:
    """One row a pair of levels."""
    lines = [
        "| pair | alone, points | p (Holm) | verdict | averaged over the third factor, points | p (Holm) | verdict |",
        "|:---|---:|---:|:---|---:|---:|:---|",
    ]
    for row in found["accuracy"]["interactions"]:
        cells = [" × ".join(row["levels"])]
        for kind in ("alone", "averaged"):
            cells += [written(row[kind]), probability(row[kind]), row[kind]["verdict"] if row[kind] else "not run"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def written(estimate: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`mean (low to high)`."""
    if estimate is None:
        return "–"
    ends = [estimate["mean"], estimate["low"], estimate["high"]]
    if ends[1] is None:
        return f"{ends[0]:+.{digits}f}"
    center, low, high = (f"{value:+.{digits}f}" for value in ends)
    return f"{center} ({low} to {high})"


def probability(estimate: Mapping[str, Any] | None) -> str:
    """The adjusted p-value."""
    if estimate is None or estimate["p_holm"] is None:
        return "–"
    return f"{estimate['p_holm']:.3f}" if estimate["p_holm"] >= 0.001 else "<0.001"


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
