"""The posterior predictive: class probabilities averaged over samples of the weights, one sample in memory at a time.

    p(y | x) = sum_k w_k p(y | x, q_k) / sum_k w_k

The average is over probabilities, not over logits or weights. Its entropy has two parts (Houlsby et al. 2011, Depeweg
et al. 2018): H(mean of p_k) = mean of H(p_k) + mutual information; the first is what all samples hold for random, the
second what they disagree about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from weightspace.errors import SamplingError
from weightspace.sampling._extras import package
from weightspace.sampling._index import Sample
from weightspace.sampling._models import (
    AnySample,
    Batches,
    device_of,
    flattened,
    labelled,
    name_of,
    put_into,
    served,
    working_copy,
)


@dataclass(frozen=True)
class SampleScore:
    """How one sample does alone, and the average of all samples up to it.

    Attributes:
        step: Its step; None for a sample that is not from a store.
        chain: Its chain; None likewise.
        weight: What it counts in the average.
        accuracy: Fraction of labels that it predicts.
        nll: Its mean negative log-likelihood of a label, in nats.
        average_accuracy: Accuracy of the average of the samples up to this one, in the order given.
        average_nll: Mean negative log-likelihood of that average.
    """

    step: int | None
    chain: int | None
    weight: float
    accuracy: float
    nll: float
    average_accuracy: float
    average_nll: float


@dataclass(frozen=True)
class Predictive:
    """What the average of all samples predicts for N labelled points (images, tokens) of C classes.

    Attributes:
        probabilities: `(N, C)`, rows sum to 1.
        labels: `(N,)`, int64.
        log_likelihood: `(N,)`, float64: log of the average probability of each label; exact where that underflows.
        entropy: `(N,)`, nats: entropy of `probabilities`, between 0 and log C.
        mutual_information: `(N,)`, nats: the part of the entropy that samples disagree about; 0 for one sample.
        samples: One row a sample, in the order given: alone, and averaged with those before it.
    """

    probabilities: Tensor
    labels: Tensor
    log_likelihood: Tensor
    entropy: Tensor
    mutual_information: Tensor
    samples: tuple[SampleScore, ...]

    @property
    def accuracy(self) -> float:
        """Fraction of labels that have the largest average probability."""
        return self.samples[-1].average_accuracy

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a label under the average, in nats: a sum of N terms over N."""
        return -float(self.log_likelihood.mean())

    def summary(self) -> dict[str, float | int]:
        """The numbers of a table, ready for JSON: the average beside its samples' mean."""
        return {
            "samples": len(self.samples),
            "points": len(self.labels),
            "accuracy": self.accuracy,
            "nll": self.nll,
            "mean_sample_accuracy": math.fsum(s.accuracy for s in self.samples) / len(self.samples),
            "mean_sample_nll": math.fsum(s.nll for s in self.samples) / len(self.samples),
            "mean_entropy": float(self.entropy.mean()),
            "mean_mutual_information": float(self.mutual_information.mean()),
        }

    def __repr__(self) -> str:
        return (
            f"<Predictive of {len(self.samples)} samples on {len(self.labels)} points: "
            f"accuracy {self.accuracy:.4f}, nll {self.nll:.4f}>"
        )


@torch.no_grad()
def posterior_predictive(
    model: nn.Module,
    samples: AnySample | Iterable[Any],
    batches: Batches,
    *,
    device: torch.device | str | None = None,
    renormalize: Callable[[nn.Module], None] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Predictive:
    """Average the class probabilities of a model over samples of its weights.

    Args:
        model: Takes the samples' weights; a copy does, in evaluation mode, and the model stays as it is.
        samples: A `SampleStore`, or a list of stores, samples, models or state_dicts; several chains are averaged as
            one set. A sample of a store counts with its weight, any other with 1.
        batches: Pairs of inputs and labels, the same in every pass: a list, a DataLoader without shuffling, or a
            function that returns them. Inputs are a tensor, a tuple of arguments or a dict of named ones; labels are
            whole numbers, one for each row of class scores `(..., C)`; those that are -100 are left out.
        device: Where to compute; None: where the model is.
        renormalize: Called with the model after each sample's weights are in it, to make its batch-norm statistics
            anew; see `batch_norm_statistics`. None takes the buffers that the sample was stored with.
        logits: Takes what the model returns, gives the class scores; None: the model returns them.
        dtype: Of the probabilities that are kept; float32 halves their memory.

    Returns:
        The average and its scores.

    Raises:
        SamplingError: There are no samples or no batches; a sample is damaged, belongs to another model or predicts
            NaN; labels and scores do not fit; or a second pass served other labels than the first.

    Cost: samples times batches forward passes; one copy of the model, one sample, and `(N, C)` numbers in memory.
    """
    copy = working_copy(model, device)
    place = device_of(copy) if device is None else torch.device(device)
    average = _Average(dtype)
    for number, sample in enumerate(flattened(samples)):
        name = name_of(sample, number)
        put_into(copy, sample, name)
        if renormalize is not None:
            renormalize(copy)
            copy.eval()
        average.begin(sample)
        for batch in served(batches):
            average.add(*labelled(copy, batch, place, logits, name), name)
        average.end(name)
    return average.result()


def batch_norm_statistics(batches: Batches, device: torch.device | str | None = None) -> Callable[[nn.Module], None]:
    """For `renormalize=`: makes running means and variances of batch norms anew from training batches.

    An average over all batches, as `torch.optim.swa_utils.update_bn` makes it, in training mode. Needed where weights
    did not come with their statistics: weights that were averaged, or moved after the last forward pass.

    Args:
        batches: Training inputs, or pairs whose first entry they are: a list, a DataLoader, or a function that
            returns them. A network without batch norm reads none.
        device: Where to put them; None: where the model is.
    """

    def renew(model: nn.Module) -> None:
        place = device_of(model) if device is None else torch.device(device)
        update_bn(served(batches), model, place)

    return renew


def predictive_plot(predictive: Predictive, path: str | Path, *, title: str | None = None) -> Path:
    """Draw what averaging gains: accuracy and likelihood of the average of the first k samples, and of each alone.

    Args:
        predictive: What `posterior_predictive` returned.
        path: The PNG file.
        title: Above the left panel; None for none.

    Returns:
        `path`.

    Raises:
        SamplingError: matplotlib is not installed.
        RunError: The file cannot be written.
    """
    package("matplotlib", "A picture of the predictive")
    from weightspace.sampling.plots import draw_curve

    return draw_curve(predictive.samples, Path(path), title)


@dataclass
class _Points:
    """Sums over samples for the points of one batch."""

    labels: Tensor
    probabilities: Tensor
    log_likelihood: Tensor  # log of the weighted sum of each label's probability
    entropy: Tensor


class _Average:
    """The running weighted average: batches of one sample between `begin` and `end`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._points: list[_Points] = []
        self._scores: list[SampleScore] = []
        self._total = 0.0

    def begin(self, sample: AnySample) -> None:
        """Take the next sample's weight."""
        self._sample = sample if isinstance(sample, Sample) else None
        self._weight = 1.0 if self._sample is None else self._sample.weight
        self._total += self._weight
        self._batch = 0
        self._sums = torch.zeros(4, dtype=torch.float64)  # right alone, log-likelihood alone, the same averaged

    def add(self, log_probabilities: Tensor, labels: Tensor, name: str) -> None:
        """Add one batch of the sample: `(n, C)` in float64 and `(n,)`."""
        count = len(labels)
        if not self._scores:
            zeros = torch.zeros_like(log_probabilities, dtype=self._dtype)
            nothing = torch.full((count,), -math.inf, dtype=torch.float64)
            self._points.append(_Points(labels, zeros, nothing, torch.zeros(count, dtype=torch.float64)))
        if self._batch >= len(self._points):
            raise _other_points(name)
        points = self._points[self._batch]
        if points.probabilities.shape != log_probabilities.shape or not torch.equal(points.labels, labels):
            raise _other_points(name)
        self._batch += 1
        probabilities = log_probabilities.exp()
        alone = log_probabilities.gather(-1, labels[:, None])[:, 0]
        points.probabilities.add_(probabilities, alpha=self._weight)
        points.entropy.add_(torch.special.entr(probabilities).sum(-1), alpha=self._weight)
        points.log_likelihood = torch.logaddexp(points.log_likelihood, alone + math.log(self._weight))
        self._sums += torch.stack(
            (
                (probabilities.argmax(-1) == labels).sum(),
                alone.sum(),
                (points.probabilities.argmax(-1) == labels).sum(),
                points.log_likelihood.sum() - count * math.log(self._total),
            )
        )

    def end(self, name: str) -> None:
        """Close the sample."""
        if self._batch != len(self._points):
            raise _other_points(name)
        count = sum(len(points.labels) for points in self._points)
        if not count:
            raise SamplingError("the batches hold no labelled point; give at least one")
        accuracy, likelihood, average_accuracy, average_likelihood = (self._sums / count).tolist()
        step, chain = (None, None) if self._sample is None else (self._sample.step, self._sample.chain)
        scores = (accuracy, -likelihood, average_accuracy, -average_likelihood)
        self._scores.append(SampleScore(step, chain, self._weight, *scores))

    def result(self) -> Predictive:
        """The average."""
        if not self._scores:
            raise SamplingError("there are no samples to average; sample longer, or give another folder")
        probabilities = torch.cat([points.probabilities for points in self._points]).div_(self._total)
        entropy = torch.special.entr(probabilities.double()).sum(-1)
        within = torch.cat([points.entropy for points in self._points]) / self._total
        return Predictive(
            probabilities=probabilities,
            labels=torch.cat([points.labels for points in self._points]),
            log_likelihood=torch.cat([points.log_likelihood for points in self._points]) - math.log(self._total),
            entropy=entropy,
            mutual_information=(entropy - within).clamp_min(0.0),  # rounding takes it below
            samples=tuple(self._scores),
        )


def _other_points(name: str) -> SamplingError:
    return SamplingError(
        f"the batches for {name} are others than for the first sample; turn shuffling and augmentation off"
    )
