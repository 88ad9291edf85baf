"""The settings that tuning tries, and the choice among them. Pure functions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.training.recipe import Recipe, TuneSettings

_DRAW_SEED = 0  # of the draws that all arms share; those of an arm's own ranges have the seeds after it


@dataclass(frozen=True)
class Trial:
    """One setting that tuning tries: dotted path of the recipe to value."""

    number: int
    settings: Mapping[str, Any]


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


def make_trials(tune: TuneSettings | None, recipes: Sequence[Recipe] = ()) -> tuple[Trial, ...]:
    """All settings that tuning tries: the product of a grid, or log-uniform draws that depend on the recipe alone.

    Args:
        tune: The recipe's `compare.tune`, or None for no tuning.
        recipes: What the tuned arms train. Where all of them have a whole number (`train.batch_size`) and both ends of
            a random range are whole, the draws are rounded: 23.7 images make no batch.
    """
    if tune is None:
        return ()
    if tune.grid is not None:
        rows = itertools.product(*tune.grid.values())
        return tuple(Trial(number, dict(zip(tune.grid, row, strict=True))) for number, row in enumerate(rows))
    search = tune.random
    if search is None:
        return ()
    whole = {path for path, ends in search.ranges.items() if _is_whole(path, ends, recipes)}
    generator = random.Random(_DRAW_SEED)
    trials: list[Trial] = []
    for number in range(search.trials):
        draws = {path: log_uniform(generator, low, high) for path, (low, high) in search.ranges.items()}
        trials.append(Trial(number, {path: round(x) if path in whole else x for path, x in draws.items()}))
    return tuple(trials)


def own_trials(shared: Sequence[Trial], ranges: Mapping[str, tuple[float, float]], recipe: Recipe) -> tuple[Trial, ...]:
    """The shared trials with an arm's own settings added: as many trials, and the shared draws untouched.

    With few trials, independent draws would leave wide gaps in a range of decades. So each of as many equal parts (in
    the logarithm) as there are trials is drawn in once, in random order. The first range of every arm has the same
    draws relative to its ends, and so have the second ones: no arm's method is luckier than another's.

    Args:
        shared: What `make_trials` gives.
        ranges: The arm's `ranges`.
        recipe: What the arm trains; decides which draws are whole numbers, as in `make_trials`.

    >>> from weightspace.training.recipe import load_recipe
    >>> shared = [Trial(0, {"train.optimizer.lr": 0.1}), Trial(1, {"train.optimizer.lr": 0.2})]
    >>> trials = own_trials(shared, {"train.clip_norm": (1e-2, 1.0)}, load_recipe("quickstart"))
    >>> [trial.settings["train.optimizer.lr"] for trial in trials]
    [0.1, 0.2]
    >>> low, high = sorted(trial.settings["train.clip_norm"] for trial in trials)
    >>> 0.01 <= low <= 0.1 <= high <= 1.0
    True
    """
    columns: dict[str, list[float]] = {}
    for place, (path, (low, high)) in enumerate(ranges.items(), start=1):
        generator = random.Random(_DRAW_SEED + place)
        parts = list(range(len(shared)))
        generator.shuffle(parts)
        ratio = math.log(high / low) / max(1, len(shared))
        ends = [(low * math.exp(ratio * part), low * math.exp(ratio * (part + 1))) for part in parts]
        draws = [min(max(log_uniform(generator, *end), low), high) for end in ends]
        columns[path] = [round(x) for x in draws] if _is_whole(path, (low, high), [recipe]) else draws
    return tuple(
        Trial(trial.number, {**trial.settings, **{path: draws[index] for path, draws in columns.items()}})
        for index, trial in enumerate(shared)
    )


def log_uniform(generator: random.Random, low: float, high: float) -> float:
    """A draw whose logarithm is uniform between those of `low` and `high`, rounded to four significant digits.

    >>> 0.01 <= log_uniform(random.Random(1), 0.01, 1.0) <= 1.0
    True
    """
    value = math.exp(generator.uniform(math.log(low), math.log(high)))
    return min(max(float(f"{value:.4g}"), low), high)


def choose(trials: Sequence[Trial], scores: Sequence[tuple[float, float]], *, by_loss: bool = False) -> Choice:
    """The trial with the highest validation accuracy; equals go to the lower loss, then to the earlier number.

    Args:
        trials: All trials of the plan.
        scores: Mean validation accuracy and mean validation loss (infinite when diverged) of each. A diverged trial
            never wins against one that did not diverge.
        by_loss: Whether the lowest loss wins, and the accuracy decides between equals: as language models are judged.

    >>> trials = [Trial(0, {"lr": 0.1}), Trial(1, {"lr": 0.2}), Trial(2, {"lr": 0.4})]
    >>> choose(trials, [(0.8, 0.5), (0.9, 0.4), (0.9, 0.3)]).edge
    ('lr',)
    """

    def rank(index: int) -> tuple[bool, float, float, int]:
        accuracy, loss = scores[index]
        first, second = (loss, -accuracy) if by_loss else (-accuracy, loss)
        return math.isinf(loss), first, second, index

    best = min(range(len(trials)), key=rank)
    return Choice(trials[best], scores[best][0], _edges(trials, trials[best]))


def value_at(values: Any, path: str) -> Any:
    """The value at a dotted path of nested dicts and lists; None where the path leads nowhere.

    >>> value_at({"rules": [{"smoothing": 4.0}]}, "rules.0.smoothing")
    4.0
    """
    here = values
    for part in path.split("."):
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            return None
    return here


def _is_whole(path: str, ends: tuple[float, float], recipes: Sequence[Recipe]) -> bool:
    values = [value_at(recipe.to_dict(), path) for recipe in recipes]
    return all(float(end).is_integer() for end in ends) and bool(values) and all(type(value) is int for value in values)


def _edges(trials: Sequence[Trial], best: Trial) -> tuple[str, ...]:
    edges: list[str] = []
    for path, value in best.settings.items():
        tried = [trial.settings[path] for trial in trials]
        if isinstance(value, bool) or not all(isinstance(other, int | float) for other in tried):
            continue  # words and booleans have no order, so no edge
        if min(tried) < max(tried) and value in (min(tried), max(tried)):
            edges.append(path)
    return tuple(edges)
