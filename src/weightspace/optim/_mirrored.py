"""What an optimizer on manifolds does where `fully_shard` made weights DTensors: a twin steps them; see `_twin`."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Any

from torch.optim import Optimizer

from weightspace.kernels.points import Channels, steps_in_rows
from weightspace.manifolds import Manifold
from weightspace.optim._twin import Twin
from weightspace.optim._twin_inside import Group, Inside, Told
from weightspace.optim._twin_state import publish


class Mirrored(Optimizer):
    """Base of optimizers that can have a twin.

    Attributes:
        moved: By name, how far weights were moved when they were put on their manifolds last.
    """

    moved: dict[str, float]
    _twin: Twin | None = None  # steps the weights where some are sharded
    _told: Told | None = None  # of a twin

    @abstractmethod
    def _inside(self) -> Inside:
        """The machinery of this optimizer, which is a twin."""

    def _acts_on_rows(self, manifold: Manifold, channels: Channels) -> bool:
        """Whether the rows of a weight can be stepped without each other."""
        return manifold.acts_on_rows(channels) and steps_in_rows(manifold.grouping, channels)

    def _found_here(self) -> dict[str, Any]:
        """What is measured of the weights that are stepped here, by name."""
        return {}

    def _mirror(self, group: Group) -> Twin:
        """Gives a group to the twin, with all groups before it where it is the first with a DTensor."""
        groups = [group]
        if self._twin is None:
            inner = type(self).__new__(type(self))
            inner.__setstate__({"defaults": self.defaults, "state": defaultdict[Any, Any](dict), "param_groups": []})
            self._twin = Twin(inner._inside(), self._acts_on_rows)  # noqa: SLF001  # one of us
            groups = self.param_groups
        for each in groups:
            self._twin.add(self, each)
        return self._twin

    def state_dict(self) -> dict[str, Any]:
        """As of any torch optimizer. Of sharded weights it holds DTensors, and all processes must call it."""
        if self._twin is not None:
            publish(self._twin, self)
        return super().state_dict()
