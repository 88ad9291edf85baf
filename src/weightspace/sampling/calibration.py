"""Calibration: are the probabilities of a classifier the frequencies with which it is right?

All of it takes probabilities `(N, C)` and labels `(N,)`, whoever made them. Scores: negative log-likelihood and Brier
score are proper (the true probabilities alone minimize their mean); the expected calibration error is not (a constant
guess of the class frequencies has none), so it stands beside an accuracy, never alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import SamplingError
from weightspace.sampling._extras import package

SUM_TOLERANCE = 1e-3  # of a row's probabilities: float16 ones of many classes add up to one within this


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width.

    Bin b of B holds the points whose confidence (largest probability) is in `(b/B, (b+1)/B]`, b = 0 .. B-1.

    Attributes:
        counts: `(B,)`, int64: points in each bin.
        confidence: `(B,)`: their mean confidence; NaN where there is none.
        accuracy: `(B,)`: the fraction of them whose most probable class is the label; NaN where there is none.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error: mean of abs(accuracy - confidence), bins weighted by their points."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((gaps * self.counts).sum() / self.counts.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of all points; above the accuracy: overconfident, below: underconfident."""
        return float((self.confidence.nan_to_num() * self.counts).sum() / self.counts.sum())

    @property
    def mean_accuracy(self) -> float:
        """Accuracy of all points."""
        return float((self.accuracy.nan_to_num() * self.counts).sum() / self.counts.sum())

    def rows(self) -> list[dict[str, float | int | None]]:
        """One row a bin, ready for JSON: `low`, `high`, `count`, `confidence`, `accuracy` (None where empty)."""
        bins = len(self.counts)
        return [
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "count": int(self.counts[b]),
                "confidence": float(self.confidence[b]) if self.counts[b] else None,
                "accuracy": float(self.accuracy[b]) if self.counts[b] else None,
            }
            for b in range(bins)
        ]


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log of the label's probability, in nats; 0 is best, log C is a uniform guess.

    Infinite if a label has probability 0. `Predictive.nll` is exact where probabilities underflow.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        labels: `(N,)`, whole numbers from 0 to C - 1.

    Raises:
        SamplingError: They are not so.

    >>> f"{negative_log_likelihood(torch.full((4, 10), 0.1), torch.arange(4)):.4f}"
    '2.3026'
    """
    values, flat = checked(probabilities, labels)
    return -float(values.gather(-1, flat[:, None]).log().mean())


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over points of sum_c (p_c - [c is the label])^2: Brier's own form, 0 is best and 2 worst.

    A uniform guess has 1 - 1/C. Some authors halve it for two classes, others divide by C.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        labels: `(N,)`, whole numbers from 0 to C - 1.

    Raises:
        SamplingError: They are not so.

    >>> f"{brier_score(torch.full((4, 10), 0.1), torch.arange(4)):.4f}"
    '0.9000'
    """
    return float(brier_of_points(*checked(probabilities, labels)).mean())


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error as in Guo et al. (2017): top class, bins of equal width, absolute differences.

    sum_b n_b / N abs(accuracy_b - confidence_b), bins `(b/B, (b+1)/B]` of the largest probability. Between 0 and 1.
    With few points it is above 0 even for true probabilities: `Calibration.ece_by_chance` says by how much.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        labels: `(N,)`, whole numbers from 0 to C - 1.
        bins: How many.

    Raises:
        SamplingError: They are not so.

    >>> sure = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
    >>> f"{expected_calibration_error(sure, torch.tensor([0] * 6 + [1] * 4)):.4f}"  # 90 % sure, right in 60 %
    '0.3000'
    """
    return reliability(probabilities, labels, bins).error


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """The table behind the expected calibration error and the reliability diagram.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        labels: `(N,)`, whole numbers from 0 to C - 1.
        bins: How many.

    Raises:
        SamplingError: They are not so.
    """
    values, flat = checked(probabilities, labels)
    confidence, predicted = values.max(-1)
    place = bin_of(confidence, bins)
    right = (predicted == flat).double()
    counts = torch.bincount(place, minlength=bins)
    # 0/0 of an empty bin is the NaN that is promised
    return Reliability(
        counts=counts,
        confidence=torch.bincount(place, confidence, minlength=bins) / counts,
        accuracy=torch.bincount(place, right, minlength=bins) / counts,
    )


def reliability_plot(table: Reliability, path: str | Path, *, title: str | None = None) -> Path:
    """Draw a reliability diagram: accuracy against confidence, and below how many points each bin has.

    Args:
        table: What `reliability` made.
        path: The PNG file.
        title: Above the diagram; None for none.

    Returns:
        `path`.

    Raises:
        SamplingError: matplotlib is not installed.
        RunError: The file cannot be written.
    """
    package("matplotlib", "A reliability diagram")
    from weightspace.sampling.plots import draw_reliability

    return draw_reliability(table, Path(path), title)


def bin_of(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence: b where it is in `(b/B, (b+1)/B]`.

    >>> bin_of(torch.tensor([0.1, 0.5, 0.51, 1.0], dtype=torch.float64), 10).tolist()
    [0, 4, 5, 9]
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise SamplingError(f"bins is {bins!r}; give a whole number of at least 1")
    return torch.bucketize(confidence.double(), torch.arange(1, bins, dtype=torch.float64) / bins)


def checked(probabilities: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Probabilities as float64 and labels as int64, on the CPU.

    Raises:
        SamplingError: Shapes do not fit, rows are no distributions, or labels are out of range; says what came.
    """
    values, flat = torch.as_tensor(probabilities), torch.as_tensor(labels)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or not values.is_floating_point():
        raise SamplingError(f"probabilities are {values.dtype} of shape {tuple(values.shape)}; give (points, classes)")
    if flat.shape != values.shape[:1] or flat.is_floating_point() or flat.dtype == torch.bool:
        raise SamplingError(f"labels are {flat.dtype} of shape {tuple(flat.shape)}; give {len(values)} whole numbers")
    values, flat = values.detach().to("cpu", torch.float64), flat.to("cpu", torch.int64)
    if not (bool(values.isfinite().all()) and float(values.min()) >= 0):
        raise SamplingError("probabilities are negative or not finite; give the softmax of the scores, not the scores")
    worst = float((values.sum(-1) - 1).abs().max())
    if worst > SUM_TOLERANCE:
        raise SamplingError(f"a row of probabilities misses the sum 1 by {worst:.3g}; give the softmax of the scores")
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= values.shape[1]:
        raise SamplingError(f"labels run from {low} to {high}; with {values.shape[1]} classes they are 0 to C - 1")
    return values, flat


def brier_of_points(values: Tensor, flat: Tensor) -> Tensor:
    """Brier's score of each point, `(N,)`: sum p^2 - 2 p_label + 1 needs no one-hot copy of the labels."""
    return values.square().sum(-1) - 2 * values.gather(-1, flat[:, None])[:, 0] + 1
