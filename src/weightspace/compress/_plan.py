"""What can be removed from a model in one round, and the removal itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from weightspace.compress._channels import fold, merge
from weightspace.compress._constants import Constants, StandIn, folds, merges, stand_in
from weightspace.compress._dependencies import Network, Place
from weightspace.compress._verdicts import Kept, Units, is_empty, last_ones, partners, refusal


@dataclass(frozen=True, eq=False)
class Removal:
    """Channels of one bundle that go: the layer at its root, its channels, and the units they stand for."""

    root: str
    module: nn.Module
    units: Units


@dataclass
class Plan:
    """One round.

    Attributes:
        removals: What goes, by bundle.
        folds: Constants for biases: (layer, input channel, value).
        merges: Constants that another constant channel stands for: (layer, input channel, that channel, their ratio).
        kept: What holds nothing and stays.
    """

    removals: list[Removal] = field(default_factory=list)
    folds: list[tuple[nn.Module, int, float]] = field(default_factory=list)
    merges: list[tuple[nn.Module, int, int, float]] = field(default_factory=list)
    kept: tuple[Kept, ...] = ()

    @property
    def folded(self) -> int:
        """Constant input channels that go into biases or into another constant channel."""
        return len(self.folds) + len(self.merges)

    def carry_out(self, network: Network) -> None:
        """Fold constants, then remove.

        Raises what Torch-Pruning raises, and a `RuntimeError` if it would remove more than was decided.
        """
        by_layer: dict[nn.Module, list[tuple[int, float]]] = defaultdict(list)
        for module, channel, value in self.folds:
            by_layer[module].append((channel, value))
        for module, entries in by_layer.items():
            values = torch.tensor([value for _, value in entries], dtype=torch.float64)
            fold(module, [channel for channel, _ in entries], values)
        for module, channel, into, ratio in self.merges:
            merge(module, channel, into, ratio)
        gone: dict[int, set[int]] = defaultdict(set)  # output channels, in the numbers of the plan
        for removal in self.removals:
            before = gone[id(removal.module)]
            shifted = [channel - sum(other < channel for other in before) for channel in sorted(removal.units)]
            group = network.group(removal.module, shifted)
            _refuse_more(network, removal, group)
            group.prune(record_history=False)
            for place in _places(removal):
                if not place.reads:
                    gone[id(place.module)].update(place.channels)


def make_plan(
    network: Network, constants: Constants, *, blocked: Collection[str], keep: Collection[str], only: str | None = None
) -> Plan:
    """Decide on every unit of every bundle.

    Args:
        network: The model's graph.
        constants: `measured_constants` of the model.
        blocked: Roots of bundles that were tried and do not work.
        keep: Names of layers whose output channels must stay.
        only: Look at this root alone.
    """
    plan, kept = Plan(), defaultdict[tuple[str, str], list[int]](list)
    going: dict[tuple[int, bool], set[int]] = defaultdict(set)
    for bundle in network.bundles():
        if bundle.root in blocked or only not in (None, bundle.root):
            continue
        refusals = {channel: refusal(network, unit, constants, keep) for channel, unit in bundle.units.items()}
        padded = {
            channel: bundle.units[channel]
            for channel, reason in refusals.items()
            if reason is not None and refusal(network, bundle.units[channel], constants, keep, padded=True) is None
        }
        stands = stand_in(network, padded, constants)
        if stands is not None:
            refusals |= dict.fromkeys(stands.others)
        chosen = {channel: bundle.units[channel] for channel, reason in refusals.items() if reason is None}
        for channel, reason in refusals.items():
            if reason is not None and is_empty(network, bundle, channel):
                kept[bundle.root, reason].append(channel)
        for channel, reason in partners(chosen) + last_ones(chosen, going):
            kept[bundle.root, reason].append(channel)
        if not chosen:
            continue
        removal = Removal(bundle.root, bundle.module, chosen)
        plan.removals.append(removal)
        for place in _places(removal):
            going[place.key].update(place.channels)
        plan.folds += folds(network, _places(removal), constants)
        if stands is not None:
            over = StandIn(stands.channel, tuple(channel for channel in stands.others if channel in chosen))
            plan.merges += merges(network, padded, over, constants)
    plan.kept = tuple(Kept(root, tuple(sorted(set(channels))), reason) for (root, reason), channels in kept.items())
    return plan


def _places(removal: Removal) -> list[Place]:
    return [place for unit in removal.units.values() for place in unit]


def _refuse_more(network: Network, removal: Removal, group: Any) -> None:
    """Torch-Pruning must remove what was decided on, and nothing else."""
    wanted: dict[tuple[int, bool], set[int]] = defaultdict(set)
    for place in _places(removal):
        wanted[place.key].update(place.channels)
    found: dict[tuple[int, bool], int] = defaultdict(int)
    for item in group:
        found[network.place(item.dep, ()).key] += len(set(item.idxs))
    if found != {key: len(channels) for key, channels in wanted.items()}:
        raise RuntimeError("channels of this layer are tied to each other")
