"""The table of a comparison: JSON for programs, Markdown for pages, rich for terminals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from weightspace.compare.results import ArmResult, Comparison, read_comparison
from weightspace.compare.statistics import Estimate
from weightspace.compare.verdict import path_words, verdict, warnings
from weightspace.training.files import write_json_atomically, write_text_atomically

TABLE_JSON = "table.json"
TABLE_MARKDOWN = "table.md"
_NONE = "–"


def write_tables(run_dir: Path) -> Path:
    """Write `table.json` and `table.md` of a comparison, finished or not.

    Args:
        run_dir: Folder of the comparison.

    Returns:
        Path of `table.md`.

    Raises:
        RunError: Not a comparison's folder, or not writable.
    """
    comparison = read_comparison(run_dir)
    write_json_atomically(run_dir / TABLE_JSON, table_values(comparison))
    write_text_atomically(run_dir / TABLE_MARKDOWN, markdown_table(comparison))
    return run_dir / TABLE_MARKDOWN


def comparison_table(run_dir: Path) -> Table:
    """The table for a terminal, with verdict and warnings below it.

    Args:
        run_dir: Folder of the comparison, finished or not.

    Raises:
        RunError: Not a comparison's folder.
    """
    comparison = read_comparison(run_dir)
    caption = "\n".join([*verdict(comparison), "", *table_notes(comparison), *(f"! {w}" for w in warnings(comparison))])
    table = Table(
        title=Text(table_title(comparison)), caption=Text(caption), caption_justify="left", title_justify="left"
    )
    for number, column in enumerate(table_columns(comparison)):
        table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    for arm in comparison.arms:
        # Text, not str: an arm may be called "[red]"
        table.add_row(*(Text(cell) for cell in table_row(arm, comparison)))
    return table


def table_columns(comparison: Comparison) -> list[str]:
    """Column headings, matching `table_row`."""
    paths = _paths(comparison)
    settings = path_words(paths[0]) if len(paths) == 1 else "settings"
    level = f"{100 * comparison.level:g}%"
    return [
        *("arm", settings, "test accuracy, %", f"{level} interval", "n", "difference, points", f"{level} interval"),
        *("p (Holm)", "diverged", "ms/step", "time ratio"),
    ]


def table_row(arm: ArmResult, comparison: Comparison) -> list[str]:
    """One arm's cells as text."""
    is_baseline = arm is comparison.baseline
    seconds, ratio = arm.seconds_per_step, arm.time_ratio
    edge = " *" if arm.choice is not None and arm.choice.edge else ""
    return [
        arm.arm.name,
        (settings_text(arm.settings) + edge) if arm.settings else _NONE,
        f"{100 * arm.estimate.mean:.2f}" if arm.estimate is not None else _NONE,
        _interval(arm.estimate, "{:.2f}"),
        str(len(arm.accuracy)),
        "baseline" if is_baseline else f"{100 * arm.difference.mean:+.2f}" if arm.difference is not None else _NONE,
        _interval(arm.difference, "{:+.2f}"),
        p_text(arm.adjusted_p),
        str(arm.diverged),
        f"{1000 * seconds:.3g}" if seconds is not None else _NONE,
        f"{ratio:.2f}" if ratio is not None else _NONE,
    ]


def table_title(comparison: Comparison) -> str:
    """Recipe, data and model in one line."""
    recipe, data = comparison.plan.recipe, comparison.facts.get("data") or {}
    label = data.get("label") or data.get("name") or recipe.data.name
    epochs = f"{recipe.train.epochs} epoch" + ("s" if recipe.train.epochs != 1 else "")
    return f"{recipe.name}: {label}, {recipe.model.name}, {epochs}"


def table_notes(comparison: Comparison) -> list[str]:
    """What the columns mean: interval, n, baseline, budget, time."""
    plan = comparison.plan
    seeds = f"seeds 0 to {len(plan.final_seeds) - 1}" if len(plan.final_seeds) > 1 else "seed 0"
    edge = any(arm.choice is not None and arm.choice.edge for arm in comparison.arms)
    return [
        f"Intervals: two-sided Student t, {100 * comparison.level:g}%, over n seeds ({seeds}, the same for every arm).",
        "Accuracy: on the test set, after the last epoch.",
        f"Differences: to {plan.settings.baseline}, seed by seed, in percentage points; intervals not adjusted.",
        "p: paired t-test with Holm's adjustment over all arms.",
        budget_text(comparison),
        "ms/step: median over a run's steps, then over seeds; the ratio is to the baseline.",
        *(["* at the edge of what was tried: a better value may lie beyond."] if edge else []),
    ]


def budget_text(comparison: Comparison) -> str:
    """The tuning budget in one sentence."""
    plan, tune = comparison.plan, comparison.plan.settings.tune
    if tune is None:
        return "Tuning: none; every arm uses the recipe's settings."
    kind = "grid" if tune.grid is not None else "random draws, log-uniform"
    paths = ", ".join(path_words(path) for path in _paths(comparison))
    trials, seeds = len(plan.trials), len(plan.tuning_seeds)
    return (
        f"Tuning: {_plural(trials, 'trial')} ({paths}; {kind}) x {_plural(seeds, 'seed')} for every tuned arm, "
        f"judged on {tune.validation_fraction:.0%} of the training set held out; tuning never saw the test set."
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Tuned values as text: the number alone for one path, `name=value` for more.

    >>> settings_text({"train.optimizer.lr": 0.05})
    '0.05'
    >>> settings_text({"train.optimizer.lr": 0.05, "train.batch_size": 32})
    'lr=0.05, batch_size=32'
    """
    values = {path: f"{v:g}" if isinstance(v, float) else str(v) for path, v in settings.items()}
    if len(values) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in values.items())


def p_text(p_value: float | None) -> str:
    """A p-value as text.

    >>> p_text(0.00012), p_text(0.0314), p_text(1.0), p_text(None)
    ('<0.001', '0.031', '1.000', '–')
    """
    if p_value is None:
        return _NONE
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def markdown_table(comparison: Comparison) -> str:
    """The table with title, verdict, notes and warnings, as Markdown."""
    columns = table_columns(comparison)
    rows = [[_escaped(cell) for cell in table_row(arm, comparison)] for arm in comparison.arms]
    lines = [
        f"## {_escaped(table_title(comparison))}",
        "",
        *(_escaped(sentence) for sentence in verdict(comparison)),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'|'.join([':---'] + ['---:'] * (len(columns) - 1))}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {_escaped(note)}" for note in table_notes(comparison)),
        *(f"- **Warning:** {_escaped(warning)}" for warning in warnings(comparison)),
    ]
    return "\n".join(lines) + "\n"


def table_values(comparison: Comparison) -> dict[str, Any]:
    """Everything in the table as plain values, accuracies as fractions, times in seconds."""
    plan = comparison.plan
    return {
        "recipe": plan.recipe.name,
        "baseline": plan.settings.baseline,
        "interval": "two-sided Student t",
        "level": comparison.level,
        "adjustment": "Holm",
        "seeds": list(plan.final_seeds),
        "chance": comparison.chance,
        "tuning": {
            "trials": [dict(trial.settings) for trial in plan.trials],
            "seeds": list(plan.tuning_seeds),
            "validation_fraction": plan.validation_fraction,
        },
        "arms": [_arm_values(arm) for arm in comparison.arms],
        "verdict": verdict(comparison),
        "warnings": warnings(comparison),
        "missing": list(comparison.missing),
    }


def _arm_values(arm: ArmResult) -> dict[str, Any]:
    return {
        "name": arm.arm.name,
        "slug": arm.arm.slug,
        "tuned": arm.arm.tuned,
        "settings": dict(arm.settings),
        "edge": list(arm.choice.edge) if arm.choice is not None else [],
        "validation_accuracy": arm.choice.score if arm.choice is not None else None,
        "trials": [asdict(trial) for trial in arm.trials],
        "accuracy": {str(seed): value for seed, value in arm.accuracy.items()},
        "mean": asdict(arm.estimate) if arm.estimate is not None else None,
        "difference": asdict(arm.difference) if arm.difference is not None else None,
        "adjusted_p": arm.adjusted_p,
        "diverged": arm.diverged,
        "tuning_diverged": arm.tuning_diverged,
        "seconds_per_step": arm.seconds_per_step,
        "time_ratio": arm.time_ratio,
    }


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return _NONE
    return f"{form.format(100 * estimate.low)} to {form.format(100 * estimate.high)}"


def _paths(comparison: Comparison) -> list[str]:
    return list(comparison.plan.trials[0].settings) if comparison.plan.trials else ["train.optimizer.lr"]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: arm names are the user's."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")
