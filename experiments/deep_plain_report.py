"""Figures and table of `experiments.deep_plain`, from depth.json: `python -m experiments.deep_plain_report DIR`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from weightspace.figures import STYLE, color_of, new_figure, save_figure, shortened
from weightspace.files import read_json, write_text_atomically

COLUMNS = 4
FLOOR = 1e-15  # of the axes; smaller values and exact zeros lie on it
GRAY = "#b0b0b0"
BLUE, RED = color_of(0, baseline=False), color_of(1, baseline=False)


def write(results: dict[str, Any], folder: Path) -> None:
    """depth.md, gradients.png and spread.png."""
    write_text_atomically(folder / "depth.md", table(results))
    with rc_context(STYLE):
        save_figure(figure(results, "gradient", "log10 of the gradient's RMS"), folder / "gradients.png")
        save_figure(figure(results, "spread", "log10 of the activation's spread over images"), folder / "spread.png")


def table(results: dict[str, Any]) -> str:
    """One row an arm: geometric means over seeds."""
    rows = [
        "| arm | gradient, first/last layer, before | after | spread, last/first layer, before | after | RMS of σ, before | after | largest σ, after |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, arm in results["arms"].items():
        cells = [name]
        for key, ends in (("gradient", (0, -1)), ("spread", (-1, 0))):
            cells += [ratio([run[state][key] for run in arm["runs"]], *ends) for state in ("before", "after")]
        for state, key in (("before", "rms"), ("after", "rms"), ("after", "largest")):
            values = [v for run in arm["runs"] for v in run[state]["singular values"][key][1:]]
            cells.append(level(values, largest=key == "largest"))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def ratio(series: Sequence[Sequence[float | None]], top: int, bottom: int) -> str:
    """Geometric mean over seeds of one layer's value over another's; seeds in which one of them is zero apart."""
    ends = [(values[top], values[bottom]) for values in series]
    if any(a is None or b is None for a, b in ends):
        return "not finite"
    logs = [math.log(a / b) for a, b in ends if a and b]
    zeros = len(ends) - len(logs)
    if not logs:
        return "0"
    return f"{math.exp(sum(logs) / len(logs)):.1e}" + (f" (0 in {zeros} of {len(ends)})" if zeros else "")


def level(values: Sequence[float | None], *, largest: bool) -> str:
    """Root mean square over layers and seeds, or the largest."""
    finite = [v for v in values if v is not None]
    if len(finite) < len(values):
        return "not finite"
    number = max(finite) if largest else math.sqrt(sum(v * v for v in finite) / len(finite))
    return f"{number:.2f}" if number < 1000 else f"{number:.0e}"


def figure(results: dict[str, Any], key: str, label: str) -> Figure:
    """One small panel an arm: the quantity over depth before (gray) and after training, median and range over seeds."""
    arms = results["arms"]
    rows = math.ceil(len(arms) / COLUMNS)
    fig = new_figure(0.6 + 1.75 * rows)
    panels = list(fig.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for axes, (name, arm) in zip(panels, arms.items(), strict=False):
        accuracies = [100 * run["test_accuracy"] for run in arm["runs"]]
        accuracy = sum(accuracies) / len(accuracies)
        band(axes, [run["before"][key] for run in arm["runs"]], GRAY, "before training", width=3.5)
        color = BLUE if accuracy > 15 else RED
        drawn = band(axes, [run["after"][key] for run in arm["runs"]], color, "after training")
        axes.set_title(
            f"{shortened(name, 30)}\n{accuracy:.1f} %" + ("" if drawn else ", after: not finite"), fontsize=8
        )
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    panels[0].set_xlim(1, len(next(iter(arms.values()))["runs"][0]["before"][key]))
    panels[0].legend(frameon=False, fontsize=7)
    fig.supxlabel("layer, from the image to the head", fontsize=9)
    fig.supylabel(label, fontsize=9)
    return fig


def band(axes: Axes, series: Sequence[Sequence[float | None]], color: str, label: str, *, width: float = 1.5) -> bool:
    """Median and range over seeds of log10; False if any value is not finite."""
    if any(value is None for values in series for value in values):
        return False
    logs = [[math.log10(max(value or 0.0, FLOOR)) for value in values] for values in series]
    layers = range(1, len(logs[0]) + 1)
    across = list(zip(*logs, strict=True))
    axes.fill_between(layers, [min(x) for x in across], [max(x) for x in across], color=color, alpha=0.25, linewidth=0)
    axes.plot(layers, [median(x) for x in across], color=color, linewidth=width, label=label)
    return True


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "depth.json"), Path(sys.argv[1]))
