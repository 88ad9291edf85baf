"""Weight initialization of the models: He-normal, drawn from torch's global generator.

He, Zhang, Ren, Sun, "Delving Deep into Rectifiers" (2015): weights from N(0, 2 / fan) keep the second moment of the
signal across a ReLU layer, forward with fan = fan_in (equation 10) and backward with fan = fan_out (equation 14).
A head is followed by no ReLU, so its gain is 1: N(0, 1 / fan_in). All biases start at 0.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import nn


def he_normal_fan_in(model: nn.Module, *, head: nn.Linear) -> None:
    """Initializes every convolution and linear layer with variance 2 / fan_in, and `head` with 1 / fan_in."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nonlinearity = "linear" if module is head else "relu"
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=nonlinearity)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def he_normal_fan_out(model: nn.Module, *, head: nn.Linear) -> None:
    """Initializes convolutions with variance 2 / fan_out, batch norms with the identity, `head` with 1 / fan_in.

    fan_out is what residual networks are usually started with: it keeps gradients level through the stages.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="linear")
    nn.init.zeros_(head.bias)


def unit_kernels(model: nn.Module, *, head: nn.Linear, unit: Literal["filter", "slice"]) -> None:
    """Initializes convolutions with normal weights of the size that manifolds keep, `head` with 1 / fan_in.

    `unit="filter"`: variance 1 / fan_in, so that filters have norm one in the mean square. `unit="slice"`: spatial
    slices of k x k have norm sqrt(k), as orthogonal ones do. Layers behind the convolutions have to scale outputs.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            taps = math.prod(module.kernel_size)
            fan_in = module.weight.shape[1] * taps
            nn.init.normal_(
                module.weight, std=math.sqrt(1 / fan_in if unit == "filter" else min(module.kernel_size) / taps)
            )
    nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="linear")
    nn.init.zeros_(head.bias)
