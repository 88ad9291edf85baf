"""Plots of lines: accuracy over epochs, tuning, and the curves of a single run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from weightspace.compare.results import ArmResult, Comparison
from weightspace.compare.statistics import mean_interval
from weightspace.compare.verdict import path_words
from weightspace.figures import (
    BASELINE_COLOR,
    color_of,
    label_lines,
    line_of,
    marker_of,
    new_figure,
    robust_limits,
    shortened,
)
from weightspace.report.collect import Curve

Band = tuple[tuple[int, ...], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]
_ZOOM_FROM = 4  # epochs; fewer fit into one panel
_MOST_TICKS = 7
_WIDE, _NARROW = 300, 6  # largest over smallest value: from 300 a tick a decade is enough; below 6 every digit has one
_FEW = 5  # arms; with more, the bands lie on each other and only the means set the limits


def accuracy_figure(comparison: Comparison, curves: Mapping[str, Sequence[Curve]]) -> Figure | None:
    """Test accuracy over epochs: mean over seeds with interval band; the whole run, and its end enlarged.

    Args:
        comparison: The comparison.
        curves: Arm name to its runs' curves.

    Returns:
        The figure, or None before the first finished run.
    """
    arms = [arm for arm in comparison.arms if curves.get(arm.arm.name)]
    if not arms:
        return None
    last = max(curve.epochs[-1] for arm in arms for curve in curves[arm.arm.name])
    figure = new_figure(max(4.0, 1.2 + 0.2 * len(arms)))
    if last >= _ZOOM_FROM:
        whole, zoom = figure.subplots(1, 2, width_ratios=[1, 1.25])
        whole.set_title("whole run")
        zoom.set_title(f"epochs {_zoom_start(last)} to {last}, enlarged")
        panels: list[Axes] = [whole, zoom]
    else:
        whole = zoom = figure.subplots()
        panels = [whole]
    ends: list[float] = []
    end_values: list[float] = []
    for arm in arms:
        band = epochs, mean, low, high = _band(curves[arm.arm.name], comparison.level)
        for panel in panels:
            _draw_band(panel, band, arm.arm.index, baseline=arm is comparison.baseline, faint=len(arms) > _FEW)
        ends.append(float(mean[-1]))
        start = _zoom_start(last) if zoom is not whole else 1
        rows = (mean, low, high) if len(arms) <= _FEW else (mean,)
        end_values += [float(row[i]) for row in rows for i, epoch in enumerate(epochs) if epoch >= start]
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    whole.set_ylabel("test accuracy, %")
    if zoom is not whole:
        zoom.set_xlim(_zoom_start(last), last)
        zoom.set_ylim(*robust_limits(end_values))
    label_lines(zoom, ends, [_label(arm, comparison) for arm in arms], _looks(arms, comparison))
    return figure


def _draw_band(panel: Axes, band: Band, index: int, *, baseline: bool, faint: bool) -> None:
    """The mean as a line, its interval as a band behind it."""
    epochs, mean, low, high = band
    color = color_of(index, baseline=baseline)
    alpha = 0.15 if baseline else 0.05 if faint else 0.12
    panel.fill_between(epochs, low, high, color=color, alpha=alpha, linewidth=0)
    panel.plot(
        *(epochs, mean),
        color=color,
        linestyle=line_of(index, baseline=baseline),
        linewidth=2.2 if baseline else 1.4,
        marker=marker_of(index, baseline=baseline) if len(epochs) == 1 else None,
        zorder=4 if baseline else 3,
    )


def tuning_figure(comparison: Comparison) -> Figure | None:
    """Validation accuracy against each tuned value, per arm; a filled marker is the chosen value.

    Returns:
        The figure, or None when no trial is complete.
    """
    arms = [arm for arm in comparison.arms if arm.trials]
    if not arms:
        return None
    paths = list(dict.fromkeys(path for arm in arms for path in arm.arm.trials[0].settings))
    figure = new_figure(max(3.6, 1.2 + 0.2 * len(arms)) * len(paths))
    for panel, path in zip(np.atleast_1d(figure.subplots(len(paths), 1)), paths, strict=True):
        _tuning_panel(panel, path, comparison, [arm for arm in arms if path in arm.arm.trials[0].settings])
    return figure


def _tuning_panel(panel: Axes, path: str, comparison: Comparison, arms: Sequence[ArmResult]) -> None:
    """Accuracy against the values of one path, of the arms that tune it."""
    tried = sorted({trial.settings[path] for arm in arms for trial in arm.arm.trials}, key=_sorting)
    numeric = all(_is_number(value) and value > 0 for value in tried)
    place = {repr(value): float(value) if numeric else float(i) for i, value in enumerate(tried)}
    ends: list[float] = []
    for arm in arms:
        baseline = arm is comparison.baseline
        best = _best_at(arm, path)
        x = [place[key] for key in sorted(best, key=lambda key: place[key])]
        y = [100 * best[key] for key in sorted(best, key=lambda key: place[key])]
        color = color_of(arm.arm.index, baseline=baseline)
        marker = marker_of(arm.arm.index, baseline=baseline)
        line = line_of(arm.arm.index, baseline=baseline)
        width = 2.2 if baseline else 1.3
        if _is_scattered(arm, comparison):
            width = 0.4
        panel.plot(x, y, color=color, linestyle=line, linewidth=width, marker=marker, markersize=4, mfc="white")
        if arm.choice is not None:
            chosen = place[repr(arm.choice.trial.settings[path])]
            panel.plot([chosen], [100 * arm.choice.score], color=color, marker=marker, markersize=7, zorder=5)
        ends.append(y[-1])
    if numeric:
        panel.set_xscale("log")
    if numeric and len(tried) > _MOST_TICKS:  # more numbers than that would lie on each other
        span = max(place.values()) / min(place.values())
        digits = (1.0,) if span > _WIDE else (1.0, 2.0, 5.0) if span > _NARROW else tuple(map(float, range(1, 10)))
        panel.xaxis.set_major_locator(LogLocator(subs=digits))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        panel.xaxis.set_major_locator(FixedLocator([place[repr(value)] for value in tried]))
        panel.xaxis.set_minor_locator(NullLocator())
        names = {place[repr(value)]: f"{value:g}" if _is_number(value) else str(value) for value in tried}
        panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: names.get(v, f"{v:g}")))
    panel.set_xlabel(f"{path_words(path)} ({path})")
    panel.set_ylabel("validation accuracy, %")
    panel.set_ylim(*robust_limits([100 * trial.accuracy for arm in arms for trial in arm.trials]))
    panel.margins(x=0.03)
    label_lines(panel, ends, [_label(arm, comparison) for arm in arms], _looks(arms, comparison))


def single_run_figure(curve: Curve) -> Figure | None:
    """Test accuracy and both losses of one run over its epochs; None before its first epoch."""
    if not curve.epochs:
        return None
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.6}
    left.plot(curve.epochs, [100 * value for value in curve.accuracy], color=BASELINE_COLOR, **style)
    left.set_title("test accuracy, %")
    right.plot(curve.epochs, curve.train_loss, color=color_of(0, baseline=False), label="training", **style)
    right.plot(curve.epochs, curve.test_loss, color=color_of(1, baseline=False), label="test", linestyle="--", **style)
    right.set_title("loss")
    right.legend(frameon=False)
    for panel in (left, right):
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _band(curves: Sequence[Curve], level: float) -> Band:
    """Epochs, mean, and interval ends over seeds, in percent; without an interval the ends are the mean."""
    epochs = curves[0].epochs
    rows: list[tuple[float, float, float]] = []
    for values in zip(*(curve.accuracy for curve in curves), strict=False):
        finite = [100 * value for value in values if math.isfinite(value)]
        if not finite:
            rows.append((math.nan, math.nan, math.nan))
            continue
        estimate = mean_interval(finite, level=level)
        low = estimate.low if estimate.low is not None else estimate.mean
        high = estimate.high if estimate.high is not None else estimate.mean
        rows.append((estimate.mean, max(0.0, low), min(100.0, high)))
    table = np.asarray(rows)
    return epochs[: len(rows)], table[:, 0], table[:, 1], table[:, 2]


def _zoom_start(last: int) -> int:
    """First epoch of the enlarged panel: the last third of the run, at least three points."""
    return max(1, min(last - 2, math.ceil(last * 2 / 3)))


def _is_scattered(arm: ArmResult, comparison: Comparison) -> bool:
    """Whether neighbors along one path differ in other tuned values too, so that a line between them means little."""
    tune = comparison.plan.settings.tune
    return tune is not None and tune.grid is None and len(arm.arm.trials[0].settings) > 1


def _best_at(arm: ArmResult, path: str) -> dict[str, float]:
    """For each value of one path, the best accuracy over the other paths; keys are `repr`, as values may be lists."""
    best: dict[str, float] = {}
    for trial in arm.trials:
        key = repr(trial.settings[path])
        best[key] = max(best.get(key, -1.0), trial.accuracy)
    return best


def _label(arm: ArmResult, comparison: Comparison) -> str:
    return shortened(arm.arm.name) + (" (baseline)" if arm is comparison.baseline else "")


def _looks(arms: Sequence[ArmResult], comparison: Comparison) -> list[tuple[str, Any]]:
    flags = [arm is comparison.baseline for arm in arms]
    return [
        (color_of(arm.arm.index, baseline=flag), line_of(arm.arm.index, baseline=flag))
        for arm, flag in zip(arms, flags, strict=True)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sorting(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))
