"""One part of a data set: images with labels, their checks and their statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.errors import DataError


@dataclass(frozen=True)
class Split:
    """Images and labels of one part of a data set.

    Attributes:
        images: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, images scaled to [0, 1].

    Both come from the 256-bin histogram of each channel, so they are exact sums of integers and do not depend on the
    order of the images. Cost: one pass over the bytes, no floating-point copy.

    Args:
        images: uint8 `(N, C, H, W)`.

    Returns:
        `(mean, std)`, one number per channel; a constant channel gets standard deviation 1, so that normalizing by it
        is harmless.

    >>> channel_statistics(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    ((0.5,), (0.5,))
    """
    values = torch.arange(256, dtype=torch.float64)
    mean: list[float] = []
    std: list[float] = []
    for channel in images.unbind(1):
        histogram = torch.bincount(channel.reshape(-1), minlength=256).to(torch.float64)
        count = histogram.sum()
        center = (histogram * values).sum() / count
        variance = (histogram * (values - center).square()).sum() / count
        mean.append(float(center) / 255.0)
        std.append(float(variance.sqrt()) / 255.0 or 1.0)
    return tuple(mean), tuple(std)


def shape_text(images: Tensor) -> str:
    """`"3x32x32"` for images `(N, 3, 32, 32)`."""
    return "x".join(str(size) for size in images.shape[1:])


def check_split(name: str, part: str, split: Split, num_classes: int) -> None:
    """Check types, shapes and label range of one part.

    Args:
        name: Data set or file, for the error's sentence.
        part: `"training"` or `"test"`, likewise.
        split: The part.
        num_classes: Number of classes.

    Raises:
        DataError: Says what was expected and what was found.
    """
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"{name}: {part} images must be uint8 of shape (N, C, H, W), not {images.dtype} of {tuple(images.shape)}."
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{name}: {part} labels must be int64 of shape ({len(images)},), "
            f"not {labels.dtype} of {tuple(labels.shape)}."
        )
    if images.numel() == 0:
        raise DataError(f"{name}: there are no {part} images (shape {tuple(images.shape)}).")
    if images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"{name}: {part} images must be square, but they are {images.shape[-2]} high and {images.shape[-1]} wide."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"{name}: {part} labels must be in 0..{num_classes - 1}, but they range from {low} to {high}.")
