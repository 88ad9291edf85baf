"""Table and pictures of `experiments.spirals`, from results.json: `python -m experiments.spirals_report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib import rc_context
from safetensors.torch import load_file

from experiments import spirals
from experiments.paired_bootstrap import Interval, bootstrap, paired
from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

# Test accuracy in percent of their figure; all of them fit the training points.
PUBLISHED = {
    "SGD": 81.0,
    "SGD, weight decay": 80.45,
    "constrained SGD": 86.95,
    "SGLD": 84.45,
    "constrained SGLD": 91.7,
}
BASELINE = "SGD"
SHOWN = 3  # seeds of the picture of boundaries, the first ones


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md, boundaries.png, accuracy.png."""
    write_text_atomically(folder / "table.md", f"{table(results)}\n{pairs_table(results)}\n{tuning_table(results)}")
    with rc_context(STYLE):
        boundaries(results, folder / "boundaries.png")
        accuracies(results, folder / "accuracy.png")


def difference(results: dict[str, Any], arm: str, other: str, key: str) -> Interval:
    """Of two arms, seed by seed."""
    return paired(results["final"][arm][key], results["final"][other][key])


def table(results: dict[str, Any]) -> str:
    """One row an arm: last weights, averaged predictions, the published figure."""
    rows = [
        "| arm | train, % | all right | test, % | minus SGD, points | NLL | averaged: test, % | minus SGD, points | NLL | published test, % |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, found in results["final"].items():
        perfect = sum(value == 1.0 for value in found["train_accuracy"])
        cells = [
            arm,
            f"{100 * fmean(found['train_accuracy']):.2f}",
            f"{perfect} of {len(found['train_accuracy'])}",
            bootstrap(found["test_accuracy"]).text(1, scale=100),
            _difference(results, arm, "test_accuracy"),
            f"{fmean(found['test_nll']):.2f}",
            bootstrap(found["averaged_accuracy"]).text(1, scale=100),
            _difference(results, arm, "averaged_accuracy"),
            f"{fmean(found['averaged_nll']):.2f}",
            f"{PUBLISHED[arm]:g}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _difference(results: dict[str, Any], arm: str, key: str) -> str:
    if arm == BASELINE:
        return "–"
    return difference(results, arm, BASELINE, key).text(1, signed=True, scale=100)


def pairs_table(results: dict[str, Any]) -> str:
    """Differences that the page asks about, of the last weights and of averages."""
    rows = [
        "| difference | last weights: accuracy, points | NLL | averaged: accuracy, points | NLL |",
        "|:---|---:|---:|---:|---:|",
    ]
    for arm, other in (
        ("constrained SGD", "SGD"),
        ("constrained SGLD", "SGLD"),
        ("SGLD", "SGD"),
        ("constrained SGLD", "constrained SGD"),
    ):
        cells = [
            difference(results, arm, other, key).text(digits, signed=True, scale=scale)
            for key, digits, scale in (
                ("test_accuracy", 1, 100.0),
                ("test_nll", 2, 1.0),
                ("averaged_accuracy", 1, 100.0),
                ("averaged_nll", 2, 1.0),
            )
        ]
        rows.append(f"| {arm} − {other} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def tuning_table(results: dict[str, Any]) -> str:
    """What was chosen, and how the trials of each arm did."""
    rows = ["| arm | chosen | validation, % | median trial, % | worst, % |", "|:---|:---|---:|---:|---:|"]
    for arm, tried in results["tried"].items():
        means = sorted(100 * fmean(trial["validation_accuracy"]) for trial in tried)
        chosen = results["final"][arm]["settings"]
        text = ", ".join(f"{key} {chosen[key]:g}" for key in spirals.ARMS[arm])
        rows.append(f"| {arm} | {text} | {means[-1]:.1f} | {means[len(means) // 2]:.1f} | {means[0]:.1f} |")
    return "\n".join(rows) + "\n"


def boundaries(results: dict[str, Any], path: Path) -> None:
    """Probabilities of the last weights on the square, training points on top; arms by seeds.

    Grids are read from the folder of the picture.
    """
    final = results["final"]
    seeds = results["settings"]["seeds"][:SHOWN]
    figure = new_figure(1.95 * len(seeds))
    panels = figure.subplots(len(seeds), len(final), squeeze=False)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(3 * seed)
        points, labels = spirals.spirals(results["settings"]["points"], generator)
        for column, (arm, found) in enumerate(final.items()):
            axes = panels[row][column]
            probability = load_file(path.parent / found["grid"])["probability"][row].float().numpy()
            reach = spirals.REACH
            axes.imshow(
                probability, origin="lower", extent=(-reach, reach, -reach, reach), cmap="RdBu", vmin=-0.25, vmax=1.25
            )
            for label, color in ((0, "#7f1d1d"), (1, "#0b2f66")):
                chosen = points[labels == label].numpy()
                axes.plot(chosen[:, 0], chosen[:, 1], "o", markersize=2.2, color=color, markeredgewidth=0)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.set_xlabel(f"test {100 * found['test_accuracy'][row]:.1f} %", fontsize=8)
            if row == 0:
                axes.set_title(arm, fontsize=8.5)
            if column == 0:
                axes.set_ylabel(f"seed {seed}")
    save_figure(figure, path)


def accuracies(results: dict[str, Any], path: Path) -> None:
    """Every seed's test accuracy, last weights and averages, means with intervals, and the published figures."""
    final = results["final"]
    figure = new_figure(3.2)
    axes = figure.subplots()
    for place, (arm, found) in enumerate(final.items()):
        for shift, key, color in ((-0.16, "test_accuracy", 0), (0.16, "averaged_accuracy", 1)):
            _column(axes, place + shift, found[key], color_of(color, baseline=False))
        axes.plot([place - 0.38, place + 0.38], [PUBLISHED[arm]] * 2, color=MUTED, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.set_xticks(range(len(final)), list(final))
    axes.set_ylabel("test accuracy, %")
    looks = {"color": color_of(0, baseline=False)}, {"color": color_of(1, baseline=False)}
    axes.plot([], [], "o", markersize=4, label="last weights", **looks[0])
    axes.plot([], [], "o", markersize=4, label="predictions averaged over the second half", **looks[1])
    axes.plot([], [], color=MUTED, linestyle=(0, (3, 2)), label="published, other data and net")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _column(axes: Any, place: float, values: Sequence[float], color: str) -> None:
    interval = bootstrap(values)
    spread = [place + 0.05 * ((k % 5) - 2) / 2 for k in range(len(values))]
    axes.plot(spread, [100 * v for v in values], "o", markersize=3, color=color, alpha=0.45, markeredgewidth=0)
    error = [[100 * (interval.mean - interval.low)], [100 * (interval.high - interval.mean)]]
    axes.errorbar([place + 0.09], [100 * interval.mean], yerr=error, fmt="D", markersize=4.5, color=color, capsize=3)


def main() -> None:
    """Writes table and pictures anew."""
    folder = Path(sys.argv[1])
    write(read_json(folder / "results.json"), folder)


if __name__ == "__main__":
    main()
