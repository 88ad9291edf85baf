"""Table and figure of `experiments.manifold_network`: `python -m experiments.manifold_network_report DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.manifold_problems_report import STEP_SIZES, WIDTH_HEADER, band, legend, log_axis, panels, width_cells
from weightspace.figures import STYLE, color_of, save_figure
from weightspace.files import read_json, write_text_atomically

POINTS = 0.03  # of test accuracy
NATS = 0.1  # of training loss
WORST = 1e3  # stands for a loss that is not finite
WHICH = {"kernels": "kernels", "all": "all weights", "ambient": "kernels, ambient momentum"}


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md and network.png."""
    write_text_atomically(folder / "table.md", "\n".join(table(results)) + "\n")
    with rc_context(STYLE):
        save_figure(figure(results), folder / "network.png")


def as_costs(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """What widths are read from: lower is better, always finite."""
    found: dict[str, Any] = {"rates": entry["rates"]}
    for step_size in STEP_SIZES:
        rows = entry[step_size][key]
        found[step_size] = [[_cost(value, key) for value in row] for row in rows]
    return found


def _cost(value: float | None, key: str) -> float:
    if value is None:
        return WORST
    return 1 - value if key == "accuracy" else min(value, WORST)


def best_accuracy(entry: dict[str, Any], step_size: str) -> float:
    """Best mean over seeds of the test accuracy."""
    return max(sum(values) / len(values) for values in zip(*entry[step_size]["accuracy"], strict=True))


def table(results: dict[str, Any]) -> list[str]:
    """Widths in decades by test accuracy and by training loss, and the best accuracies."""
    lines: list[str] = []
    for key, distance, title in (
        ("accuracy", POINTS, f"test accuracy is within {100 * POINTS:g} points of the best"),
        ("loss", NATS, f"training loss is within {NATS:g} of the best"),
    ):
        lines += [f"### Decades of the learning rate at which the {title}\n"]
        lines += [
            f"| rate of | manifold | {WIDTH_HEADER} best accuracy, plain | best accuracy, curvature |",
            "|:---|:---|" + "---:|" * 7,
        ]
        for which, found in results["runs"].items():
            for name, entry in found.items():
                cells = width_cells(as_costs(entry, key), distance)
                cells += [f"{100 * best_accuracy(entry, s):.1f} %" for s in STEP_SIZES]
                lines.append(f"| {WHICH[which]} | {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def figure(results: dict[str, Any]) -> Figure:
    """Test accuracy against the learning rate: median and range over seeds."""
    cases = [(which, name) for which, found in results["runs"].items() for name in found]
    fig, grid = panels(len(cases), min(3, len(cases)), 2.1)
    for axes, (which, name) in zip(grid, cases, strict=True):
        entry = results["runs"][which][name]
        for place, step_size in enumerate(STEP_SIZES):
            rows = [[100 * v for v in row] for row in entry[step_size]["accuracy"]]
            band(axes, entry["rates"], rows, (color_of(place, baseline=False), "-"), step_size)
        log_axis(axes, "x")
        axes.set_ylim(0, 100)
        axes.set_title(f"{name}, rate of {WHICH[which]}")
    fig.supxlabel("learning rate (curvature divides it by r)", fontsize=9)
    fig.supylabel("test accuracy, %", fontsize=9)
    legend(fig, grid[0], 2)
    return fig


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
