"""The matrix metric x manifold x penalty x gate on one task: which combinations help, which fight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from claims.intervals import Interval, paired, student
from claims.model import Claim, Measure, Number, Paper
from claims.sources import shared
from claims.verdicts import above

PAPER = Paper(
    "combined",
    "Combined methods",
    "the methods of several papers at once",
    "",
    "Rules can be attached together: a metric for the gradient, a manifold for the kernels, a penalty, and a gate on the penalty. Every combination was trained on one task. A combination *helps together* if it does more than the sum of what its parts do alone, it *fights* if it does less (below: contradicted).",
)
SOURCE = "results/combinations/results.json"
METRICS = ("none", "ChannelL2")
MANIFOLDS = ("none", "Sphere", "Stiefel")
PENALTIES = ("none", "L1", "L1 gated", "SingularValueBand", "SingularValueBand gated")
LEVELS = (METRICS, MANIFOLDS, PENALTIES)
FACTORS = ("metric", "manifold", "penalty")
_PAIRED = "as mean of the differences seed by seed, with Student's interval"

Cell = tuple[str, ...]


def cell_name(levels: Cell) -> str:
    """What the experiment calls it.

    >>> cell_name(("none", "Stiefel", "L1 gated")), cell_name(("none", "none", "none"))
    ('Stiefel + L1 gated', 'plain')
    """
    return " + ".join(level for level in levels if level != "none") or "plain"


def accuracies(found: Any, levels: Cell) -> dict[int, float]:
    """Test accuracy by seed, fractions."""
    return {int(run["seed"]): float(run["accuracy"]) for run in found["cells"][cell_name(levels)]["runs"]}


def minus_plain(levels: Cell) -> Measure:
    """A combination minus none of the rules, points."""

    def measure(found: Any, level: float) -> Interval:
        return paired(*shared(accuracies(found, levels), accuracies(found, ("none",) * 3)), level).scaled(100)

    return measure


def contrast(found: Any, terms: Sequence[tuple[float, Cell]]) -> list[float]:
    """A weighted sum of cells, seed by seed, over the seeds that all have; points."""
    values = [accuracies(found, levels) for _, levels in terms]
    seeds = sorted(set.intersection(*map(set, values)))
    return [100 * sum(weight * of[seed] for (weight, _), of in zip(terms, values, strict=True)) for seed in seeds]


def interaction(first: int, one: str, second: int, other: str) -> Measure:
    """Both levels together minus what each does alone, averaged over the third factor, points."""
    third = next(f for f in range(3) if f not in (first, second))
    terms: list[tuple[float, Cell]] = []
    for (a, sign_a), (b, sign_b), rest in itertools.product(
        ((one, 1), ("none", -1)), ((other, 1), ("none", -1)), LEVELS[third]
    ):
        levels = {first: a, second: b, third: rest}
        terms.append((sign_a * sign_b / len(LEVELS[third]), tuple(levels[f] for f in range(3))))
    return lambda found, level: student(contrast(found, terms), level)


def gate_effect(penalty: str, manifold: str) -> Measure:
    """Gated minus always on, averaged over metrics, points."""
    terms: list[tuple[float, Cell]] = []
    for metric in METRICS:
        terms += [
            (1 / len(METRICS), (metric, manifold, f"{penalty} gated")),
            (-1 / len(METRICS), (metric, manifold, penalty)),
        ]
    return lambda found, level: student(contrast(found, terms), level)


def matrix(found: Any) -> list[str]:
    """Mean accuracies, %: penalties by metric and manifold."""
    columns = list(itertools.product(METRICS, MANIFOLDS))
    heads = [" + ".join(level for level in column if level != "none") or "none" for column in columns]
    lines = [f"| penalty | {' | '.join(heads)} |", "|:---|" + "---:|" * len(columns)]
    for penalty in PENALTIES:
        means = [list(accuracies(found, (*column, penalty)).values()) for column in columns]
        lines.append(f"| {penalty} | " + " | ".join(f"{100 * sum(m) / len(m):.2f}" for m in means) + " |")
    return ["Mean test accuracy, %:", "", *lines]


CELLS = tuple(levels for levels in itertools.product(*LEVELS) if set(levels) != {"none"})
_PAIRS = tuple(
    (first, one, second, other)
    for first, second in ((0, 1), (0, 2), (1, 2))
    for one in LEVELS[first][1:]
    for other in LEVELS[second][1:]
)
_TASK = "one convolutional network on Fashion-MNIST, every combination of metric, manifold and penalty (30 arms), each with its own learning rate, equal seeds"

CLAIMS = (
    Claim(
        "combined-accuracy",
        PAPER,
        "Does a rule, or a combination of rules, give a more accurate network than none?",
        _TASK,
        "differences to the plain network that do not lie above zero",
        "One network and data set, one strength of each penalty; a small gain needs more seeds than a Bonferroni rule over 29 combinations leaves.",
        tuple(Number(f"{cell_name(levels)} minus plain, points", SOURCE, _PAIRED, minus_plain(levels), above(0)) for levels in CELLS),
        "results/combinations.md",
        rule="any",
        is_papers=False,
        runs=("combinations",),
        extra=(SOURCE, matrix),
    ),
    Claim(
        "combined-together",
        PAPER,
        "Do two rules help one another?",
        _TASK + ": what both do together minus what each does alone, averaged over the third factor",
        "interactions that do not lie above zero; below zero the two fight",
        "An interaction has twice the noise of a difference.",
        tuple(Number(f"{one} with {other}, points", SOURCE, _PAIRED, interaction(first, one, second, other), above(0)) for first, one, second, other in _PAIRS),
        "results/combinations.md",
        rule="any",
        is_papers=False,
        runs=("combinations",),
    ),
    Claim(
        "combined-gate",
        PAPER,
        "Does a gate on a penalty help, on every manifold?",
        _TASK + ": gated minus always on, averaged over the metrics",
        "differences that do not lie above zero",
        "One strength of each penalty; a gate also means less penalty, so part of this is what a weaker one would do.",
        tuple(Number(f"{penalty}, kernels on {manifold}: gated minus always on, points".replace("on none", "free"), SOURCE, _PAIRED, gate_effect(penalty, manifold), above(0)) for penalty in ("L1", "SingularValueBand") for manifold in MANIFOLDS),
        "results/combinations.md",
        is_papers=False,
        runs=("combinations",),
    ),
)  # fmt: skip
