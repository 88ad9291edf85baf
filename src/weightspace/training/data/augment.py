"""Random crops and flips of a whole batch as one gather: no loop over images, no padded copy.

A crop of the reflect-padded image and a horizontal flip only move pixels. Both are therefore expressed as the source
row and the source column of every output pixel, and the batch is read once from the data set through these indices.
"""

from __future__ import annotations

import torch
from torch import Tensor

AUGMENTATIONS = ("crop", "flip")


def crop_padding(size: int) -> int:
    """Pixels of reflect padding for images of `size` pixels: 4 for 32x32, an eighth in general, at least 1.

    >>> [crop_padding(size) for size in (8, 28, 32, 64)]
    [1, 4, 4, 8]
    """
    return max(1, round(size / 8))


def draw_parameters(count: int, *, padding: int | None, flip: bool, seed: int) -> Tensor:
    """Draw row shift, column shift and flip of every image of a batch, on the CPU.

    The generator lives on the CPU whatever the training device is, so the same seed augments alike everywhere.

    Args:
        count: Images in the batch.
        padding: Largest shift in pixels; `None` for no crop.
        flip: Whether to mirror each image with probability 1/2.
        seed: Decides the draw.

    Returns:
        int64 `(3, count)`: row shift and column shift in `-padding..padding`, and flip as 0 or 1.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = torch.zeros(3, count, dtype=torch.int64)
    if padding is not None:
        parameters[:2] = torch.randint(-padding, padding + 1, (2, count), generator=generator)
    if flip:
        parameters[2] = torch.randint(0, 2, (count,), generator=generator)
    return parameters


def reflect(position: Tensor, size: int) -> Tensor:
    """Index of the pixel that reflect padding shows at `position`, for positions in `-(size-1)..2*(size-1)`.

    >>> reflect(torch.tensor([-2, -1, 0, 3, 4, 5]), 4).tolist()
    [2, 1, 0, 3, 2, 1]
    """
    return (size - 1) - ((size - 1) - position.abs()).abs()


def gather_batch(images: Tensor, index: Tensor, parameters: Tensor | None) -> Tensor:
    """Read a batch from the data set, shifted and mirrored.

    Args:
        images: uint8 `(N, C, H, W)` on any device.
        index: int64 `(B,)`: which images, on the same device.
        parameters: int64 `(3, B)` from `draw_parameters`, on the same device; `None` leaves the images as they are.

    Returns:
        uint8 `(B, C, H, W)`. Image b is the H x W window of the reflect-padded source image whose top left corner lies
        at `(parameters[0, b], parameters[1, b])` relative to the unpadded one, then mirrored where
        `parameters[2, b]` is 1.
    """
    batch = images[index]
    if parameters is None:
        return batch
    count, channels, height, width = batch.shape
    row_shift, column_shift, mirrored = (values.unsqueeze(1) for values in parameters)
    rows = reflect(torch.arange(height, device=images.device) + row_shift, height)
    columns = reflect(torch.arange(width, device=images.device) + column_shift, width)
    columns = torch.where(mirrored.bool(), columns.flip(1), columns)
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(count, 1, height * width)
    flat = batch.view(count, channels, height * width)
    return flat.gather(2, pixels.expand(-1, channels, -1)).view(batch.shape)
