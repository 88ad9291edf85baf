"""Metric x manifold x penalty x gate on one task: `python -m experiments.combinations [--runs DIR] [--out DIR]`.

Runs the comparison of the recipe `fashion-mnist-combinations`, one arm for every cell, into `--runs` (the same command
continues it), and measures the convolutions of every trained network besides: the ends of the spectrum of each on the
torus, at the size of the map that it reads. Then writes into `--out` the raw numbers of every run, results.json, and
what `experiments.combinations_report` makes of them: effects.json, table.md and two pictures. `--collect` only does
the latter, also of a comparison that is not finished.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from experiments import combinations_report
from experiments.penalty_spectra import network
from weightspace.compare import Execution, run_comparison
from weightspace.compare.plan import final_jobs
from weightspace.compare.records import accuracy_of
from weightspace.compare.results import ArmResult, Comparison, read_comparison
from weightspace.files import JsonObject, read_json, write_json_atomically
from weightspace.operators import singular_values
from weightspace.training.data import ImageData
from weightspace.training.loop import WEIGHTS_FILE, train_run
from weightspace.training.recipe import Recipe, load_recipe

RECIPE = "fashion-mnist-combinations"
SPECTRA_FILE = "spectra.json"
METRICS = ("ChannelL2",)
MANIFOLDS = ("Sphere", "Stiefel")
GATED = " gated"
SINGULAR = 1e-5  # of the largest value: below it weights in float32 are singular


def levels_of(rules: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where an arm stands in the matrix: the level of each of the three factors, the gate being part of the penalty's.

    >>> levels_of([{"rule": "Sphere"}, {"rule": "L1", "gate": {"gate": "Coherent"}}])
    {'metric': 'none', 'manifold': 'Sphere', 'penalty': 'L1 gated'}
    """
    levels = {"metric": "none", "manifold": "none", "penalty": "none"}
    for rule in rules:
        name = rule["rule"]
        factor = "metric" if name in METRICS else "manifold" if name in MANIFOLDS else "penalty"
        levels[factor] = name + (GATED if rule.get("gate", {}).get("gate", "Always") != "Always" else "")
    return levels


def train_and_measure(
    recipe: Recipe, run_dir: Path, *, seed: int, data: ImageData, accelerator: str = "auto"
) -> JsonObject:
    """`train_run` on one thread, with the spectra of the convolutions in spectra.json; the weights are not kept."""
    torch.set_num_threads(1)  # with layers as small as these more threads only wait for each other
    result = train_run(
        recipe,
        run_dir,
        seed=seed,
        data=data,
        accelerator=accelerator,
        checkpoint_every_epochs=recipe.train.epochs,  # without it the trained weights are not written
    )
    model = network(recipe, data)
    model.load_state_dict(load_file(run_dir / WEIGHTS_FILE))
    write_json_atomically(run_dir / SPECTRA_FILE, {"layers": spectra(model, data.in_channels, data.image_size)})
    for path in run_dir.glob("*.safetensors"):
        path.unlink()
    return result


def spectra(model: nn.Module, channels: int, side: int) -> dict[str, list[float] | None]:
    """Smallest and largest singular value of each convolution's circular counterpart; None where not finite.

    Args:
        model: The network.
        channels: Of an image.
        side: Height and width of an image.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    sizes: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_hook(lambda m, x, _: sizes.update({m: x[0].shape[2:]})) for layer in layers.values()
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, side, side))
    for hook in hooks:
        hook.remove()
    found: dict[str, list[float] | None] = {}
    for name, layer in layers.items():
        found[name] = None
        if bool(layer.weight.isfinite().all()):
            values = singular_values(layer.double(), sizes[layer], padding_mode="circular")
            found[name] = [float(f"{float(values[end]):.4g}") for end in (-1, 0)]
    return found


def collect(run_dir: Path) -> JsonObject:
    """Everything that the report needs, from a comparison's folder: one entry a cell, one row a seed."""
    comparison = read_comparison(run_dir)
    cells = {arm.arm.name: cell_of(comparison, arm) for arm in comparison.arms}
    factors: dict[str, list[str]] = {"metric": [], "manifold": [], "penalty": []}
    for cell in cells.values():
        for factor, level in cell["levels"].items():
            if level not in factors[factor]:
                factors[factor].append(level)
    return {
        "recipe": comparison.plan.recipe.name,
        "baseline": comparison.plan.settings.baseline,
        "level": comparison.level,
        "chance": comparison.chance,
        **{key: comparison.facts.get(key) for key in ("machine", "versions", "created", "finished", "workers")},
        "factors": factors,
        "gates": {level: level + GATED for level in factors["penalty"] if level + GATED in factors["penalty"]},
        "cells": cells,
    }


def cell_of(comparison: Comparison, arm: ArmResult) -> JsonObject:
    """Levels, tuned settings, trials and the finished final runs of one arm."""
    runs: list[JsonObject] = []
    for job in final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice else None):
        if job.seed in arm.accuracy:
            folder = comparison.run_dir / job.directory
            runs.append(row_of(read_json(folder / "result.json"), comparison.chance) | spread_in(folder))
    return {
        "levels": levels_of(arm.recipe.to_dict()["rules"]),
        "lr": arm.recipe.train.optimizer.lr,
        "trials": [
            {"lr": t.settings["train.optimizer.lr"], "accuracy": t.accuracy, "loss": combinations_report.finite(t.loss)}
            for t in arm.trials
        ],
        "runs": runs,
    }


def row_of(result: JsonObject, chance: float) -> JsonObject:
    """What one run came to. A diverged one counts as guessing, in accuracy and in loss."""
    diverged = result["status"] == "diverged"
    layers: dict[str, float] = result["weights"]["layers"]
    duties = [entry["duty"] for entry in (result["duty"] or {}).values()]
    return {
        "seed": result["seed"],
        "status": result["status"],
        "accuracy": accuracy_of(result, chance),
        "loss": -math.log(chance) if diverged or result["test_loss"] is None else result["test_loss"],
        "train_loss": result["train_loss"],
        "zeros": result["weights"]["zeros"],
        "zeros by layer": layers,
        "violation": (result["constraints"] or {}).get("largest_violation"),
        "duty": fmean(duties) if duties else None,
        "seconds_per_step": result["seconds_per_step"],
    }


def spread_in(folder: Path) -> JsonObject:
    """The geometric mean over a run's convolutions of largest over smallest singular value.

    None where nothing was measured; `singular` says that a convolution has a value of zero, as far as float64 can tell.
    """
    path = folder / SPECTRA_FILE
    layers: dict[str, list[float] | None] = read_json(path)["layers"] if path.exists() else {}
    ends = [pair for pair in layers.values() if pair is not None]
    if not ends or len(ends) < len(layers):
        return {"spread": None, "singular": False}
    if any(low < SINGULAR * high for low, high in ends):
        return {"spread": None, "singular": True}
    return {"spread": math.exp(fmean(math.log(high / low) for low, high in ends)), "singular": False}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or continue the comparison, then collect and report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.combinations", description=__doc__)
    parser.add_argument("--recipe", default=RECIPE, help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs") / RECIPE, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("combinations"), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--accelerator", default="cpu", help="default: %(default)s")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.collect:
        run_comparison(
            load_recipe(options.recipe, options.set),
            options.runs,
            Execution(
                workers=options.workers,
                accelerator=options.accelerator,
                command="python -m experiments.combinations",
                progress=lambda text, done, total: print(f"[{done}/{total}] {text}", flush=True),
            ),
            train=train_and_measure,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    results = collect(options.runs)
    write_json_atomically(options.out / "results.json", results)
    combinations_report.write(results, options.out)


if __name__ == "__main__":
    main()
