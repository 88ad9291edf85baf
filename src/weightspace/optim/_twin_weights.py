"""The weights of a twin: which are stepped where, how they come there, and that they are on their manifolds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from weightspace.errors import AttachError, RuleError, SelectionError
from weightspace.optim._twin_inside import Group, Inside
from weightspace.optim._twin_parts import Part, part_of
from weightspace.optim._twin_state import publish
from weightspace.sharding import ALONE, Exchange, Together, matrix_cost, share_out

if TYPE_CHECKING:
    from weightspace.kernels.points import Channels
    from weightspace.manifolds import Manifold
    from weightspace.optim._mirrored import Mirrored


class TwinWeights:
    """The parts of a twin.

    Args:
        inside: The twin and its machinery.
        acts_on_rows: Whether rows of a weight can be stepped without each other.

    Attributes:
        groups: The parts by group, alike on all processes but for what is here.
        together: The processes that share the weights.
        exchange: Moves gradients and weights; it knows how many bytes this process sent.
    """

    def __init__(self, inside: Inside, acts_on_rows: Callable[[Manifold, Channels], bool]) -> None:
        self.inside = inside
        self.groups: list[list[Part]] = []
        self.together: Together = ALONE
        self.exchange = Exchange()
        self._acts_on_rows = acts_on_rows
        self._loads: list[float] = []

    @property
    def inner(self) -> Mirrored:
        """The optimizer over the parts; its groups are those of the outer one."""
        return self.inside.optimizer

    def parts(self) -> Iterable[Part]:
        """All of them, in the order of the parameters."""
        return chain.from_iterable(self.groups)

    # ------------------------------------------------------------------ groups

    @torch.no_grad()
    def add(self, outer: Mirrored, group: Group) -> None:
        """Mirrors a group, and moves its weights onto their manifold.

        Raises:
            SelectionError: A weight cannot live on it; on all processes.
            AttachError: A weight is sharded in a way that cannot be followed.
        """
        names, first = group.get("param_names"), sum(len(parts) for parts in self.groups)
        parts = [
            part_of(p, group, names[k] if names else f"parameter {first + k}", first + k, self._acts_on_rows)
            for k, p in enumerate(group["params"])
        ]
        self._join(parts)
        wholes = [part for part in parts if part.kind == "whole"]
        owners = share_out([matrix_cost(p.held.shape) for p in wholes], self.together.ranks, self._loads)
        for part, owner in zip(wholes, owners, strict=True):
            part.owner = owner
        here: list[Part] = []
        for part in parts:
            self._give_tensor(part)
            if part.tensor is not None:
                part.place = len(here)
                here.append(part)
        mirrored = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        tensors = [part.tensor for part in here]
        self.inner.param_groups.append({**mirrored, "params": tensors, "param_names": [part.name for part in here]})
        self.groups.append(parts)
        try:
            self._settle(outer, parts)
        except (SelectionError, RuleError, AttachError):
            self.inner.param_groups.pop()
            self.groups.pop()
            raise

    def _join(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if part.layout is None:
                continue
            if self.together.is_alone:
                layout = part.layout
                self.together = Together(layout.group, layout.rank, layout.ranks, part.local.device)
                self._loads = [0.0] * layout.ranks
            elif part.layout.group is not self.together.group:
                raise AttachError(
                    f"{part.name} is sharded over another group of processes than the weights before it; give each "
                    "group an optimizer of its own."
                )

    @staticmethod
    def _give_tensor(part: Part) -> None:
        local = part.local
        if part.layout is None:
            return
        if part.kind == "rows":
            part.tensor = local if local.numel() else None
        elif part.speaks:
            part.tensor = torch.empty(part.layout.shape, dtype=local.dtype, device=local.device)

    def _settle(self, outer: Mirrored, parts: Sequence[Part]) -> None:
        self._pull_weights(parts)
        self._put_on(outer, parts)
        self._push_weights(parts)
        for part in parts:
            if part.kind == "plain" and outer.state.get(part.held):
                part.state = self.inner.state[part.held] = outer.state[part.held]  # stepped before others were sharded
            elif part.tensor is None:
                part.state = {"step": torch.tensor(0.0)}
            else:
                part.state = self.inner.state[part.tensor] = self._new_state(part, part.tensor)
        publish(self, outer, parts)

    def _group(self, part: Part) -> Group:
        return next(g for g, parts in zip(self.inner.param_groups, self.groups, strict=True) if part in parts)

    def _new_state(self, part: Part, tensor: torch.Tensor) -> dict[str, Any]:
        group = self._group(part)
        return self.inside.new_state(tensor, group, self.inside.constraint(tensor, group, part.place))

    def sync(self, outer: Mirrored) -> None:
        """Gives the twin the options of the outer groups, and follows weights whose memory moved."""
        for group, mirror in zip(outer.param_groups, self.inner.param_groups, strict=True):
            mirror.update((key, value) for key, value in group.items() if key not in ("params", "param_names"))
        for part in self.parts():
            part.follow()

    # ------------------------------------------------------------------ weights

    def _pull_weights(self, parts: Iterable[Part]) -> None:
        self.exchange.gather([i for part in parts for i in part.items(part.local, part.tensor)])

    def _push_weights(self, parts: Sequence[Part]) -> None:
        self.exchange.scatter([i for part in parts for i in part.items(part.local, part.tensor)])
        for part in parts:
            part.known = part.memory

    def _written(self) -> list[Part]:
        """Weights that somebody wrote to, on any process."""
        parts = list(self.parts())
        flags = self.together.max(torch.tensor([float(part.is_written) for part in parts]))
        return [part for part, flag in zip(parts, flags.tolist(), strict=True) if flag and part.kind != "plain"]

    def _renew(self, outer: Mirrored) -> None:
        """Puts weights that somebody wrote to on their manifolds again."""
        written = self._written()
        self._pull_weights(written)
        self._put_on(outer, written)
        self._push_weights(written)

    def _put_on(self, outer: Mirrored, parts: Sequence[Part]) -> None:
        """Moves weights onto their manifolds where they are not there; all processes learn how far."""
        inner = self.inner
        sums = torch.zeros(len(parts), 2, dtype=torch.float64)
        with self.together.agreeing():
            for part, row in zip(parts, sums, strict=True):
                if part.tensor is None:
                    continue
                constraint = self.inside.constraint(part.tensor, self._group(part), part.place)
                if constraint is None:
                    continue
                size = torch.linalg.vector_norm(part.tensor.double()).square().cpu()
                inner.moved.pop(part.name, None)
                self.inside.put_on(part.tensor, constraint, int(part.state["step"]) if part.state else 0)
                distance = inner.moved.get(part.name, 0.0)
                row.copy_(torch.stack([size * distance**2, size]))
        split = self.together.sum(sums)
        for part, own, row in zip(parts, sums, split, strict=True):
            moved, size = (own if part.layout is None else row).tolist()
            if moved:
                outer.moved[part.name] = (moved / size) ** 0.5
