"""The words around a comparison's table: its title, what the columns mean, settings and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightspace.compare.results import Comparison

NO_VALUE = "–"
OWN_SETTINGS = "own settings"


def table_title(comparison: Comparison) -> str:
    """Recipe, data and model in one line."""
    recipe, data = comparison.plan.recipe, comparison.facts.get("data") or {}
    label = data.get("label") or data.get("name") or recipe.data.name
    return f"{recipe.name}: {label}, {recipe.model.name}, {counted(recipe.train.epochs, 'epoch')}"


def table_notes(comparison: Comparison) -> list[str]:
    """What the columns mean: interval, n, baseline, budget, time."""
    plan = comparison.plan
    interval = (
        f"Intervals: two-sided Student t, {100 * comparison.level:g}%, over n seeds (seeds 0 to "
        f"{len(plan.final_seeds) - 1}, the same for every arm)."
    )
    if len(plan.final_seeds) == 1:
        interval = "Intervals: none; they take at least two seeds, and this comparison has one (seed 0)."
    edge = any(arm.choice is not None and arm.choice.edge for arm in comparison.arms)
    return [
        interval,
        *_measures(comparison),
        f"Differences: to {plan.settings.baseline}, seed by seed, in percentage points; intervals not adjusted.",
        "p: paired t-test with Holm's adjustment over all arms that were tested.",
        budget_text(comparison),
        "ms/step: median over a run's steps, of the fastest seed; the ratio is to the baseline.",
        *(["* at the edge of what was tried: a better value may lie beyond."] if edge else []),
    ]


def _measures(comparison: Comparison) -> list[str]:
    """What accuracy is, and perplexity where the data are text."""
    if not comparison.is_text:
        return ["Accuracy: on the test set, after the last epoch."]
    classes = (comparison.facts.get("data") or {}).get("classes")
    guessing = f"; guessing has {classes:,}" if isinstance(classes, int) else ""
    return [
        f"Perplexity: e to the mean test loss per token, after the last epoch{guessing}; the lower the better.",
        "Trials are chosen by the validation loss.",
        "Accuracy: part of the test tokens that are the most probable one; differences and tests are of it.",
    ]


def budget_text(comparison: Comparison) -> str:
    """The tuning budget in one sentence."""
    plan, tune = comparison.plan, comparison.plan.settings.tune
    if tune is None:
        return "Tuning: none; every arm uses the recipe's settings."
    kind = "grid" if tune.grid is not None else "random draws, log-uniform"
    paths = ", ".join(path_words(path) for path in tuned_paths(comparison))
    trials, seeds = counted(len(plan.trials), "trial"), counted(len(plan.tuning_seeds), "seed")
    owners = sum(bool(arm.own_paths) for arm in plan.arms)
    if owners:
        own = " or ".join(own_words(comparison))
        paths += f", for {counted(owners, 'arm')} also {own} in a range of the arm's own"
    return (
        f"Tuning: {trials} ({paths}; {kind}) x {seeds} for every tuned arm, "
        f"judged on {tune.validation_fraction:.0%} of the training set held out; tuning never saw the test set."
    )


def tuned_paths(comparison: Comparison) -> list[str]:
    """The paths that tuning sets for every arm; the learning rate where nothing is tuned: readers look for it."""
    return list(comparison.plan.trials[0].settings) if comparison.plan.trials else ["train.optimizer.lr"]


def own_heading(comparison: Comparison) -> str | None:
    """Heading of the column with what arms tune for themselves; None where no arm does."""
    words, shared = own_words(comparison), map(path_words, tuned_paths(comparison))
    if len(words) > 1 or (words and words[0] in shared):
        return OWN_SETTINGS
    return words[0] if words else None


def own_words(comparison: Comparison) -> list[str]:
    """The paths that arms tune for themselves, in words, each once."""
    return list(dict.fromkeys(path_words(path) for arm in comparison.plan.arms for path in arm.own_paths))


def path_words(path: str) -> str:
    """A tuned path in words.

    >>> path_words("train.optimizer.lr"), path_words("train.batch_size"), path_words("rules.0.smoothing")
    ('learning rate', 'batch size', 'smoothing')
    >>> path_words("rules.0.weight"), path_words("train.optimizer.options.weight_decay")
    ('penalty weight', 'weight decay')
    """
    last = path.rpartition(".")[2]
    if path.startswith("rules.") and last == "weight":  # "weight" alone would be taken for a weight of the network
        return "penalty weight"
    return "learning rate" if last == "lr" else last.replace("_", " ")


def settings_text(settings: Mapping[str, Any], *, named: bool = False) -> str:
    """Tuned values as text: the number alone for one path, `name=value` for more, or where it is asked for.

    >>> settings_text({"train.optimizer.lr": 0.05})
    '0.05'
    >>> settings_text({"train.optimizer.lr": 0.05, "train.batch_size": 32})
    'lr=0.05, batch_size=32'
    >>> settings_text({"rules.0.weight": 0.001}, named=True)
    'weight=0.001'
    """
    values = {path: f"{v:g}" if isinstance(v, float) else str(v) for path, v in settings.items()}
    if len(values) == 1 and not named:
        return next(iter(values.values()))
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in values.items())


def p_text(p_value: float | None) -> str:
    """A p-value as text.

    >>> p_text(0.00012), p_text(0.0314), p_text(1.0), p_text(None)
    ('<0.001', '0.031', '1.000', '–')
    """
    if p_value is None:
        return NO_VALUE
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
