"""The plot and the files of a sweep of strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from weightspace.compare._tolerance_text import markdown
from weightspace.compare.tolerance import TOLERANCE_FILE, Level, Tolerance
from weightspace.figures import (
    BASELINE_COLOR,
    MUTED,
    STYLE,
    color_of,
    label_lines,
    line_of,
    marker_of,
    new_figure,
    save_figure,
    shortened,
)
from weightspace.files import write_json_atomically, write_text_atomically

PLOT_FILE, PAGE_FILE = "tolerance.png", "tolerance.md"
_ROW = 0.19  # inches
_MOST_TICKS = 9
_BAR: dict[str, Any] = {"solid_capstyle": "butt", "linewidth": 5.0}


def write_tolerance(tolerance: Tolerance, folder: Path) -> Path:
    """Write `tolerance.json` (everything), `tolerance.png` and `tolerance.md`.

    Args:
        tolerance: What a sweep found.
        folder: Where to.

    Returns:
        Path of the page.

    Raises:
        RunError: A file cannot be written.
    """
    write_json_atomically(folder / TOLERANCE_FILE, tolerance.to_json())
    with rc_context(STYLE):
        figure = tolerance_figure(tolerance)
    save_figure(figure, folder / PLOT_FILE)
    write_text_atomically(folder / PAGE_FILE, markdown(tolerance, PLOT_FILE))
    return folder / PAGE_FILE


def tolerance_figure(tolerance: Tolerance) -> Figure:
    """Test accuracy against strength, one curve for each gate; below it where each tolerance level lies.

    Bands are the intervals of the means. Lines across: the network without the penalty, half way to guessing, guessing.
    """
    gates = [gate for gate in tolerance.gates if tolerance.of(gate)]
    height = 3.6 + _ROW * len(gates)
    figure = new_figure(height)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.35 + _ROW * len(gates)])
    _across(above, tolerance)
    for index, gate in enumerate(gates):
        _curve(above, tolerance, gate, index)
        _bar(below, tolerance, tolerance.level(gate), index, len(gates))
    above.set_ylim(0.0, min(100.0, 100 * max(cell.high or cell.accuracy for cell in tolerance.cells)) + 2.0)
    above.set_ylabel("test accuracy, %")
    strengths = sorted({cell.strength for gate in gates for cell in tolerance.of(gate)})
    below.set_xscale("log", base=2)
    below.xaxis.set_major_locator(FixedLocator(strengths[:: 1 + len(strengths) // _MOST_TICKS]))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    below.set_xlabel(f"strength of {tolerance.rule}")
    below.set_yticks(range(len(gates)), [shortened(gate, 24) for gate in reversed(gates)], fontsize=7.8)
    below.tick_params(axis="y", length=0)
    below.set_ylim(-0.7, max(0.7, len(gates) - 0.3))
    below.grid(axis="y", visible=False)
    below.set_title("solid: learns; faint: holds the tolerance level; dots: learns again", fontsize=8.2, color=MUTED)
    ends = [100 * tolerance.of(gate)[-1].accuracy for gate in gates]
    looks = [(color_of(i, baseline=False), line_of(i, baseline=False)) for i in range(len(gates))]
    label_lines(above, ends, [shortened(gate) for gate in gates], looks)
    return figure


def _across(axes: Axes, tolerance: Tolerance) -> None:
    for height, text, line in (
        (tolerance.baseline.accuracy, "without the penalty", "-"),
        (tolerance.threshold, "half way: collapsed below", (0, (5, 2))),
        (tolerance.chance, "guessing", (0, (1, 1.5))),
    ):
        axes.axhline(100 * height, color=BASELINE_COLOR, linewidth=0.9, linestyle=line, zorder=1)
        axes.annotate(
            text,
            xy=(0.0, 100 * height),
            xytext=(3, -9),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7.8,
            color=MUTED,
        )


def _curve(axes: Axes, tolerance: Tolerance, gate: str, index: int) -> None:
    cells = tolerance.of(gate)
    color = color_of(index, baseline=False)
    strengths = [cell.strength for cell in cells]
    low = [100 * max(0.0, cell.accuracy if cell.low is None else cell.low) for cell in cells]
    high = [100 * min(1.0, cell.accuracy if cell.high is None else cell.high) for cell in cells]
    axes.fill_between(strengths, low, high, color=color, alpha=0.10, linewidth=0)
    axes.plot(
        *(strengths, [100 * cell.accuracy for cell in cells]),
        color=color,
        linestyle=line_of(index, baseline=False),
        marker=marker_of(index, baseline=False),
        markersize=3.6,
        linewidth=1.5,
    )


def _bar(axes: Axes, tolerance: Tolerance, level: Level, index: int, count: int) -> None:
    color, row = color_of(index, baseline=False), count - 1 - index
    strengths = [cell.strength for cell in tolerance.of(level.gate)]
    first = strengths[0]
    if level.learns_up_to is not None:
        # Half an octave to each side, so that a single strength can be seen.
        end = level.learns_up_to if level.collapses_at is not None else level.learns_up_to * 2**0.5
        axes.plot([first / 2**0.25, end], [row, row], color=color, **_BAR)
    if level.collapses_at is not None:
        start = level.learns_up_to if level.learns_up_to is not None else level.collapses_at / 2
        axes.plot([start, level.collapses_at], [row, row], color=color, alpha=0.3, **_BAR)
    axes.plot(level.again, [row] * len(level.again), "o", color=color, markersize=4)
