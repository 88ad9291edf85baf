"""What weights alone predict for the size of activations and gradients at every layer [derived].

`signals` says what one operation does to a signal. Here its rules are followed along the autograd graph, forward from
the inputs and backward from the outputs, so functions called inside `forward` count as modules do. An operation that is
not known (products of signals, attention, forward also maximum pooling) breaks the prediction: it goes on from the
measured value at the next layer. A prediction that parts from the measurement says that the weights are not as random
ones: they line up with the signals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.inspection.signals import Signal, after, kind_of, layer_signal, name_of, signal_of, slope
from weightspace.inspection.trace import Call, Trace


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
    """Predictions for every call of a trace; while what autograd saved is still there.

    Args:
        trace: What was measured.
        s2: Sum of sigma^2 of each call's layer; None where it is not known.

    Cost: one walk over the autograd graph, a millisecond for each activation.
    """
    graph = _Graph(trace, s2)
    forward = [None if call.output_node is None else graph.signals.get(call.output_node) for call in trace.calls]
    backward = graph.gradients()
    return [
        Expectation(_root(None if signal is None else signal.square), _root(g), graph.operations_before(call))
        for call, signal, g in zip(trace.calls, forward, backward, strict=True)
    ]


class _Graph:
    """The autograd graph between layers, with the signal of every node."""

    def __init__(self, trace: Trace, s2: list[float | None]) -> None:
        self.trace = trace
        self.s2 = s2
        self.layer: dict[Any, int] = {
            call.output_node: i for i, call in enumerate(trace.calls) if call.output_node is not None
        }
        self.signals: dict[Any, Signal | None] = {}
        self.order: list[Any] = []  # every node after all that it reads
        for root in [call.output_node for call in trace.calls] + [node for node, _ in trace.outputs]:
            if root is not None:
                self._visit(root)

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
            if kind_of(node) != "same":
                found[name_of(node)] = None
            if kind_of(node) != "norm":  # what lies before a normalization no longer counts
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
            if node in self.signals:
                continue
            if is_done:
                self.signals[node] = self._forward(node)
                self.order.append(node)
            else:
                stack.append((node, True))
                stack += [(p, False) for p in self.parents(node) if p not in self.signals]

    def _forward(self, node: Any) -> Signal | None:
        if isinstance(node, torch.Tensor):
            return signal_of(node)
        before = [self.signals.get(p) for p in self.parents(node)]
        i = self.layer.get(node)
        if i is not None:
            call, s2 = self.trace.calls[i], self.s2[i]
            if s2 is None or call.operator is None:
                return None
            known = before[0] if before else None
            signal = call.signal if known is None else known  # an unknown operation came before: what was measured
            return layer_signal(signal, s2 / call.operator.shape[0], call.bias_square)
        return after(node, [s for s in before if s is not None]) if None not in before else None

    def _slope(self, node: Any, parent: Any) -> float:
        i = self.layer.get(node)
        if i is None:
            return slope(node, parent, self.signals.get(parent))
        operator, s2 = self.trace.calls[i].operator, self.s2[i]
        return math.nan if s2 is None or operator is None else s2 / operator.shape[1]


def _root(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else math.sqrt(max(value, 0.0))
