"""Class-balanced subsets and held-out parts, as pure functions of the labels and a seed."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from weightspace.errors import DataError


def balanced_quotas(counts: list[int], size: int) -> list[int]:
    """Share `size` among classes as equally as their counts allow.

    Args:
        counts: Samples available in each class.
        size: Samples wanted in total; at most `sum(counts)`.

    Returns:
        One number per class. They differ by at most one, except where a class has no more samples to give.

    >>> balanced_quotas([100, 100, 100], 31)
    [11, 10, 10]
    >>> balanced_quotas([2, 100, 100], 30)
    [2, 14, 14]
    """
    # The highest level to which all classes can be filled; what is left is less than one for every class above it.
    levels = range(max(counts) + 1)
    level = bisect_right(levels, size, key=lambda level: sum(min(count, level) for count in counts)) - 1
    quotas = [min(count, level) for count in counts]
    for index in [index for index, count in enumerate(counts) if count > level][: size - sum(quotas)]:
        quotas[index] += 1
    return quotas


def proportional_quotas(counts: list[int], size: int) -> list[int]:
    """Share `size` among classes in proportion to their counts (largest remainders first).

    Args:
        counts: Samples available in each class.
        size: Samples wanted in total; at most `sum(counts)`.

    Returns:
        One number per class, within one of `size * count / sum(counts)`.

    >>> proportional_quotas([50, 30, 20], 10)
    [5, 3, 2]
    """
    total = sum(counts)
    quotas = [size * count // total for count in counts]
    remainders = sorted(range(len(counts)), key=lambda index: (-(size * counts[index] % total), index))
    for index in remainders[: size - sum(quotas)]:
        quotas[index] += 1
    return quotas


def pick(labels: Tensor, quotas: list[int], seed: int) -> Tensor:
    """Draw `quotas[c]` samples of every class c without replacement.

    Args:
        labels: `(N,)` int64.
        quotas: Samples to draw from each class.
        seed: Decides the draw; the same on every machine and device.

    Returns:
        Sorted indices into `labels`, int64 `(sum(quotas),)`.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    for label, quota in enumerate(quotas):
        members = torch.nonzero(labels == label).flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:quota]])
    return torch.cat(chosen).sort().values


def balanced_indices(labels: Tensor, size: int, *, num_classes: int, seed: int, part: str) -> Tensor:
    """Indices of a class-balanced random subset of `size` samples.

    Args:
        labels: `(N,)` int64.
        size: Number of samples wanted.
        num_classes: Number of classes, present or not.
        seed: Decides the draw.
        part: What the labels are (`"training"`, `"test"`), for the error's sentence.

    Raises:
        DataError: `size` is not between 1 and N.
    """
    if not 1 <= size <= len(labels):
        raise DataError(
            f"A subset of {size:,} {part} images was asked for, but the data set has {len(labels):,}: "
            f"choose a number between 1 and {len(labels):,}."
        )
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    return pick(labels, balanced_quotas(counts, size), seed)


def split_indices(labels: Tensor, fraction: float, *, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split into a kept and a held-out part in which every class has its share.

    Args:
        labels: `(N,)` int64.
        fraction: Part of the samples to hold out, strictly between 0 and 1.
        num_classes: Number of classes, present or not.
        seed: Decides the draw.

    Returns:
        Sorted indices `(kept, held_out)`; together every index exactly once.

    Raises:
        DataError: `fraction` is out of range, or so extreme that one of the two parts would be empty.
    """
    size = round(fraction * len(labels)) if 0.0 < fraction < 1.0 else 0
    if not 1 <= size < len(labels):
        raise DataError(
            f"hold_out(fraction={fraction}) of {len(labels):,} images leaves one part empty: "
            "choose a fraction strictly between 0 and 1 that gives both parts at least one image."
        )
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    held_out = pick(labels, proportional_quotas(counts, size), seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    return torch.nonzero(kept).flatten(), held_out
