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

    @property
    def median_step(self) -> float:
        """Median seconds of a step, 0.0 before the first."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0
