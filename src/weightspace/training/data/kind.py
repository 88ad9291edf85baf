"""What a data set must offer to be trained on: the one seam between images, text and the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["images", "text"]


class BatchSource(Protocol):
    """Batches of an epoch, in an order that is a pure function of the source's seed and the epoch's number."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the batches from `start` on, on the source's device."""
        ...

    def share(self, rank: int, ranks: int) -> None:
        """Serve only one process's part of every batch from now on; `part_of` says which."""
        ...


class Data(Protocol):
    """A data set in memory: `ImageData`, `TextData`, or a class of yours with these members.

    A model maps a batch of inputs to logits whose last dimension counts classes and whose others are those of the
    labels; the loss is the mean cross-entropy over all labels of a batch.
    """

    @property
    def name(self) -> str:
        """Name by which it is loaded."""
        ...

    @property
    def label(self) -> str:
        """Name for titles."""
        ...

    @property
    def source(self) -> str:
        """One line: where it was found and what was done to it."""
        ...

    @property
    def kind(self) -> Kind:
        """What it consists of, which decides the models that can read it."""
        ...

    @property
    def checksum(self) -> str:
        """Check sum of everything that decides the batches."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes of a label; guessing is right once in so many times."""
        ...

    @property
    def samples(self) -> int:
        """What an epoch divides into batches: training images, or windows of training text."""
        ...

    @property
    def model_arguments(self) -> dict[str, int]:
        """What `build_model` needs to know of the data."""
        ...

    @property
    def num_data(self) -> int:
        """Terms of the likelihood, which the training loss is the mean of: training images, or training tokens."""
        ...

    def take(self, train: int | None, test: int | None = None, *, seed: int = 0) -> Data:
        """A part of the data."""
        ...

    def hold_out(self, fraction: float, *, seed: int) -> Data:
        """Part of the training data in the place of the test data."""
        ...

    def train_batches(
        self, *, batch_size: int, seed: int, device: torch.device | str, augment: Sequence[str] = ()
    ) -> BatchSource:
        """Batches to train on: shuffled, a smaller last one left out."""
        ...

    def test_batches(self, *, device: torch.device | str) -> BatchSource:
        """Batches that hold every test label exactly once."""
        ...

    def test_metrics(self, test_loss: float) -> dict[str, float]:
        """Further numbers that follow from the mean test loss, by name."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts for run records: name, label, source, sizes, classes and check sum."""
        ...
