"""Singular values of what a comparison trained: `python -m experiments.penalty_spectra RUN_DIR`.

A comparison keeps accuracies, not weights. This trains every arm of a finished one once more, with the settings that
its tuning chose and seed 0, and prints the smallest and largest singular value of every layer as a Markdown table: of
the circular counterpart for convolutions, at the size of the layer's input. The first row is before training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from weightspace.compare.notes import NO_VALUE, settings_text
from weightspace.compare.results import read_comparison
from weightspace.operators import singular_values
from weightspace.training.data import ImageData
from weightspace.training.loop import WEIGHTS_FILE, train_run
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe
from weightspace.training.reproducible import seed_stream
from weightspace.training.session import load_recipe_data

SEED = 0


def network(recipe: Recipe, data: ImageData) -> nn.Module:
    """The recipe's network with the initial weights of the seed."""
    seed_stream(SEED, "initialization")
    sizes = {"in_channels": data.in_channels, "image_size": data.image_size, "num_classes": data.num_classes}
    return build_model(recipe.model.name, **sizes, **recipe.model.options)


def spectra(model: nn.Module, data: ImageData) -> list[str]:
    """`smallest to largest` of every convolution and linear layer, in the order of a forward pass."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    sizes: dict[nn.Module, tuple[int, ...]] = {}
    hooks = [layer.register_forward_hook(lambda m, x, _: sizes.update({m: x[0].shape[2:]})) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, data.in_channels, data.image_size, data.image_size))
    for hook in hooks:
        hook.remove()
    cells: list[str] = []
    for layer in layers:
        is_linear = isinstance(layer, nn.Linear)
        values = singular_values(layer) if is_linear else singular_values(layer, sizes[layer], padding_mode="circular")
        cells.append(f"{float(values[-1]):.2f} to {float(values[0]):.2f}")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every arm once and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a finished comparison")
    comparison = read_comparison(parser.parse_args(arguments).run_dir)
    data = load_recipe_data(comparison.plan.recipe)
    initial = network(comparison.plan.recipe, data)
    names = [name.removesuffix(".weight") for name, weight in initial.named_parameters() if weight.ndim > 1]
    print("| arm | chosen | " + " | ".join(names) + " |", flush=True)
    print("|:---|---:|" + "---:|" * len(names))
    print(f"| before training | {NO_VALUE} | " + " | ".join(spectra(initial, data)) + " |", flush=True)
    for arm in comparison.arms:
        with tempfile.TemporaryDirectory() as folder:
            train_run(arm.recipe, Path(folder), seed=SEED, data=data, checkpoint_every_epochs=arm.recipe.train.epochs)
            trained = network(arm.recipe, data)
            trained.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
        print(
            f"| {arm.arm.name} | {settings_text(arm.settings)} | " + " | ".join(spectra(trained, data)) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
