"""Makes run directories as a comparison leaves them, without training: for the tests of tables and reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from weightspace.compare.plan import Job, final_jobs, make_plan, tuning_jobs
from weightspace.compare.results import tuning_choice
from weightspace.training.recipe import Recipe, run_fingerprint

LAYERS = [f"features.{index}.weight" for index in range(0, 30, 3)]
ARMS = {
    "SGD": {"tune": False},
    "tuned SGD": {},
    "Gradient Centralization": {"rules": [{"rule": "GradientCentralization"}]},
    "Laplacian smoothing": {"rules": [{"rule": "LaplacianSmoothing", "smoothing": 1.0}]},
    **{
        f"ChannelL2{label}": {"rules": [{"rule": "ChannelL2", "smoothing": 4.0, **options}]}
        for label, options in {"": {}, ", keep norm": {"keep_norm": True}, ", axis in": {"axis": "in"}}.items()
    },
    **{
        f"ChannelSobolev{label}": {"rules": [{"rule": "ChannelSobolev", "smoothing": 1.0, **options}]}
        for label, options in {
            "": {},
            ", keep norm": {"keep_norm": True},
            ", permuted": {"permutation_seed": 1},
            ", periodic": {"boundary": "periodic"},
            ", mean+derivative": {"order": "mean+derivative"},
        }.items()
    },
}


def make_recipe(arms: dict | None = None, *, seeds: int = 5, epochs: int = 8, grid=(0.01, 0.02, 0.05, 0.1)) -> Recipe:
    """A recipe that compares `arms` on the digits."""
    arms = ARMS if arms is None else arms
    baseline = "tuned SGD" if "tuned SGD" in arms else next(iter(arms))
    tune = {"grid": {"train.optimizer.lr": list(grid)}, "seeds": 1, "validation_fraction": 0.2} if grid else None
    return Recipe.from_dict(
        {
            "name": "fabricated",
            "description": "no training happened here",
            "data": {"name": "digits"},
            "model": {"name": "mlp", "options": {"hidden": 8}},
            "train": {"epochs": epochs, "batch_size": 64, "optimizer": {"name": "SGD", "lr": 0.05}},
            "compare": {"baseline": baseline, "seeds": seeds, "tune": tune, "arms": arms},
        }
    )


def write_run(directory: Path, job: Job, *, offset: float = 0.0, status: str = "done", layers: bool = True) -> None:
    """Write `metrics.jsonl` and `result.json` of one run with a plausible curve."""
    epochs = job.recipe.train.epochs
    noise = random.Random(f"{job.slug}{job.stage}{job.trial}{job.seed}")
    shared = random.Random(job.seed).gauss(0, 0.002)
    end = 0.91 + offset + shared + noise.gauss(0, 0.0015) - 0.012 * abs(math.log(job.recipe.train.optimizer.lr / 0.04))
    if status == "diverged":
        end = 0.5
    lines: list[dict] = []
    accuracy = end
    for epoch in range(1, epochs + 1):
        accuracy = end - 0.55 * math.exp(-0.9 * epoch) + (noise.gauss(0, 0.004) if epoch < epochs else 0)
        lines.append(
            {"kind": "epoch", "epoch": epoch, "step": 20 * epoch, "train_loss": 2.3 * math.exp(-0.5 * epoch)}
            | {"test_loss": 1 - accuracy, "test_accuracy": accuracy, "lr": 0.05, "seconds": 0.8 * epoch}
        )
    for step in range(20, 20 * epochs + 1, 20) if layers and job.recipe.rules else ():
        for depth, name in enumerate(LAYERS):
            rho = 0.05 + 0.5 / (depth + 1) * math.exp(-step / 200) + 0.01 * noise.random()
            lines.append({"kind": "layer", "step": step, "name": name, "rho": rho, "shrinkage": rho + (1 - rho) / 16})
    result = {
        "status": status,
        "reason": "loss is nan" if status == "diverged" else None,
        "seed": job.seed,
        "steps": 20 * epochs,
        "epochs": epochs,
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "train_loss": 0.1,
        "seconds": 0.8 * epochs,
        "parameters": 1234,
        "seconds_per_step": 0.0391 * (1 + 0.02 * noise.random()) * (1.02 if job.recipe.rules else 1.0),
        "fingerprint": run_fingerprint(job.recipe, job.seed),
    }
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "result.json").write_text(json.dumps(result))


def write_facts(run_dir: Path, recipe: Recipe) -> None:
    """Write `compare.json`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "recipe": recipe.to_dict(),
        "command": "weightspace compare fabricated --set 'train.epochs=8'",
        "versions": {"weightspace": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": {"platform": "Linux", "processor": "Some processor", "cores": 2, "gpu": None},
        "data": {"name": "digits", "label": "Digits 8x8", "source": "scikit-learn", "train": 1297, "test": 500}
        | {"classes": 10, "checksum": "sha256:00"},
        "created": "2026-01-01 10:00:00 UTC",
        "finished": "2026-01-01 11:00:00 UTC",
        "resumed": [],
        "workers": 2,
        "threads": 1,
    }
    (run_dir / "compare.json").write_text(json.dumps(facts))


def fabricate(
    run_dir: Path,
    recipe: Recipe | None = None,
    *,
    diverged: tuple[tuple[str, int], ...] = (),
    without: tuple[tuple[str, int], ...] = (),
    offsets: dict[str, float] | None = None,
) -> Recipe:
    """Write a whole comparison.

    Args:
        run_dir: Where.
        recipe: Which; twelve arms by default.
        diverged: (arm, seed) of final runs that diverged.
        without: (arm, seed) of final runs that are missing.
        offsets: Arm name to accuracy added to its curves.
    """
    recipe = recipe or make_recipe()
    offsets = {"Gradient Centralization": 0.004, "ChannelL2": -0.01, "SGD": -0.02, **(offsets or {})}
    write_facts(run_dir, recipe)
    plan = make_plan(recipe)
    for arm in plan.arms:
        for job in tuning_jobs(plan, arm):
            write_run(run_dir / job.directory, job, offset=offsets.get(arm.name, 0.0), layers=False)
        choice, _ = tuning_choice(run_dir, plan, arm, 0.1)
        for job in final_jobs(plan, arm, choice.trial if choice else None):
            if (arm.name, job.seed) in without:
                continue
            status = "diverged" if (arm.name, job.seed) in diverged else "done"
            write_run(run_dir / job.directory, job, offset=offsets.get(arm.name, 0.0), status=status)
    return recipe
