"""Modules that Torch-Pruning does not know, and how channels are taken out of them.

Two kinds are known here by what they do: modules that scale and shift each channel, such as `Scale` of this library's
networks, and modules without weights that append zero channels, such as the parameter-free shortcut of ResNets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

APPENDED = "new_channels"  # how a module without weights says how many zero channels it appends to its input


class Channelwise:
    """How channels are taken out of a module that scales and shifts each channel by parameters of its own."""

    pruning_dim = 1

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Takes channels out of all its parameters, along their longest dimension."""
        gone = set(idxs)
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.dim() and parameter.numel() > 1:
                axis = int(torch.tensor(parameter.shape).argmax())
                kept = [index for index in range(parameter.shape[axis]) if index not in gone]
                layer.register_parameter(name, nn.Parameter(parameter.detach()[_at(axis, kept)].clone()))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int | None:
        """The longest of its parameters; None if that is one number for all channels."""
        sizes = [parameter.numel() for parameter in layer.parameters(recurse=False)]
        return max(sizes) if max(sizes) > 1 else None

    get_in_channels = get_out_channels

    def get_out_channel_groups(self, layer: nn.Module) -> int:
        """One: any channel may go."""
        return 1

    get_in_channel_groups = get_out_channel_groups


class Appending:
    """How channels are taken out of a module that appends zero channels to its input."""

    pruning_dim = 1

    def __init__(self, inputs: dict[nn.Module, int]) -> None:
        self.inputs = inputs

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Takes channels out: the first are those of the input."""
        old = sum(index < self.inputs[layer] for index in idxs)
        self.inputs[layer] -= old
        setattr(layer, APPENDED, getattr(layer, APPENDED) - (len(idxs) - old))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        """Those of its input and the appended ones."""
        return self.inputs[layer] + int(getattr(layer, APPENDED))

    def get_in_channels(self, layer: nn.Module) -> int:
        """Those of its input."""
        return self.inputs[layer]

    def get_out_channel_groups(self, layer: nn.Module) -> int:
        """One: any channel may go."""
        return 1

    get_in_channel_groups = get_out_channel_groups


class Below:
    """The index mapping from what such a module gives to what it takes: appended channels come from nowhere."""

    def __init__(self, appending: Appending, module: nn.Module) -> None:
        self.appending, self.module = appending, module

    def __call__(self, indices: list[Any]) -> list[Any]:
        """Those of the indices that are channels of the input, however many are left of it by now."""
        return [index for index in indices if index.idx < self.appending.inputs[self.module]]


def _at(axis: int, kept: list[int]) -> tuple[Any, ...]:
    return (*(slice(None),) * axis, kept)


def _shapes(
    model: nn.Module, inputs: tuple[Any, ...], modules: Sequence[nn.Module]
) -> dict[nn.Module, tuple[Any, Any]]:
    """Shapes of the first tensor that goes into a module and of the one that comes out."""
    found: dict[nn.Module, tuple[Any, Any]] = {}

    def note(module: nn.Module, given: Any, made: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(made, Tensor):
            found[module] = tuple(given[0].shape), tuple(made.shape)

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def appended(model: nn.Module, inputs: tuple[Any, ...]) -> dict[nn.Module, int]:
    """Modules without weights that append zero channels, with the channels that they take."""
    named = [m for m in model.modules() if isinstance(getattr(m, APPENDED, None), int) and not list(m.parameters())]
    shapes = _shapes(model, inputs, named) if named else {}
    return {m: i[1] for m, (i, o) in shapes.items() if len(i) > 1 and o[1] == i[1] + getattr(m, APPENDED)}


def channelwise_classes(model: nn.Module, inputs: tuple[Any, ...], pruning: Any) -> Iterator[type]:
    """Classes of leaf modules with parameters of their own, one number for each channel or one for all."""
    other = [
        module
        for module in model.modules()
        if list(module.parameters(recurse=False))
        and not list(module.children())
        and pruning.ops.module2type(module) == pruning.ops.OPTYPE.ELEMENTWISE
    ]
    shapes = _shapes(model, inputs, other) if other else {}
    for class_ in {type(module) for module in other}:
        if all(_is_channelwise(module, shapes.get(module)) for module in other if type(module) is class_):
            yield class_


def _is_channelwise(module: nn.Module, shapes: tuple[Any, Any] | None) -> bool:
    if shapes is None or shapes[0] != shapes[1] or len(shapes[0]) < 2:
        return False
    sizes = {parameter.numel() for parameter in module.parameters(recurse=False)}
    largest = [max(parameter.shape, default=1) for parameter in module.parameters(recurse=False)]
    return sizes <= {1, shapes[0][1]} and sizes != {1} and sizes == set(largest)
