"""Signals and gradients by depth before and after training: `python -m experiments.deep_plain RUN_DIR [--out DIR]`.

RUN_DIR is a `weightspace compare deep-plain` (or any comparison of the model `plain`), tuned at least. Every arm is trained
again with the settings that its tuning chose, seeds 0 to `--seeds` - 1, and measured before the first and after the
last step, on the same 256 test images: the RMS over images, channels and places, after every convolution's ReLU, of

- the activation,
- its spread: what is left without the mean over the images, which is all that can tell them apart,
- the gradient of one image's cross-entropy by the activation, forward and backward in float64;

and of every convolution the singular values of its circular counterpart on the map it reads. A run must give the test
accuracy that the comparison gave; `repeats` says whether it did (on another machine last digits differ). Writes
depth.json and depth.png into `--out`, whole or not at all, after every arm. About 20 seconds a run on one thread.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import weightspace as ws
from experiments import deep_plain_report
from weightspace.compare.results import ArmResult, read_comparison
from weightspace.files import read_json, write_json_atomically
from weightspace.operators import operator_of
from weightspace.training.data import Batches, ImageData
from weightspace.training.environment import machine, versions
from weightspace.training.loop import WEIGHTS_FILE, train_run
from weightspace.training.models import Plain
from weightspace.training.session import load_recipe_data, open_session

IMAGES = 256


def by_depth(model: Plain, images: torch.Tensor, labels: torch.Tensor) -> dict[str, list[float | None]]:
    """RMS of activations, of their spread over images and of gradients, a number for every ReLU; None: not finite.

    Args:
        model: In float64.
        images: `(N, C, H, W)`, normalized, in float64.
        labels: `(N,)`.
    """
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in model.features if isinstance(layer, nn.ReLU)]
    # The sum over images: each activation's gradient is then that of its own image's loss.
    nn.functional.cross_entropy(model(images), labels, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return {
        "activation": [rms(y.detach()) for y in seen],
        "spread": [rms(y.detach() - y.detach().mean(dim=0)) for y in seen],
        "gradient": [rms(torch.zeros_like(y) if y.grad is None else y.grad) for y in seen],
    }


def rms(values: torch.Tensor) -> float | None:
    """Root mean square, four digits; None if it is not finite."""
    number = float(values.square().mean().sqrt())
    return float(f"{number:.4g}") if math.isfinite(number) else None


def spectra(model: Plain, side: int) -> dict[str, list[float | None]]:
    """Smallest, largest and root mean square singular value of every convolution on the torus.

    Args:
        model: In float64.
        side: Height and width of the images.
    """
    found: dict[str, list[float | None]] = {"smallest": [], "largest": [], "rms": []}
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride[0]
            side += -side % stride  # a torus of the next size that the stride divides
            values = torch.full((1,), math.nan)
            if bool(layer.weight.isfinite().all()):
                with torch.no_grad():
                    values = ws.singular_values(operator_of(layer, side), padding_mode="circular")
            found["smallest"].append(rms(values[-1]))
            found["largest"].append(rms(values[0]))
            found["rms"].append(rms(values))
            side //= stride
    return found


def measure(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """All quantities of one state of the weights."""
    if not isinstance(model, Plain):
        raise SystemExit(
            "deep_plain measures the model 'plain'; give it the folder of `weightspace compare deep-plain`."
        )
    exact = copy.deepcopy(model).double()
    exact.zero_grad(set_to_none=True)
    return {**by_depth(exact, images.double(), labels), "singular values": spectra(exact, images.shape[-1])}


def run(arm: ArmResult, seed: int, data: ImageData, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Trains one seed of an arm with its tuned settings; measures before and after."""
    model = open_session(arm.recipe, data, seed=seed, accelerator="cpu").module
    before = measure(model, images, labels)
    with tempfile.TemporaryDirectory() as folder:
        result = train_run(
            arm.recipe,
            Path(folder),
            seed=seed,
            data=data,
            accelerator="cpu",
            checkpoint_every_epochs=arm.recipe.train.epochs,  # keeps the trained weights
        )
        model.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
    return {
        "status": result["status"],
        "test_accuracy": result["test_accuracy"],
        "before": before,
        "after": measure(model, images, labels),
    }


def main(arguments: list[str] | None = None) -> None:
    """Trains and measures all arms; arms that `--out` has already are kept."""
    parser = argparse.ArgumentParser(prog="python -m experiments.deep_plain", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the finished comparison")
    parser.add_argument("--out", type=Path, default=Path("deep-plain-depth"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--arms", nargs="*", default=None, help="names of arms (default: all that are tuned)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in a comparison with one worker a core
    comparison = read_comparison(options.run_dir)
    data = load_recipe_data(comparison.plan.recipe)
    test = Batches(
        data.test_images, data.test_labels, batch_size=IMAGES, mean=data.mean, std=data.std, seed=0, device="cpu",
        shuffle=False, drop_last=False,
    )  # fmt: skip
    images, labels = next(iter(test.epoch(0)))
    path = options.out / "depth.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {"arms": {}}
    results |= {"images": len(images), "seeds": options.seeds, "versions": versions(), "machine": machine()}
    for arm in comparison.arms:
        name = arm.arm.name
        wanted = (arm.choice is not None or not arm.arm.tuned) and (options.arms is None or name in options.arms)
        if wanted and len(results["arms"].get(name, {"runs": []})["runs"]) < options.seeds:
            runs = [run(arm, seed, data, images, labels) for seed in range(options.seeds)]
            results["arms"][name] = {"settings": dict(arm.settings), "runs": runs}
            write_json_atomically(path, results)
            print(f"{name}: " + ", ".join(f"{100 * r['test_accuracy']:.1f} %" for r in runs), flush=True)
    comparison = read_comparison(options.run_dir)  # its final runs may have ended meanwhile
    for arm in comparison.arms:
        for seed, entry in enumerate(results["arms"].get(arm.arm.name, {"runs": []})["runs"]):
            entry["repeats"] = entry["test_accuracy"] == arm.accuracy.get(seed)
    results["arms"] = {
        a.arm.name: results["arms"][a.arm.name] for a in comparison.arms if a.arm.name in results["arms"]
    }
    write_json_atomically(path, results)
    deep_plain_report.write(results, options.out)


if __name__ == "__main__":
    main()
