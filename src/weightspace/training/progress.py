"""Where a run stands: the numbers that a checkpoint takes along besides tensors."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Progress:
    """Where a run stands, and what it has added up. Saved with every checkpoint.

    Attributes:
        epoch: Epoch in progress, counted from 0.
        batch: Batches done in this epoch.
        step: Steps done in the whole run.
        loss_sum: Sum of this epoch's batch losses, on the device: reading it there would stop the accelerator.
        train_loss: Mean loss of the last whole epoch.
        test_loss: Mean loss on the test data at the last evaluation.
        test_accuracy: Fraction of the test images, or tokens, predicted right at the last evaluation.
        step_seconds: Wall-clock seconds of each step (on accelerators: means over the steps between two checks).
        seconds: Their sum over all steps.
    """

    loss_sum: Tensor
    epoch: int = 0
    batch: int = 0
    step: int = 0
    train_loss: float = float("nan")
    test_loss: float = float("nan")
    test_accuracy: float = float("nan")
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        """Refuse numbers that are none: a checkpoint may have been edited.

        Raises:
            ValueError: A count or a mean is of the wrong kind; names it.
        """
        for name in ("epoch", "batch", "step"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
                raise ValueError(f"progress.{name} is {value!r:.80}")
        for name in ("train_loss", "test_loss", "test_accuracy", "seconds"):
            if not isinstance(getattr(self, name), float | int):
                raise ValueError(f"progress.{name} is {getattr(self, name)!r:.80}")  # noqa: TRY004 - damage of a file
        if self.loss_sum.dim() or not all(isinstance(seconds, float) for seconds in self.step_seconds):
            raise ValueError("progress holds tensors of other shapes")

    @property
    def median_step(self) -> float:
        """Median seconds of a step, 0.0 before the first."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0
