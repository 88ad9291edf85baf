"""Leimkuhler, Vlaar, Pouchon, Storkey: constrained Langevin dynamics (arXiv 2006.10114, with 2106.10704)."""

from __future__ import annotations

from typing import Any

from claims.intervals import Interval, bootstrap, exact, from_error, paired, share, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import accuracy_difference, shared
from claims.verdicts import above, at_least, at_most, below, within

PAPER = Paper(
    "leimkuhler",
    "Leimkuhler et al.: constrained Langevin dynamics",
    "B. Leimkuhler, T. Vlaar, T. Pouchon, A. Storkey",
    "2006.10114",
    "Training as a physical motion with friction and noise, along a constraint on the weights: every weight on a circle, or matrices orthogonal. At temperature 0 it is an optimizer; above, it samples weights according to a known law. Accuracies of the paper that are known here are those of its spirals; of the authors' scripts also the settings.",
)
LAWS = "results/langevin-laws/results.json"
BLOCKS = "claims/known-laws.json"
SPIRALS = "results/spirals/results.json"
LOSSES = "results/cola-fashion-mnist/losses.json"
COLA = "results/cola-fashion-mnist/fashion-mnist-cola/table.json"
RESNET = "results/cola-resnet/cifar10-cola/table.json"
RESNET_FRESH = "results/cola-resnet/cifar10-cola-seeds/table.json"
LANGUAGE = "results/cola-transformer/kjv-transformer/table.json"
UNCERTAINTY = "results/uncertainty/results.json"
# The paper's table of test accuracies, %; all five methods fit the training points.
PUBLISHED = {"SGD": 81.0, "SGD, weight decay": 80.45, "constrained SGD": 86.95, "SGLD": 84.45, "constrained SGLD": 91.7}
H, BUDGET = 0.3, 0.25 * 0.3**2  # bias that a scheme of second order may have at this time step
_MEAN = "as mean over seeds with Student's interval"
_PAIRED = "as mean of the differences seed by seed, with Student's interval"
_BOOT = "as mean of the differences seed by seed, with the percentile bootstrap"
_BLOCKS = "as mean over independent blocks of chains, with Student's interval"
_CHAINS = "from the mean and its standard error over thousands of chains (single chains are not kept)"


def block_bias(law: str, scheme: str) -> Measure:
    """Sampled minus exact, over blocks of chains."""

    def measure(found: Any, level: float) -> Interval:
        row = next(row for row in found["rows"] if row["law"] == law and row["scheme"] == scheme)
        return student([mean - row["exact"] for mean in row["means"]], level)

    return measure


def law_bias(law: str, scheme: str = "BAOA", h: float = H) -> Measure:
    """Sampled minus exact for the law's first observable."""

    def measure(found: Any, level: float) -> Interval:
        row = next(r for r in found["laws"][law] if r["scheme"] == scheme and r["h"] == h)
        return from_error(row["sampled"] - row["exact"], row["error"], row["chains"], level)

    return measure


def spiral(arm: str, other: str, key: str) -> Measure:
    """Difference of two methods on the spirals, points."""

    def measure(found: Any, level: float) -> Interval:
        one, two = (found["final"][name][key] for name in (arm, other))
        return bootstrap([a - b for a, b in zip(one, two, strict=True)], level).scaled(100)

    return measure


def _all_right(arm: str) -> Measure:
    """Share of seeds whose last weights have every training point right."""

    def measure(found: Any, level: float) -> Interval:
        values = found["final"][arm]["train_accuracy"]
        return share(sum(value == 1.0 for value in values), len(values), level)

    return measure


def loss_difference(arm: str, other: str) -> Measure:
    """Paired difference of test losses, nats."""

    def measure(found: Any, level: float) -> Interval:
        one, two = ({int(s): v for s, v in found["arms"][a]["test_loss"].items()} for a in (arm, other))
        return paired(*shared(one, two), level)

    return measure


def ensemble(arm: str, other: str, shift: str, key: str, scale: float = 1.0) -> Measure:
    """Paired difference of two ways to an ensemble, over repetitions."""

    def measure(found: Any, level: float) -> Interval:
        one, two = ([run[shift][key] for run in found["rows"][a]] for a in (arm, other))
        return paired(one, two, level).scaled(scale)

    return measure


def _counted(key: str) -> Measure:
    return lambda found, level: exact(sum(bool(c[key]) for c in found["cases"]), len(found["cases"]))


_THREE = ("Circle, k = 1", "Stiefel 3 x 2 (tall)", "the same sphere, by an equation")
_LAWS = (
    "Circle, k = 1",
    "Circle, k = 2",
    "Stiefel 3 x 2 (tall)",
    "Stiefel 2 x 3 (wide)",
    "Sphere S², vMF",
    "Oblique 2 x 3",
)

CLAIMS = (
    Claim(
        "leimkuhler-dynamics",
        PAPER,
        "Overdamped and underdamped Langevin dynamics for user-defined constraints; worked examples are circles and orthogonal matrices.",
        "laws whose expectations are known by integrals, sampled by both kinds of dynamics: on the circle, on Stiefel matrices, and on a sphere that is told to the library by an equation only; bias within 0.25 h² (underdamped, h = 0.3) or 0.5 h (overdamped, h = 0.05), which is what second and first order allow",
        "a bias whose interval leaves that range",
        "Laws in three to six dimensions, in float64, with exact gradients. The overdamped form is our derivation.",
        (
            *(Number(f"{law}, underdamped: bias", BLOCKS, _BLOCKS, block_bias(law, "BAOA"), within(-BUDGET, BUDGET), "+.4f") for law in _THREE),
            *(Number(f"{law}, overdamped: bias", BLOCKS, _BLOCKS, block_bias(law, "overdamped"), within(-0.025, 0.025), "+.4f") for law in _THREE),
            *(Number(f"{law}, underdamped, many chains: bias", LAWS, _CHAINS, law_bias(law), within(-BUDGET, BUDGET), "+.4f") for law in _LAWS),
        ),
        "results/langevin-laws.md",
        unit_of_n="blocks of chains, or chains",
        runs=("known-laws", "langevin-laws"),
        pictures=("results/langevin-laws/orders.png",),
    ),
    Claim(
        "leimkuhler-no-change",
        PAPER,
        "Constraints need no change of architecture or loss.",
        "three networks each under circles, orthogonality and an equation of the user's: module types, hooks, parameter names and shapes before and after five steps; the loss of a fresh plain network with the same weights; whether the constraint holds",
        "a network that is not what it was, or a loss that differs",
        "Small networks; a constraint that changes the scale of kernels may still want a normalization layer or a learned gain after it.",
        (
            Number("networks unchanged", "claims/unchanged-networks.json", "by counting", _counted("is_unchanged"), at_least(9), ".0f"),
            Number("largest difference of the loss", "claims/unchanged-networks.json", "as the largest over all cases, an exact number", lambda f, level: exact(max(abs(c["loss_difference"]) for c in f["cases"]), len(f["cases"])), at_most(1e-12), ".0e"),
            Number("constraints that hold", "claims/unchanged-networks.json", "by counting", _counted("constraint_holds"), at_least(9), ".0f"),
        ),
        "constrained-langevin.md",
        unit_of_n="constraints x networks",
        runs=("unchanged-networks",),
    ),
    Claim(
        "leimkuhler-spirals",
        PAPER,
        f"Two spirals, which all methods fit without an error: test accuracy is {PUBLISHED['SGD']:g} % with SGD, {PUBLISHED['SGD, weight decay']:g} with weight decay, {PUBLISHED['constrained SGD']:g} with constrained SGD, {PUBLISHED['SGLD']:g} with SGLD and {PUBLISHED['constrained SGLD']:g} with constrained SGLD.",
        "the order, not the numbers: spirals and a net of our own, every method with twelve trials, twelve final seeds; last weights, and probabilities averaged over the second half of the run",
        "differences that do not lie above zero; training points that are wrong",
        "Their data, net and settings were not at hand; ours were chosen so that SGD has about their accuracy. With circles our nets do not fit all training points, theirs do: longer training may change that arm.",
        (
            Number("constrained SGD minus SGD, points", SPIRALS, _BOOT, spiral("constrained SGD", "SGD", "test_accuracy"), above(0), "+.1f"),
            Number("SGLD minus SGD, points", SPIRALS, _BOOT, spiral("SGLD", "SGD", "test_accuracy"), above(0), "+.1f"),
            Number("constrained SGLD minus SGLD, points", SPIRALS, _BOOT, spiral("constrained SGLD", "SGLD", "test_accuracy"), above(0), "+.1f"),
            Number("averaged: constrained SGD minus SGD, points", SPIRALS, _BOOT, spiral("constrained SGD", "SGD", "averaged_accuracy"), above(0), "+.1f"),
            Number("averaged: SGLD minus SGD, points", SPIRALS, _BOOT, spiral("SGLD", "SGD", "averaged_accuracy"), above(0), "+.1f"),
            Number("averaged: constrained SGLD minus SGLD, points", SPIRALS, _BOOT, spiral("constrained SGLD", "SGLD", "averaged_accuracy"), above(0), "+.1f"),
            *(Number(f"{arm}: seeds with all training points right, share", SPIRALS, "by counting, with Clopper and Pearson's interval", _all_right(arm), at_least(0.9), ".2f") for arm in PUBLISHED),
            Number("averaged: constrained SGLD minus SGD, points", SPIRALS, _BOOT, spiral("constrained SGLD", "SGD", "averaged_accuracy"), None, "+.1f"),
            Number("weight decay minus SGD, points", SPIRALS, _BOOT, spiral("SGD, weight decay", "SGD", "test_accuracy"), None, "+.1f"),
        ),
        "results/spirals.md",
        runs=("spirals",),
        pictures=("results/spirals/boundaries.png",),
    ),
    Claim(
        "leimkuhler-published-settings",
        PAPER,
        "Fashion-MNIST for 400 epochs with circles (c-CoLA), a ResNet-34 for 150 epochs with orthogonal kernels (o-CoLA), and a language model.",
        "not repeated: the recipes `fashion-mnist-cola-full` and `cifar10-cola-full` have the authors' settings for the first two, and were not run; those of the language model are not known to us. Short versions are the questions below",
        "–",
        "Needs an accelerator; besides the spirals no number of the paper is known to us, so there is nothing to compare with.",
        (),
        "recipes.md",
    ),
    Claim(
        "leimkuhler-circles",
        PAPER,
        "Do circles (c-CoLA) help against the same dynamics without them?",
        "784-1000-10, 10,000 images of Fashion-MNIST, the authors' step, friction, radii and batch, temperature 0, 15 epochs instead of 400",
        "a test loss that does not lie below, an accuracy that does not lie above",
        "15 epochs instead of 400. Against tuned SGD there is no gain (last rows).",
        (
            Number("circles minus the same without, test loss, nats", LOSSES, _PAIRED, loss_difference("circles as published", "Langevin T=0 as published"), below(0), "+.3f"),
            Number("circles minus the same without, accuracy, points", COLA, _PAIRED, accuracy_difference("circles as published", "Langevin T=0 as published"), above(0)),
            Number("circles minus tuned SGD, test loss, nats", LOSSES, _PAIRED, loss_difference("circles as published", "SGD"), None, "+.3f"),
            Number("circles minus tuned SGD, accuracy, points", COLA, _PAIRED, accuracy_difference("circles as published", "SGD"), None),
        ),
        "results/cola-fashion-mnist.md",
        is_papers=False,
        runs=("fashion-mnist-cola",),
        pictures=("results/cola-fashion-mnist/fashion-mnist-cola/differences.png",),
    ),
    Claim(
        "leimkuhler-orthogonal",
        PAPER,
        "Do orthogonal kernels (o-CoLA) and noise help a residual network?",
        "a narrow ResNet-20 with batch norm on CIFAR-10 (JPEG), 10,000 images, five epochs; against SGD with the best settings that any arm's tuning found, on fresh seeds; and a character model on the King James Bible",
        "differences that do not lie above zero",
        "Early training of small networks. SGD on the same manifolds is as good, so it is the constraint and not the sampler; in the language model orthogonal matrices hurt.",
        (
            Number("o-CoLA at temperature 0 minus SGD, fresh seeds, points", RESNET_FRESH, _PAIRED, accuracy_difference("o-CoLA-ud, temperature 0", "SGD", first_seed=5), above(0)),
            Number("noise: temperature 0.01 minus 0, with the constraint, points", RESNET, _PAIRED, accuracy_difference("o-CoLA-ud, temperature 0.01", "o-CoLA-ud, temperature 0"), above(0)),
            Number("language: orthogonal minus free, Langevin at temperature 1, token accuracy, points", LANGUAGE, _PAIRED, accuracy_difference("o-CoLA", "Langevin"), above(0)),
            Number("o-CoLA at temperature 0 minus SGD on the same manifolds, points", RESNET, _PAIRED, accuracy_difference("o-CoLA-ud, temperature 0", "Stiefel SGD"), None),
            Number("language: circles minus free, token accuracy, points", LANGUAGE, _PAIRED, accuracy_difference("c-CoLA", "Langevin"), None),
        ),
        "results/cola-resnet.md",
        is_papers=False,
        runs=("cifar10-cola", "cifar10-cola-seeds", "kjv-transformer"),
        pictures=("results/cola-resnet/cifar10-cola/differences.png",),
    ),
    Claim(
        "leimkuhler-uncertainty",
        PAPER,
        "Does one constrained chain replace a deep ensemble at equal compute?",
        "784-100-10, 10,000 images of Fashion-MNIST, 30 epochs in all, five networks averaged, four trials: a cyclical Langevin chain on Stiefel against five networks from scratch; negative log-likelihood (NLL) on clean, rotated and noisy test images",
        "an NLL that does not lie below the ensemble's",
        "One small network and data set. Part of it is the manifold (an ensemble on it gains too), and chains without noise do as well on clean images.",
        (
            *(Number(f"chain minus deep ensemble, NLL, {shift} images, nats", UNCERTAINTY, "as mean of the differences repetition by repetition, with Student's interval", ensemble("Stiefel chain", "deep ensemble", shift, "nll"), below(0), "+.4f") for shift in ("clean", "rotated", "noisy")),
            Number("chain minus ensemble on the same manifold, NLL, clean images, nats", UNCERTAINTY, "as mean of the differences repetition by repetition, with Student's interval", ensemble("Stiefel chain", "Stiefel deep ensemble", "clean", "nll"), None, "+.4f"),
            Number("chain minus the same without noise, NLL, clean images, nats", UNCERTAINTY, "as mean of the differences repetition by repetition, with Student's interval", ensemble("Stiefel chain", "Stiefel snapshots, temperature 0", "clean", "nll"), None, "+.4f"),
            Number("chain without a constraint minus deep ensemble, NLL, rotated images, nats", UNCERTAINTY, "as mean of the differences repetition by repetition, with Student's interval", ensemble("Langevin chain", "deep ensemble", "rotated", "nll"), None, "+.3f"),
        ),
        "results/uncertainty.md",
        is_papers=False,
        unit_of_n="repetitions",
        runs=("uncertainty",),
    ),
)  # fmt: skip
