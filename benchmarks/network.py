"""ResNet-18 as the benchmarks of operators see it: its layers, a training step, and how much arithmetic each takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.timing import device
from weightspace.operators import ConvGeometry, operator_of
from weightspace.operators._overlaps import cheaper_side
from weightspace.training.models import build_model

Layers = list[tuple[nn.Conv2d, tuple[int, int]]]


@dataclass(frozen=True)
class Network:
    """A ResNet-18 with the CIFAR stem, a batch, and its convolutions with the sizes of what they read."""

    model: nn.Module
    layers: Layers
    images: torch.Tensor
    labels: torch.Tensor

    def forward_backward(self) -> None:
        """What every training step does."""
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()

    def for_all(self, function: Callable[[nn.Conv2d, tuple[int, int]], object]) -> Callable[[], object]:
        """A call over all convolutions."""
        return lambda: [function(*layer) for layer in self.layers]

    def step_flops(self) -> float:
        """Of the convolutions, forward and backward: one product forward, two backward, but for the first layer."""
        each = [application_flops(operator_of(*layer).geometry) for layer in self.layers]
        return len(self.images) * (3 * sum(each) - each[0])

    def flops(self, count: Callable[[ConvGeometry], float]) -> float:
        """Sum over the convolutions."""
        return sum(count(operator_of(*layer).geometry) for layer in self.layers)


def resnet18(batch_size: int = 128, image_size: int = 32, width: int = 64) -> Network:
    """The network on the accelerator or CPU, in training mode."""
    torch.manual_seed(0)
    model = build_model("resnet18", in_channels=3, image_size=image_size, num_classes=10, width=width).to(device())
    images = torch.randn(batch_size, 3, image_size, image_size, device=device())
    labels = torch.randint(10, (batch_size,), device=device())
    model.eval()
    layers = convolutions(model, images)
    model.train()
    return Network(model, layers, images, labels)


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


def application_flops(geometry: ConvGeometry) -> float:
    """One image through a layer, or back."""
    return 2.0 * math.prod(geometry.weight_shape) * math.prod(geometry.output_size)


def moment_flops(geometry: ConvGeometry) -> float:
    """Both moments and their gradient: the products of channel matrices that the closed form cannot do without."""
    transposed, blocks = cheaper_side(geometry)
    sizes = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    rows, columns = sizes[::-1] if transposed else sizes
    pairs = sum(block.first.numel() * (1 + block.copies) for block in blocks)
    return 2.0 * geometry.groups * pairs * rows**2 * columns


def spectrum_flops(geometry: ConvGeometry) -> float:
    """All singular values on the torus: the reduction of every Gram matrix to tridiagonal form.

    `16/3 k^3` for complex matrices of side k, of half of the frequencies; `4/3 k^3` for the one real matrix of a 1x1
    kernel. Forming the Gram matrix and the eigenvalues of the tridiagonal one come on top.
    """
    columns = geometry.in_channels * math.prod(
        min(s, k) for s, k in zip(geometry.stride, geometry.kernel_size, strict=True)
    )
    side = min(geometry.out_channels, columns)
    if set(geometry.kernel_size) == {1}:
        return 4 / 3 * side**3
    return 8 / 3 * math.prod(geometry.output_size) * side**3
