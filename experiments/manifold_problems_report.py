"""Tables and figures of `experiments.manifold_problems`: `python -m experiments.manifold_problems_report DIR`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from weightspace.compare.statistics import Estimate, mean_interval, paired_difference
from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

FLOOR = 1e-15  # of the axes: below it, rounding
TARGET = 1e-6
DISTANCE = 0.01  # gap above the best that still counts as good, in the sweep
DASHES, DOTS = (0, (5, 1.6)), (0, (1.2, 1.2))
STEP_SIZES = ("plain", "curvature")
NOISE = ("all samples", "minibatches")

Curves = Sequence[Sequence[float]]


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md and four figures."""
    write_text_atomically(
        folder / "table.md",
        "\n".join([*convergence_tables(results), *schedule_table(results), *sweep_table(results)]) + "\n",
    )
    with rc_context(STYLE):
        for label in NOISE:
            save_figure(convergence_figure(results, label), folder / f"convergence-{label.replace(' ', '-')}.png")
        save_figure(schedule_figure(results), folder / "schedules.png")
        save_figure(sweep_figure(results), folder / "sweep.png")


def convergence_tables(results: dict[str, Any]) -> list[str]:
    """Steps to a gap of a millionth, and final gaps under noise, with the learning rate of each arm."""
    found = results["convergence"]
    lines: list[str] = []
    cells: dict[str, Callable[[dict[str, Any]], str]] = {"all samples": steps_cell, "minibatches": gap_cell}
    titles = {
        "all samples": f"All samples: steps until the gap stays below {TARGET:g} (learning rate)",
        "minibatches": "Minibatches, decaying rate: gap at the end, × 10⁻³ (first learning rate)",
    }
    for label, cell in cells.items():
        arms = next(iter(found.values()))[label]
        lines += [f"### {titles[label]}\n", "| arm | " + " | ".join(found) + " |", "|:---|" + "---:|" * len(found)]
        lines += [f"| {arm} | " + " | ".join(cell(found[name][label][arm]) for name in found) + " |" for arm in arms]
        lines.append("")
    return lines


def steps_cell(entry: dict[str, Any]) -> str:
    """Median (range) over seeds; in words where some did not get there."""
    steps = [s for s in entry["steps_to_1e-6"] if s is not None]
    n = len(entry["steps_to_1e-6"])
    if not steps:
        return f"gap {median(entry['final']):.0e} ({entry['rate']:g})"
    text = f"{median(steps):g} [{min(steps)}, {max(steps)}]"
    return text + (f", {len(steps)} of {n}" if len(steps) < n else "") + f" ({entry['rate']:g})"


def gap_cell(entry: dict[str, Any]) -> str:
    """Geometric mean with interval over seeds."""
    return f"{geometric([1e3 * v for v in entry['final']])} ({entry['rate']:g})"


def geometric(values: Sequence[float]) -> str:
    """Geometric mean `[low, high]`: Student's t on logarithms."""
    estimate = mean_interval([math.log(max(v, FLOOR)) for v in values])
    ends = [math.exp(v) for v in (estimate.mean, estimate.low, estimate.high) if v is not None]
    digits = [f"{v:.2g}" if v < 100 else f"{v:.0f}" for v in ends]
    return digits[0] + (f" [{digits[1]}, {digits[2]}]" if len(digits) > 1 else "")


def interval(estimate: Estimate) -> str:
    """`mean [low, high]`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.2f}"
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def schedule_table(results: dict[str, Any]) -> list[str]:
    """Measured slopes with intervals beside the expected."""
    lines = [
        "### Slope of log gap against log step, last decade\n",
        "| problem | exponent | expected slope | measured slope | gap at the end × 10⁻⁶ |",
    ]
    lines.append("|:---|---:|---:|---:|---:|")
    for name, runs in results["schedules"].items():
        for exponent, entry in runs.items():
            expected = f"-{exponent}" if float(exponent) else "0 (constant)"
            gaps = geometric([1e6 * v for v in entry["final"]])
            lines.append(f"| {name} | {exponent} | {expected} | {interval(mean_interval(entry['slopes']))} | {gaps} |")
    return [*lines, ""]


def width(gaps: Sequence[float], best: float, distance: float, spacing: float) -> float:
    """Decades of the learning rate at which the final value is at most `distance` above the best."""
    return spacing * sum(gap <= best + distance for gap in gaps)


def widths(entry: dict[str, Any], distance: float) -> dict[str, list[float]]:
    """Width for both step sizes and every seed; the best is that of both, so that no arm sets its own bar."""
    rates = entry["rates"]
    spacing = math.log10(rates[-1] / rates[0]) / (len(rates) - 1)
    found: dict[str, list[float]] = {s: [] for s in STEP_SIZES}
    for plain, curved in zip(*(entry[s] for s in STEP_SIZES), strict=True):
        best = min(*plain, *curved)
        for step_size, values in zip(STEP_SIZES, (plain, curved), strict=True):
            found[step_size].append(width(values, best, distance, spacing))
    return found


def width_cells(entry: dict[str, Any], distance: float) -> list[str]:
    """Three cells: plain, curvature, difference with paired interval; and the best rate of each."""
    found = widths(entry, distance)
    difference = paired_difference(found["curvature"], found["plain"])
    return [
        *(interval(mean_interval(found[s])) for s in STEP_SIZES),
        interval(difference),
        *(best_rate(entry, s) for s in STEP_SIZES),
    ]


def best_rate(entry: dict[str, Any], step_size: str) -> str:
    """The learning rate with the lowest mean over seeds."""
    means = [sum(values) for values in zip(*entry[step_size], strict=True)]
    return f"{entry['rates'][means.index(min(means))]:.2g}"


WIDTH_HEADER = "width, plain | width, curvature | difference (paired) | best rate, plain | best rate, curvature |"


def sweep_table(results: dict[str, Any]) -> list[str]:
    """Widths of the good range of learning rates."""
    lines = [
        f"### Decades of the learning rate that end within {DISTANCE:g} of the best gap\n",
        f"| loss × | gradients | problem | {WIDTH_HEADER}",
    ]
    lines.append("|---:|:---|:---|---:|---:|---:|---:|---:|")
    for scale, problems in results["sweep"].items():
        for label in NOISE:
            lines += [
                f"| {scale} | {label} | {name} | " + " | ".join(width_cells(entry[label], DISTANCE)) + " |"
                for name, entry in problems.items()
            ]
    return [*lines, ""]


def band(axes: Axes, x: Sequence[float], curves: Curves, style: tuple[str, Any], label: str | None) -> None:
    """Median and range over seeds, in a color and line style."""
    color, line = style
    across = [[max(v, FLOOR) for v in values] for values in zip(*curves, strict=True)]
    axes.fill_between(x, [min(v) for v in across], [max(v) for v in across], color=color, alpha=0.15, linewidth=0)
    axes.plot(x, [median(v) for v in across], color=color, linestyle=line, linewidth=1.3, label=label)


def look(arm: str) -> tuple[str, Any]:
    """Color by step size and momentum, dashes for geodesics; black and gray for the others."""
    if "(" in arm or "Adam" in arm:
        return {"SubmanifoldAdam": ("#000000", "-"), "attach(Adam)": ("#000000", DOTS)}.get(arm, (MUTED, DOTS))
    kinds = [f"{s}, {m}" for s in STEP_SIZES for m in ("no momentum", "ambient momentum 0.9", "tangent momentum 0.9")]
    is_geodesic = "geodesic, " in arm
    kind = arm.replace("geodesic, " if is_geodesic else "retraction, ", "")
    return color_of(kinds.index(kind), baseline=False), DASHES if is_geodesic else "-"


def log_axis(axes: Axes, *which: str) -> None:
    """Logarithmic axes with at most six labels; the house's figures do not parse mathematics, so exponents are letters."""
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
        axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """Ten to the nearest whole power.

    >>> power_of_ten(0.001), power_of_ten(10.0)
    ('10⁻³', '10¹')
    """
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A grid of panels; those left over are hidden."""
    rows = math.ceil(count / columns)
    figure = new_figure(0.9 + height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    """One for all panels, above them."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )


def convergence_figure(results: dict[str, Any], label: str) -> Figure:
    """A panel a problem: gap against steps for every arm."""
    found = results["convergence"]
    figure, grid = panels(len(found), 3, 2.3)
    noisy = label == "minibatches"
    for axes, (name, entry) in zip(grid, found.items(), strict=True):
        for arm, run in entry[label].items():
            band(axes, [s + 1 for s in run["steps"]] if noisy else run["steps"], run["gap"], look(arm), arm)
        log_axis(axes, *(("x", "y") if noisy else ("y",)))
        axes.set_title(name)
    figure.supxlabel("steps" + (" + 1" if noisy else ""), fontsize=9)
    figure.supylabel("gap to the known minimum, 1 at the start", fontsize=9)
    legend(figure, grid[0], 3)
    return figure


def schedule_figure(results: dict[str, Any]) -> Figure:
    """A panel a problem: gap against steps for every exponent; gray: the expected slope through the last point."""
    found = results["schedules"]
    figure, grid = panels(len(found), 3, 3.0)
    for axes, (name, runs) in zip(grid, found.items(), strict=True):
        for index, (exponent, run) in enumerate(runs.items()):
            x = [s + 1 for s in run["steps"]]
            text = f"exponent {exponent}" if float(exponent) else "constant rate"
            band(axes, x, run["gap"], (color_of(index, baseline=False), "-"), text)
            end = median(run["final"])
            axes.plot([x[-1] / 10, x[-1]], [end * 10 ** float(exponent), end], color=MUTED, linewidth=0.8)
        log_axis(axes, "x", "y")
        axes.set_title(name)
        axes.set_xlabel("steps + 1")
    grid[0].set_ylabel("gap to the known minimum, 1 at the start")
    legend(figure, grid[0], 4)
    return figure


def sweep_figure(results: dict[str, Any]) -> Figure:
    """Rows: noise and scale of the loss; columns: problems. Final gap against the learning rate."""
    found = results["sweep"]
    names = list(next(iter(found.values())))
    cases = [(scale, label) for label in NOISE for scale in found]
    figure, grid = panels(len(cases) * len(names), len(names), 1.55)
    for index, axes in enumerate(grid):
        (scale, label), name = cases[index // len(names)], names[index % len(names)]
        entry = found[scale][name][label]
        for place, step_size in enumerate(STEP_SIZES):
            band(axes, entry["rates"], entry[step_size], (color_of(place, baseline=False), "-"), step_size)
        log_axis(axes, "x", "y")
        axes.set_ylim(FLOOR if label == "all samples" else 1e-4, 3)
        axes.tick_params(labelsize=7)
        if index < len(names):
            axes.set_title(name.replace(", ", ",\n"), fontsize=8)
        if index % len(names) == 0:
            axes.set_ylabel(f"{label}\nloss × {scale}", fontsize=8)
        else:
            axes.set_yticklabels([])
    figure.supxlabel("learning rate" + ("" if len(names) < 2 else " (curvature divides it by r)"), fontsize=9)
    legend(figure, grid[0], 2)
    return figure


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
