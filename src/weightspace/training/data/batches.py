"""`Batches`: a whole data set on the device, served in order, augmented and normalized.

Order and augmentation of batch b of epoch e are a pure function of (seed, e, b). A run resumed at batch b therefore
needs no generator state: `epoch(e, start=b)` yields bit for bit what an uninterrupted run would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightspace.errors import DataError
from weightspace.training.data.augment import AUGMENTATIONS, crop_padding, draw_parameters, gather_batch
from weightspace.training.data.splits import Split, check_split


def derived_seed(purpose: str, *numbers: int) -> int:
    """A 63-bit seed from a purpose and some integers; neighboring integers give unrelated seeds.

    >>> derived_seed("order", 0, 1) == derived_seed("order", 0, 1)
    True
    >>> derived_seed("order", 0, 1) == derived_seed("order", 1, 0)
    False
    """
    text = ":".join([purpose, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def part_of(count: int, rank: int, ranks: int) -> slice:
    """The part of a batch that one of some processes computes on: as even as can be, in order.

    >>> [part_of(5, rank, 2) for rank in range(2)]
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


class Batches:
    """Batches of a data set that lives on the device as uint8.

    Cost of a batch: one gather of its bytes (two with augmentation) and one pass to float32.

    Args:
        images: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`.
        batch_size: Images in a batch.
        mean: Per channel, images scaled to [0, 1].
        std: Per channel, likewise.
        augment: Any of `"crop"` (shift by up to `crop_padding(size)` pixels, reflected at the border) and `"flip"`
            (mirror left to right with probability 1/2).
        seed: Decides order and augmentation.
        device: Where the data set is put and the batches appear.
        shuffle: Whether each epoch has an order of its own; otherwise the order of the data set.
        drop_last: Whether to leave out a last batch that is smaller than the others.

    Raises:
        DataError: Wrong tensors, an unknown augmentation, images too small to crop, or no batch in an epoch.

    >>> images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    >>> batches = Batches(images, torch.arange(5), batch_size=2, mean=(0.0,), std=(1 / 255,), seed=0, device="cpu",
    ...                   shuffle=False, drop_last=False)
    >>> [labels.tolist() for _, labels in batches.epoch(0)]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[str] = (),
        seed: int,
        device: torch.device | str,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        check_split("Batches", "given", Split(images, labels), int(labels.max()) + 1 if len(labels) else 0)
        _check_options(images, batch_size, mean, std, tuple(augment))
        if drop_last and batch_size > len(images):
            raise DataError(
                f"A batch of {batch_size:,} was asked for, but there are only {len(images):,} images and incomplete "
                f"batches are dropped: choose a batch size of at most {len(images):,}."
            )
        self.batch_size = batch_size
        self.augment: tuple[str, ...] = tuple(augment)
        self.seed = seed
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._share = (0, 1)
        self._images = images.to(self.device).contiguous()
        self._labels = labels.to(self.device)
        # (x / 255 - mean) / std as one multiplication and one addition per pixel.
        spread = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
        center = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
        self._scale = (1.0 / (255.0 * spread)).to(self.device, torch.float32)
        self._shift = (-center / spread).to(self.device, torch.float32)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self._labels), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def share(self, rank: int, ranks: int) -> None:
        """Serve only one process's part of every batch from now on: drawn for the whole batch, then cut.

        Args:
            rank: The process, counted from 0.
            ranks: Processes; the parts of all of them are the batch that one process would see.
        """
        self._share = (rank, ranks)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Serve the batches of one epoch.

        Args:
            number: Which epoch; it decides the order.
            start: First batch to serve: those before it are skipped at no cost.

        Yields:
            `(images, labels)`: float32 `(B, C, H, W)`, normalized, and int64 `(B,)`, both on the device.

        Raises:
            DataError: `start` is not between 0 and `len(self)`. Raised at the call, not at the first batch.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"An epoch has {len(self)} batches, so it cannot start at batch {start}.")
        return self._serve(number, start)

    def _serve(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(number)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            parameters = self._parameters(number, batch, len(index))
            if self._share != (0, 1):
                mine = part_of(len(index), *self._share)
                index, parameters = index[mine], None if parameters is None else parameters[:, mine]
            pixels = gather_batch(self._images, index, parameters)
            yield torch.addcmul(self._shift, pixels.to(torch.float32), self._scale), self._labels[index]

    def _order(self, number: int) -> Tensor:
        count = len(self._labels)
        if not self.shuffle:
            return torch.arange(count, device=self.device)
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, number))
        return torch.randperm(count, generator=generator).to(self.device)

    def _parameters(self, number: int, batch: int, count: int) -> Tensor | None:
        if not self.augment:
            return None
        padding = crop_padding(self._images.shape[-1]) if "crop" in self.augment else None
        seed = derived_seed("augment", self.seed, number, batch)
        return draw_parameters(count, padding=padding, flip="flip" in self.augment, seed=seed).to(self.device)


def _check_options(
    images: Tensor, batch_size: int, mean: Sequence[float], std: Sequence[float], augment: tuple[str, ...]
) -> None:
    channels = images.shape[1]
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}.")
    if not len(mean) == len(std) == channels:
        raise DataError(
            f"Images with {channels} channels need as many means and standard deviations, "
            f"but {len(mean)} and {len(std)} were given."
        )
    if any(not value > 0.0 for value in std):
        raise DataError(f"Standard deviations must be positive, but std={tuple(std)}.")
    for name in augment:
        if name not in AUGMENTATIONS:
            raise DataError(f"Unknown augmentation {name!r}: choose among {', '.join(map(repr, AUGMENTATIONS))}.")
    if "crop" in augment and images.shape[-1] <= crop_padding(images.shape[-1]):
        raise DataError(f"Images of {images.shape[-1]} pixel cannot be reflected: leave out the augmentation 'crop'.")
