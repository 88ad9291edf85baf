"""Ozay and Okatani: SGD on submanifolds of convolution kernels (arXiv 1610.07008, with 1701.06123 and 1905.09054)."""

from __future__ import annotations

from typing import Any

from claims.intervals import Interval, geometric, share, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import accuracy_difference, largest
from claims.verdicts import above, at_least, at_most, below

PAPER = Paper(
    "ozay",
    "Ozay and Okatani: kernels on submanifolds",
    "M. Ozay, T. Okatani",
    "1610.07008",
    "Normalizing kernels means to keep them on a curved surface inside the space of all kernels: a sphere (norm one), an oblique manifold (every filter of norm one), a compact Stiefel manifold (orthonormal). SGD then moves along the surface instead of being corrected afterwards. Follow-ups by the same authors (1701.06123, 1905.09054) combine several surfaces in one layer.",
)
PROBLEMS = "results/manifold-problems/results.json"
FRESH = {
    "Fashion-MNIST, batch norm": "fashion-mnist-submanifolds-seeds",
    "Fashion-MNIST, no batch norm": "fashion-mnist-submanifolds-nonorm-seeds",
    "CIFAR-10 (JPEG), batch norm": "cifar10-submanifolds-seeds",
}
TABLES = {
    "Fashion-MNIST, batch norm": "fashion-mnist-submanifolds",
    "Fashion-MNIST, no batch norm": "fashion-mnist-submanifolds-nonorm",
    "CIFAR-10 (JPEG), batch norm": "cifar10-submanifolds",
    "CIFAR-10 (JPEG), no batch norm": "cifar10-submanifolds-nonorm",
}
FIRST_FRESH = 5  # seeds 0 to 4 chose nothing, but suggested the second look
NAMES = (
    "sphere, each filter",
    "oblique, each row",
    "Stiefel, the kernel's rows",
    "orthogonal within a channel: each 3 x 3 slice",
)
_PAIRED = "as mean of the differences seed by seed, with Student's interval"
_LARGEST = "as the largest over all cases, an exact number"


def _distance(manifold: str) -> Measure:
    return largest(lambda f: [c["distance"] for c in f["cases"] if c["manifold"] == manifold])


def _product_distance(over: str) -> Measure:
    return largest(lambda f: [c["distance"] for c in f["cases"] if c["over"] == over])


def _reached(found: Any, level: float) -> Interval:
    """Share of instances at a gap below 1e-6."""
    gaps = [case["gap"] for case in found["cases"]]
    return share(sum(gap < 1e-6 for gap in gaps), len(gaps), level)


def _slope(problem: str, exponent: str) -> Measure:
    def measure(found: Any, level: float) -> Interval:
        return student(found["schedules"][problem][exponent]["slopes"], level)

    return measure


def _last_gap(problem: str, exponent: str) -> Measure:
    def measure(found: Any, level: float) -> Interval:
        return geometric(found["schedules"][problem][exponent]["final"], level)

    return measure


def widths(found: Any, loss: str, problem: str, gradients: str) -> dict[str, list[float]]:
    """Decades of learning rates whose final gap is within 0.01 of the best of both step sizes, by seed."""
    sweep = found["sweep"][loss][problem][gradients]
    result: dict[str, list[float]] = {"plain": [], "curvature": []}
    for plain, curvature in zip(sweep["plain"], sweep["curvature"], strict=True):
        best = min(*_finite(plain), *_finite(curvature))
        for name, gaps in (("plain", plain), ("curvature", curvature)):
            result[name].append(0.5 * sum(gap is not None and gap <= best + 0.01 for gap in gaps))
    return result


def _finite(gaps: list[float | None]) -> list[float]:
    return [gap for gap in gaps if gap is not None]


def _wider(loss: str, problem: str, gradients: str) -> Measure:
    def measure(found: Any, level: float) -> Interval:
        both = widths(found, loss, problem, gradients)
        return student([c - p for c, p in zip(both["curvature"], both["plain"], strict=True)], level)

    return measure


_SCHEDULED = ("Rayleigh quotient, Sphere", "weighted PCA, Stiefel", "Procrustes, Orthogonal")

CLAIMS = (
    Claim(
        "ozay-manifolds",
        PAPER,
        "Normalized kernels are points of a sphere, an oblique or a compact Stiefel manifold; kernels are orthonormal within a channel. An SGD moves on them along the exponential map or a retraction.",
        "100 steps of SubmanifoldSGD (momentum, step-size rule, float32) on a small network, by retraction and along geodesics, three seeds: by how much norms or Gram matrices, computed apart from the library, then differ from one or the identity",
        "a distance above 1e-5 (float32 resolves 1e-7)",
        "Which grouping of a kernel's numbers is a point is told apart by name here, since the published steps are ambiguous about it.",
        tuple(Number(f"{name}: largest distance", "claims/on-manifold.json", _LARGEST, _distance(name), at_most(1e-5), ".0e") for name in NAMES),
        "manifolds/index.md",
        unit_of_n="updates x seeds",
        runs=("on-manifold",),
    ),
    Claim(
        "ozay-convergence",
        PAPER,
        "With a step-size rule this SGD converges to a solution at a single minimum.",
        "Rayleigh quotient, weighted PCA and Procrustes problems on four manifolds, whose optima linear algebra knows: gap after 1,000 steps on ten fresh instances of each, by both updates (all samples); and under noise, the slope of the gap in log step with learning rates 1/(1 + 0.1 t)^a, which theory puts at -a (quadratic losses)",
        "fewer than nine in ten instances at the optimum, or gaps that do not fall under noise with a decaying learning rate",
        "The rule's form is our derivation after Bonnabel 2013; the printed one was not at hand. Almost-sure convergence is a statement about infinitely many steps; this is ten thousand. The losses are quadratic, on 4 x 16 weights.",
        (
            Number("instances with a gap below 1e-6, share", "claims/known-optima.json", "by counting, with Clopper and Pearson's interval", _reached, at_least(0.9), ".3f"),
            *(Number(f"{p}, a = {a}: slope under noise", PROBLEMS, "as mean over seeds with Student's interval", _slope(p, a), below(0)) for p in _SCHEDULED for a in ("0.6", "0.75", "0.9")),
            *(Number(f"{p}, constant rate: slope", PROBLEMS, "as mean over seeds with Student's interval", _slope(p, "0"), None) for p in _SCHEDULED),
            *(Number(f"{p}, a = 0.75: gap at the end", PROBLEMS, "as geometric mean over seeds with Student's interval of the logarithms", _last_gap(p, "0.75"), None, ".0e") for p in _SCHEDULED),
        ),
        "results/manifold-problems.md",
        unit_of_n="instances or seeds",
        runs=("known-optima", "manifold-problems"),
        pictures=("results/manifold-problems/schedules.png",),
    ),
    Claim(
        "ozay-products",
        PAPER,
        "(Follow-ups.) Products of submanifolds over input channels, output channels or both.",
        "one half of a layer's slices on spheres and the other half orthogonal, drawn at random over input channels, output channels or single slices; 100 steps, five seeds: distance of both halves, computed apart from the library",
        "a distance above 1e-5",
        "That they can be trained on is tested, not what they are good for: see the questions.",
        tuple(Number(f"shared out over {over}s: largest distance".replace("inputs", "input channels").replace("outputs", "output channels"), "claims/products.json", _LARGEST, _product_distance(over), at_most(1e-5), ".0e") for over in ("input", "output", "slice")),
        "manifolds/product.md",
        runs=("products",),
    ),
    Claim(
        "ozay-stiefel",
        PAPER,
        "Do orthonormal kernels (Stiefel) give a more accurate network than tuned SGD with weight decay?",
        "a narrow ResNet-20 on Fashion-MNIST and CIFAR-10 (JPEG), with and without batch norm, 10,000 images, 3 to 5 epochs, six trials for every arm; the first three on fresh seeds that chose and suggested nothing",
        "differences to tuned SGD that do not lie above zero",
        "Early training of a narrow network; SGD had as many trials, but six are few. The fourth network, where Stiefel was not ahead, was not run again with fresh seeds.",
        (
            *(Number(f"Stiefel minus SGD, {name}, fresh seeds, points", f"results/submanifolds/{table}/table.json", _PAIRED, accuracy_difference("Stiefel", "SGD", first_seed=FIRST_FRESH), above(0)) for name, table in reversed(FRESH.items())),
            Number("Stiefel minus SGD, CIFAR-10 (JPEG), no batch norm, points", f"results/submanifolds/{TABLES['CIFAR-10 (JPEG), no batch norm']}/table.json", _PAIRED, accuracy_difference("Stiefel", "SGD"), above(0)),
        ),
        "results/submanifolds.md",
        is_papers=False,
        runs=(*FRESH.values(), "cifar10-submanifolds-nonorm"),
        pictures=("results/submanifolds/cifar10-submanifolds/differences.png",),
    ),
    Claim(
        "ozay-spheres",
        PAPER,
        "Do spheres, oblique manifolds or ensembles of manifolds?",
        "the same four networks, five seeds",
        "differences to tuned SGD that do not lie above zero",
        "As above. Sphere and oblique manifold are one set of weights here, with different step sizes.",
        tuple(Number(f"{arm} minus SGD, {name}, points", f"results/submanifolds/{table}/table.json", _PAIRED, accuracy_difference(arm, "SGD"), above(0)) for arm in ("Sphere", "Oblique", "Ensemble") for name, table in TABLES.items()),
        "results/submanifolds.md",
        is_papers=False,
        runs=tuple(TABLES.values()),
    ),
    Claim(
        "ozay-tuning",
        PAPER,
        "Does the step-size rule spare the search for a learning rate?",
        "seventeen learning rates over eight decades on five problems, losses once and a hundred times as steep, with and without noise: how many decades of rates end within 0.01 of the best gap, curvature minus plain",
        "differences that do not lie above zero",
        "300 steps, quadratic problems. The rule promises convergence in the limit, not this; where it fails it fails more gently.",
        tuple(
            Number(f"{problem}, loss x {loss}, {gradients}: decades", PROBLEMS, _PAIRED, _wider(loss, problem, gradients), above(0))
            for loss in ("1", "100")
            for gradients in ("all samples", "minibatches")
            for problem in ("Rayleigh quotient, Sphere", "weighted PCA, Oblique", "weighted PCA, Stiefel", "Procrustes, Stiefel", "Procrustes, Orthogonal")
        ),
        "results/manifold-problems.md",
        is_papers=False,
        runs=("manifold-problems",),
        pictures=("results/manifold-problems/sweep.png",),
    ),
)  # fmt: skip
