"""The dependency graph of Torch-Pruning, and the questions that shrinking asks of it.

A *bundle* is what Torch-Pruning calls a group: all places where the output channels of one layer appear. It is split
into *units*, one for each channel: they stand or fall together.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.compress._channels import READERS, is_depthwise, zero_inputs, zero_outputs
from weightspace.compress._extras import package
from weightspace.compress._special_modules import Appending, Below, Channelwise, appended, channelwise_classes


@dataclass(frozen=True, eq=False)
class Place:
    """Where a unit appears: channels of one side of a node of the graph.

    Attributes:
        node: Torch-Pruning's node.
        name: The module's name, or that of the operation.
        reads: Whether these are input channels that the module sums over; otherwise it makes or passes them.
        channels: Which.
    """

    node: Any
    name: str
    reads: bool
    channels: tuple[int, ...]

    @property
    def module(self) -> Any:
        """The module, or Torch-Pruning's stand-in for an operation."""
        return self.node.module

    @property
    def key(self) -> tuple[int, bool]:
        """What tells one side of a module from all others."""
        return id(self.node.module), self.reads


@dataclass(frozen=True, eq=False)
class Bundle:
    """All units of the output channels of one layer: channel to places."""

    root: str
    module: nn.Module
    units: dict[int, list[Place]]


def _outside_the_graph(model: nn.Module, inputs: tuple[Any, ...]) -> list[nn.Module]:
    """Layers that ran without leaving a trace: what they do to channels cannot be known."""
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any, made: Any) -> None:
        if isinstance(made, Tensor) and not made.requires_grad:
            found.append(module)

    handles = [module.register_forward_hook(look) for module in model.modules() if isinstance(module, READERS)]
    try:
        with torch.enable_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


class Network:
    """A model's dependency graph, in evaluation mode.

    Args:
        model: Its parameters must require gradients: Torch-Pruning follows autograd's graph. Put in evaluation mode.
        inputs: What the model is called with.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        pruning = package("torch_pruning", "removing channels")
        self.types = pruning.ops.OPTYPE
        # What its index mappings take; there is no public name for it.
        self._index: Any = package("torch_pruning._helpers", "removing channels")._HybridIndex  # noqa: SLF001
        self.names = {module: name for name, module in model.named_modules()}
        self.appending = Appending(appended(model, inputs))
        custom: dict[type, Any] = dict.fromkeys({type(module) for module in self.appending.inputs}, self.appending)
        self.channelwise = tuple(channelwise_classes(model, inputs, pruning))
        custom |= dict.fromkeys(self.channelwise, Channelwise())
        self.graph: Any = pruning.DependencyGraph()
        with _silent(), torch.enable_grad():
            self.graph.build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=lambda network, given: network(*given),
                customized_pruners=custom,
                verbose=False,
            )
        unseen = [self.names[module] or "the model" for module in _outside_the_graph(model, inputs)]
        if unseen:
            raise ValueError(f"{', '.join(unseen[:3])} ran outside autograd's graph")
        for module in self.appending.inputs:
            self._tell_index_mapping(module)
        self._constant: dict[tuple[int, int], bool] = {}
        self._zero: dict[int, Tensor] = {}

    def _tell_index_mapping(self, module: nn.Module) -> None:
        """Appended channels have no counterpart in the input."""
        node = self.graph.module2node.get(module)
        if node is None:
            return
        for edge in node.dependencies:
            if any(edge.target is source for source in node.inputs):
                edge.index_mapping[0] = Below(self.appending, module)

    def bundles(self) -> Iterator[Bundle]:
        """Every output channel of every layer, each in one bundle."""
        covered: dict[int, set[int]] = {}
        for module in list(self.graph.module2node):
            if not isinstance(module, READERS) or module not in self.names:
                continue
            outputs = self.graph.get_pruner_of_module(module).get_out_channels(module)
            open_ = [index for index in range(outputs) if index not in covered.get(id(module), ())]
            if not open_:
                continue
            units: dict[int, list[Place]] = {}
            for item in self.group(module, open_):
                place = self.place(item.dep, tuple(item.idxs))
                if not place.reads:
                    covered.setdefault(id(place.module), set()).update(item.idxs)
                by_root: dict[int, list[int]] = {}
                for index, root in zip(item.idxs, item.root_idxs, strict=True):
                    by_root.setdefault(root, []).append(index)
                for root, indices in by_root.items():
                    units.setdefault(root, []).append(Place(place.node, place.name, place.reads, tuple(indices)))
            yield Bundle(self.names[module], module, units)

    def group(self, module: nn.Module, channels: Sequence[int]) -> Any:
        """Torch-Pruning's group for some output channels of a layer."""
        with _silent():
            pruner = self.graph.get_pruner_of_module(module)
            return self.graph.get_pruning_group(module, pruner.prune_out_channels, list(channels))

    def place(self, edge: Any, channels: tuple[int, ...]) -> Place:
        """A group's entry in our words."""
        node = edge.target
        module = node.module
        reads = (
            isinstance(module, READERS)
            and not is_depthwise(module)
            and edge.handler == self.graph.get_pruner_of_module(module).prune_in_channels
        )
        return Place(node, self.names.get(module) or str(node.name), reads, channels)

    def is_output(self, place: Place) -> bool:
        """Whether these channels leave the model."""
        return not place.reads and (place.node.type == self.types.OUTPUT or not place.node.outputs)

    def mixes(self, place: Place) -> bool:
        """Whether what happens there to one channel depends on the others, or is unknown."""
        kinds = self.types
        mixing = (kinds.LN, kinds.GN, kinds.MHA, kinds.LSTM, kinds.EMBED)
        odd = place.node.type == kinds.DEPTHWISE_CONV and not is_depthwise(place.module)
        return odd or place.node.type in mixing

    def is_constant(self, node: Any, channel: int) -> bool:
        """Whether an output channel of a node is the same for all inputs, as far as weights can tell."""
        key = id(node), channel
        if key not in self._constant:
            self._constant[key] = False  # a module that is used twice may come back to itself
            self._constant[key] = self._decide(node, channel)
        return self._constant[key]

    def arrives_constant(self, place: Place, channel: int) -> bool:
        """Whether the input channel of a reading layer is constant."""
        return self._sources_constant(place.node, channel)

    def zeros(self, module: nn.Module, *, reads: bool) -> Tensor:
        """`zero_inputs` or `zero_outputs`, remembered: weights do not change while questions are asked."""
        key = 2 * id(module) + reads
        if key not in self._zero:
            self._zero[key] = zero_inputs(module) if reads else zero_outputs(module)
        return self._zero[key]

    def _decide(self, node: Any, channel: int) -> bool:
        module, kinds = node.module, self.types
        if node.type == kinds.PARAMETER:
            return True
        if node.type in (kinds.CONV, kinds.DEPTHWISE_CONV, kinds.LINEAR, kinds.BN, kinds.IN):
            zero = self.zeros(module, reads=False)
            if channel < len(zero) and bool(zero[channel]):
                return True
            if node.type in (kinds.CONV, kinds.LINEAR):
                return False
        if module in self.appending.inputs and channel >= self.appending.inputs[module]:
            return True
        if node.type in (kinds.LN, kinds.GN, kinds.MHA, kinds.LSTM, kinds.EMBED):
            return False
        return self._sources_constant(node, channel)

    def _sources_constant(self, node: Any, channel: int) -> bool:
        sources = [source for source in node.inputs if not self._is_of_parameters(source)]
        if isinstance(node.module, self.channelwise):  # what does not come from a layer is its own parameters
            sources = [source for source in sources if self._has_layer(source)]
        return bool(sources) and all(
            self.is_constant(source, index) for source in sources for index in self._before(node, source, channel)
        )

    def _is_of_parameters(self, node: Any) -> bool:
        """Whether an operation sees parameters only, such as the transposition of a linear layer's weight."""
        if node.module in self.names or node.type == self.types.PARAMETER:
            return False
        edges = [function for function, _ in getattr(node.grad_fn, "next_functions", ())]
        if not node.inputs:  # None is what needs no gradient: the model's input, for example
            return bool(edges) and None not in edges
        return None not in edges and all(self._is_of_parameters(source) for source in node.inputs)

    def _has_layer(self, node: Any) -> bool:
        """Whether the output of a module arrives at a node."""
        return node.module in self.names or any(self._has_layer(source) for source in node.inputs)

    def _before(self, node: Any, source: Any, channel: int) -> list[int]:
        """The channels of an input that end up in a channel of a node."""
        edge = next(edge for edge in node.dependencies if edge.target is source)
        indices = [self._index(idx=channel, root_idx=channel)]
        for mapping in edge.index_mapping:
            indices = indices if mapping is None else mapping(indices)
        return [index.idx for index in indices]


@contextlib.contextmanager
def _silent() -> Generator[None, None, None]:
    """Torch-Pruning prints and warns about what it does; what matters of it is in our report."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
