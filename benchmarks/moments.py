"""Moments, bounds and extremes: against circular `svdvals`, and beside a training step of ResNet-18 at batch 128."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.timing import Timing, device, interleave
from weightspace.operators.bounds import norm_bound
from weightspace.operators.extremes import Extremes, extreme_singular_values
from weightspace.operators.moments import singular_value_moments, stochastic_moments
from weightspace.training.models import build_model

Layers = list[tuple[nn.Conv2d, tuple[int, int]]]


def moments_backward(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """`||M^T M - I||_F^2`, normalized, forward and backward."""
    moments = singular_value_moments(layer, size)
    (moments.gram_distance(1.0) / moments.smaller_side).backward()


def svdvals_backward(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """The same number for circular padding, from its definition: fft2 over the whole grid, svdvals, autograd."""
    symbols = torch.fft.fft2(layer.weight, s=size).permute(2, 3, 0, 1)
    (torch.linalg.svdvals(symbols).square() - 1).square().mean().backward()


def penalty_rows(rounds: int = 12) -> dict[str, Timing]:
    """The speed target: a 64x64x3x3 layer at 32x32, at least 50 times faster than circular svdvals autograd."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device())
    size = (32, 32)
    return interleave(
        {
            "singular_value_moments, forward + backward": lambda: moments_backward(layer, size),
            "circular svdvals, forward + backward": lambda: svdvals_backward(layer, size),
            "norm_bound, forward + backward": lambda: norm_bound(layer, size).backward(),
        },
        "singular_value_moments, forward + backward",
        rounds=rounds,
        warm_up=2,
        seconds=120,
    )


def convolutions(model: nn.Module, images: torch.Tensor) -> Layers:
    """Every convolution with the size of what it reads."""
    layers: Layers = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: layers.append((module, tuple(inputs[0].shape[2:]))))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(images[:1])
    for hook in hooks:
        hook.remove()
    return layers


def network_rows(batch_size: int = 128, image_size: int = 32, rounds: int = 5) -> dict[str, Timing]:
    """All convolutions of a ResNet-18, each time for the whole network, beside its forward and backward pass."""
    torch.manual_seed(0)
    model = build_model("resnet18", in_channels=3, image_size=image_size, num_classes=10).to(device())
    images = torch.randn(batch_size, 3, image_size, image_size, device=device())
    labels = torch.randint(10, (batch_size,), device=device())
    model.eval()
    layers = convolutions(model, images)
    model.train()
    found: list[Extremes] = [extreme_singular_values(*layer, exact=False) for layer in layers]

    def forward_backward() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()

    def for_all(function: Callable[[nn.Conv2d, tuple[int, int]], object]) -> Callable[[], object]:
        return lambda: [function(*layer) for layer in layers]

    def warm() -> None:
        """With a drifted weight, so that the change is measured and the bound follows from the old one."""
        with torch.no_grad():
            for layer, _ in layers:
                layer.weight.mul_(1 + 1e-6)
        found[:] = [
            extreme_singular_values(*layer, start=old, exact=False) for layer, old in zip(layers, found, strict=True)
        ]

    def bound_value(layer: nn.Conv2d, size: tuple[int, int]) -> None:
        with torch.no_grad():
            norm_bound(layer, size)

    return interleave(
        {
            "forward + backward": forward_backward,
            "singular_value_moments, forward + backward": for_all(moments_backward),
            "stochastic_moments(probes=1), forward + backward": for_all(
                lambda layer, size: stochastic_moments(layer, size, probes=1).gram_distance(1.0).backward()
            ),
            "extreme_singular_values, warm": warm,
            "extreme_singular_values, cold": for_all(
                lambda layer, size: extreme_singular_values(layer, size, exact=False)
            ),
            "norm_bound, value": for_all(bound_value),
        },
        "forward + backward",
        rounds=rounds,
        warm_up=1,
        seconds=200,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for rows in (penalty_rows(), network_rows()):
        for name, timing in rows.items():
            print(f"| {name} | {timing.cells()} |")
