"""Which channels must stay, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from weightspace.compress._channels import (
    BATCH_NORM,
    CONV,
    READERS,
    can_merge,
    is_depthwise,
    takes_constants,
    why_position,
)
from weightspace.compress._constants import Constants, constant_at
from weightspace.compress._dependencies import Bundle, Network, Place

Units = dict[int, list[Place]]


@dataclass(frozen=True)
class Kept:
    """Channels that hold nothing and stay nevertheless.

    Attributes:
        layer: The layer's name.
        channels: Its output channels, by their numbers in the smaller model; empty if nothing of the layer went because
            the outputs would change.
        reason: Why.
    """

    layer: str
    channels: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        count = len(self.channels)
        what = "nothing goes" if not count else f"{count} empty channel{'s stay' if count > 1 else ' stays'}"
        return f"{self.layer}: {what}: {self.reason}"


def refusal(
    network: Network, unit: Sequence[Place], constants: Constants, keep: Collection[str], *, padded: bool = False
) -> str | None:
    """Why a unit must stay; None if it may go. With `padded`, constants may arrive at layers that pad with zeros."""
    for place in unit:
        if network.is_output(place):
            return "they are outputs of the model"
        if network.mixes(place):
            return f"what {place.name} makes of one channel depends on the others"
        if not place.reads and place.name in keep:
            return f"{place.name} is named in keep"
    for place in unit:
        if place.reads and (reason := _why_read(network, place, constants, padded=padded)) is not None:
            return reason
    return None


def _why_read(network: Network, place: Place, constants: Constants, *, padded: bool) -> str | None:
    """What a layer learns from these channels, if anything."""
    unread = network.zeros(place.module, reads=True)
    for channel in place.channels:
        if bool(unread[channel]):
            continue
        if not network.arrives_constant(place, channel):
            return f"another branch of a sum or product writes to them, and {place.name} reads the result"
        value = constant_at(constants, place.name, channel)
        if value is None:
            return f"{place.name} reads them where they are not constant over the map or the batch"
        if value and not takes_constants(place.module) and not (padded and can_merge(place.module)):
            why = why_position(place.module)
            return f"a bias or batch norm makes them constants other than zero, and {place.name} {why}"
    return None


def is_empty(network: Network, bundle: Bundle, channel: int) -> bool:
    """Whether a user who looks at the weights would expect this unit to go."""
    for place in bundle.units[channel]:
        if place.reads:
            continue
        zero = network.zeros(place.module, reads=False) if isinstance(place.module, nn.Module) else None
        is_layer = isinstance(place.module, (*READERS, BATCH_NORM))
        if is_layer and zero is not None and len(zero) and all(bool(zero[c]) for c in place.channels):
            return True
    return False


def partners(chosen: Units) -> list[tuple[int, str]]:
    """Drop units of grouped convolutions whose partners in the other groups stay: groups must stay equal."""
    dropped: list[tuple[int, str]] = []
    while True:
        gone = _gone(chosen)
        alone = [
            (channel, place)
            for channel, unit in chosen.items()
            for place in unit
            if (size := _group_size(place)) and not _all_partners(place, size, gone[place.key])
        ]
        if not alone:
            return dropped
        for channel, place in alone:
            if chosen.pop(channel, None) is not None:
                dropped.append((channel, f"{place.name} has groups, and their partners in the other groups stay"))


def _gone(chosen: Units) -> defaultdict[tuple[int, bool], set[int]]:
    """The channels that would go, by layer and side."""
    gone: defaultdict[tuple[int, bool], set[int]] = defaultdict(set)
    for unit in chosen.values():
        for place in unit:
            gone[place.key].update(place.channels)
    return gone


def _group_size(place: Place) -> int | None:
    """Channels in a group of a grouped convolution; None for all other layers."""
    module = place.module
    if not isinstance(module, CONV) or module.groups == 1 or is_depthwise(module):
        return None
    return (module.in_channels if place.reads else module.out_channels) // module.groups


def _all_partners(place: Place, size: int, gone: set[int]) -> bool:
    total = size * int(place.module.groups)
    return all(partner in gone for channel in place.channels for partner in range(channel % size, total, size))


def last_ones(chosen: Units, going: Mapping[tuple[int, bool], set[int]]) -> list[tuple[int, str]]:
    """Drop units until every layer keeps a channel."""
    dropped: list[tuple[int, str]] = []
    while True:
        gone = _gone(chosen)
        emptied = [
            (channel, place)
            for channel, unit in chosen.items()
            for place in unit
            if _size(place) == len(gone[place.key] | going.get(place.key, set()))
        ]
        if not emptied:
            return dropped
        channel, place = emptied[0]
        del chosen[channel]
        dropped.append((channel, f"{place.name} would be left without any channel"))
        dropped += partners(chosen)


def _size(place: Place) -> int | None:
    """All channels on this side of a layer."""
    module = place.module
    if isinstance(module, nn.Linear):
        return module.in_features if place.reads else module.out_features
    if isinstance(module, CONV):
        return module.in_channels if place.reads else module.out_channels
    return None
