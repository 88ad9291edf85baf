"""Guo: penalties on the singular values of the convolution operator (arXiv 2102.04294, with 1906.04866 and 1907.11235)."""

from __future__ import annotations

import math
from typing import Any

from claims.intervals import Interval, geometric, paired, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import accuracy, accuracy_difference, largest
from claims.verdicts import above, at_most, below, within

PAPER = Paper(
    "guo",
    "Guo: singular values of convolutions",
    "P.-C. Guo",
    "2102.04294",
    "A convolution is a linear map of images, so it has singular values: how much it enlarges or shrinks a signal, in each direction. The method adds a penalty to the training loss that keeps them away from extremes. Earlier members of the family are arXiv 1906.04866 and 1907.11235. "
    "Which three penalties the paper itself proposes is not known to us, so no verdict is about those three; ours are two of the earlier papers and four of our own.",
)

KERNELS = "results/kernel-only/results.json"
DEPTH = "results/deep-plain/depth/depth.json"
DEEP = "results/deep-plain/deep-plain/table.json"
GAINS = "claims/gain-sweep.json"


def spectrum(channels: tuple[int, int], arm: str, extreme: str, padding: str = "zero") -> Measure:
    """Largest or smallest singular value, or their ratio, after minimizing a penalty; "before" for the initial kernel."""

    def measure(found: Any, level: float) -> Interval:
        layer = next(row for row in found["layers"] if (row["inputs"], row["outputs"]) == channels)
        runs = [run[padding] for run in (layer["before"] if arm == "before" else layer["arms"][arm]["runs"])]
        if extreme == "ratio":
            return geometric([run["max"] / max(run["min"], 1e-300) for run in runs], level)
        return student([run[extreme] for run in runs], level)

    return measure


def _gradient(arm: str, when: str) -> Measure:
    """Gradient at the first layer over that at the last, geometric mean over seeds."""

    def measure(found: Any, level: float) -> Interval:
        runs = [run[when]["gradient"] for run in found["arms"][arm]["runs"]]
        return geometric([first / last for first, *_, last in runs], level)

    return measure


def _of_gain(found: Any, gain: float, key: str) -> list[float]:
    return [float(c[key]) for c in found["cases"] if math.isclose(c["gain"], gain)]


def _gain(gain: float) -> Measure:
    """Test accuracy of nets started with this root mean square singular value, %."""
    return lambda found, level: student(_of_gain(found, gain, "accuracy"), level).scaled(100)


def _gain_lost(gain: float, between: float = 2.0) -> Measure:
    """Accuracy of the net in between minus that with this one, points."""
    return lambda found, level: paired(
        _of_gain(found, between, "accuracy"), _of_gain(found, gain, "accuracy"), level
    ).scaled(100)


def _gain_gradient(gain: float) -> Measure:
    return lambda found, level: geometric(_of_gain(found, gain, "gradient_first_over_last"), level)


def _errors(found: Any) -> list[float]:
    return [case["relative_error"] for case in found["cases"]]


_MEAN = "as mean over seeds with Student's interval"
_GEOMETRIC = "as geometric mean over seeds with Student's interval of the logarithms"
_PAIRED = "as mean of the differences seed by seed, with Student's interval"
_LARGEST = "as the largest over all cases, an exact number"

CLAIMS = (
    Claim(
        "guo-structure",
        PAPER,
        "A convolution is multiplication by a structured matrix: with zero padding one doubly block banded Toeplitz block for each pair of channels.",
        "ten small layers (1 to 4 channels, kernels of 1, 3 and 5): torch's layer applied to every unit vector gives its matrix, which is compared with the Toeplitz matrix of the kernel's entries",
        "an entry of the matrix that differs from the kernel entry that belongs there, or a non-zero outside the band",
        "It is a theorem; this checks that our reading of it is torch's convolution.",
        (Number("largest deviation of an entry", "claims/toeplitz.json", _LARGEST, largest(lambda f: [c["largest_deviation"] for c in f["cases"]]), at_most(1e-14), ".0e"),),
        "operators/singular-values.md",
        unit_of_n="layers",
        runs=("toeplitz",),
    ),
    Claim(
        "guo-gradient",
        PAPER,
        "The penalty acts on that matrix, and its gradient can be taken with respect to the kernel's entries.",
        "six penalties on zero-padded layers of 2 to 5 channels, five kernels each: slopes along random directions, against central differences of the penalty of the dense matrix (LAPACK)",
        "a relative error beyond what central differences themselves have (1e-6)",
        "Small layers: the dense matrix must fit. Which penalties are the paper's own three is not known to us.",
        (Number("largest relative error of a slope", "claims/penalty-gradients.json", _LARGEST, largest(_errors), at_most(1e-6), ".0e"),),
        "penalties/singular-values.md",
        unit_of_n="penalties x kernels",
        runs=("penalty-gradients",),
    ),
    Claim(
        "guo-unstable",
        PAPER,
        "Training is unstable when singular values are large or small.",
        "a plain network (convolutions with ReLU, no normalization, no shortcut), on scikit-learn's digits, 16 layers, whose kernels start with a given root mean square singular value, each seed with the better of two learning rates and clipped gradients: small (0.5) and large (4) against 2; and 24 layers on Fashion-MNIST at torch's start (0.58), tuned",
        "a network with small or large values that loses less than 20 points to the one in between, or learns more than 10 points above guessing (Fashion-MNIST)",
        "Plain networks without normalization; with batch norm or shortcuts nothing here says that it happens. How small and how large depends on depth, padding and learning rate: ReLU halves the energy and zero padding takes more on these maps of 4 x 4 pixels, so that 2 and not 1 is in between.",
        (
            Number("digits, accuracy lost with 0.5 against 2, points", GAINS, _PAIRED, _gain_lost(0.5), above(20, " points"), "+.1f"),
            Number("digits, accuracy lost with 4 against 2, points", GAINS, _PAIRED, _gain_lost(4.0), above(20, " points"), "+.1f"),
            Number("Fashion-MNIST, 0.58, SGD: test accuracy, %", DEEP, _MEAN, accuracy("SGD"), at_most(20, " %"), ".1f"),
            Number("Fashion-MNIST, 0.58, Adam: test accuracy, %", DEEP, _MEAN, accuracy("Adam"), at_most(20, " %"), ".1f"),
            Number("Fashion-MNIST, 0.58: gradient at the first layer over the last, before training", DEPTH, _GEOMETRIC, _gradient("SGD", "before"), below(1e-6), ".1e"),
            *(Number(f"digits, {gain:g}: test accuracy, %", GAINS, _MEAN, _gain(gain), None, ".1f") for gain in (0.5, 1.0, 2.0, 4.0)),
            *(Number(f"digits, {gain:g}: gradient at the first layer over the last", GAINS, _GEOMETRIC, _gain_gradient(gain), None, ".1e") for gain in (0.5, 2.0, 4.0)),
        ),
        "results/deep-plain.md",
        runs=("gain-sweep", "deep-plain"),
        pictures=("results/deep-plain/depth/gradients.png",),
    ),
    Claim(
        "guo-spectra",
        PAPER,
        "Gradient-type methods on such a penalty drive the singular values where they are wanted, which a penalty on the reshaped kernel does not do.",
        "random 3x3 kernels, zero padding, 8x8 images, no data: 200 Adam steps on one penalty, learning rate tuned on another kernel; all singular values before and after, exact. Soft orthogonality is the penalty on the reshaped kernel. That gradient-type methods are derived is the paper's; the wording of this test is ours",
        "a largest value that does not come down to its target, a condition number (largest over smallest) that does not fall, or one that falls as far with the reshaped kernel",
        "Kernels alone. With as many outputs as inputs and zero padding the small values stay small unless the penalty sees the padding, and then the kernel nearly becomes a 1x1 convolution.",
        (
            Number("16 → 16 channels, bound 1: largest value", KERNELS, _MEAN, spectrum((16, 16), "LargestSingularValue(1), circular", "max"), within(0.9, 1.1), ".2f"),
            Number("32 → 16, GramFrobenius on the layer's own matrix: condition number", KERNELS, _GEOMETRIC, spectrum((32, 16), "GramFrobenius, layer", "ratio"), below(2), ".2f"),
            Number("3 → 16, GramFrobenius on the torus: condition number", KERNELS, _GEOMETRIC, spectrum((3, 16), "GramFrobenius, circular", "ratio"), below(2.5), ".2f"),
            Number("16 → 16, GramSpectralNorm on the torus: condition number under zero padding", KERNELS, _GEOMETRIC, spectrum((16, 16), "GramSpectralNorm, circular", "ratio"), below(100), ",.0f"),
            Number("16 → 16, ConditionNumber on the torus: condition number under zero padding", KERNELS, _GEOMETRIC, spectrum((16, 16), "ConditionNumber, circular", "ratio"), below(100), ",.0f"),
            Number("16 → 16, reshaped kernel (soft orthogonality): largest value", KERNELS, _MEAN, spectrum((16, 16), "SoftOrthogonality SO", "max"), above(1.5), ".2f"),
            Number("32 → 16, reshaped kernel: condition number", KERNELS, _GEOMETRIC, spectrum((32, 16), "SoftOrthogonality SO", "ratio"), above(4), ".2f"),
            Number("before, 16 → 16: largest value", KERNELS, _MEAN, spectrum((16, 16), "before", "max"), None, ".2f"),
            Number("before, 32 → 16: condition number", KERNELS, _GEOMETRIC, spectrum((32, 16), "before", "ratio"), None, ".2f"),
            Number("before, 3 → 16: condition number", KERNELS, _GEOMETRIC, spectrum((3, 16), "before", "ratio"), None, ".2f"),
            Number("before, 16 → 16: condition number under zero padding", KERNELS, _GEOMETRIC, spectrum((16, 16), "before", "ratio"), None, ",.0f"),
        ),
        "results/kernel-only.md",
        runs=("kernel-only",),
        pictures=("results/kernel-only/spectra.png",),
    ),
    Claim(
        "guo-three-terms",
        PAPER,
        "Three new regularization terms change the singular values.",
        "not tested: the printed terms were not at hand. A new term is one small class here (docs/penalties/singular-values.md), so whoever has the paper can settle it",
        "–",
        "Which three terms is unknown to us; none of ours is ascribed to the paper.",
        (),
        "penalties/singular-values.md",
    ),
    Claim(
        "guo-training",
        PAPER,
        "Does a penalty of this kind make a deep plain network train that SGD and Adam do not train?",
        "24 convolutions with ReLU at torch's start, Fashion-MNIST, four epochs; every arm tuned with four trials",
        "a difference to SGD that does not lie above zero",
        "One network, one data set, four trials. Penalties that aim at 1 leave it at 10 %: ReLU halves the energy, so √2 is needed. He's initialization is the cheaper repair, and lost one seed in five.",
        (
            Number("band from √2 to 2 minus SGD, points", DEEP, _PAIRED, accuracy_difference("SingularValueBand sqrt 2 to 2", "SGD"), above(0), "+.1f"),
            Number("GramFrobenius, target 2, minus SGD, points", DEEP, _PAIRED, accuracy_difference("GramFrobenius alpha 2", "SGD"), above(0), "+.1f"),
            Number("smallest value at least √2 minus SGD, points", DEEP, _PAIRED, accuracy_difference("SmallestSingularValue at least sqrt 2", "SGD"), above(0), "+.1f"),
            Number("GramFrobenius, target 1, minus SGD, points", DEEP, _PAIRED, accuracy_difference("GramFrobenius alpha 1", "SGD"), None, "+.1f"),
            Number("He's initialization minus SGD, points", DEEP, _PAIRED, accuracy_difference("He", "SGD"), None, "+.1f"),
            Number("band minus He's initialization, points", DEEP, _PAIRED, accuracy_difference("SingularValueBand sqrt 2 to 2", "He"), None, "+.1f"),
        ),
        "results/deep-plain.md",
        is_papers=False,
        runs=("deep-plain",),
        pictures=("results/deep-plain/deep-plain/differences.png",),
    ),
    Claim(
        "guo-accuracy",
        PAPER,
        "Do penalties on singular values give a more accurate network than tuned SGD?",
        "a shallow VGG-style net without batch norm, Fashion-MNIST and CIFAR-10 (JPEG), 10,000 images, 6 epochs, eight trials for every arm",
        "a difference to tuned SGD that does not lie above zero",
        "Short trainings; part of each gain is the baseline's learning rate. None of the terms is told apart from tuned weight decay, and soft orthogonality, on the reshaped kernel, had the highest mean both times.",
        tuple(
            Number(f"{data}, {arm} minus SGD, points", f"results/singular-value-penalties/{table}/table.json", _PAIRED, accuracy_difference(arm, "SGD"), above(0) if arm != "SoftOrthogonality SO" else None)
            for data, table in (("CIFAR-10 (JPEG)", "cifar10-penalties"), ("Fashion-MNIST", "fashion-mnist-penalties"))
            for arm in ("GramFrobenius", "SingularValueBand", "GramSpectralNorm", "LargestSingularValue", "SmallestSingularValue", "ConditionNumber", "SoftOrthogonality SO")
        ),
        "results/singular-value-penalties.md",
        is_papers=False,
        runs=("fashion-mnist-penalties", "cifar10-penalties"),
    ),
)  # fmt: skip
