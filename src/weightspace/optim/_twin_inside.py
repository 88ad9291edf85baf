"""What a twin is made of, and what it is told: see `weightspace.optim._twin`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from weightspace.optim._noise_places import Share

if TYPE_CHECKING:
    from weightspace.manifolds import Constraint
    from weightspace.optim._mirrored import Mirrored
    from weightspace.optim.verify import PropertyCheck

Group = dict[str, Any]


@dataclass
class Told:
    """What a twin is told around a step.

    Attributes:
        shares: For each group what this process holds of its weights; None between steps.
        pending: Measurements of rows that the other processes' must be added to, by identity of the part.
    """

    shares: Mapping[int, Sequence[Share]] | None = None
    pending: dict[int, torch.Tensor | None] = field(default_factory=dict[int, "torch.Tensor | None"])


@dataclass(frozen=True)
class Inside:
    """The twin, and what else it can do.

    Attributes:
        optimizer: The twin: an optimizer without groups.
        constraint: The constraint of one of its weights, of a group, at a place in it.
        new_state: The state of a weight before its first step.
        put_on: Moves a weight onto its manifold.
        step: Steps all groups.
        checks: Measures all constraints.
        figures: What is measured of its weights.
        forget: Drops what can be made anew.
        told: What it is told.
    """

    optimizer: Mirrored
    constraint: Callable[[torch.Tensor, Group, int], Constraint | None]
    new_state: Callable[[torch.Tensor, Group, Constraint | None], dict[str, Any]]
    put_on: Callable[[torch.Tensor, Constraint, int], None]
    step: Callable[[], None]
    checks: Callable[[], list[PropertyCheck]]
    figures: Callable[[], dict[str, Any]]
    forget: Callable[[], None]
    told: Told
