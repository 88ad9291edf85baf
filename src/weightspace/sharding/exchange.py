"""Brings the parts of weights together on their owners, and shares out what the owners made of them.

One `all_to_all` for all weights of a dtype and device: every process sends each owner the rows that it holds of the
owner's weights. With R processes and N numbers in all weights, `gather` and `scatter` move N (R - 1) / R numbers each;
gathering every weight everywhere would move N (R - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weightspace.sharding.layout import ShardLayout


@dataclass(frozen=True, eq=False)
class Item:
    """One tensor to move.

    Attributes:
        layout: How it is shared out.
        owner: The process that holds it whole.
        part: What this process holds of it; written to by `scatter`.
        whole: The whole tensor on its owner, else None; written to by `gather`.
    """

    layout: ShardLayout
    owner: int
    part: torch.Tensor
    whole: torch.Tensor | None


class Exchange:
    """Moves tensors of one process group.

    Attributes:
        sent: Bytes that this process has sent to others so far.
    """

    def __init__(self) -> None:
        self.sent = 0

    def gather(self, items: Sequence[Item]) -> None:
        """Fills `whole` on the owners. All processes call it with the same items in the same order."""
        for kind in _kinds(items):
            rank = kind[0].layout.rank
            sent = [[i.part for i in kind if i.owner == r] for r in range(kind[0].layout.ranks)]
            mine = [i for i in kind if i.owner == rank and i.whole is not None]

            def place(sender: int, numbers: torch.Tensor, mine: list[Item] = mine) -> None:
                for item, piece in zip(mine, _pieces(mine, sender, numbers), strict=True):
                    if item.whole is not None:
                        item.layout.cut(item.whole, sender).copy_(piece)

            self._swap(kind, sent, [sum(_count(i, r) for i in mine) for r in range(kind[0].layout.ranks)], place)

    def scatter(self, items: Sequence[Item]) -> None:
        """Fills `part` everywhere from `whole`. All processes call it with the same items in the same order."""
        for kind in _kinds(items):
            rank, ranks = kind[0].layout.rank, kind[0].layout.ranks
            mine = [i for i in kind if i.owner == rank and i.whole is not None]
            sent = [[i.layout.cut(i.whole, r) for i in mine if i.whole is not None] for r in range(ranks)]
            of = [[i for i in kind if i.owner == r] for r in range(ranks)]

            def place(sender: int, numbers: torch.Tensor, of: list[list[Item]] = of, rank: int = rank) -> None:
                for item, piece in zip(of[sender], _pieces(of[sender], rank, numbers), strict=True):
                    item.part.copy_(piece)

            self._swap(kind, sent, [sum(_count(i, rank) for i in of[r]) for r in range(ranks)], place)

    def _swap(
        self,
        kind: Sequence[Item],
        sent: Sequence[Sequence[torch.Tensor]],
        counts: Sequence[int],
        place: Callable[[int, torch.Tensor], None],
    ) -> None:
        layout, like = kind[0].layout, kind[0].part
        flat = [piece.reshape(-1) for pieces in sent for piece in pieces]
        out = torch.cat(flat) if flat else like.new_empty(0)
        sizes = [sum(piece.numel() for piece in pieces) for pieces in sent]
        received = like.new_empty(sum(counts))
        torch.distributed.all_to_all_single(received, out, list(counts), sizes, group=layout.group)
        self.sent += (sum(sizes) - sizes[layout.rank]) * like.element_size()
        for sender, numbers in enumerate(received.split(list(counts))):
            place(sender, numbers)


def _kinds(items: Sequence[Item]) -> list[list[Item]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Item]] = {}
    for item in items:
        kinds.setdefault((item.part.dtype, item.part.device), []).append(item)
    return list(kinds.values())


def _count(item: Item, rank: int) -> int:
    count = 1
    for n in item.layout.part_shape(rank):
        count *= n
    return count


def _pieces(items: Sequence[Item], rank: int, numbers: torch.Tensor) -> list[torch.Tensor]:
    """What a process holds of each item, out of one row of numbers."""
    counts = [_count(i, rank) for i in items]
    split = numbers.split(counts) if counts else ()
    return [piece.view(i.layout.part_shape(rank)) for i, piece in zip(items, split, strict=True)]
