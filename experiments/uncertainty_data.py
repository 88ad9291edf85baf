"""Nets with a leading dimension, their batches, and the test sets of `experiments.uncertainty`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

from weightspace.sampling import (
    brier_score,
    expected_calibration_error,
    posterior_predictive,
    reliability,
)
from weightspace.training.data import ImageData
from weightspace.training.models import build_model

ROTATION, NOISE, BINS = 30.0, 0.3, 15  # degrees; of images in [0, 1]


class Stack(nn.Module):
    """One-hidden-layer nets side by side, the initial weights of each a function of its seed."""

    def __init__(self, seeds: Sequence[int], hidden: int) -> None:
        super().__init__()
        states: list[dict[str, Tensor]] = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                states.append(plain(hidden).state_dict())
        self.names = list(states[0])
        for name in self.names:
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.stack([s[name] for s in states])))

    @property
    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """By the plain net's names."""
        return {name.replace("/", "."): p for name, p in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(chains, n, 10)` of images `(chains, n, 784)`."""
        p = self.parameters_by_name
        hidden = torch.baddbmm(p["hidden.0.bias"].unsqueeze(1), x, p["hidden.0.weight"].mT).relu_()
        return torch.baddbmm(p["fc.bias"].unsqueeze(1), hidden, p["fc.weight"].mT)


def plain(hidden: int) -> nn.Module:
    """One net of a stack; torch's initial weights, which fit into small circles."""
    return build_model("mlp", in_channels=1, image_size=28, num_classes=10, hidden=hidden, init="torch")


def member(stack: Stack, number: int) -> dict[str, Tensor]:
    """The state_dict of one net of a stack."""
    return {name: p.detach()[number].clone() for name, p in stack.parameters_by_name.items()}


@dataclass(frozen=True)
class Images:
    """Training images.

    Attributes:
        images: `(N, 784)`, standardized.
        labels: `(N,)`.
    """

    images: Tensor
    labels: Tensor

    def batches(self, seeds: Sequence[int], size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`(chains, size, 784)` and `(chains, size)`: for every seed an order of its own, anew in each epoch."""
        generators = [torch.Generator().manual_seed(seed + 1) for seed in seeds]
        count = len(self.labels)
        order = torch.empty(0)
        for step in range(steps):
            place = step % (count // size)
            if place == 0:
                order = torch.stack([torch.randperm(count, generator=g) for g in generators])
            chosen = order[:, place * size : (place + 1) * size]
            yield self.images[chosen], self.labels[chosen]


class Judge:
    """Scores averaged predictions on clean, rotated and noisy test images and on images of another kind.

    Args:
        data: Its test images are what is judged on.
        hidden: Width of the net.
        is_tuning: Clean images only.
    """

    def __init__(self, data: ImageData, hidden: int, *, is_tuning: bool) -> None:
        mean, std = data.mean[0], data.std[0]
        self.is_tuning, self._hidden = is_tuning, hidden
        train = (data.train_images.flatten(1).float() / 255 - mean) / std
        self.data = Images(train, data.train_labels)
        clean = data.test_images.float() / 255
        sets = {"clean": clean} if is_tuning else {"clean": clean, "rotated": rotated(clean), "noisy": noisy(clean)}
        self._sets = {name: ((images - mean) / std, data.test_labels) for name, images in sets.items()}
        if not is_tuning:
            strange = digits()
            self._sets["digits"] = ((strange - mean) / std, torch.zeros(len(strange), dtype=torch.int64))

    def __call__(self, samples: Sequence[Any], epochs: float) -> dict[str, Any]:
        """Scores by test set; of `digits` how well entropy and mutual information tell them from clean images.

        Args:
            samples: Networks to average.
            epochs: What each of them cost.
        """
        found: dict[str, Any] = {}
        entropies: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (images, labels) in self._sets.items():
            batches = list(zip(images.split(1000), labels.split(1000), strict=True))
            result = posterior_predictive(plain(self._hidden), samples, batches)
            entropies[name] = (result.entropy, result.mutual_information)
            if name == "digits":
                continue
            found[name] = {
                "accuracy": result.accuracy,
                "nll": result.nll,
                "ece": expected_calibration_error(result.probabilities, labels, BINS),
                "brier": brier_score(result.probabilities, labels),
            }
            if name == "clean":
                found["path"] = [[epochs * k, s.average_nll] for k, s in enumerate(result.samples, 1)]
                found["alone"] = sum(s.accuracy for s in result.samples) / len(result.samples)
                found["bins"] = reliability(result.probabilities, labels, BINS).rows()
        if "digits" in entropies:
            found["auroc"] = auroc(entropies["digits"][0], entropies["clean"][0])
            found["auroc_disagreement"] = auroc(entropies["digits"][1], entropies["clean"][1])
        return found


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a positive value is above a negative one, ties half.

    >>> auroc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))
    0.75
    """
    statistic = mannwhitneyu(positive.numpy(), negative.numpy(), method="asymptotic").statistic
    return float(statistic) / (len(positive) * len(negative))


def rotated(images: Tensor) -> Tensor:
    """Images `(N, 1, S, S)` turned by `ROTATION` degrees, black where nothing was."""
    angle = torch.deg2rad(torch.tensor(ROTATION))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    grid = affine_grid(turn.expand(1, -1, -1), [1, 1, *images.shape[2:]], align_corners=False)
    turned = grid_sample(images.transpose(0, 1), grid, align_corners=False)
    return turned.transpose(0, 1).contiguous()


def noisy(images: Tensor) -> Tensor:
    """Images with normal noise of a fixed seed, cut to [0, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + NOISE * noise).clamp(0, 1)


def digits() -> Tensor:
    """Scikit-learn's handwritten digits, `(1797, 1, 28, 28)` in [0, 1]: images of another kind."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    return interpolate(images, (28, 28), mode="bilinear", align_corners=False)
