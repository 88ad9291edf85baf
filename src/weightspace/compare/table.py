"""The table of a comparison: JSON for programs, Markdown for pages, rich for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from weightspace.compare.notes import (
    NO_VALUE,
    OWN_SETTINGS,
    own_heading,
    p_text,
    path_words,
    settings_text,
    table_notes,
    table_title,
    tuned_paths,
)
from weightspace.compare.records import reading_damage
from weightspace.compare.results import ArmResult, Comparison, read_comparison
from weightspace.compare.statistics import Estimate, mean_interval
from weightspace.compare.verdict import verdict, warnings
from weightspace.files import write_json_atomically, write_text_atomically

TABLE_JSON = "table.json"
TABLE_MARKDOWN = "table.md"


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
    with reading_damage(run_dir):
        return _table_of(read_comparison(run_dir))


def _table_of(comparison: Comparison) -> Table:
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
    paths = tuned_paths(comparison)
    settings = path_words(paths[0]) if len(paths) == 1 else "settings"
    level = f"{100 * comparison.level:g}% interval"
    own = own_heading(comparison)
    return [
        *("arm", settings, *([own] if own else ())),
        *(("perplexity", f"perplexity, {level}") if comparison.is_text else ()),
        *("test accuracy, %", f"accuracy, {level}", "n", "difference, points"),
        *(f"difference, {level}", "p (Holm)", "diverged", "ms/step", "time ratio"),
    ]


def table_row(arm: ArmResult, comparison: Comparison) -> list[str]:
    """One arm's cells as text."""
    is_baseline = arm is comparison.baseline
    seconds, ratio = arm.seconds_per_step, arm.time_ratio
    own = arm.arm.own_paths
    heading = own_heading(comparison)
    shared = [path for path in arm.settings if path not in own]
    return [
        arm.arm.name,
        _settings_cell(arm, shared),
        *([_settings_cell(arm, own, named=heading == OWN_SETTINGS)] if heading else ()),
        *(_perplexity_cells(arm, comparison) if comparison.is_text else ()),
        f"{100 * arm.estimate.mean:.2f}" if arm.estimate is not None else NO_VALUE,
        _interval(arm.estimate, "{:.2f}"),
        str(len(arm.accuracy)),
        "baseline" if is_baseline else f"{100 * arm.difference.mean:+.2f}" if arm.difference is not None else NO_VALUE,
        _interval(arm.difference, "{:+.2f}"),
        p_text(arm.adjusted_p),
        str(arm.diverged),
        f"{1000 * seconds:.3g}" if seconds is not None else NO_VALUE,
        f"{ratio:.2f}" if ratio is not None else NO_VALUE,
    ]


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
        "own_paths": list(arm.arm.own_paths),
        "settings": dict(arm.settings),
        "edge": list(arm.choice.edge) if arm.choice is not None else [],
        "validation_accuracy": arm.choice.score if arm.choice is not None else None,
        "trials": [asdict(trial) for trial in arm.trials],
        "accuracy": {str(seed): value for seed, value in arm.accuracy.items()},
        **({"perplexity": {str(seed): value for seed, value in arm.perplexity.items()}} if arm.perplexity else {}),
        "mean": asdict(arm.estimate) if arm.estimate is not None else None,
        "difference": asdict(arm.difference) if arm.difference is not None else None,
        "adjusted_p": arm.adjusted_p,
        "diverged": arm.diverged,
        "tuning_diverged": arm.tuning_diverged,
        "seconds_per_step": arm.seconds_per_step,
        "time_ratio": arm.time_ratio,
    }


def _perplexity_cells(arm: ArmResult, comparison: Comparison) -> tuple[str, str]:
    """Mean perplexity over seeds, and its interval."""
    if not arm.perplexity:
        return NO_VALUE, NO_VALUE
    estimate = mean_interval(list(arm.perplexity.values()), level=comparison.level)
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.3f}", NO_VALUE
    return f"{estimate.mean:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"


def _settings_cell(arm: ArmResult, paths: Sequence[str], *, named: bool = False) -> str:
    """Values of some tuned paths, starred where one is the smallest or largest tried."""
    settings = {path: arm.settings[path] for path in paths if path in arm.settings}
    edge = " *" if arm.choice is not None and set(arm.choice.edge) & set(settings) else ""
    return settings_text(settings, named=named) + edge if settings else NO_VALUE


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return NO_VALUE
    return f"{form.format(100 * estimate.low)} to {form.format(100 * estimate.high)}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: arm names are the user's."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")
