"""Plots of final numbers: paired differences to the baseline, and the accuracy of every seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from weightspace.compare.notes import p_text
from weightspace.compare.results import ArmResult, Comparison
from weightspace.compare.statistics import Estimate
from weightspace.figures import MUTED, color_of, new_figure, robust_limits, shortened

_ROW = 0.30  # inches


def difference_figure(comparison: Comparison) -> Figure | None:
    """Forest plot: each arm's paired difference to the baseline with its interval, and every seed as a dot.

    Returns:
        The figure, or None when no arm shares a seed with the baseline.
    """
    arms = [arm for arm in comparison.arms if arm.difference is not None]
    if not arms:
        return None
    figure = new_figure(1.1 + _ROW * len(arms))
    axes = figure.subplots()
    seeds = {arm.arm.name: _seed_differences(arm, comparison.baseline) for arm in arms}
    low, high = _limits([(arm, arm.difference, seeds[arm.arm.name]) for arm in arms])
    axes.set_xlim(min(low, 0.0), max(high, 0.0))
    axes.axvline(0.0, color="black", linewidth=1.0)
    for row, arm in enumerate(arms):
        estimate = arm.difference
        if estimate is not None:
            _row(axes, row, estimate, seeds[arm.arm.name], arm)
            text = f"{_signed(estimate):<24} {p_text(arm.adjusted_p):>6}"
            _side_text(axes, row, text)
    _finish(axes, arms, f"difference to {shortened(comparison.baseline.arm.name)}, percentage points")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if abs(value) > 1e-9 else "0"))
    axes.set_title("square: mean with interval   ·   dots: seeds   ·   right: interval, Holm-adjusted p", color=MUTED)
    return figure


def seeds_figure(comparison: Comparison) -> Figure | None:
    """Final test accuracy of every seed, with each arm's mean and interval.

    Returns:
        The figure, or None before the first finished run.
    """
    arms = [arm for arm in comparison.arms if arm.estimate is not None]
    if not arms:
        return None
    figure = new_figure(1.1 + _ROW * len(arms))
    axes = figure.subplots()
    values = {arm.arm.name: [100 * value for value in arm.accuracy.values()] for arm in arms}
    axes.set_xlim(*_limits([(arm, arm.estimate, values[arm.arm.name]) for arm in arms]))
    for row, arm in enumerate(arms):
        if arm.estimate is not None:
            _row(axes, row, arm.estimate, values[arm.arm.name], arm, baseline=arm is comparison.baseline)
            _side_text(axes, row, _unsigned(arm.estimate))
    _finish(axes, arms, "test accuracy, %")
    axes.set_title("square: mean with interval   ·   dots: seeds   ·   right: mean, interval", color=MUTED)
    return figure


def _row(
    axes: Axes, row: int, estimate: Estimate, dots: Sequence[float], arm: ArmResult, *, baseline: bool = False
) -> None:
    color = color_of(arm.arm.index, baseline=baseline)
    low, high = axes.get_xlim()
    # Dots lie below the interval's line, so that neither hides the other.
    axes.plot(dots, [row + 0.24] * len(dots), "o", color=color, markersize=3.6, alpha=0.55, markeredgewidth=0)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([100 * estimate.low, 100 * estimate.high], [row, row], color=color, linewidth=2.0)
    mean = 100 * estimate.mean
    axes.plot([mean], [row], marker="s", color=color, markersize=5.5)
    outside = [value for value in (*dots, mean) if not low <= value <= high]
    if outside:
        at_left = min(outside) < low
        arrow, place, side = ("◀", 0.004, "left") if at_left else ("▶", 0.996, "right")
        text = f"{arrow} beyond the axis"
        style: dict[str, Any] = {"ha": side, "va": "center", "fontsize": 7.5, "color": color}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(place, row, text, transform=axes.get_yaxis_transform(), bbox=box, **style)


def _limits(rows: Sequence[tuple[ArmResult, Estimate | None, Sequence[float]]]) -> tuple[float, float]:
    """Limits that hold what is near: an arm with a diverged seed has an interval of a hundred points."""
    sound = [row for row in rows if not row[0].diverged] or list(rows)
    values = [100 * end for _, e, _ in sound if e is not None for end in (e.low, e.high, e.mean) if end is not None]
    return robust_limits([*values, *(dot for _, _, dots in sound for dot in dots)], margin=0.05)


def _finish(axes: Axes, arms: Sequence[ArmResult], label: str) -> None:
    axes.set_yticks(range(len(arms)), [shortened(arm.arm.name) for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)


def _side_text(axes: Axes, row: int, text: str) -> None:
    axes.annotate(
        text,
        xy=(1.0, row),
        xytext=(6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=7.6,
        family="DejaVu Sans Mono",
        color="#333333",
        annotation_clip=False,
    )


def _seed_differences(arm: ArmResult, baseline: ArmResult) -> list[float]:
    reference = baseline.accuracy
    return [100 * (value - reference[seed]) for seed, value in arm.accuracy.items() if seed in reference]


def _signed(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.mean:+.2f}  (one seed)"
    return f"{100 * estimate.mean:+6.2f} [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def _unsigned(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.mean:.2f}  (one seed)"
    return f"{100 * estimate.mean:.2f}  [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"
