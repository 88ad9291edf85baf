"""Does the curvature step size spare the tuning of a network? `python -m experiments.manifold_network [--out DIR]`.

A small convolutional network without normalization on the embedded digits (1,297 images for training), `SubmanifoldSGD` with momentum
0.9 and a cosine schedule, `plain` against `curvature` at eleven learning rates over five decades, seeds 0 to 4. Two
ways to set the rate: of the constrained kernels alone (`kernels`; biases and head keep `REST`), and of all weights
(`all`). Momentum is kept tangent (transport by projection), but for one case (`ambient`). Writes results.json after each manifold, then table.md and network.png, into `--out`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightspace as ws
from experiments import manifold_network_report
from weightspace.files import write_json_atomically
from weightspace.training.data import Batches, ImageData, load_data
from weightspace.training.environment import machine, versions
from weightspace.training.models import build_model

SEEDS = (0, 1, 2, 3, 4)
REST = 0.05  # learning rate of what is not constrained, in the runs `kernels`
RATES = tuple(10 ** (i / 2) for i in range(-5, 6))
EPOCHS = 6
BATCH = 50
MODEL: dict[str, Any] = {"widths": (8, 16), "convs_per_stage": 1, "hidden": (), "dropout": 0.0, "pooling": "flatten"}
STEP_SIZES = ("plain", "curvature")
WHICH = {
    "kernels": ("Sphere", "Oblique", "Stiefel"),
    "all": ("Stiefel",),
    "ambient": ("Stiefel",),
}  # manifolds by what the rate is of


def manifolds() -> dict[str, ws.manifolds.Manifold]:
    """What the kernels are constrained to."""
    return {"Sphere": ws.manifolds.Sphere(), "Oblique": ws.manifolds.Oblique(), "Stiefel": ws.manifolds.Stiefel()}


def train(
    data: ImageData, manifold: ws.manifolds.Manifold, step_size: str, rate: float, seed: int, *, which: str, epochs: int
) -> dict[str, float | None]:
    """One run: training loss over all training images (None: not finite) and test accuracy."""
    torch.manual_seed(seed)
    model = build_model(
        "vgg", in_channels=data.in_channels, image_size=data.image_size, num_classes=data.num_classes, **MODEL
    )
    groups = ws.param_groups(model, {ws.on.convs: manifold})
    for group in groups:
        is_free = group["manifold"].startswith("euclidean")
        group["lr"] = REST if is_free and which != "all" else rate
    optimizer = ws.optim.SubmanifoldSGD(
        groups, lr=rate, momentum=0.9, step_size=step_size, transport="ambient" if which == "ambient" else "projection"
    )
    options: dict[str, Any] = {"mean": data.mean, "std": data.std, "seed": seed, "device": "cpu"}
    batches = Batches(data.train_images, data.train_labels, batch_size=BATCH, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            try:
                optimizer.step()
            except ws.errors.NonFiniteGradientError:
                return {"loss": None, "accuracy": 1 / data.num_classes}
            schedule.step()
    train_loss, _ = evaluate(
        model, Batches(data.train_images, data.train_labels, batch_size=500, shuffle=False, drop_last=False, **options)
    )
    _, accuracy = evaluate(
        model, Batches(data.test_images, data.test_labels, batch_size=500, shuffle=False, drop_last=False, **options)
    )
    return {"loss": train_loss if math.isfinite(train_loss) else None, "accuracy": accuracy}


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss = right = count = 0.0
    for images, labels in batches.epoch(0):
        logits = model(images)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += float((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, right / count


def main(arguments: list[str] | None = None) -> None:
    """Runs all manifolds, writes after each."""
    parser = argparse.ArgumentParser(prog="python -m experiments.manifold_network", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("manifold-network"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="200 images, two rates, one epoch: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quick = options.quick
    data = load_data("digits").take(200, 100) if quick else load_data("digits")
    seeds, rates, epochs = (SEEDS[:2], (0.01, 0.1), 1) if quick else (SEEDS, RATES, EPOCHS)
    settings = {
        "seeds": seeds,
        "epochs": epochs,
        "batch": BATCH,
        "rest": REST,
        "model": MODEL,
        "train": len(data.train_labels),
        "test": len(data.test_labels),
    }
    results: dict[str, Any] = {
        "settings": settings,
        "data": data.source,
        "versions": versions(),
        "machine": machine(),
        "runs": {},
    }
    begin = time.perf_counter()
    for which, names in WHICH.items():
        for name in names:
            manifold = manifolds()[name]
            entry: dict[str, Any] = {"rates": [float(f"{r:.4g}") for r in rates]}
            for step_size in STEP_SIZES:
                runs = [
                    [train(data, manifold, step_size, r, seed, which=which, epochs=epochs) for r in rates]
                    for seed in seeds
                ]
                entry[step_size] = {key: [[run[key] for run in row] for row in runs] for key in ("loss", "accuracy")}
            results["runs"].setdefault(which, {})[name] = entry
            write_json_atomically(options.out / "results.json", results)
            print(f"{which}, {name} done after {time.perf_counter() - begin:.0f} s", flush=True)
    manifold_network_report.write(results, options.out)


if __name__ == "__main__":
    main()
