"""How plots look: colors that color-blind readers can tell apart, line styles, labels that do not overlap.

matplotlib's object-oriented interface only: no global state, no display, safe beside a user's own pyplot.
The pages that hold the plots come from templates: `page_text`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from weightspace.files import replacing

WIDTH = 9.0  # inches; shown at 900 px, so 9 pt text is 12 px
_DPI = 160
# Okabe and Ito's palette without yellow (too light on white) and black (the baseline's).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
_MARKERS = ("o", "s", "^")
BASELINE_COLOR = "#000000"
GRID_COLOR = "#d9d9d9"
MUTED = "#666666"
STYLE: Any = {  # matplotlib's type for the keys is private
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.parse_math": False,  # an arm may be called "$x$"
}


def color_of(index: int, *, baseline: bool) -> str:
    """Color of the arm at a position; the baseline is black."""
    return BASELINE_COLOR if baseline else _COLORS[index % len(_COLORS)]


def line_of(index: int, *, baseline: bool) -> Any:
    """Line style: with six colors it tells eighteen arms apart."""
    return "-" if baseline else _LINES[index // len(_COLORS) % len(_LINES)]


def marker_of(index: int, *, baseline: bool) -> str:
    """Marker, changing together with the line style."""
    return "D" if baseline else _MARKERS[index // len(_COLORS) % len(_MARKERS)]


def new_figure(height: float) -> Figure:
    """A figure of the report's width. Use inside `rc_context(STYLE)`.

    Args:
        height: In inches.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    with replacing(path) as temporary, rc_context(STYLE), warnings.catch_warnings():
        # An arm's name may hold letters that the font lacks: they are drawn as boxes, and the table has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png")
    return path


def page_text(template: Path, **values: object) -> str:
    """A page from a jinja2 template, every word of the values escaped; a name that has no value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def shortened(text: str, limit: int = 34) -> str:
    """`text`, cut in the middle when it is longer than `limit` characters.

    >>> shortened("features.0.weight", 12)
    'featu…weight'
    """
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart so that neighbors are at least `gap` apart, changing them as little as a simple rule can.

    Args:
        positions: Wanted positions, in any order.
        gap: Smallest distance; made smaller when all do not fit between `low` and `high`.
        low: Smallest position allowed.
        high: Largest.

    >>> spread([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)
    [0.4, 0.6, 0.9]
    """
    if not positions:
        return []
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[list[float]] = []  # center, number of members
    for index in order:
        blocks.append([min(max(positions[index], low), high), 1])
        while len(blocks) > 1 and _overlap(blocks[-2], blocks[-1], gap):
            (c1, n1), (c2, n2) = blocks[-2:]
            blocks[-2:] = [[(c1 * n1 + c2 * n2) / (n1 + n2), n1 + n2]]
        for block in blocks:
            half = gap * (block[1] - 1) / 2
            block[0] = min(max(block[0], low + half), high - half)
    placed = [center + gap * (i - (n - 1) / 2) for center, n in blocks for i in range(int(n))]
    placed = _pushed_apart(placed, gap, high)
    result = [0.0] * len(positions)
    for index, position in zip(order, placed, strict=True):
        result[index] = round(position, 9)
    return result


def label_lines(axes: Axes, ends: Sequence[float], labels: Sequence[str], looks: Sequence[tuple[str, Any]]) -> None:
    """Write labels right of an axes, each beside its line's end, moved apart, with a leader and a sample of the line.

    Args:
        axes: The axes; its y limits must be set already.
        ends: Last y value of each line; outside the limits they are labelled at the edge.
        labels: One per line.
        looks: Color and line style of each line.
    """
    low, high = axes.get_ylim()
    marks = ["↓ " if end < low else "↑ " if end > high else "" for end in ends]
    labels = [f"{mark}{label}" for mark, label in zip(marks, labels, strict=True)]
    fractions = [min(max((end - low) / (high - low), 0.0), 1.0) for end in ends]
    height = axes.get_window_extent().height / _DPI
    places = spread(fractions, 0.155 / height, 0.0, 1.0)
    for start, place, label, (color, line) in zip(fractions, places, labels, looks, strict=True):
        outside: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": color}
        axes.plot([1.0, 1.04], [start, place], linewidth=0.6, **outside)
        axes.plot([1.04, 1.1], [place, place], linewidth=1.5, linestyle=line, solid_capstyle="butt", **outside)
        axes.text(1.12, place, label, va="center", fontsize=8.2, color=color, transform=axes.transAxes)


def robust_limits(values: Sequence[float], *, margin: float = 0.06, reach: float = 8.0) -> tuple[float, float]:
    """Axis limits that hold all values but far outliers (a diverged arm would squeeze all others into one line).

    Args:
        values: Finite values; others are ignored.
        margin: Free part at both ends.
        reach: Values further from the quartiles than this many interquartile ranges are left out.

    >>> low, high = robust_limits([0.90, 0.91, 0.92, 0.93, 0.1])
    >>> 0.8 < low < 0.9, 0.93 < high < 1.0
    (True, True)
    """
    data = np.asarray([value for value in values if np.isfinite(value)], dtype=np.float64)
    if data.size == 0:
        return 0.0, 1.0
    first, third = np.percentile(data, [25, 75])
    far = reach * max(float(third - first), 1e-3 * max(1.0, abs(float(third))))
    kept = data[(data >= first - far) & (data <= third + far)]
    low, high = float(kept.min()), float(kept.max())
    pad = margin * (high - low) or 0.5 * max(abs(high), 1.0) * 0.01
    return low - pad, high + pad


def _overlap(lower: Sequence[float], upper: Sequence[float], gap: float) -> bool:
    return upper[0] - gap * (upper[1] - 1) / 2 - (lower[0] + gap * (lower[1] - 1) / 2) < gap - 1e-12


def _pushed_apart(placed: list[float], gap: float, high: float) -> list[float]:
    """Last corrections at the upper end, where clamping a block may have pushed it into its neighbor."""
    ceiling = high
    result = list(placed)
    for index in range(len(result) - 1, -1, -1):
        result[index] = min(result[index], ceiling)
        ceiling = result[index] - gap
    return result
