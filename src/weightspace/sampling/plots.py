"""Pictures of samples: reliability diagrams, and traces of chains beside their rank histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure, shortened
from weightspace.sampling.calibration import Reliability
from weightspace.sampling.predictive import SampleScore

Array = np.ndarray[Any, np.dtype[np.float64]]
_BLUE, _ORANGE, _GREEN = (color_of(index, baseline=False) for index in range(3))
_RANK_BINS = 20
_MOST_NAMED = 16  # chains in a legend
_BOX: dict[str, Any] = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}


def draw_reliability(table: Reliability, path: Path, title: str | None) -> Path:
    """Accuracy against confidence above the points of each bin; the two kinds of gap in two colors."""
    bins = len(table.counts)
    filled = table.counts.numpy() > 0
    centers = ((np.arange(bins) + 0.5) / bins)[filled]
    counts, accuracy = table.counts.numpy()[filled], table.accuracy.numpy()[filled]
    confidence = table.confidence.numpy()[filled]
    with rc_context(STYLE):
        figure = new_figure(6.2)
        figure.set_size_inches(5.6, 6.2)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1.0))
        look: dict[str, Any] = {"width": 0.92 / bins, "linewidth": 0}
        upper.bar(centers, np.minimum(accuracy, confidence), color=_BLUE, alpha=0.35, **look)
        over, under = np.maximum(confidence - accuracy, 0), np.maximum(accuracy - confidence, 0)
        upper.bar(centers, over, bottom=accuracy, color=_ORANGE, alpha=0.5, label="too sure", **look)
        upper.bar(centers, under, bottom=confidence, color=_GREEN, alpha=0.5, label="not sure enough", **look)
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label="calibrated")
        bars: Any = np.abs(np.stack(wilson(accuracy, counts)) - accuracy)
        dots: dict[str, Any] = {"color": "black", "markersize": 3.5, "elinewidth": 1.0, "capsize": 2.0}
        upper.errorbar(confidence, accuracy, yerr=bars, fmt="o", label="accuracy with 95 % interval", **dots)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        upper.set_title(title or "")
        upper.legend(loc="upper left", framealpha=0.9, edgecolor="none")
        upper.text(0.97, 0.04, f"ECE {table.error:.4f}", ha="right", transform=upper.transAxes, bbox=_BOX)
        lower.bar(centers, counts, width=0.92 / bins, color="#aaaaaa")
        for name, value, color in (
            ("accuracy", table.mean_accuracy, _BLUE),
            ("confidence", table.mean_confidence, _ORANGE),
        ):
            lower.axvline(value, color=color, linewidth=1.6, label=f"mean {name} {value:.3f}")
        lower.legend(loc="lower left", bbox_to_anchor=(0.0, 0.98), ncols=2, frameon=False, borderaxespad=0.1)
        lower.set(ylabel="points", xlabel="confidence: probability of the most probable class")
        lower.locator_params(axis="y", nbins=3)
        return save_figure(figure, path)


def wilson(fraction: Array, counts: Any) -> tuple[Array, Array]:
    """Wilson's 95 % interval of a frequency: honest for a bin with one point, where the normal one has length 0."""
    z = 1.959964
    middle = (fraction + z * z / (2 * counts)) / (1 + z * z / counts)
    half = z / (1 + z * z / counts) * np.sqrt(fraction * (1 - fraction) / counts + (z / (2 * counts)) ** 2)
    return np.minimum(middle - half, fraction), np.maximum(middle + half, fraction)


def draw_curve(scores: Sequence[SampleScore], path: Path, title: str | None) -> Path:
    """Accuracy and negative log-likelihood of the average of the first k samples; each sample alone as a dot."""
    places = np.arange(1, len(scores) + 1)
    with rc_context(STYLE):
        figure = new_figure(3.1)
        panels = figure.subplots(1, 2)
        rows = {
            "accuracy": ([s.accuracy for s in scores], [s.average_accuracy for s in scores]),
            "negative log-likelihood (nats)": ([s.nll for s in scores], [s.average_nll for s in scores]),
        }
        for axes, (name, (alone, average)) in zip(panels, rows.items(), strict=True):
            axes.plot(places, alone, "o", color=_ORANGE, markersize=3.2, alpha=0.7, linewidth=0, label="one sample")
            axes.plot(places, average, "-", color=_BLUE, linewidth=1.8, label="average of the first k")
            axes.set(xlabel="samples k", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[0].set_title(title or "")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
        return save_figure(figure, path)


def draw_traces(
    values: Mapping[str, Array], path: Path, notes: Mapping[str, str], alone: frozenset[str] = frozenset()
) -> Path:
    """One row a quantity: its trace, a line for each chain, and the ranks of each chain's draws among all draws.

    Args:
        values: `(chains, draws)` by name.
        path: The PNG file.
        notes: What stands right above a quantity's ranks, by name.
        alone: Names of quantities whose chains are not to be compared: no ranks.
    """
    with rc_context(STYLE):
        figure = new_figure(0.5 + 1.6 * len(values))
        panels = figure.subplots(len(values), 2, squeeze=False, width_ratios=(2.2, 1.0))
        for (left, right), (name, chains) in zip(panels, values.items(), strict=True):
            _trace(left, chains)
            left.set_title(shortened(name, 60))
            if name in alone:
                right.set_axis_off()
            else:
                _ranks(right, chains)
            right.set_title(notes.get(name, ""))
        panels[-1][0].set_xlabel("draw")
        compared = [right for (_, right), name in zip(panels, values, strict=True) if name not in alone]
        if compared:
            compared[-1].set_xlabel("rank among all draws")
        handles, labels = panels[0][0].get_legend_handles_labels()
        if 1 < len(handles) <= _MOST_NAMED:
            figure.legend(handles, labels, loc="outside lower left", ncols=8, frameon=False)
        return save_figure(figure, path)


def _trace(axes: Axes, chains: Array) -> None:
    places = np.arange(1, chains.shape[1] + 1)
    size = max(0.4, min(1.2, 150 / chains.shape[1]))
    for number, chain in enumerate(chains):
        color = color_of(number, baseline=False)
        axes.plot(places, chain, color=color, linewidth=size, alpha=0.85, label=f"chain {number}")
    axes.set_xlim(1, max(2, chains.shape[1]))
    axes.locator_params(axis="y", nbins=4)


def _ranks(axes: Axes, chains: Array) -> None:
    """Histograms of ranks as steps: flat at one for chains that mix (Vehtari et al. 2021, section 4)."""
    bins = max(2, min(_RANK_BINS, chains.shape[1] // 5))
    flat = chains.ravel()
    order = np.empty(flat.size)
    order[np.argsort(flat, kind="stable")] = np.arange(flat.size)
    edges = np.linspace(0, flat.size, bins + 1)
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    for number, ranks in enumerate(order.reshape(chains.shape)):
        counts, _ = np.histogram(ranks, edges)
        color = color_of(number, baseline=False)
        axes.stairs(counts * bins / chains.shape[1], edges, color=color, linewidth=1.1, alpha=0.85)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, flat.size)
    axes.locator_params(axis="both", nbins=3)
