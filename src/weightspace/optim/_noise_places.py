"""Where the numbers of each weight stand in a step's noise: decided on whole weights, so alike on all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from weightspace.manifolds import Circle, Manifold, parse
from weightspace.optim._langevin_noise import Place, chunk_on, span_of


@dataclass(frozen=True)
class Share:
    """What a process holds of one weight.

    Attributes:
        key: Identity of the tensor that stands for the weight here.
        numbers: Of the whole weight.
        first: The first of them that is here.
        points: Of the whole weight.
        dtype: Of its noise.
        device: Of its noise.
        has_gradient: Whether the weight is stepped.
    """

    key: int
    numbers: int
    first: int
    points: int
    dtype: torch.dtype
    device: torch.device
    has_gradient: bool


def share_of(tensor: torch.Tensor) -> Share:
    """Of a weight that is here as a whole."""
    dtype = tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32
    return Share(id(tensor), tensor.numel(), 0, 0, dtype, tensor.device, tensor.grad is not None)


def span_for(group: Mapping[str, Any], shares: Iterable[Share]) -> int:
    """How many numbers of streams a group's step needs, whichever of its weights have a gradient."""
    factor = _draws(group["manifold"])
    return span_of(sum(1 + factor * share.numbers // chunk_on(share.device) for share in shares))


def places_for(group: Mapping[str, Any], shares: Sequence[Share]) -> dict[int, Place]:
    """The places of the weights that have a gradient; `shares` has all of the group, in its order.

    They follow what `ConstrainedLangevin` draws in one process: free weights of a dtype at once, others one by one.
    """
    shares = [share for share in shares if share.has_gradient]
    drawn: dict[torch.device, int] = {}
    places: dict[int, Place] = {}
    if group["manifold"].startswith("euclidean"):
        kinds: dict[tuple[torch.device, torch.dtype], list[Share]] = {}
        for share in shares:
            kinds.setdefault((share.device, share.dtype), []).append(share)
        for members in kinds.values():
            chunk, start = _take(drawn, members[0].device, total := sum(s.numbers for s in members)), 0
            for s in members:
                places[s.key] = Place(chunk, total, start + s.first, 0)
                start += s.numbers
        return places
    manifold = parse(group["manifold"])
    for s in shares:
        total = _total(manifold, s, is_overdamped=group["scheme"] == "overdamped")
        places[s.key] = Place(_take(drawn, s.device, total), total, s.first, s.numbers)
    return places


def _total(manifold: Manifold, share: Share, *, is_overdamped: bool) -> int:
    if isinstance(manifold, Circle) and manifold.slack == 1:
        return share.numbers * (2 if is_overdamped else 1)
    return share.numbers + share.points * manifold.slack_count


def _take(drawn: dict[torch.device, int], device: torch.device, total: int) -> int:
    """The first chunk of a draw."""
    first = drawn.get(device, 0)
    drawn[device] = first - (-total // chunk_on(device))
    return first


@lru_cache(maxsize=64)
def _draws(text: str) -> int:
    """Noise numbers for each number of a weight, at most."""
    return 1 if text.startswith("euclidean") else max(2, 1 + parse(text).slack_count)
