"""Which rows of a weight each process holds: weights that `fully_shard` made DTensors.

`fully_shard` splits dimension 0 as `torch.chunk` does: every process holds `ceil(n / ranks)` rows, the last ones fewer
or none. With a mesh of two dimensions (replicate, shard) each replica shares the weight out among its own processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from weightspace.errors import AttachError


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor.

    Asked by attribute: importing torch.distributed.tensor costs half a second.
    """
    return hasattr(tensor, "device_mesh")


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """How one weight is shared out among the processes of a group.

    Attributes:
        shape: Of the whole weight.
        dim: The dimension that is split.
        rank: This process in the group.
        ranks: Processes in the group.
        group: The process group.
    """

    shape: tuple[int, ...]
    dim: int
    rank: int
    ranks: int
    group: Any

    def rows(self, rank: int) -> tuple[int, int]:
        """(first, count) of what a process holds along `dim`.

        Example:
            >>> layout = ShardLayout((7, 3), dim=0, rank=0, ranks=4, group=None)
            >>> [layout.rows(rank) for rank in range(4)]
            [(0, 2), (2, 2), (4, 2), (6, 1)]
        """
        n = self.shape[self.dim]
        chunk = -(-n // self.ranks)
        first = min(n, rank * chunk)
        return first, min(chunk, n - first)

    def part_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of what a process holds."""
        return (*self.shape[: self.dim], self.rows(rank)[1], *self.shape[self.dim + 1 :])

    def cut(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """A view of what a process holds of a whole tensor."""
        return whole.narrow(self.dim, *self.rows(rank))


def layout_of(tensor: torch.Tensor, name: str) -> ShardLayout | None:
    """The layout of a DTensor; None if every process holds it whole.

    Args:
        tensor: A DTensor.
        name: For the error.

    Raises:
        AttachError: It is split along two dimensions, as tensor parallelism beside `fully_shard` does, or holds parts
            of sums.
    """
    sharded = cast("Any", tensor)
    split = [k for k, placement in enumerate(sharded.placements) if not placement.is_replicate()]
    if not split:
        return None
    placement = sharded.placements[split[0]]
    if len(split) > 1 or type(placement).__name__ != "Shard":
        raise AttachError(
            f"{name} has placements {tuple(sharded.placements)}; rules and optimizers on manifolds act on weights that "
            "are split along one dimension: shard it with fully_shard alone."
        )
    mesh, k = sharded.device_mesh, split[0]
    layout = ShardLayout(tuple(tensor.shape), placement.dim, mesh.get_local_rank(k), mesh.size(k), mesh.get_group(k))
    held = tuple(local_part(tensor).shape)
    if held != layout.part_shape(layout.rank):
        raise AttachError(
            f"{name} holds {held} of {layout.shape} on rank {layout.rank}, where {layout.part_shape(layout.rank)} was "
            "expected; shard it with fully_shard as torch does."
        )
    return layout


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a DTensor: its own memory; any other tensor itself."""
    # to_local() makes a new autograd view each time and costs ten microseconds.
    return cast("Any", tensor)._local_tensor if is_sharded(tensor) else tensor  # noqa: SLF001


def sharded_like(
    local: torch.Tensor, like: torch.Tensor, shape: Sequence[int] | None = None, dim: int | None = None
) -> torch.Tensor:
    """A DTensor with the mesh, placements and shape of `like` around this process's part, whose memory it shares.

    Args:
        local: The part.
        like: A DTensor.
        shape: Of the whole tensor, where it is not that of `like`.
        dim: The dimension that is split, where it is not that of `like`.
    """
    from torch.distributed.tensor import DTensor, Shard

    sharded = cast("Any", like)
    whole = torch.Size(like.shape if shape is None else shape)
    placements = [p if p.is_replicate() or dim is None else Shard(dim) for p in sharded.placements]
    return DTensor.from_local(
        local, sharded.device_mesh, placements, run_check=False, shape=whole, stride=_strides(local, whole)
    )


def local_gradient(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a DTensor's gradient, shared out as the weight is: sums of parts are summed first."""
    mine, wanted = cast("Any", gradient), cast("Any", weight)
    is_alike = mine.placements == wanted.placements
    return local_part(gradient if is_alike else mine.redistribute(placements=wanted.placements))


def follow_memory(part: torch.Tensor, sharded: torch.Tensor) -> None:
    """Gives a tensor the memory of a DTensor's part again, where `fully_shard` or a loaded state moved that."""
    local = local_part(sharded.detach())
    if part.data_ptr() != local.data_ptr() or part.dtype != local.dtype:
        part.data = local


def _strides(local: torch.Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a whole dense tensor whose dimensions lie in memory as those of the part."""
    order = sorted(range(local.ndim), key=lambda d: (local.stride(d), -d))
    strides, step = [1] * local.ndim, 1
    for d in order:
        strides[d] = step
        step *= max(1, shape[d])
    return tuple(strides)
