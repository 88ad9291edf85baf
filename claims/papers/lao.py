"""Lao, Zhu, Wonka, Sundaramoorthi: channel-directed gradients (arXiv 2008.10766)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from claims.intervals import Interval, exact, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import accuracy_difference, largest
from claims.verdicts import above, at_most, below

PAPER = Paper(
    "lao",
    "Lao et al.: channel-directed gradients",
    "D. Lao, P. Zhu, P. Wonka, G. Sundaramoorthi",
    "2008.10766",
    "The loss gradient of a convolution's kernel is replaced by the gradient under another metric, one that acts along the output channels: filters that are neighbors (or all filters) move more alike. Public code does not exist and the printed constants were not at hand: ours are reconstructions (`ChannelL2`, `ChannelSobolev`).",
)
TABLES = {
    "Fashion-MNIST, VGG": "fashion-mnist-vgg",
    "CIFAR-10 (JPEG), VGG": "cifar10-vgg",
    "Fashion-MNIST, ResNet": "fashion-mnist-resnet",
    "CIFAR-10 (JPEG), ResNet": "cifar10-resnet",
}
METRICS = ("ChannelL2", "ChannelSobolev")
_PAIRED = "as mean of the differences seed by seed, with Student's interval"
_LARGEST = "as the largest over all cases, an exact number"
_MEAN = "as mean with Student's interval"


def _source(table: str) -> str:
    return f"results/channel-directed/{table}/table.json"


def _roughness(metric: str, axis: str) -> Measure:
    def measure(found: Any, level: float) -> Interval:
        return student([c[f"roughness along {axis}"] for c in found["cases"] if c["metric"] == metric], level)

    return measure


def exponent(parameters: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log time over log size: 1 is linear.

    >>> round(exponent([1, 10, 100], [2, 20, 200]), 6)
    1.0
    """
    x, y = [math.log(p) for p in parameters], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above_line = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above_line / sum((a - mean_x) ** 2 for a in x)


def _exponent(metric: str) -> Measure:
    """Slope of log time over log size."""
    return lambda found, level: student(
        [exponent(found["parameters"], row["seconds"][metric]) for row in found["repetitions"]], level
    )


def work_per_parameter(found: Any, metric: str) -> list[float]:
    """Numbers read and written, and operations of matrix products, for each parameter; by size, smallest first."""
    return [work / count for work, count in zip(found["work"][metric], found["parameters"], strict=True)]


def _growth(metric: str) -> Measure:
    """Work per parameter at the largest size over that at the smallest."""

    def measure(found: Any, level: float) -> Interval:
        work = work_per_parameter(found, metric)
        return exact(work[-1] / work[0], len(work))

    return measure


CLAIMS = (
    Claim(
        "lao-channels",
        PAPER,
        "The gradient is taken under a re-weighted L2 or a Sobolev metric that acts along the output channels, and it smooths along them.",
        "random gradients of a 16 x 8 x 3 x 3 kernel, ten for each metric, through `attach` on SGD: against a dense linear system of the metric's matrix; roughness (energy of differences between neighbors over energy) after, divided by before",
        "an error beyond rounding, or a roughness along the output channels that does not fall",
        "The definitions are our reconstruction: the printed constants were not at hand.",
        (
            *(Number(f"{m}: roughness along output channels, after over before", "claims/channel-metric.json", _MEAN, _roughness(m, "out"), below(0.9), ".2f") for m in METRICS),
            Number("largest relative error against the dense system", "claims/channel-metric.json", _LARGEST, largest(lambda f: [c["relative_error"] for c in f["cases"]]), at_most(1e-12), ".0e"),
            *(Number(f"{m}: roughness along input channels", "claims/channel-metric.json", _MEAN, _roughness(m, "in"), None, ".2f") for m in METRICS),
        ),
        "metrics/channel-l2.md",
        unit_of_n="gradients",
        runs=("channel-metric",),
    ),
    Claim(
        "lao-cost",
        PAPER,
        "It costs O(parameters).",
        "numbers that torch's operations read and write, and floating point operations of matrix products, in one transform at five sizes from 256 to 4,096 output channels (147,456 to 2,359,296 parameters), divided by the number of parameters: it must not grow. A matrix over the channels would make it grow sixteen times",
        "work for each parameter that is more than 1.25 times as large at the largest size",
        "Work is counted and does not depend on the machine. The times below do: larger gradients leave the processor's caches, which bends even a copy's line above 1.",
        (
            *(Number(f"{m}: work for each parameter, largest size over smallest", "claims/linear-cost.json", "by counting operations", _growth(m), at_most(1.25), ".2f") for m in METRICS),
            *(Number(f"{m}: work for each parameter", "claims/linear-cost.json", "by counting operations", lambda f, level, m=m: exact(work_per_parameter(f, m)[-1], len(f["parameters"])), None, ".1f") for m in METRICS),
            *(Number(f"{m}: exponent of the time", "claims/linear-cost.json", _MEAN + " over repetitions", _exponent(m), None, ".2f", is_time=True) for m in ("copy", *METRICS)),
        ),
        "benchmarks-metrics.md",
        unit_of_n="sizes, or repetitions",
        runs=("linear-cost",),
    ),
    Claim(
        "lao-any-optimizer",
        PAPER,
        "It is applied to the gradient before any optimizer.",
        "every optimizer of torch.optim, five steps with `attach(ChannelL2)`, against the bare optimizer fed with gradients that were transformed by hand; three seeds",
        "a weight that differs by more than rounding",
        "LBFGS and SparseAdam are refused, with a reason: one searches along the loss's own gradient, the other takes sparse gradients only.",
        (Number("largest difference of a weight", "claims/any-optimizer.json", _LARGEST, largest(lambda f: [c["largest_difference"] for c in f["cases"]]), at_most(1e-12), ".0e"),),
        "attach.md",
        unit_of_n="optimizers x seeds",
        runs=("any-optimizer",),
    ),
    Claim(
        "lao-directions",
        PAPER,
        "Directions other than the output channels can hurt.",
        "the same metrics along input channels and along the taps, two networks (VGG-style without batch norm, ResNet-8) on Fashion-MNIST and CIFAR-10 (JPEG), each arm with its own tuned learning rate, minus tuned SGD",
        "no direction, network and data set with a difference below zero",
        "10,000 images, 4 to 6 epochs. That the output channels do not hurt is not shown by this; see the question below.",
        tuple(
            Number(f"{data}, {arm} minus tuned SGD, points", _source(table), _PAIRED, accuracy_difference(arm, "tuned SGD"), below(0))
            for arm in ("ChannelL2 spatial", "ChannelL2 in", "ChannelSobolev in")
            for data, table in TABLES.items()
        ),
        "results/channel-directed.md",
        rule="any",
        runs=tuple(TABLES.values()),
    ),
    Claim(
        "lao-accuracy",
        PAPER,
        "Does a channel-directed gradient train better than SGD once both learning rates are tuned?",
        "two networks on two data sets, as above; with and without the step kept as long as it was (`keep_norm`)",
        "differences to tuned SGD that do not lie above zero",
        "Short trainings of narrow networks with our reconstruction of the metrics; differences below a point (VGG) or some points (ResNet) would go unseen.",
        tuple(
            Number(f"{data}, {arm} minus tuned SGD, points", _source(table), _PAIRED, accuracy_difference(arm, "tuned SGD"), above(0))
            for arm in ("ChannelL2", "ChannelL2 keep_norm", "ChannelSobolev", "ChannelSobolev keep_norm")
            for data, table in TABLES.items()
        ),
        "results/channel-directed.md",
        is_papers=False,
        runs=tuple(TABLES.values()),
        pictures=("results/channel-directed/fashion-mnist-vgg/differences.png",),
    ),
)  # fmt: skip
