"""`ImageData`: a whole labeled image data set in memory, with the numbers that normalize it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from weightspace.errors import DataError
from weightspace.training.data.batches import Batches
from weightspace.training.data.splits import Split, channel_statistics, check_split, shape_text
from weightspace.training.data.subsets import balanced_indices, split_indices

# Images at a time. On a CPU 1,000 fall out of the cache and take twice as long as 250; an accelerator wants many.
_EVALUATION_BATCH_ON_CPU, _EVALUATION_BATCH = 250, 1000


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A labeled image data set that lives in memory as one tensor per part.

    Attributes:
        name: Name by which `load_data` knows it, such as `"cifar10"`.
        train_images: uint8 `(N, C, H, W)`, square images.
        train_labels: int64 `(N,)` in `0..num_classes-1`.
        test_images: uint8 `(M, C, H, W)`.
        test_labels: int64 `(M,)`.
        class_names: One name per class, in the order of the labels.
        mean: Per channel, images scaled to [0, 1], over the training images.
        std: Per channel, likewise; population standard deviation.
        source: One line that says where the data was found and what was done to it. It goes into reports.
        label: Name for titles, such as `"CIFAR-10 (JPEG)"`; `name` where none is given.

    Raises:
        DataError: Tensors have the wrong type or shape, are empty, or a label has no class name.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        check_split(self.name, "training", Split(self.train_images, self.train_labels), len(self.class_names))
        check_split(self.name, "test", Split(self.test_images, self.test_labels), len(self.class_names))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {shape_text(self.train_images)} but test images are "
                f"{shape_text(self.test_images)}; both must have the same channels and size."
            )
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise DataError(
                f"{self.name}: {self.in_channels} channels need as many means and standard deviations, "
                f"but there are {len(self.mean)} and {len(self.std)}."
            )

    @classmethod
    def from_splits(
        cls, name: str, train: Split, test: Split, class_names: tuple[str, ...], *, source: str, label: str = ""
    ) -> ImageData:
        """Build from two splits, computing mean and standard deviation over the training images."""
        check_split(name, "training", train, len(class_names))
        mean, std = channel_statistics(train.images)
        return cls(name, train.images, train.labels, test.images, test.labels, class_names, mean, std, source, label)

    def __repr__(self) -> str:
        return (
            f"ImageData({self.label}: {len(self.train_labels):,} training and {len(self.test_labels):,} test images, "
            f"{shape_text(self.train_images)}, {self.num_classes} classes; {self.source})"
        )

    @property
    def kind(self) -> Literal["images"]:
        """`"images"`."""
        return "images"

    @property
    def samples(self) -> int:
        """Training images."""
        return len(self.train_labels)

    @property
    def num_data(self) -> int:
        """Terms of the likelihood, which the training loss is the mean of: training images."""
        return len(self.train_labels)

    @property
    def model_arguments(self) -> dict[str, int]:
        """What `build_model` needs to know of the images."""
        return {"in_channels": self.in_channels, "image_size": self.image_size, "num_classes": self.num_classes}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 (gray) or 3 (RGB)."""
        return int(self.train_images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return int(self.train_images.shape[-1])

    @property
    def checksum(self) -> str:
        """`"sha256:..."` of every byte of images and labels, training before test.

        Cost: one pass, 0.1 s for CIFAR-10; computed once.
        """
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.contiguous().numpy().data)
        return f"sha256:{digest.hexdigest()}"

    def take(self, train: int | None, test: int | None = None, *, seed: int = 0) -> ImageData:
        """Keep a class-balanced random subset; `mean` and `std` are recomputed on it.

        Args:
            train: Training images to keep, as many of each class as possible; `None` keeps all.
            test: Test images to keep; `None` keeps all.
            seed: Decides the draw.

        Raises:
            DataError: More images are asked for than there are, or fewer than one.
        """
        if train is None and test is None:
            return self
        parts = [Split(self.train_images, self.train_labels), Split(self.test_images, self.test_labels)]
        for position, (size, part) in enumerate(((train, "training"), (test, "test"))):
            if size is not None:
                labels = parts[position].labels
                index = balanced_indices(labels, size, num_classes=self.num_classes, seed=seed, part=part)
                parts[position] = Split(parts[position].images[index], labels[index])
        kept = f"class-balanced subset of {len(parts[0]):,} training and {len(parts[1]):,} test images (seed {seed})"
        return self._with_splits(parts[0], parts[1], kept)

    def hold_out(self, fraction: float, *, seed: int) -> ImageData:
        """Put part of the training images in the place of the test images.

        Tuning on the result never sees test data. Every class keeps its share in both parts.

        Args:
            fraction: Part of the training images to hold out, strictly between 0 and 1.
            seed: Decides the draw.

        Raises:
            DataError: One of the two parts would be empty.
        """
        kept, held_out = split_indices(self.train_labels, fraction, num_classes=self.num_classes, seed=seed)
        return self._with_splits(
            Split(self.train_images[kept], self.train_labels[kept]),
            Split(self.train_images[held_out], self.train_labels[held_out]),
            f"{len(held_out):,} of the training images held out as test images (seed {seed})",
        )

    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device | str, augment: Sequence[str] = ()
    ) -> Batches:
        """Batches to train on: shuffled, augmented, a smaller last batch left out.

        Raises:
            DataError: See `Batches`.
        """
        return Batches(
            self.train_images,
            self.train_labels,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            augment=augment,
            seed=seed,
            device=device,
        )

    def test_batches(self, *, device: torch.device | str) -> Batches:
        """Batches of the test images in order, every image once."""
        return Batches(
            self.test_images,
            self.test_labels,
            batch_size=_EVALUATION_BATCH_ON_CPU if torch.device(device).type == "cpu" else _EVALUATION_BATCH,
            mean=self.mean,
            std=self.std,
            seed=0,
            device=device,
            shuffle=False,
            drop_last=False,
        )

    def test_metrics(self, test_loss: float) -> dict[str, float]:
        """No further numbers: loss and accuracy say it all."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts for run records: name, label, source, sizes, classes and check sum. Cost: that of `checksum`."""
        return {
            "name": self.name,
            "label": self.label,
            "source": self.source,
            "train": len(self.train_labels),
            "test": len(self.test_labels),
            "classes": self.num_classes,
            "checksum": self.checksum,
        }

    def _with_splits(self, train: Split, test: Split, note: str) -> ImageData:
        mean, std = channel_statistics(train.images)
        return replace(
            self,
            train_images=train.images,
            train_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
            mean=mean,
            std=std,
            source=f"{self.source}; {note}",
        )
