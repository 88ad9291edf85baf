"""What weights alone predict for the size of activations and gradients at every layer [derived].

Signals are taken as white and Gaussian with mean zero, q their mean square per entry. Forward, along the autograd
graph:

    layer           q -> q * S2 / outputs + mean square of the bias      (S2 = sum of sigma^2, under the true padding)
    activation f    q -> E f(sqrt(q) z)^2                                (ReLU: q / 2)
    normalization   q -> mean(gamma^2) + mean(beta^2)
    sum             q -> q_1 + q_2 + ...                                 (branches taken as independent)

and backward, with g the mean square per entry of the gradient,

    layer           g -> g * S2 / inputs
    activation f    g -> g * E f'(sqrt(q) z)^2
    normalization   g -> g * mean(gamma^2) / q
    several readers of one signal: their sum.

An operation that is not known here (pooling, products, attention) breaks the prediction: it goes on from the measured
value at the next layer. A prediction that parts from the measurement says that a signal is not white: aligned with
large or small singular vectors, or with a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.inspection.trace import Call, Trace, rms

Shape = Callable[[torch.Tensor], torch.Tensor]

_ACTIVATIONS: dict[str, Shape] = {
    "Relu": torch.relu,
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
_SAME = (
    *("View", "UnsafeView", "Reshape", "Permute", "Transpose", "T", "Alias", "Clone", "Squeeze", "Unsqueeze"),
    *("ToCopy", "Contiguous", "AsStrided", "NativeDropout", "Div0Dropout"),
)
_GRID = 4000  # even: no point at zero, where activations have kinks


@dataclass(frozen=True)
class Expectation:
    """Predictions for one call of a layer, root mean squares per entry; None where nothing is predicted.

    Attributes:
        activation_rms: Of what the layer writes.
        gradient_rms: Of the gradient at what it writes.
        reads: Operations between the layers before and this one, in order of appearance: "Relu", "Add", ...
    """

    activation_rms: float | None
    gradient_rms: float | None
    reads: tuple[str, ...]


def expectations(trace: Trace, s2: list[float | None]) -> list[Expectation]:
    """Predictions for every call of a trace.

    Args:
        trace: What was measured.
        s2: Sum of sigma^2 of each call's layer; None where it is not known.

    Cost: one walk over the autograd graph.
    """
    graph = _Graph(trace, s2)
    forward = [graph.moment(call.output_node) if call.output_node is not None else None for call in trace.calls]
    backward = graph.gradients()
    return [
        Expectation(_root(q), _root(g), graph.operations_before(call))
        for call, q, g in zip(trace.calls, forward, backward, strict=True)
    ]


class _Graph:
    """The autograd graph between layers, with the moments of every node."""

    def __init__(self, trace: Trace, s2: list[float | None]) -> None:
        self.trace = trace
        self.s2 = s2
        self.layer: dict[Any, int] = {
            call.output_node: i for i, call in enumerate(trace.calls) if call.output_node is not None
        }
        self.moments: dict[Any, float | None] = {}
        self.order: list[Any] = []  # every node after all that it reads
        for root in [call.output_node for call in trace.calls] + [node for node, _ in trace.outputs]:
            if root is not None:
                self._visit(root)

    def moment(self, node: Any) -> float | None:
        """Mean square per entry of what a node wrote."""
        return self.moments.get(node)

    def parents(self, node: Any) -> list[Any]:
        """What a node reads: a layer its input, everything else all but parameters."""
        if isinstance(node, torch.Tensor):
            return []
        if node in self.layer:
            source = self.trace.calls[self.layer[node]].input_node
            return [] if source is None else [source]
        return [p for edge, _ in node.next_functions if (p := self._source(edge)) is not None]

    def operations_before(self, call: Call) -> tuple[str, ...]:
        """Names of the operations between this layer and those that it reads from."""
        found: dict[str, None] = {}
        stack, seen = [call.input_node], set[Any]()
        while stack:
            node = stack.pop()
            if node is None or isinstance(node, torch.Tensor) or node in seen or node in self.layer:
                continue
            seen.add(node)
            name = _name(node)
            if name not in _SAME:
                found[name] = None
            if _kind(name) != "norm":  # what lies before a normalization no longer counts
                stack += self.parents(node)
        return tuple(found)

    def gradients(self) -> list[float | None]:
        """Mean square per entry of the gradient at every layer's output, from the outputs of the model backward."""
        arriving: dict[Any, float] = {}
        for node, value in self.trace.outputs:
            arriving[node] = arriving.get(node, 0.0) + value**2
        result: list[float | None] = [None] * len(self.trace.calls)
        for node in reversed(self.order):
            if node not in arriving:
                continue
            g = arriving[node]
            i = self.layer.get(node)
            if i is not None:
                measured = self.trace.calls[i].gradient_rms
                if math.isnan(g) and measured is not None:
                    g = measured**2  # an unknown operation came after: start again from what was measured
                else:
                    result[i] = g
            for parent in self.parents(node):
                arriving[parent] = arriving.get(parent, 0.0) + g * self._slope(node, parent)
        return result

    # ---------------------------------------------------------------------------------------------------- one node

    def _source(self, edge: Any) -> Any:
        """The node of an edge; an input of the model for its leaf; None for parameters and constants."""
        variable = getattr(edge, "variable", None)
        if variable is None:
            return edge
        return next((t for t in self.trace.inputs if t is variable), None)

    def _visit(self, root: Any) -> None:
        """Depth first without recursion: networks can be deeper than Python's stack."""
        stack = [(root, False)]
        while stack:
            node, is_done = stack.pop()
            if node in self.moments:
                continue
            if is_done:
                self.moments[node] = self._forward(node)
                self.order.append(node)
            else:
                stack.append((node, True))
                stack += [(p, False) for p in self.parents(node) if p not in self.moments]

    def _forward(self, node: Any) -> float | None:
        if isinstance(node, torch.Tensor):
            return rms(node) ** 2
        i = self.layer.get(node)
        before = [self.moments.get(p) for p in self.parents(node)]
        if i is not None:
            call, s2 = self.trace.calls[i], self.s2[i]
            if s2 is None or call.operator is None:
                return None
            q = before[0] if before else None
            q = call.input_rms**2 if q is None else q  # an unknown operation came before: what was measured
            return q * s2 / call.operator.shape[0] + call.bias_square
        return _after(node, [q for q in before if q is not None] if None not in before else None)

    def _slope(self, node: Any, parent: Any) -> float:
        """What a node multiplies the gradient's mean square by on its way to a parent; NaN where that is not known."""
        i = self.layer.get(node)
        if i is not None:
            call, s2 = self.trace.calls[i], self.s2[i]
            return math.nan if s2 is None or call.operator is None else s2 / call.operator.shape[1]
        name = _name(node)
        kind, q = _kind(name), self.moments.get(parent)
        if kind in ("same", "add", "cat"):
            return 1.0
        if kind == "norm":
            gamma, variance = _norm_scale(node, q)
            return gamma / variance if variance else math.nan
        if kind == "activation":
            return math.nan if q is None else gaussian_moments(_function(node), q)[1]
        return math.nan


def gaussian_moments(function: Shape, q: float) -> tuple[float, float]:
    """`E f(sqrt(q) z)^2` and `E f'(sqrt(q) z)^2` for a standard normal z, by the midpoint rule.

    Example:
        >>> [round(value, 3) for value in gaussian_moments(torch.relu, 2.0)]
        [1.0, 0.5]
    """
    z = torch.linspace(-8.0, 8.0, _GRID, dtype=torch.float64, device="cpu")
    density = torch.exp(-z * z / 2)
    density /= density.sum()
    x = (math.sqrt(max(q, 1e-300)) * z).requires_grad_()
    with torch.enable_grad():
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return float((density * y.detach().square()).sum()), float((density * slope.square()).sum())


def _after(node: Any, before: list[float] | None) -> float | None:
    """The mean square that a node writes, given those that it reads; None where that is not known."""
    kind = _kind(_name(node))
    if kind == "norm":
        return _after_norm(node, before)
    if not before or kind == "unknown":
        return None
    if kind == "activation":
        return gaussian_moments(_function(node), before[0])[0]
    total = sum(before)
    return total / len(before) if kind == "cat" else total if kind == "add" else before[0]


def _after_norm(node: Any, before: list[float] | None) -> float | None:
    """Whatever came before, in training mode; by the running variance else."""
    gamma, variance = _norm_scale(node, before[0] if before else None)
    if _saved(node, "training") is False:
        return None if not before or not variance else gamma * before[0] / variance + _beta(node)
    return gamma + _beta(node)


def _name(node: Any) -> str:
    """`"Relu"` for `ReluBackward0`."""
    return type(node).__name__.partition("Backward")[0]


def _kind(name: str) -> str:
    if name in ("Add", "Sub"):
        return "add"
    if name in ("Cat", "Stack"):
        return "cat"
    if name in _SAME:
        return "same"
    if any(norm in name for norm in _NORMS):
        return "norm"
    if name in _ACTIVATIONS or name in ("LeakyRelu", "Elu", "Hardtanh", "Threshold"):
        return "activation"
    return "unknown"


def _function(node: Any) -> Shape:
    """The activation of a node, with the options that autograd saved."""
    name = _name(node)
    if name == "LeakyRelu":
        slope = float(_saved(node, "negative_slope"))
        return lambda x: torch.nn.functional.leaky_relu(x, slope)
    if name == "Elu":
        alpha, scale = float(_saved(node, "alpha")), float(_saved(node, "scale"))
        return lambda x: scale * torch.nn.functional.elu(x, alpha)
    if name == "Hardtanh":
        low, high = float(_saved(node, "min_val")), float(_saved(node, "max_val"))
        return lambda x: x.clamp(low, high)
    return torch.relu if name == "Threshold" else _ACTIVATIONS[name]


def _norm_scale(node: Any, q: float | None) -> tuple[float, float | None]:
    """Mean square of gamma, and the variance that a normalization divides by."""
    gamma = _square(_saved(node, "weight"), 1.0)
    if _saved(node, "training") is False and isinstance(running := _saved(node, "running_var"), torch.Tensor):
        eps = float(_saved(node, "eps") or 1e-5)
        return gamma, float((running.detach().double() + eps).reciprocal().mean().reciprocal())
    return gamma, q


def _saved(node: Any, name: str) -> Any:
    """What autograd saved under a name; None if it saved nothing, or what it saved has been written over since."""
    try:
        return getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None


def _beta(node: Any) -> float:
    """Mean square of the shift of a normalization: the last parameter that it reads."""
    leaves = [v for edge, _ in node.next_functions if (v := getattr(edge, "variable", None)) is not None]
    return _square(leaves[-1], 0.0) if len(leaves) > 1 else 0.0


def _square(value: Any, default: float) -> float:
    return rms(value) ** 2 if isinstance(value, torch.Tensor) and value.numel() else default


def _root(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else math.sqrt(value)
