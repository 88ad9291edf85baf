"""Pictures of an inspection: signals over depth, gains, singular values of every layer, frequency maps.

Every function gives a matplotlib figure, or None where the inspection holds nothing to draw. What a logarithm does not
exist of (zero, NaN, infinity) is written in red at the edge of the axes. Names in red are layers with an alert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator

from weightspace.figures import MUTED, WIDTH, color_of, new_figure, shortened
from weightspace.inspection.layers import DEAD_MODE
from weightspace.inspection.report import Inspection, LayerReport
from weightspace.inspection.selection import alerted, map_of, with_map, with_values

UNDERFLOW = 1e-6  # of a layer's largest: smaller singular values are rounding errors in float32
_BLUE, _ORANGE, _GREEN = (color_of(index, baseline=False) for index in range(3))
_ALARM = "#B00020"
_MOST_NAMES = 64  # on the horizontal axis
_FULL_RANGE = 8.0  # decades that histograms still share one axis over
Array = np.ndarray[Any, np.dtype[np.float64]]


def depth_figure(report: Inspection) -> Figure | None:
    """Root mean square of activations and, below, of gradients at every called layer; measured and expected."""
    layers = [layer for layer in report.layers if layer.measured is not None]
    signals = [layer.measured for layer in layers if layer.measured is not None]
    if not signals:
        return None
    panels = [
        ("activation RMS", _BLUE, [s.activation_rms for s in signals], [s.expected_activation_rms for s in signals]),
        ("gradient RMS", _ORANGE, [s.gradient_rms for s in signals], [s.expected_gradient_rms for s in signals]),
    ]
    panels = [panel for panel in panels if any(value is not None for value in panel[2])]
    names = [shortened(layer.name or "(model)", 24) for layer in layers]
    is_flat = len(layers) * max(map(len, names)) * 0.075 < WIDTH - 1.0
    figure = new_figure(1.0 + 1.75 * len(panels) + (0 if is_flat else 0.062 * max(map(len, names))))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    places = np.arange(len(layers), dtype=np.float64)
    for axes, (label, color, seen, foreseen) in zip(rows, panels, strict=True):
        measured, expected = _log10(seen), _log10(foreseen)
        size = min(1.0, max(0.35, 45 / len(layers)))
        axes.plot(places, measured, "-o", color=color, markersize=4 * size, linewidth=1.5)
        look = {"color": "#333333", "markersize": 5.5 * size, "linewidth": 0.9, "markerfacecolor": "none"}
        axes.plot(places, expected, "--s", **look, markeredgewidth=size)
        _log_axis(axes, "y", [*measured, *expected], least=1.0)
        for place, value in zip(places, seen, strict=True):
            turn = 90 if len(layers) > 40 else 0
            _write_beyond(
                axes, value, (place, 0.03), axes.get_xaxis_transform(), va="bottom", ha="center", rotation=turn
            )
        axes.set_title(label)
    handles = [
        _key("measured", color=MUTED, marker="o", markersize=4),
        _key("expected by the weights", color="#333333", linestyle="--", marker="s", markerfacecolor="none"),
    ]
    _legend(figure, handles)
    shown = range(0, len(layers), math.ceil(len(layers) / _MOST_NAMES))
    rows[-1].set_xticks(list(shown), [names[i] for i in shown], rotation=0 if is_flat else 90, fontsize=7.5)
    rows[-1].set_xlim(-0.6, len(layers) - 0.4)
    _color_names(rows[-1].get_xticklabels(), [layers[i] for i in shown], alerted(report))
    return figure


def gain_figure(report: Inspection) -> Figure | None:
    """Factor of every layer on the norm of the gradient and of the signal: measured, by the weights, and folded."""
    layers = report.layers
    if not layers:
        return None
    figure = new_figure(1.0 + _row_height(len(layers)) * len(layers))
    panels = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(layers), dtype=np.float64)
    sides: tuple[Literal["backward", "forward"], ...] = ("backward", "forward")
    for axes, side in zip(panels, sides, strict=True):
        seen = [None if layer.measured is None else getattr(layer.measured, f"{side}_gain") for layer in layers]
        own = [getattr(layer.spectrum, f"{side}_gain") for layer in layers]
        folded = [getattr(layer, f"folded_{side}_gain") for layer in layers]
        measured, weights, with_norm = _log10(seen), _log10(own), _log10(folded)
        axes.axvline(0.0, color="black", linewidth=1.0)
        color = _ORANGE if side == "backward" else _BLUE
        axes.barh(rows, np.nan_to_num(measured), height=0.62, color=color, alpha=0.55)
        axes.plot(with_norm, rows, "D", color=_GREEN, markersize=4)
        axes.plot(weights, rows, "o", color="black", markersize=4.5, markerfacecolor="none", markeredgewidth=1.0)
        _log_axis(axes, "x", [*measured, *weights, *with_norm, 0.0], least=0.6, margin=0.1)
        for row, one, other in zip(rows, own, seen, strict=True):
            worst = other if 0 < one < math.inf else one
            _write_beyond(axes, worst, (0.01, row), axes.get_yaxis_transform(), va="center", ha="left")
        axes.set_title(f"{side} gain")
        _finish_rows(axes, len(layers))
    handles = [
        Patch(color="#999999", label="measured"),
        _key("by the weights", color="black", linestyle="", marker="o", markerfacecolor="none"),
        _key("by the weights, with the batch norm", color=_GREEN, linestyle="", marker="D", markersize=4),
    ]
    has_folded = any(layer.folded_backward_gain is not None for layer in layers)
    _legend(figure, handles if has_folded else handles[:2])
    _name_rows(panels[0], layers, alerted(report))
    return figure


def strip_figure(report: Inspection) -> Figure | None:
    """Quantiles of the singular values of every layer with the certified interval of the largest."""
    layers = [layer for layer in report.layers if layer.spectrum.extremes is not None or len(layer.spectrum.room())]
    if not layers:
        return None
    figure = new_figure(1.0 + _row_height(len(layers)) * len(layers))
    axes = figure.subplots()
    reach: list[float] = [0.0]
    for row, layer in enumerate(layers):
        reach += _strip_row(axes, row, layer)
    axes.axvline(0.0, color="black", linewidth=1.0, zorder=1)
    _finish_rows(axes, len(layers))
    _log_axis(axes, "x", reach, least=1.0)
    for row, layer in enumerate(layers):
        extremes = layer.spectrum.extremes
        top = extremes.sigma_max if extremes is not None else max(layer.spectrum.quantiles() or (math.nan,))
        _write_beyond(axes, top, (0.01, row), axes.get_yaxis_transform(), va="center", ha="left")
    kinds = {layer.spectrum.is_true_padding for layer in layers if layer.spectrum.values is not None}
    handles = [
        _key("interval of sigma_max", color=_ORANGE, marker="|", markersize=9, markeredgewidth=1.6, linewidth=3),
        _key("sigma_min", color=MUTED, linestyle="", marker="|", markersize=9),
        _key("sigma_min is at most", color=MUTED, linestyle="", marker="<", markersize=4, markerfacecolor="white"),
    ]
    handles += [Patch(color=_BLUE, label="all, own padding")] if True in kinds else []
    handles += [Patch(color=_GREEN, label="all, circular counterpart")] if False in kinds else []
    _legend(figure, handles)
    how = " (thin: all, thick: 5 to 95 %, box: middle half, white: median)" if kinds else ""
    axes.set_xlabel(f"singular value{how}")
    _name_rows(axes, layers, alerted(report))
    return figure


def histogram_figure(report: Inspection) -> Figure | None:
    """Small multiples: distribution of the logarithm of each layer's singular values."""
    layers = with_values(report)[0]
    if not layers:
        return None
    spans = [_span(layer.spectrum.room().numpy()) for layer in layers]
    shared = min(low for low, _ in spans), max(high for _, high in spans)
    figure, panels = _small_multiples(len(layers), columns=4, height=1.3, legend=0.45)
    for axes, layer, own in zip(panels, layers, spans, strict=True):
        _histogram(axes, layer, shared if shared[1] - shared[0] <= _FULL_RANGE else own)
        axes.set_title(_panel_title(layer, 30), fontsize=7.5, color=_name_color(layer, alerted(report)))
    handles = [
        _key("singular value 1", color="black", linewidth=1.0),
        _key("dead below: a thousandth of the largest", color=_ALARM, linewidth=1.0, linestyle=":"),
        Patch(color=_ALARM, label="underflow: below a millionth of the largest"),
    ]
    _legend(figure, handles)
    return figure


def frequency_figure(report: Inspection) -> Figure | None:
    """Small multiples: the largest singular value at every frequency, the constant wave in the middle."""
    layers = with_map(report)[0]
    if not layers:
        return None
    figure, panels = _small_multiples(len(layers) + 1, columns=6)
    _frequency_key(panels[0])
    for axes, layer in zip(panels[1:], layers, strict=True):
        grid = _centered(map_of(layer).numpy())
        finite = grid[np.isfinite(grid)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)
        # A range of a factor 1.5 at least: small differences between frequencies should look small.
        axes.imshow(grid, cmap="viridis", vmin=min(low, high / 1.5), vmax=high or 1.0, aspect="equal")
        title = f"{shortened(layer.name or '(model)', 22)}\n{low:.3g} to {high:.3g}"
        axes.set_title(title, fontsize=7.2, color=_name_color(layer, alerted(report)))
        _bare(axes)
    return figure


# -------------------------------------------------------------------------------------------------------- parts of it


def _centered(grid: Array) -> Array:
    """A map with the constant wave in the middle; of even sizes the last wave is there at both edges, which are one."""
    rows, columns = grid.shape
    return np.pad(np.fft.fftshift(grid), ((0, 1 - rows % 2), (0, 1 - columns % 2)), mode="wrap")


def _strip_row(axes: Axes, row: int, layer: LayerReport) -> list[float]:
    """Draws one layer; gives the logarithms that the axis must hold."""
    spectrum, extremes = layer.spectrum, layer.spectrum.extremes
    reach: list[float] = []
    quantiles = layer.spectrum.quantiles()
    if quantiles is not None and quantiles[-1] > 0:
        floor = UNDERFLOW * quantiles[-1]
        logs = [math.log10(max(value, floor)) for value in quantiles]
        color = _BLUE if spectrum.is_true_padding else _GREEN
        for (low, high), width in (((0, 6), 1.0), ((1, 5), 2.6), ((2, 4), 6.5)):
            axes.plot([logs[low], logs[high]], [row, row], color=color, linewidth=width, solid_capstyle="butt")
        axes.plot([logs[3]], [row], "|", color="white", markersize=5.5, markeredgewidth=1.4)
        if quantiles[0] < floor:
            axes.plot([logs[0]], [row], "<", color=_ALARM, markersize=4.5)
        reach += logs
    if extremes is not None and extremes.sigma_max > 0 and math.isfinite(extremes.sigma_max_bound):
        ends = [math.log10(extremes.sigma_max), math.log10(extremes.sigma_max_bound)]
        axes.plot(ends, [row, row], color=_ORANGE, linewidth=3, marker="|", markersize=9, markeredgewidth=1.6)
        reach += ends
        if extremes.sigma_min > UNDERFLOW * extremes.sigma_max:
            reach.append(math.log10(extremes.sigma_min))
            marker, size = ("|", 9) if extremes.is_sigma_min_exact else ("<", 4)
            axes.plot(reach[-1:], [row], marker, color=MUTED, markersize=size, markerfacecolor="white")
    return reach


def _span(values: Array) -> tuple[float, float]:
    """Logarithms between which a layer's singular values are drawn."""
    top = float(values[0])
    low = math.log10(max(float(values[-1]), UNDERFLOW * top))
    return min(low, math.log10(top) - 0.3) - 0.05, math.log10(top) + 0.1


def _histogram(axes: Axes, layer: LayerReport, span: tuple[float, float]) -> None:
    values, (low, high) = layer.spectrum.room().numpy(), span
    floor = max(UNDERFLOW * float(values[0]), 10.0**low)
    inside = values[values >= floor]
    lost = 1.0 - inside.size / values.size
    counts, edges = np.histogram(np.log10(inside), bins=36, range=(low, high))
    heights = counts / values.size
    axes.stairs(heights, edges, fill=True, color=_BLUE if layer.spectrum.is_true_padding else _GREEN, alpha=0.75)
    if lost:
        width = (high - low) / 36
        axes.bar([low - width], [lost], width=1.6 * width, color=_ALARM)
        axes.text(low, lost, f" {lost:.0%}", color=_ALARM, fontsize=7, va="top", ha="left")
        low -= 2 * width
    _log_axis(axes, "x", [low, high], least=0.0, margin=0.0, most=6)
    for place, color, line in ((0.0, "black", "-"), (math.log10(DEAD_MODE * values[0]), _ALARM, ":")):
        if low < place < high:
            axes.axvline(place, color=color, linewidth=1.0, linestyle=line)
    axes.set_ylim(0.0, 1.12 * max(float(heights.max()), lost))
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines["left"].set_visible(False)


def _frequency_key(axes: Axes) -> None:
    """Where on a map which wave lies."""
    _bare(axes)
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    axes.set_aspect("equal")
    axes.set_title("where which wave lies\n", fontsize=7.2, color=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(True)
    middles = [(0, 0, "constant"), (0.7, 0, "||||"), (-0.7, 0, "||||"), (0, 0.8, "≡"), (0, -0.8, "≡")]
    corners = [(x, y, "checks") for x in (-0.68, 0.68) for y in (-0.8, 0.8)]
    for x, y, text in middles + corners:
        axes.text(x, y, text, fontsize=7, color="#333333", ha="center", va="center")


def _panel_title(layer: LayerReport, limit: int) -> str:
    kind = "" if layer.spectrum.is_true_padding else ", circular"
    return f"{shortened(layer.name or '(model)', limit)}\n{len(layer.spectrum.room()):,} values{kind}"


def _small_multiples(
    count: int, *, columns: int, height: float | None = None, legend: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A grid of panels of equal size, square or of a height in inches; one column more where that saves a line."""
    columns += math.ceil(count / columns) > math.ceil(count / (columns + 1))
    lines = math.ceil(count / columns)
    figure = new_figure(legend + lines * (height or WIDTH / columns + 0.3))
    panels = [figure.add_subplot(lines, columns, number + 1) for number in range(lines * columns)]
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def _key(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=label, **look)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(handles=list(handles), loc="outside upper left", ncols=len(handles), fontsize=8, frameon=False)


def _row_height(layers: int) -> float:
    """In inches; beyond 120 layers rows are closer and some names left out."""
    return min(0.17, 20.4 / layers)


def _name_color(layer: LayerReport, names: frozenset[str]) -> str:
    return _ALARM if layer.name in names else "#333333"


def _finish_rows(axes: Axes, count: int) -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="x", labeltop=count > 30)  # where the lower axis is out of sight


def _name_rows(axes: Axes, layers: Sequence[LayerReport], names: frozenset[str]) -> None:
    stride = math.ceil(0.12 / _row_height(len(layers)))
    shown = range(0, len(layers), stride)
    axes.set_yticks(list(shown), [shortened(layers[i].name or "(model)", 34) for i in shown], fontsize=7.5)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    _color_names(axes.get_yticklabels(), [layers[i] for i in shown], names)


def _color_names(texts: Sequence[Any], layers: Sequence[LayerReport], names: frozenset[str]) -> None:
    for text, layer in zip(texts, layers, strict=True):
        text.set_color(_name_color(layer, names))


def _log10(values: Sequence[float | None]) -> Array:
    """Logarithms, NaN where there is none."""
    return np.array([math.log10(v) if v is not None and 0 < v < math.inf else math.nan for v in values])


def _write_beyond(axes: Axes, value: float | None, place: tuple[float, float], transform: Any, **look: Any) -> None:
    """Writes down a value that has no logarithm."""
    if value is not None and not 0 < value < math.inf:
        mark = "NaN" if math.isnan(value) else "0" if value == 0 else "∞"
        axes.text(*place, mark, transform=transform, color=_ALARM, fontsize=7, **look)


def _log_axis(
    axes: Axes, which: Literal["x", "y"], logs: Sequence[float], *, least: float, margin: float = 0.06, most: int = 9
) -> None:
    """Limits around logarithms, at least `least` decades, and ticks labelled with the values themselves."""
    finite = [value for value in logs if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    pad = max(margin * (high - low), (least - (high - low)) / 2)
    low, high = low - pad, high + pad
    ticks = _ticks(low, high, most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(FixedLocator([math.log10(tick) for tick in ticks]))
    axis.set_major_formatter(FixedFormatter([_short(tick) for tick in ticks]))


def _short(value: float) -> str:
    """A number in few letters.

    >>> _short(0.05), _short(1e-5), _short(2e6)
    ('0.05', '1e-5', '2e6')
    """
    return (
        f"{value:g}"
        if 1e-3 <= value < 1e4
        else f"{value:e}".replace(".000000", "").replace("e-0", "e-").replace("e+0", "e")
    )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values whose logarithms lie between two, at most `most`.

    >>> _ticks(-3.2, 0.3, 9)
    [0.001, 0.01, 0.1, 1.0]
    >>> _ticks(-0.2, 0.5, 9)
    [0.7, 1.0, 1.5, 2.0, 3.0]
    """
    exponents = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, math.ceil((high - low) / most))
    for mantissas in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{m:g}e{e}") for e in exponents for m in mantissas if low <= math.log10(m) + e <= high]
        if len(ticks) <= most * 2 // 3:
            return ticks
    return [float(f"1e{e}") for e in exponents if e % step == 0 and low <= e <= high]
