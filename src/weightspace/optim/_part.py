"""One part of one sharded weight: what this process computes on, and what an exchange moves of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from weightspace.kernels import Rule
from weightspace.kernels.parameters import ParameterInfo
from weightspace.manifolds import Manifold
from weightspace.penalties import Penalty, WeightPenalty
from weightspace.sharding import Item, ShardLayout, follow_memory, local_part, sharded_like


@dataclass(eq=False)
class Part:
    """What this process computes on of one weight.

    Attributes:
        info: The weight as its rules see it here: `info.parameter` is the part, `info.held` the DTensor.
        layout: How the weight is shared out; None if every process holds it whole.
        owner: The process that holds the whole part; None for rows.
        rules: Those that act on the weight.
        stand_in: Receives this process's rows of a whole part's stand-in.
        states: Whole state tensors of the optimizer, on the owner, by name.
        known: This process's rows of a constrained weight when all processes knew them last. Not how often they were
            written to: what torch.distributed.checkpoint loads in place is not counted.
        wrapped: The DTensor around the stand-in, and what it was made of.
    """

    info: ParameterInfo
    layout: ShardLayout | None
    owner: int | None
    rules: tuple[Rule, ...]
    stand_in: torch.Tensor
    states: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    known: torch.Tensor | None = None
    wrapped: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def local(self) -> torch.Tensor:
        """This process's rows of the weight, the DTensor's own memory."""
        return local_part(self.info.held.detach())

    @property
    def is_here(self) -> bool:
        """Whether this process holds the whole part."""
        return self.layout is not None and self.owner == self.layout.rank

    @property
    def is_constrained(self) -> bool:
        """Whether a manifold holds the weight: then all processes know when it was written to."""
        return any(isinstance(rule, Manifold) for rule in self.rules)

    @property
    def moves_after(self) -> bool:
        """Whether a rule writes to the weight after the optimizer's step."""
        return self.is_constrained or any(isinstance(r, WeightPenalty) and r.is_proximal for r in self.rules)

    @property
    def needs_weight(self) -> bool:
        """Whether a rule looks at the weight."""
        return any(isinstance(rule, Manifold | Penalty) for rule in self.rules)

    def acts_at(self, step: int) -> bool:
        """Whether a rule may act at a step."""
        return any(not isinstance(rule, Penalty) or step % rule.every == 0 for rule in self.rules)

    def item(self, part: torch.Tensor, whole: torch.Tensor | None) -> list[Item]:
        """What an exchange moves: nothing where there is no owner."""
        if self.layout is None or self.owner is None:
            return []
        return [Item(self.layout, self.owner, part, whole if self.is_here else None)]

    def like_weight(self) -> torch.Tensor | None:
        """New memory for a whole tensor on its owner."""
        return torch.empty_like(self.info.parameter) if self.is_here else None

    def follow(self) -> None:
        """Takes the memory of the DTensor again, where `fully_shard` or a loaded state gave it another."""
        if self.owner is None:
            follow_memory(self.info.parameter, self.info.held)

    def as_sharded(self, local: torch.Tensor) -> torch.Tensor:
        """The DTensor around this process's rows; made once as long as these stay the same tensor."""
        if self.wrapped is None or self.wrapped[0] is not local:
            self.wrapped = (local, sharded_like(local, self.info.held))
        return self.wrapped[1]
