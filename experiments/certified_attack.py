"""What attacks can do to a classifier, beside what its certificate says they cannot; used by `experiments.certified`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

STEPS = 15
STRETCH_STEPS, STRETCH_LENGTH = 80, 1e-2


def smallest_change(
    model: nn.Module, images: Tensor, labels: Tensor, radii: Sequence[float], *, steps: int = STEPS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The smallest change found that fools the model, an image: its norm `(images,)`, infinity where none was found.

    Projected gradient descent on the margin from a random start, once for every radius; images stay within [0, 1]. The
    margin, not the cross-entropy: its gradient does not vanish where a network is sure, whatever the scale of its
    scores. An image that is wrong from the start has 0.

    Args:
        model: Maps images in [0, 1] to scores.
        images: `(N, C, H, W)`.
        labels: `(N,)`.
        radii: Of the balls to search.
        steps: Of 2.5 radii / steps each.
        seed: Of the random starts.

    Returns:
        Euclidean norms, and the changes themselves, like the images.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found = torch.where(model(images).argmax(1) == labels, math.inf, 0.0).double()
    best = torch.zeros_like(images)

    def keep(change: Tensor, scores: Tensor) -> None:
        nonlocal found, best
        lengths = change.double().flatten(1).norm(dim=1)
        is_better = (scores.argmax(1) != labels) & (lengths < found)
        found = torch.where(is_better, lengths, found)
        best = torch.where(is_better.view(-1, *[1] * (images.ndim - 1)), change, best)

    for radius in radii:
        change = torch.randn(images.shape, generator=generator).to(images)
        change = _inside(images, radius * change / _norm(change), radius)
        for _ in range(steps):
            change.requires_grad_()
            scores = model(images + change)
            own = scores.gather(1, labels[:, None])[:, 0]
            others = scores.scatter(1, labels[:, None], -math.inf).amax(1)
            (gradient,) = torch.autograd.grad((others - own).sum(), change)
            with torch.no_grad():
                keep(change, scores)
                step = 2.5 * radius / steps * gradient / _norm(gradient).clamp(min=1e-12)
                change = _inside(images, change + step, radius)
        with torch.no_grad():
            keep(change, model(images + change))
    return found, best


def largest_stretch(model: nn.Module, images: Tensor) -> tuple[float, Tensor, Tensor]:
    """The largest `||f(x) - f(y)|| / ||x - y||` that gradient ascent over pairs of images finds, and the pair.

    A lower bound of the Lipschitz constant, measured in float64: a claimed constant below it is refuted.

    Args:
        model: Copied to float64.
        images: `(N, C, H, W)`: starts of the ascent; the change between x and y has a fixed small length.
    """
    exact = copy.deepcopy(model).double()
    x = images.double().clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(images.shape, generator=generator).to(images).double().requires_grad_()
    optimizer = torch.optim.Adam([{"params": [direction], "lr": 0.1}, {"params": [x], "lr": 0.01}])
    best, pair = 0.0, (images[0], images[0])
    for _ in range(STRETCH_STEPS):
        y = x + STRETCH_LENGTH * direction / _norm(direction)
        ratios = (exact(y) - exact(x)).norm(dim=1) / (y - x).flatten(1).norm(dim=1)
        top = int(ratios.argmax())
        if float(ratios[top].detach()) > best:
            best, pair = float(ratios[top].detach()), (x[top].detach().clone(), y[top].detach().clone())
        optimizer.zero_grad()
        (-ratios.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return best, *pair


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def _inside(images: Tensor, change: Tensor, radius: float) -> Tensor:
    """The change within the ball and the images within [0, 1]; clipping only shortens it."""
    with torch.no_grad():
        change = change * (radius / _norm(change).clamp(min=1e-12)).clamp(max=1.0)
        return (images + change).clamp(0, 1) - images
