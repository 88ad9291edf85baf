"""Writes the report: `report.html`, one file without any external part, and `plots/*.png`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from weightspace.compare.notes import budget_text, table_notes, table_title
from weightspace.compare.records import reading_damage
from weightspace.compare.results import COMPARE_FILE, Comparison, read_comparison
from weightspace.compare.table import table_columns, table_row
from weightspace.compare.verdict import verdict, warnings
from weightspace.errors import RunError
from weightspace.figures import STYLE, page_text, save_figure
from weightspace.files import JsonObject, read_json, reason_of, write_text_atomically
from weightspace.report.chains import chains_page, is_sampling
from weightspace.report.collect import METRICS_FILE, Curve, LayerTable, arm_curves, arm_layers, read_curve, read_layers
from weightspace.report.curves import accuracy_figure, single_run_figure, tuning_figure
from weightspace.report.effects import difference_figure, seeds_figure
from weightspace.report.facts import arm_settings, facts_of, layer_rows, recipe_of, run_summary
from weightspace.report.layers import layers_figure
from weightspace.report.page import Page, image_of
from weightspace.training.logs import RUN_FILE

REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
_TEMPLATE = Path(__file__).parent / "page.html.j2"


@dataclass(frozen=True)
class Plot:
    """A figure for the page: file stem, heading, what to read from it, and how it is drawn."""

    name: str
    title: str
    caption: str
    figure: Figure | None


def write_report(run_dir: Path) -> Path:
    """Write the report of a comparison, of sampled chains, or of one training run, finished or not.

    Args:
        run_dir: Folder with `compare.json`, with `sample.json`, or with a run's `metrics.jsonl` or `result.json`.

    Returns:
        Path of `report.html`. The plots are inside it and also in `plots/`.

    Raises:
        RunError: The folder holds neither, `compare.json` is damaged, or the report cannot be written. Other damaged
            files become warnings in the report.
    """
    with reading_damage(run_dir):
        page = _page_of(run_dir)
    write_text_atomically(run_dir / REPORT_FILE, page_text(_TEMPLATE, page=page))
    return run_dir / REPORT_FILE


def _page_of(run_dir: Path) -> Page:
    if (run_dir / COMPARE_FILE).exists():
        return _comparison_page(read_comparison(run_dir))
    if is_sampling(run_dir):
        return chains_page(run_dir)
    if any((run_dir / name).exists() for name in (METRICS_FILE, "result.json", RUN_FILE)):
        return _single_run_page(run_dir)
    there = "is a file" if run_dir.is_file() else "does not exist"
    if run_dir.is_dir():
        there = f"holds neither {COMPARE_FILE} nor {RUN_FILE}"
    raise RunError(f"{run_dir} {there}; give the folder of a comparison or run, such as runs/quickstart")


def _comparison_page(comparison: Comparison) -> Page:
    damage: list[str] = []
    curves = {arm.arm.name: arm_curves(comparison, arm, damage) for arm in comparison.arms}
    layers = [table for arm in comparison.arms if (table := arm_layers(comparison, arm, damage)) is not None]
    with rc_context(STYLE):
        images = _save(comparison.run_dir, [*_comparison_plots(comparison, curves), *_layer_plots(layers)])
    recipe = comparison.plan.recipe
    return Page(
        title=table_title(comparison),
        description=recipe.description,
        verdict=verdict(comparison),
        warnings=[*warnings(comparison), *dict.fromkeys(damage)],
        columns=table_columns(comparison),
        rows=[table_row(arm, comparison) for arm in comparison.arms],
        baseline_row=comparison.baseline.arm.index,
        notes=table_notes(comparison),
        images=images,
        arms=[arm_settings(comparison, arm) for arm in comparison.arms],
        layer_columns=[table.title for table in layers],
        layer_rows=layer_rows(layers),
        facts=[*facts_of(comparison.facts), ("tuning budget", budget_text(comparison))],
        recipe=yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=100),
    )


def _comparison_plots(comparison: Comparison, curves: Mapping[str, Sequence[Curve]]) -> list[Plot]:
    level = f"{100 * comparison.level:g}%"
    return [
        Plot(
            "differences",
            "Difference to the baseline",
            f"Paired over seeds, with {level} Student-t intervals (not adjusted). Where an interval holds zero, seeds "
            "alone could make such a difference.",
            difference_figure(comparison),
        ),
        Plot(
            "accuracy",
            "Test accuracy over the run",
            f"Mean over seeds; band: its {level} Student-t interval; black: the baseline. Without diverged runs.",
            accuracy_figure(comparison, curves),
        ),
        Plot(
            "seeds",
            "Final accuracy, seed by seed",
            "After the last epoch. A diverged run counts as chance level.",
            seeds_figure(comparison),
        ),
        Plot(
            "tuning",
            "Tuning",
            "Validation accuracy of every trial, on the held-out part of the training set; filled: chosen. A curve "
            "that is still rising at its chosen end has not found its best value.",
            tuning_figure(comparison),
        ),
    ]


def _single_run_page(run_dir: Path) -> Page:
    damage: list[str] = []
    run = _read_or_note(run_dir / RUN_FILE, damage)
    result = _read_or_note(run_dir / "result.json", damage)
    table = read_layers([run_dir], "this run", damage)
    curve = read_curve(run_dir, "this run", damage)
    with rc_context(STYLE):
        layers = [table] if table is not None else []
        plots = [
            Plot("curves", "Accuracy and loss", "After every epoch.", single_run_figure(curve)),
            *_layer_plots(layers),
        ]
        images = _save(run_dir, plots)
    recipe = run.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else None
    sentences, concerns = run_summary(result, curve)
    return Page(
        title=f"{name or run_dir.resolve().name}: one training run",
        description=str(recipe.get("description", "")) if isinstance(recipe, dict) else "",
        verdict=sentences,
        warnings=[*concerns, *dict.fromkeys(damage)],
        images=images,
        layer_columns=[table.title for table in layers],
        layer_rows=layer_rows(layers),
        facts=facts_of(run | {"seed": run.get("seed", result.get("seed"))}),
        recipe=recipe_of(recipe),
    )


def _read_or_note(path: Path, damage: list[str]) -> JsonObject:
    """The content of a JSON file; empty when it is missing, and with a sentence in `damage` when it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except RunError as error:
        damage.append(f"{error}.")
        return {}


def _layer_plots(layers: list[LayerTable]) -> list[Plot]:
    return [
        Plot(
            "rho",
            "Per-layer rho",
            "How much of a layer's gradient is its mean over the channel axis: what a channel-directed metric keeps.",
            layers_figure(layers, "rho"),
        ),
        Plot(
            "shrinkage",
            "Per-layer shrinkage",
            "Length after the rule over that before. Far below 1, it also acts as a smaller learning rate.",
            layers_figure(layers, "shrinkage"),
        ),
        Plot(
            "step-factor",
            "Per-layer factor of the step size",
            "What the curvature step size divided a layer's steps by. Near 1, a layer takes plain steps; far above, "
            "its steps are about as long as the learning rate, however steep the loss.",
            layers_figure(layers, "r"),
        ),
    ]


def _save(run_dir: Path, plots: Iterable[Plot]) -> list[dict[str, str]]:
    """Write the plots as PNG and give them back as the template shows them; a plot of nothing is deleted."""
    images: list[dict[str, str]] = []
    for plot in plots:
        path = run_dir / PLOTS_FOLDER / f"{plot.name}.png"
        if plot.figure is None:
            _delete(path)
            continue
        save_figure(plot.figure, path)
        images.append(image_of(path, plot.title, plot.caption))
    return images


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot delete {path}: {reason_of(error)}") from error
