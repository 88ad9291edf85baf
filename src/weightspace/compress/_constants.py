"""Channels with the same value whatever the input: measured, and what they turn into when they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.compress._channels import READERS, takes_constants
from weightspace.compress._dependencies import Network, Place
from weightspace.compress._equality import Inputs, outputs

_SAME = 1e-12  # relative, in float64: vectorized functions differ in the last bit at the ends of a tensor
Constants = Mapping[str, tuple[Tensor, Tensor]]


def measured_constants(model: nn.Module, given: Sequence[Inputs], *, double: bool) -> Constants:
    """Smallest and largest value of each input channel of each layer, over all inputs: the check on the reasoning."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, module: nn.Module, values: Any) -> None:
        x: Tensor = values[0].detach()
        is_linear = isinstance(module, nn.Linear)
        channels = x.shape[-1] if is_linear else x.shape[1]
        flat = x.reshape(-1, channels) if is_linear else x.transpose(0, 1).reshape(channels, -1).t()
        low, high = flat.amin(0), flat.amax(0)
        if name in found:
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = low, high

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, READERS)
    ]
    try:
        outputs(model, given, double=double)
    finally:
        for handle in handles:
            handle.remove()
    return found


def constant_at(constants: Constants, name: str, channel: int) -> float | None:
    """The value that a channel has everywhere; None if it has several, or was not seen."""
    if name not in constants:
        return None
    low, high = (float(bound[channel]) for bound in constants[name])
    return low if high - low <= _SAME * max(abs(low), abs(high)) else None


def folds(network: Network, places: Sequence[Place], constants: Constants) -> list[tuple[nn.Module, int, float]]:
    """Constants other than zero that layers read from channels that go."""
    found: list[tuple[nn.Module, int, float]] = []
    for place in places:
        if not place.reads:
            continue
        unread = network.zeros(place.module, reads=True)
        for channel in place.channels:
            value = None if bool(unread[channel]) else constant_at(constants, place.name, channel)
            if value and takes_constants(place.module):
                found.append((place.module, channel, value))
    return found


@dataclass(frozen=True)
class StandIn:
    """One constant channel, and the constant channels that it can stand for."""

    channel: int
    others: tuple[int, ...]


def stand_in(network: Network, units: Mapping[int, Sequence[Place]], constants: Constants) -> StandIn | None:
    """Among units that stay only because of zero padding, one that can stand for the others.

    At the border such a layer sees less of a constant, but of all constants by the same factor.
    """
    sizes = {channel: padded_constants(network, unit, constants) for channel, unit in units.items()}
    if len(sizes) < 2:
        return None
    largest = max(sizes, key=lambda channel: min(abs(value) for value in sizes[channel].values()))
    others = tuple(c for c in sizes if c != largest and sizes[c].keys() <= sizes[largest].keys())
    return StandIn(largest, others) if others else None


def padded_constants(network: Network, unit: Sequence[Place], constants: Constants) -> dict[nn.Module, float]:
    """The constants other than zero that arrive at layers which pad with zeros."""
    found: dict[nn.Module, float] = {}
    for place in unit:
        if not place.reads or takes_constants(place.module):
            continue
        for channel in place.channels:
            value = constant_at(constants, place.name, channel)
            if value and not bool(network.zeros(place.module, reads=True)[channel]):
                found[place.module] = value
    return found


def merges(
    network: Network, units: Mapping[int, Sequence[Place]], stands: StandIn, constants: Constants
) -> list[tuple[nn.Module, int, int, float]]:
    """What the stand-in takes over: (layer, input channel that goes, the one that stays, their ratio)."""

    def columns(channel: int) -> dict[nn.Module, int]:
        return {place.module: place.channels[0] for place in units[channel] if place.reads}

    base, found = padded_constants(network, units[stands.channel], constants), list[Any]()
    for channel in stands.others:
        for module, value in padded_constants(network, units[channel], constants).items():
            found.append((module, columns(channel)[module], columns(stands.channel)[module], value / base[module]))
    return found
