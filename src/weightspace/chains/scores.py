"""Scores of predictions on the same test points, with paired bootstrap intervals of scores and of their differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightspace.errors import SamplingError
from weightspace.sampling import Estimate, Predictive
from weightspace.sampling.calibration import bin_of, brier_of_points
from weightspace.sampling.summary import centered

CALIBRATION = "ece"
SCORES = ("accuracy", "nll", "brier", CALIBRATION)
BINS = 15
_MOST_DRAWS = 20_000_000  # random numbers of a bootstrap: a second
_RESAMPLES = 1000
_FEWEST = 100
_BLOCK = 2_000_000  # numbers of a block of resamples: 16 MB


@dataclass(frozen=True)
class Prediction:
    """What one average of samples, or one set of weights, predicts.

    Attributes:
        probabilities: `(N, C)`.
        log_likelihood: `(N,)`: log of each label's probability.
        labels: `(N,)`.
        samples: How many sets of weights are averaged.
    """

    probabilities: Tensor
    log_likelihood: Tensor
    labels: Tensor
    samples: int

    @classmethod
    def of(cls, found: Predictive) -> Prediction:
        """From a posterior predictive."""
        return cls(found.probabilities, found.log_likelihood, found.labels, len(found.samples))


def average_of(parts: Sequence[Prediction]) -> Prediction:
    """The average over all samples of several predictions: each counts with the number of its samples.

    >>> one = Prediction(torch.tensor([[0.5, 0.5]]), torch.tensor([0.5]).log(), torch.tensor([0]), 1)
    >>> sure = Prediction(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]).log(), torch.tensor([0]), 3)
    >>> average_of([one, sure]).probabilities.tolist()
    [[0.875, 0.125]]
    """
    total = sum(part.samples for part in parts)
    shares = [part.samples / total for part in parts]
    probabilities = sum((part.probabilities * share for part, share in zip(parts, shares, strict=True)), start=0.0)
    weighted = [part.log_likelihood + math.log(share) for part, share in zip(parts, shares, strict=True)]
    likelihood = torch.logsumexp(torch.stack(weighted), dim=0)
    return Prediction(torch.as_tensor(probabilities), likelihood, parts[0].labels, total)


@dataclass(frozen=True, eq=False)
class Row:
    """The scores of a prediction, or the means over several: of the last points of all chains, say.

    Attributes:
        name: Of the row.
        samples: Sets of weights averaged in each prediction.
        members: Predictions whose scores are averaged.
        values: `(4,)`: accuracy, negative log-likelihood, Brier score, calibration error.
        drawn: `(resamples, 4)`: the same on resampled points, the same points in every row.
        level: Of intervals.
    """

    name: str
    samples: int
    members: int
    values: Tensor
    drawn: Tensor
    level: float

    def estimate(self, score: str) -> Estimate:
        """A score with the interval of its resamples."""
        place = SCORES.index(score)
        found = _estimate(score, self.values[place], self.drawn[:, place], self.level)
        return replace(found, low=max(0.0, found.low))

    def minus(self, other: Row, score: str) -> Estimate:
        """The difference of a score to that of another row, on the same resampled points."""
        place = SCORES.index(score)
        return _estimate(score, (self.values - other.values)[place], (self.drawn - other.drawn)[:, place], self.level)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        scores = {score: vars(self.estimate(score)) for score in SCORES}
        return {"name": self.name, "samples": self.samples, "members": self.members, **scores}


class Scorer:
    """Scores predictions on N points with one set of resampled points for all of them.

    Args:
        labels: `(N,)`.
        level: Of the intervals.
        seed: Of the resampling.
    """

    def __init__(self, labels: Tensor, level: float, seed: int = 0) -> None:
        self._labels, self._level = labels, level
        count = len(labels)
        self.resamples: int = max(_FEWEST, min(_RESAMPLES, _MOST_DRAWS // max(1, count)))
        self._seed = seed

    def row(self, name: str, predictions: Sequence[Prediction]) -> Row:
        """The row of one prediction, or of the mean scores of several.

        Raises:
            SamplingError: A prediction is of other points.
        """
        for prediction in predictions:
            if not torch.equal(prediction.labels, self._labels):
                raise SamplingError(f"{name} predicts other points than the other rows; evaluate all on the same data")
        parts = [self._scores(prediction) for prediction in predictions]
        values = torch.stack([value for value, _ in parts]).mean(0)
        drawn = torch.stack([draws for _, draws in parts]).mean(0)
        return Row(name, predictions[0].samples, len(predictions), values, drawn, self._level)

    def _scores(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        probabilities = prediction.probabilities.double()
        confidence, predicted = probabilities.max(-1)
        place, right = bin_of(confidence, BINS), (predicted == self._labels).double()
        columns = torch.stack((right, -prediction.log_likelihood, brier_of_points(probabilities, self._labels)), dim=-1)
        gaps = torch.zeros(len(right), BINS, dtype=torch.float64)
        gaps[torch.arange(len(right)), place] = right - confidence
        both = torch.cat((columns, gaps), dim=-1)
        return _of_means(both.mean(0)), _of_means(torch.cat([block @ both for block in self._shares()]))

    def _shares(self) -> Iterator[Tensor]:
        """How much each point counts in each resample, `(resamples, N)` in blocks of rows: the same at every call."""
        count = len(self._labels)
        generator = torch.Generator().manual_seed(self._seed)
        rows = max(1, _BLOCK // count)
        for start in range(0, self.resamples, rows):
            size = min(rows, self.resamples - start)
            index = torch.randint(count, (size, count), generator=generator)
            ones = torch.ones(size, count, dtype=torch.float64)
            yield torch.zeros_like(ones).scatter_add_(1, index, ones) / count


def _of_means(means: Tensor) -> Tensor:
    """Means of three scores and of the gaps in each bin, `(..., 3 + bins)`, as the four scores `(..., 4)`."""
    return torch.cat((means[..., :3], means[..., 3:].abs().sum(-1, keepdim=True)), dim=-1)


def _estimate(score: str, value: Tensor, drawn: Tensor, level: float) -> Estimate:
    if score == CALIBRATION:
        drawn = centered(drawn, float(value))
    tails = torch.tensor(((1 - level) / 2, (1 + level) / 2), dtype=torch.float64)
    low, high = torch.quantile(drawn, tails, interpolation="nearest").tolist()
    return Estimate(float(value), low, high)
