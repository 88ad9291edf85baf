"""How mean squares travel through one operation of a network whose weights are random [derived].

A signal is taken as Gaussian over channels and images, with three numbers: its mean, its mean square q, and the mean
product c of entries of two images at one channel (what all images have in common, so that `q - c` is what varies).

    layer           q -> q r + b,  c -> c r + b      r = S2 / outputs (S2 = sum of sigma^2), b = mean square of the bias
    activation f    q -> E f(x)^2, c -> E f(x) f(y)  x, y Gaussian with this mean, variance and covariance
    batch norm      q -> mean(gamma^2) + mean(beta^2), by what varies
    layer norm      the same, by the variance over channels
    sum             means add; q and c add, with twice the products of the means: branches are independent
    average over k  q -> c + (q - c) / k

and for the gradient's mean square g on its way back: a layer S2 / inputs, an activation `E f'(x)^2`, a normalization
`mean(gamma^2)` over the variance that it divides by, an average `1 / k^2`, a maximum over k `1 / k`.

This is the mean-field theory of deep networks (Poole et al. 2016, Schoenholz et al. 2017) with the singular values of
the layers that are there in place of the variance of random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[[torch.Tensor], torch.Tensor]

_ACTIVATIONS: dict[str, Function] = {
    "Relu": torch.relu,
    "Threshold": torch.relu,
    "Gelu": torch.nn.functional.gelu,
    "Silu": torch.nn.functional.silu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softplus": torch.nn.functional.softplus,
    "Mish": torch.nn.functional.mish,
    "Hardswish": torch.nn.functional.hardswish,
    "Hardsigmoid": torch.nn.functional.hardsigmoid,
}
_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "RmsNorm", "RMSNorm")
_KINDS: dict[str, Collection[str]] = {
    "sum": ("Add", "Sub"),
    "cat": ("Cat", "Stack"),
    "same": (
        *("View", "UnsafeView", "Reshape", "ReshapeAlias", "Permute", "Transpose", "T", "Alias", "Clone", "Squeeze"),
        *("Unsqueeze", "ToCopy", "Contiguous", "AsStrided"),
    ),
    "scale": ("Mul", "Div"),  # by something that does not depend on the signal: a number, a mask of dropout
    "slice": ("Slice", "Select", "Narrow", "Index", "Split", "Chunk", "Unbind"),
    "pad": ("ConstantPadNd",),
    "activation": (*_ACTIVATIONS, "LeakyRelu", "Elu", "Hardtanh"),
    "average": ("Mean", "AvgPool1D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D"),
    "maximum": ("MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"),
}
_GRID, _OUTER = 1000, 100  # even: no point at zero, where activations have kinks


@dataclass(frozen=True)
class Signal:
    """What is known of a tensor: mean, mean square, and mean product of two images' entries at one channel."""

    mean: float = math.nan
    square: float = math.nan
    common: float = math.nan


def signal_of(tensor: torch.Tensor) -> Signal:
    """The three numbers of a tensor whose first dimension counts images; of one image, `common` is the mean squared."""
    x = tensor.detach().to(torch.float64)
    mean, square = float(x.mean()), float(x.square().mean())
    if x.ndim < 2 or x.shape[0] < 2:
        return Signal(mean, square, mean * mean)
    images = x.shape[0]
    # E ||mean of n images||^2 = common + (square - common) / n
    common = (images * float(x.mean(dim=0).square().mean()) - square) / (images - 1)
    return Signal(mean, square, min(max(common, mean * mean), square))


def layer_signal(signal: Signal, gain: float, bias_square: float) -> Signal:
    """After a layer with `gain = S2 / outputs`."""
    return Signal(0.0, signal.square * gain + bias_square, signal.common * gain + bias_square)


def kind_of(node: Any) -> str:
    """What sort of operation an autograd node is; `"unknown"` for what is not predicted."""
    name = name_of(node)
    if any(norm in name for norm in _NORMS):
        return "norm"
    return next((kind for kind, names in _KINDS.items() if name in names), "unknown")


def name_of(node: Any) -> str:
    """`"Relu"` for `ReluBackward0`."""
    return type(node).__name__.partition("Backward")[0]


def after(node: Any, before: Sequence[Signal]) -> Signal | None:
    """The signal that a node writes, given those that it reads; None where that is not known."""
    kind = kind_of(node)
    if not before or kind in ("unknown", "maximum"):
        return None
    first = before[0]
    if kind == "activation":
        return through(_function(node), first)[0]
    if kind == "norm":
        return _after_norm(node, first)
    if kind == "average":
        share = _entries(node) / first_entries(node)
        return Signal(first.mean, first.common + (first.square - first.common) * share, first.common)
    if kind in ("scale", "pad"):
        return _scaled(first, *(_factor(node) if kind == "scale" else _padded(node)))
    return _joined(before, name_of(node)) if kind in ("sum", "cat") else first


def slope(node: Any, parent: Any, signal: Signal | None) -> float:
    """What a node multiplies the gradient's mean square by on its way to a parent; NaN where that is not known."""
    kind = kind_of(node)
    share = _entries(node) / _entries(parent)
    plain = {"same": 1.0, "sum": 1.0, "cat": 1.0, "pad": 1.0, "slice": share, "average": share * share}
    if kind in plain:
        return plain[kind]
    if kind == "maximum":
        return share
    if kind == "scale":
        return _factor(node)[1]
    if signal is None or kind == "unknown":
        return math.nan
    if kind == "activation":
        return through(_function(node), signal)[1]
    variance = _variance(node, signal)
    return _square(saved(node, "weight"), 1.0) / variance if variance else math.nan


def through(function: Function, signal: Signal) -> tuple[Signal, float]:
    """An activation: the signal that it writes, and the mean square of its slope. By the midpoint rule.

    Example:
        >>> written, slope = through(torch.relu, Signal(0.0, 2.0, 0.0))
        >>> round(written.square, 3), round(written.common * 3.14159, 3), round(slope, 3)  # q / 2, q / (2 pi), 1 / 2
        (1.0, 1.0, 0.5)
    """
    variance = max(signal.square - signal.mean**2, 0.0)
    shared = min(max(signal.common - signal.mean**2, 0.0), variance)
    z, density = _normal(_GRID)
    x = (signal.mean + math.sqrt(variance) * z).requires_grad_()
    with torch.enable_grad():
        y = function(x)
        (derivative,) = torch.autograd.grad(y.sum(), x)
    y = y.detach()
    s, weights = _normal(_OUTER)
    inner, inner_density = _normal(_GRID // 2)
    grid = signal.mean + math.sqrt(shared) * s[:, None] + math.sqrt(variance - shared) * inner
    given = function(grid) @ inner_density  # mean over what varies, for each value of what is shared
    written = Signal(
        float(density @ y),
        float(density @ y.square()),
        min(float(weights @ given.square()), float(density @ y.square())),
    )
    return written, float(density @ derivative.square())


def saved(node: Any, name: str) -> Any:
    """What autograd saved under a name; None if it saved nothing, or what it saved has been written over since."""
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None


def first_entries(node: Any) -> float:
    """Number of entries of what a node reads first."""
    source = next((edge for edge, _ in node.next_functions if edge is not None), None)
    variable = getattr(source, "variable", None)
    return _entries(source if variable is None else variable)


# ------------------------------------------------------------------------------------------------- single operations


def _joined(before: Sequence[Signal], name: str) -> Signal:
    """Independent branches, added or side by side."""
    if name in ("Cat", "Stack"):
        count = len(before)
        mean, square, common = (sum(getattr(s, key) for s in before) / count for key in ("mean", "square", "common"))
        return Signal(mean, square, common)
    signs = [1.0] + [-1.0 if name == "Sub" else 1.0] * (len(before) - 1)
    mean = sum(sign * s.mean for sign, s in zip(signs, before, strict=True))
    cross = mean**2 - sum(s.mean**2 for s in before)
    return Signal(mean, sum(s.square for s in before) + cross, sum(s.common for s in before) + cross)


def _after_norm(node: Any, signal: Signal) -> Signal:
    gamma, beta, variance = _square(saved(node, "weight"), 1.0), _beta(node), _variance(node, signal)
    if not variance:
        return Signal(0.0, beta, beta)
    if "BatchNorm" not in name_of(node):
        return Signal(0.0, gamma + beta, gamma * max(signal.common - signal.mean**2, 0.0) / variance + beta)
    common = beta
    if saved(node, "training") is False:
        running = saved(node, "running_mean")
        left = signal.common - _square(running, 0.0)  # what the running mean does not take away
        common += gamma * max(left, 0.0) / variance
    return Signal(0.0, gamma * (signal.square - signal.common) / variance + common, common)


def _variance(node: Any, signal: Signal) -> float:
    """What a normalization divides squares by."""
    if "BatchNorm" not in name_of(node):
        return signal.square - signal.mean**2
    running = saved(node, "running_var")
    if saved(node, "training") is False and isinstance(running, torch.Tensor):
        eps = float(saved(node, "eps") or 1e-5)
        return float((running.detach().double() + eps).reciprocal().mean().reciprocal())
    return signal.square - signal.common


def _beta(node: Any) -> float:
    """Mean square of the shift of a normalization: the last parameter that it reads."""
    leaves = [v for edge, _ in node.next_functions if (v := getattr(edge, "variable", None)) is not None]
    return _square(leaves[-1], 0.0) if len(leaves) > 1 else 0.0


def _scaled(signal: Signal, mean: float, square: float) -> Signal | None:
    """Times something of this mean and mean square, drawn anew for every image if these differ."""
    if math.isnan(square):
        return None
    return Signal(signal.mean * mean, signal.square * square, signal.common * mean * mean)


def _factor(node: Any) -> tuple[float, float]:
    """Mean and mean square of a constant factor; NaN for a product of two signals."""
    if sum(edge is not None for edge, _ in node.next_functions) != 1:
        return math.nan, math.nan
    other = next((v for v in (saved(node, "other"), saved(node, "self")) if v is not None), None)
    if not isinstance(other, torch.Tensor):
        return math.nan, math.nan
    factor = other.detach().to(torch.float64)
    factor = factor if name_of(node) == "Mul" else factor.reciprocal()
    return float(factor.mean()), float(factor.square().mean())


def _padded(node: Any) -> tuple[float, float]:
    """Zeros beside the signal: as a mask of zeros and ones that all images share."""
    share = _entries(node) and first_entries(node) / _entries(node)
    return math.sqrt(share), share


def _entries(node: Any) -> float:
    """Number of entries of what a node wrote; NaN where torch does not tell."""
    if isinstance(node, torch.Tensor):
        return float(node.numel())
    known: Any = getattr(node, "_input_metadata", None)
    return float(math.prod(known[0].shape)) if known else math.nan


def _function(node: Any) -> Function:
    """The activation of a node, with the options that autograd saved."""
    name = name_of(node)
    if name == "LeakyRelu":
        negative = float(saved(node, "negative_slope"))
        return lambda x: torch.nn.functional.leaky_relu(x, negative)
    if name == "Elu":
        alpha, scale = float(saved(node, "alpha")), float(saved(node, "scale"))
        return lambda x: scale * torch.nn.functional.elu(x, alpha)
    if name == "Hardtanh":
        low, high = float(saved(node, "min_val")), float(saved(node, "max_val"))
        return lambda x: x.clamp(low, high)
    return _ACTIVATIONS[name]


def _normal(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights for means over a standard normal."""
    z = torch.linspace(-8.0, 8.0, points, dtype=torch.float64, device="cpu")
    density = torch.exp(-z * z / 2)
    return z, density / density.sum()


def _square(value: Any, default: float) -> float:
    if not isinstance(value, torch.Tensor) or not value.numel():
        return default
    return float(value.detach().to(torch.float64).square().mean())
