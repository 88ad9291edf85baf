"""Turns a recipe into the list of its jobs. Pure functions: the same recipe always gives the same plan.

The protocol: every tuned arm tries as many trials on the same tuning seeds, with the same values of what all arms tune,
judged on a held-out part of the training set; the best trial's settings are then trained on the whole
training set with seeds 0 .. n-1, the same for every arm, and judged on the test set. An arm with `tune: false` uses the
recipe's own settings and has only the final stage.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from weightspace.compare.trials import Trial, make_trials, own_trials
from weightspace.errors import RecipeError
from weightspace.training.recipe import CompareSettings, Recipe

Stage = Literal["tune", "final"]

FIRST_TUNING_SEED = 1000  # far from the final seeds 0 .. n-1: no run that chose a setting is also counted for it
HOLD_OUT_SEED = 0  # one held-out part for all arms and trials
_LONGEST_SLUG = 60
# What decides images or text; only augmentation may differ.
_SHARED_DATA = ("name", "root", "train_size", "test_size", "level", "context")


@dataclass(frozen=True)
class Arm:
    """One arm: its name, folder name, position in the recipe, and the recipe it trains before tuned values are set.

    `trials` are the settings it tries, those that it alone tunes (`own_paths`) included; none for an arm that is not
    tuned.
    """

    name: str
    slug: str
    index: int
    tuned: bool
    recipe: Recipe
    trials: tuple[Trial, ...] = ()
    own_paths: tuple[str, ...] = ()


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
    """A recipe's arms, trials and seeds. `tuning_jobs` and `final_jobs` list its runs.

    `trials` hold what all tuned arms share; what an arm tries is `Arm.trials`.
    """

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


def make_plan(recipe: Recipe, slugs: Mapping[str, str] | None = None) -> Plan:
    """Plan the comparison that a recipe describes.

    Args:
        recipe: A recipe with a `compare` part.
        slugs: Folder names that arms have already, from `compare.json`: they are kept, whatever the order of the arms.

    Raises:
        RecipeError: The recipe has no `compare` part; a tuned arm itself sets what tuning sets; or an arm would be
            tested on other images than the rest.
    """
    settings = recipe.compare
    if settings is None:
        raise RecipeError(
            f"recipe '{recipe.name}' has no 'compare' part; add one with baseline and arms, or use `train`"
        )
    recipes = {name: recipe.for_arm(name) for name in settings.arms}
    tuned = [recipes[name] for name, arm in settings.arms.items() if arm.tune]
    trials = make_trials(settings.tune, tuned)
    _refuse_tuned_data("compare.tune", trials[0].settings if trials else {})
    folders = make_slugs(settings.arms, slugs)
    arms: list[Arm] = []
    for index, (name, arm) in enumerate(settings.arms.items()):
        _refuse_other_data(name, recipes[name], recipe)
        is_tuned = arm.tune and bool(trials)
        overwritten = sorted(set(arm.set) & set(trials[0].settings)) if is_tuned else []
        if overwritten:
            raise RecipeError(
                f"arm '{name}' sets {overwritten[0]}, which tuning would overwrite; "
                f"give the arm `tune: false` or leave {overwritten[0]} out of its `set`"
            )
        _refuse_tuned_data(f"compare.arms.{name}.ranges", arm.ranges)
        own = own_trials(trials, arm.ranges, recipes[name]) if is_tuned else ()
        arms.append(Arm(name, folders[name], index, is_tuned, recipes[name], own, tuple(arm.ranges)))
    tuning_seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (settings.tune.seeds if settings.tune else 0))
    return Plan(recipe, settings, tuple(arms), trials, tuple(tuning_seeds), tuple(range(settings.seeds)))


def tuning_jobs(plan: Plan, arm: Arm) -> tuple[Job, ...]:
    """Every tuning run of one arm: trials x tuning seeds; none for an arm that is not tuned."""
    return tuple(
        Job(
            *(arm.name, arm.slug, "tune", trial.number, seed, arm.recipe.with_overrides(trial.settings)),
            order=(0, seed, trial.number, arm.index),
        )
        for trial in arm.trials
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


def make_slugs(names: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """A different folder name for each arm name: lower-case letters, digits and `-`.

    Args:
        names: The arms' names.
        known: Folder names of arms that have one already; the others get free ones.

    >>> make_slugs(["tuned SGD", "tuned-sgd", "λ"])
    {'tuned SGD': 'tuned-sgd', 'tuned-sgd': 'tuned-sgd-2', 'λ': 'arm'}
    >>> make_slugs(["tuned SGD", "tuned-sgd"], {"tuned-sgd": "tuned-sgd"})
    {'tuned SGD': 'tuned-sgd-2', 'tuned-sgd': 'tuned-sgd'}
    """
    known = known or {}
    taken = set(known.values())
    slugs: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_SLUG] or "arm"
        candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        slugs[name] = known[name] if name in known else next(slug for slug in candidates if slug not in taken)
        taken.add(slugs[name])
    return slugs


def _refuse_tuned_data(key: str, paths: Iterable[str]) -> None:
    for path in paths:
        if path == "data" or path.removeprefix("data.") in _SHARED_DATA:
            raise RecipeError(f"{key} sets {path}, but all runs share their images; leave it out")


def _refuse_other_data(name: str, arm: Recipe, base: Recipe) -> None:
    for key in _SHARED_DATA:
        own, shared = getattr(arm.data, key), getattr(base.data, key)
        if own != shared:
            raise RecipeError(
                f"arm '{name}' sets data.{key} to {own} (the recipe: {shared}), but all arms of a comparison share "
                f"their images, or a seed's difference would not come from the arm; leave it out of the arm's `set`"
            )
