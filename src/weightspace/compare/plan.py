"""Turns a recipe into the list of its jobs. Pure functions: the same recipe always gives the same plan.

The protocol: every tuned arm tries the same trials on the same tuning seeds, judged on a held-out part of the training
set; the best trial's settings are then trained on the whole training set with seeds 0 .. n-1, the same for every arm,
and judged on the test set. An arm with `tune: false` uses the recipe's own settings and has only the final stage.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weightspace.errors import RecipeError
from weightspace.training.recipe import CompareSettings, Recipe, TuneSettings

Stage = Literal["tune", "final"]

FIRST_TUNING_SEED = 1000  # far from the final seeds 0 .. n-1: no run that chose a setting is also counted for it
HOLD_OUT_SEED = 0  # one held-out part for all arms and trials
_DRAW_SEED = 0
_LONGEST_SLUG = 60


@dataclass(frozen=True)
class Arm:
    """One arm: its name, folder name, position in the recipe, and the recipe it trains before tuned values are set."""

    name: str
    slug: str
    index: int
    tuned: bool
    recipe: Recipe


@dataclass(frozen=True)
class Trial:
    """One setting that tuning tries: dotted path of the recipe to value."""

    number: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run of the comparison.

    Attributes:
        arm: Name of the arm.
        slug: The arm's folder name.
        stage: `tune` (held-out part of the training set) or `final` (test set).
        trial: Number of the trial; in the final stage the chosen one, or None for an arm that is not tuned.
        seed: Seed of the run.
        recipe: Fully resolved: nothing else decides the run.
        order: Sorting key: tuning before final, and arms interleaved over seeds, so that a drift of the machine's speed
            falls on all arms alike.
    """

    arm: str
    slug: str
    stage: Stage
    trial: int | None
    seed: int
    recipe: Recipe
    order: tuple[int, ...]

    @property
    def directory(self) -> str:
        """Folder of the run below the comparison's folder, with `/` between its parts."""
        if self.stage == "tune":
            return f"arms/{self.slug}/tune/{self.trial}-seed{self.seed}"
        return f"arms/{self.slug}/final/seed{self.seed}"

    @property
    def name(self) -> str:
        """The job in words, for progress lines and errors."""
        if self.stage == "tune":
            return f"{self.arm}, tuning trial {self.trial}, seed {self.seed}"
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A recipe's arms, trials and seeds. `tuning_jobs` and `final_jobs` list its runs."""

    recipe: Recipe
    settings: CompareSettings
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    tuning_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]

    @property
    def validation_fraction(self) -> float:
        """Part of the training set that tuning is judged on; 0 where nothing is tuned."""
        return self.settings.tune.validation_fraction if self.settings.tune is not None else 0.0

    @property
    def total(self) -> int:
        """Number of runs of the whole comparison."""
        tuned = sum(arm.tuned for arm in self.arms)
        return tuned * len(self.trials) * len(self.tuning_seeds) + len(self.arms) * len(self.final_seeds)


@dataclass(frozen=True)
class Choice:
    """What tuning chose for an arm.

    Attributes:
        trial: The best trial.
        score: Its mean validation accuracy, 0 to 1.
        edge: Tuned paths whose best value is the smallest or largest tried: the best may lie beyond.
    """

    trial: Trial
    score: float
    edge: tuple[str, ...]


def make_plan(recipe: Recipe) -> Plan:
    """Plan the comparison that a recipe describes.

    Args:
        recipe: A recipe with a `compare` part.

    Raises:
        RecipeError: The recipe has no `compare` part, or a tuned arm itself sets what tuning sets.
    """
    settings = recipe.compare
    if settings is None:
        raise RecipeError(
            f"recipe '{recipe.name}' has no 'compare' part; add one with baseline and arms, or use `train`"
        )
    trials = make_trials(settings.tune)
    slugs = make_slugs(settings.arms)
    arms: list[Arm] = []
    for index, (name, arm) in enumerate(settings.arms.items()):
        tuned = arm.tune and bool(trials)
        overwritten = sorted(set(arm.set) & set(trials[0].settings)) if tuned else []
        if overwritten:
            raise RecipeError(
                f"arm '{name}' sets {overwritten[0]}, which tuning would overwrite; "
                f"give the arm `tune: false` or leave {overwritten[0]} out of its `set`"
            )
        arms.append(Arm(name, slugs[name], index, tuned, recipe.for_arm(name)))
    tuning_seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (settings.tune.seeds if settings.tune else 0))
    return Plan(recipe, settings, tuple(arms), trials, tuple(tuning_seeds), tuple(range(settings.seeds)))


def make_trials(tune: TuneSettings | None) -> tuple[Trial, ...]:
    """All settings that tuning tries: the product of a grid, or log-uniform draws that depend on the recipe alone.

    Args:
        tune: The recipe's `compare.tune`, or None for no tuning.
    """
    if tune is None:
        return ()
    if tune.grid is not None:
        rows = itertools.product(*tune.grid.values())
        return tuple(Trial(number, dict(zip(tune.grid, row, strict=True))) for number, row in enumerate(rows))
    search = tune.random
    if search is None:
        return ()
    generator = random.Random(_DRAW_SEED)
    return tuple(
        Trial(number, {path: log_uniform(generator, low, high) for path, (low, high) in search.ranges.items()})
        for number in range(search.trials)
    )


def log_uniform(generator: random.Random, low: float, high: float) -> float:
    """A draw whose logarithm is uniform between those of `low` and `high`, rounded to four significant digits.

    >>> 0.01 <= log_uniform(random.Random(1), 0.01, 1.0) <= 1.0
    True
    """
    value = math.exp(generator.uniform(math.log(low), math.log(high)))
    return min(max(float(f"{value:.4g}"), low), high)


def tuning_jobs(plan: Plan, arm: Arm) -> tuple[Job, ...]:
    """Every tuning run of one arm: trials x tuning seeds; none for an arm that is not tuned."""
    if not arm.tuned:
        return ()
    return tuple(
        Job(
            *(arm.name, arm.slug, "tune", trial.number, seed, arm.recipe.with_overrides(trial.settings)),
            order=(0, seed, trial.number, arm.index),
        )
        for trial in plan.trials
        for seed in plan.tuning_seeds
    )


def final_jobs(plan: Plan, arm: Arm, trial: Trial | None) -> tuple[Job, ...]:
    """Every final run of one arm.

    Args:
        plan: The plan.
        arm: One of its arms.
        trial: The chosen trial; None for an arm that is not tuned.
    """
    recipe = arm.recipe.with_overrides(trial.settings) if trial is not None else arm.recipe
    number = trial.number if trial is not None else None
    return tuple(
        Job(arm.name, arm.slug, "final", number, seed, recipe, order=(1, seed, 0, arm.index))
        for seed in plan.final_seeds
    )


def choose(trials: Sequence[Trial], scores: Sequence[tuple[float, float]]) -> Choice:
    """The trial with the highest validation accuracy; equals go to the lower loss, then to the earlier number.

    Args:
        trials: All trials of the plan.
        scores: Mean validation accuracy and mean validation loss (infinite when diverged) of each. A diverged trial
            never wins against one that did not diverge.

    >>> trials = [Trial(0, {"lr": 0.1}), Trial(1, {"lr": 0.2}), Trial(2, {"lr": 0.4})]
    >>> choose(trials, [(0.8, 0.5), (0.9, 0.4), (0.9, 0.3)]).edge
    ('lr',)
    """
    best = min(
        range(len(trials)), key=lambda index: (math.isinf(scores[index][1]), -scores[index][0], scores[index][1], index)
    )
    return Choice(trials[best], scores[best][0], _edges(trials, trials[best]))


def make_slugs(names: Iterable[str]) -> dict[str, str]:
    """A different folder name for each arm name: lower-case letters, digits and `-`.

    >>> make_slugs(["tuned SGD", "tuned-sgd", "λ"])
    {'tuned SGD': 'tuned-sgd', 'tuned-sgd': 'tuned-sgd-2', 'λ': 'arm'}
    """
    slugs: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_SLUG] or "arm"
        taken = set(slugs.values())
        candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        slugs[name] = next(slug for slug in candidates if slug not in taken)
    return slugs


def _edges(trials: Sequence[Trial], best: Trial) -> tuple[str, ...]:
    edges: list[str] = []
    for path, value in best.settings.items():
        tried = [trial.settings[path] for trial in trials]
        if isinstance(value, bool) or not all(isinstance(other, int | float) for other in tried):
            continue  # words and booleans have no order, so no edge
        if min(tried) < max(tried) and value in (min(tried), max(tried)):
            edges.append(path)
    return tuple(edges)
