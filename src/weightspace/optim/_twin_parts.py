"""What this process steps of each weight of an optimizer on manifolds, where `fully_shard` made weights DTensors.

| part | of a weight | on a process |
|---|---|---|
| plain | that is no DTensor | the weight itself |
| copy | that every process holds whole | its own copy |
| rows | whose rows nothing connects | its own rows, the memory of the DTensor |
| whole | of which a step needs all | everything on one owner, nothing on the others |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from weightspace.kernels.points import Channels
from weightspace.manifolds import Constraint, Manifold, parse
from weightspace.optim._noise_places import Share
from weightspace.optim._twin_inside import Group
from weightspace.sharding import Item, ShardLayout, follow_memory, is_sharded, layout_of, local_gradient, local_part

Kind = Literal["plain", "copy", "rows", "whole"]


@dataclass(eq=False)
class Part:
    """What a process steps of one weight.

    Attributes:
        number: Of the weight among all of the optimizer, alike on all processes.
        name: Of the weight.
        held: The weight as model and optimizer hold it.
        kind: See the table of the module.
        layout: How the weight is shared out; None for plain weights and copies.
        channels: Where the weight keeps its channels.
        points: How many points the whole weight has; 0 if it is free.
        owner: The process that holds a whole part; it also speaks for its weight. Process 0 speaks for rows.
        tensor: What is stepped here; None if nothing of the weight is.
        place: Where `tensor` is in its group of the twin.
        state: Its state; without a tensor the step alone.
        known: Memory and number of writes of this process's rows, when all processes knew them last.
        wrapped: The DTensors around state tensors, with these tensors.
    """

    number: int
    name: str
    held: torch.Tensor
    kind: Kind
    layout: ShardLayout | None
    channels: Channels
    points: int = 0
    owner: int = 0
    tensor: torch.Tensor | None = None
    place: int = -1
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    known: tuple[int, int, int] | None = None
    wrapped: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[str, tuple[torch.Tensor, torch.Tensor]]
    )

    @property
    def local(self) -> torch.Tensor:
        """What this process holds of the weight."""
        return local_part(self.held.detach())

    @property
    def speaks(self) -> bool:
        """Whether this process tells others what all must know of the weight."""
        return self.layout is None or self.layout.rank == self.owner

    @property
    def memory(self) -> tuple[int, int, int]:
        """What tells that somebody wrote to this process's rows: a DTensor and its part count writes apart."""
        local = local_part(self.held)
        # autograd's own counts; torch has no public name for them
        return local.data_ptr(), self.held._version, local._version  # noqa: SLF001

    @property
    def is_written(self) -> bool:
        """Whether somebody wrote to a weight that is on a manifold, or that an owner has a copy of."""
        return (self.points > 0 or self.kind == "whole") and self.known != self.memory

    def gradient(self) -> torch.Tensor:
        """This process's rows of the gradient."""
        grad = self.held.grad
        if grad is None or self.kind == "plain":
            return self.held if grad is None else grad
        return local_gradient(grad, self.held)

    def follow(self) -> None:
        """Takes the memory of the DTensor again, where `fully_shard` or a loaded state gave it another."""
        if self.kind in ("rows", "copy") and self.tensor is not None:
            follow_memory(self.tensor, self.held)

    def items(self, part: torch.Tensor, whole: torch.Tensor | None) -> list[Item]:
        """What an exchange moves: nothing where there is no owner."""
        if self.layout is None or self.kind != "whole":
            return []
        return [Item(self.layout, self.owner, part, whole)]

    def share(self) -> Share:
        """What this process needs of the noise."""
        local = self.local
        dtype = local.dtype if local.dtype.itemsize >= 4 else torch.float32
        first = 0
        if self.layout is not None and self.kind == "rows" and self.layout.shape[0]:
            first = self.layout.rows(self.layout.rank)[0] * (self.held.numel() // self.layout.shape[0])
        return Share(
            id(self.tensor), self.held.numel(), first, self.points, dtype, local.device, self.held.grad is not None
        )


def part_of(
    held: torch.Tensor, group: Group, name: str, number: int, acts_on_rows: Callable[[Manifold, Channels], bool]
) -> Part:
    """How a weight is stepped; owners and tensors come later.

    Args:
        held: The weight.
        group: Its group.
        name: Its name.
        number: Of the weight among all of the optimizer.
        acts_on_rows: Whether rows of a weight can be stepped without each other.

    Raises:
        SelectionError: The weight cannot live on the group's manifold; decided on whole shapes, so by all alike.
        AttachError: It is sharded in a way that cannot be followed.
    """
    channels = Channels(group["out_axis"], group["groups"], group["chains"])
    if not is_sharded(held):
        return Part(number, name, held, "plain", None, channels, tensor=held)
    manifold = parse(group["manifold"])
    is_free = group["manifold"].startswith("euclidean")
    points = 0 if is_free else _points(manifold, held, channels, name)
    layout = layout_of(held, name)
    if layout is None:
        return Part(number, name, held, "copy", None, channels, points, tensor=local_part(held.detach()))
    on_rows = layout.dim == 0 and (is_free or acts_on_rows(manifold, channels))
    return Part(number, name, held, "rows" if on_rows else "whole", layout, channels, points)


def _points(manifold: Manifold, held: torch.Tensor, channels: Channels, name: str) -> int:
    like = torch.empty(held.shape, dtype=held.dtype, device="meta")
    pieces = Constraint(manifold, like, channels, name).pieces(0)
    return sum(like.new_empty(piece.view.shape[:-2]).numel() for piece in pieces)
