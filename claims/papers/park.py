"""Park, Ho, Chang, Zhang: gradient-coherent strong regularization (arXiv 1811.08056)."""

from __future__ import annotations

from typing import Any

from claims.intervals import Interval, exact, paired, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import cells, largest, mean_over
from claims.verdicts import above, at_least, at_most

PAPER = Paper(
    "park",
    "Park et al.: gradient-coherent strong regularization",
    "D. H. Park, C. M. Ho, Y. Chang, H. Zhang",
    "1811.08056",
    "A strong L1 or L2 penalty compresses a network but can stop it from learning. The method imposes the penalty only while the gradient stays coherent in its presence: a gate. Its exact test of coherence, thresholds and networks were not at hand; ours (`Coherent`) are reconstructions, with the literal reading (`total`) as the default.",
)
SWEEPS = {
    "Fashion-MNIST, VGG, L1": "fashion-mnist-vgg",
    "Fashion-MNIST, AlexNet, L1": "fashion-mnist-alexnet",
    "CIFAR-10 (JPEG), VGG, L1": "cifar10-vgg",
    "Fashion-MNIST, VGG, L2": "fashion-mnist-vgg-L2",
}
FRESH = "results/gated-penalties/fashion-mnist-vgg-seeds/tolerance.json"
COMPRESSION = "results/gated-penalties/compression-vgg/results.json"
DIGITS = "claims/collapse-and-rescue.json"
COLLAPSED = (0.016, 0.032)  # strengths of the fresh seeds
FIRST_FRESH = 3  # seeds 0 to 2 were those of the sweep
GATED = ("L1 coherent total", "L1 coherent history")
_PAIRED = "as mean of the differences seed by seed, with Student's interval"
_MEAN = "as mean over seeds with Student's interval"


def _sweep(folder: str) -> str:
    return f"results/gated-penalties/{folder}/tolerance.json"


def _strongest_over_guessing(sweep: Any, level: float) -> Interval:
    """Accuracy with the penalty always on at its greatest strength, minus guessing, points."""
    found = cells(sweep, "always")
    return student([100 * (a - float(sweep["chance"])) for a in found[max(found)]], level)


def _without_over_guessing(sweep: Any, level: float) -> Interval:
    return student([100 * (a - float(sweep["chance"])) for a in cells(sweep, "no penalty")[0.0]], level)


def fresh(gate: str, other: str) -> Measure:
    """Difference of two gates on fresh seeds, mean over the strengths at which always-on has collapsed, points."""

    def measure(sweep: Any, level: float) -> Interval:
        one, two = (mean_over(cells(sweep, name), COLLAPSED, FIRST_FRESH) for name in (gate, other))
        return paired(one, two, level).scaled(100)

    return measure


def _digits(arm: str, other: str | None = None) -> Measure:
    def measure(found: Any, level: float) -> Interval:
        values = found["accuracies"]
        if other is None:
            return student(values[arm], level).scaled(100)
        return paired(values[arm], values[other], level).scaled(100)

    return measure


def pruned(found: Any, arm: str, zeros: str) -> list[float]:
    """Accuracy by seed of what would be stored, after pruning and fine-tuning."""
    runs = sorted((r for r in found["runs"] if r["is_final"] and r["arm"] == arm), key=lambda r: r["seed"])
    return [r["ratios"][zeros]["accuracy"] for r in runs]


def best_dense(found: Any) -> list[float]:
    """The better of the two dense networks, by mean accuracy."""
    return max((pruned(found, arm, "0.0") for arm in ("dense", "magnitude")), key=sum)


def minus_dense(arm: str, zeros: str) -> Measure:
    """Accuracy minus the best dense network, points."""

    def measure(found: Any, level: float) -> Interval:
        return paired(pruned(found, arm, zeros), best_dense(found), level).scaled(100)

    return measure


def sparsest(arm: str, of: str = "nonzeros") -> Measure:
    """How many times fewer non-zeros (or bytes, "sparse") the sparsest network has that is not below the best dense one.

    Not below: the 95 % interval of the paired difference reaches zero. One where no sparse network does.
    """

    def measure(found: Any, level: float) -> Interval:
        ratios = sorted((z for z in found["runs"][-1]["ratios"] if z != "0.0"), key=float, reverse=True)
        runs = [r for r in found["runs"] if r["is_final"] and r["arm"] == arm]
        for zeros in ratios:
            high = minus_dense(arm, zeros)(found, 0.95).high
            if high is not None and high >= 0:
                whole = "numbers" if of == "nonzeros" else "plain"
                shares = [r["ratios"][zeros][whole] / r["ratios"][zeros][of] for r in runs]
                return exact(sum(shares) / len(shares), len(runs))
        return exact(1.0, len(runs))

    return measure


def _share(key: str) -> Measure:
    return largest(lambda found: [100 * case[key] / case["dense_bytes"] for case in found["cases"]])


CLAIMS = (
    Claim(
        "park-collapse",
        PAPER,
        "Strong L1 or L2 with SGD makes deep networks fail to learn.",
        "networks of 8 to 10 layers without batch norm on Fashion-MNIST and CIFAR-10 (JPEG), the penalty always on, strengths an octave apart: accuracy at the greatest strength minus guessing; and a plain net of 10 layers on digits (fresh seeds)",
        "accuracy more than 10 points above guessing at the greatest strength",
        "Networks of some ten thousand weights, 3 to 4 epochs. Layers followed by batch norm are immune to it by their scale.",
        (
            *(Number(f"{name}: always on minus guessing, points", _sweep(folder), _MEAN, _strongest_over_guessing, at_most(10, " points"), "+.1f") for name, folder in SWEEPS.items()),
            Number("digits, L1: always on, test accuracy, %", DIGITS, _MEAN, _digits("always"), at_most(20, " %"), ".1f"),
            *(Number(f"{name}: without a penalty minus guessing, points", _sweep(folder), _MEAN, _without_over_guessing, None, "+.1f") for name, folder in SWEEPS.items()),
            Number("digits: without a penalty, test accuracy, %", DIGITS, _MEAN, _digits("no penalty"), None, ".1f"),
        ),
        "results/gated-penalties.md",
        runs=("collapse-and-rescue", *(f"tolerance-{folder}" for folder in SWEEPS.values())),
        pictures=("results/gated-penalties/fashion-mnist-vgg/tolerance.png",),
    ),
    Claim(
        "park-rescue",
        PAPER,
        "Imposing the penalty only while gradients stay coherent in its presence lets the network learn.",
        "the same VGG-style network on Fashion-MNIST at two strengths at which always-on guesses, seeds that chose nothing; and the plain net on digits. Gates: coherence with the total gradient (the literal reading), with the gradient's history",
        "gated accuracy that is not above that of the penalty always on",
        "Our reconstruction of the test of coherence. The gate also means less penalty, see the next question. On CIFAR-10 (JPEG) `total` rescued only some strengths.",
        (
            Number("coherent total minus always on, points", FRESH, _PAIRED, fresh("coherent-total", "always"), above(0), "+.1f"),
            Number("coherent history minus always on, points", FRESH, _PAIRED, fresh("coherent-history", "always"), above(0), "+.1f"),
            Number("digits, coherent total minus always on, points", DIGITS, _PAIRED, _digits("coherent-total", "always"), above(0), "+.1f"),
            Number("coherent total minus no penalty, points", FRESH, _PAIRED, lambda s, level: paired(mean_over(cells(s, "coherent-total"), COLLAPSED, FIRST_FRESH), cells(s, "no penalty")[0.0][FIRST_FRESH:], level).scaled(100), None, "+.1f"),
        ),
        "results/gated-penalties.md",
        runs=("collapse-and-rescue", "tolerance-fashion-mnist-vgg-seeds"),
    ),
    Claim(
        "park-accuracy",
        PAPER,
        "Accuracy becomes better.",
        "a VGG-style network on Fashion-MNIST, 8 epochs under L1 behind the gate (tuned), 90 % of the weights set to zero, 3 epochs more: minus the better of two tuned dense networks",
        "differences that do not lie above zero",
        "One network and data set; tuned for 98 % zeros, so in favor of compression and not of accuracy. The paper's three benchmarks were not at hand.",
        tuple(Number(f"{arm}, {float(zeros):.0%} zeros, minus the best dense, points", COMPRESSION, _PAIRED, minus_dense(arm, zeros), above(0)) for arm in GATED for zeros in ("0.9", "0.95")),
        "results/gated-penalties.md",
        runs=("gated-compression",),
    ),
    Claim(
        "park-compression",
        PAPER,
        "Compression up to 9.9 times.",
        "as above with 90, 95, 98 and 99 % zeros: the sparsest network whose accuracy is not below that of the best dense one (the interval of the paired difference reaches zero), as ratio of non-zero weights",
        "less than 9.9 times with every gate",
        "A difference of half a point would often go unseen. The gate deserves no credit for it: plain magnitude pruning with tuned weight decay gets as far (last rows).",
        (
            *(Number(f"{arm}: times fewer non-zeros", COMPRESSION, "as a ratio of counts, an exact number", sparsest(arm), at_least(9.9), ".1f") for arm in reversed(GATED)),
            *(Number(f"{arm}: times smaller file, indices included", COMPRESSION, "as a ratio of file sizes, an exact number", sparsest(arm, "sparse"), None, ".1f") for arm in reversed(GATED)),
            Number("magnitude pruning, no penalty: times fewer non-zeros", COMPRESSION, "as a ratio of counts, an exact number", sparsest("magnitude"), None, ".1f"),
            Number("L1 behind a random gate: times fewer non-zeros", COMPRESSION, "as a ratio of counts, an exact number", sparsest("L1 random"), None, ".1f"),
        ),
        "results/gated-penalties.md",
        rule="any",
        runs=("gated-compression",),
        pictures=("results/gated-penalties/compression-vgg/compression.png",),
    ),
    Claim(
        "park-storage",
        PAPER,
        "A network that is nine times sparser needs about 16 % of the dense storage, indices included.",
        "five random networks of 611,680 weights with one weight in nine left, at random places: bytes of the sparse safetensors file that is really written (and read back, bit for bit), over the dense bytes",
        "more than 17 %",
        "Our file codes the places and needs less than the paper's 16 %; the usual compressed rows with 32-bit indices need more. Which encoding the paper had was not at hand.",
        (
            Number("weightspace's file over dense, %", "claims/sparse-storage.json", "as the largest of five, an exact number", _share("file_bytes"), at_most(17, " %"), ".1f"),
            Number("compressed rows, 32-bit indices, over dense, %", "claims/sparse-storage.json", "as the largest of five, an exact number", _share("csr_bytes"), None, ".1f"),
            Number("files that load back to the same numbers", "claims/sparse-storage.json", "by counting", lambda f, level: exact(sum(c["loads_equal"] for c in f["cases"]), len(f["cases"])), at_least(5), ".0f"),
        ),
        "compress/sparse-files.md",
        unit_of_n="files",
        runs=("sparse-storage",),
    ),
    Claim(
        "park-coherence",
        PAPER,
        "Is it the coherence that rescues, or only that the penalty acts less often?",
        "the same network and fresh seeds: against gates that open by chance as often, and against a penalty that starts after half the run",
        "differences that do not lie above zero",
        "One network; thresholds were not tuned. A random gate is open as often, but at other times.",
        (
            Number("coherent total minus a random gate of equal duty, points", FRESH, _PAIRED, fresh("coherent-total", "random as total"), above(0), "+.1f"),
            Number("coherent total minus a delay of half the run, points", FRESH, _PAIRED, fresh("coherent-total", "delayed half"), above(0), "+.1f"),
            Number("coherent history minus a random gate of equal duty in each layer, points", FRESH, _PAIRED, fresh("coherent-history", "random as history by layer"), above(0), "+.1f"),
            Number("coherent history minus a delay of half the run, points", FRESH, _PAIRED, fresh("coherent-history", "delayed half"), above(0), "+.1f"),
            Number("digits, coherent total minus a random gate of equal duty, points", DIGITS, _PAIRED, _digits("coherent-total", "random as total"), None, "+.1f"),
            Number("digits, coherent total minus a delay of half the run, points", DIGITS, _PAIRED, _digits("coherent-total", "delayed half"), None, "+.1f"),
        ),
        "results/gated-penalties.md",
        is_papers=False,
        runs=("collapse-and-rescue", "tolerance-fashion-mnist-vgg-seeds"),
    ),
)  # fmt: skip
