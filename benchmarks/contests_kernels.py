"""What contests of metrics and penalties step on: ResNet-18's kernels as a model, and one optimizer for all."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.manifolds_kernels import MOMENTUM, resnet18_shapes
from benchmarks.timing import device

SIZE = "ResNet-18's 20 kernels, 11.2 million weights"


def kernels(*, std: float, gradient: float, quick: bool) -> nn.Sequential:
    """Convolutions with normal weights of this standard deviation, and normal gradients of that one."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for c_out, c_in, *taps in resnet18_shapes(8 if quick else 64):
        layer = nn.Conv2d(c_in, c_out, tuple(taps), bias=False, device=device())
        nn.init.normal_(layer.weight, std=std)
        layer.weight.grad = gradient * torch.randn_like(layer.weight)
        layers.append(layer)
    return nn.Sequential(*layers)


def sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The quickest step that torch has."""
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM, fused=True)
