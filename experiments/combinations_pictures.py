"""Pictures of `experiments.combinations_report`: the matrix of cells, and the interactions.

Blue is better and orange is worse, which color-blind readers tell apart; every cell also carries its number, and what is
told apart from zero has a frame and a star, or a filled marker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.combinations_effects import OPEN
from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure
from weightspace.files import JsonObject

COLORS = colormaps["PuOr"]  # orange to violet: safe for all common kinds of color blindness
DARK = 0.6  # of the color scale's half; numbers on darker ground are white
WIDEST = 4.0  # points; a stronger effect does not squeeze the others into one color
SHORT = {"none": "no", "SingularValueBand": "band", "SingularValueBand gated": "band, gated", "L1 gated": "L1, gated"}
KINDS = (("alone", "o", 0), ("averaged", "s", 1))
Rows = list[dict[str, Any]]


def write(found: JsonObject, folder: Path) -> None:
    """combinations.png and interactions.png."""
    with rc_context(STYLE):
        save_figure(matrix(found), folder / "combinations.png")
        save_figure(forest(found), folder / "interactions.png")


def matrix(found: JsonObject) -> Figure:
    """One panel a metric: penalties down, manifolds across; accuracy minus that of the plain cell."""
    metrics, manifolds, penalties = (found["factors"][factor] for factor in ("metric", "manifold", "penalty"))
    differences = found["accuracy"]["differences"]
    reach = min(WIDEST, max((abs(d["mean"]) for d in differences.values() if d), default=1.0) or 1.0)
    norm = TwoSlopeNorm(0.0, -reach, reach)
    fig = new_figure(1.2 + 0.62 * len(penalties))
    panels = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_title(f"{SHORT.get(metric, metric)} metric" if metric == "none" else metric)
        axes.set_xticks(range(len(manifolds)), [SHORT.get(m, m) + " manifold" * (m == "none") for m in manifolds])
        axes.set_yticks(range(len(penalties)), [SHORT.get(p, p) + " penalty" * (p == "none") for p in penalties])
        axes.set_xlim(-0.5, len(manifolds) - 0.5)
        axes.set_ylim(len(penalties) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        for name, cell in found["cells"].items():
            at = cell["levels"]
            if at["metric"] == metric:
                place = manifolds.index(at["manifold"]), penalties.index(at["penalty"])
                level = found["accuracy"]["means"][name]["mean"]
                draw_cell(axes, place, differences.get(name), level, norm)
    fig.supxlabel(
        "test accuracy minus that of the plain cell, percentage points (95 % interval); * and a frame: told apart from it",
        fontsize=9,
    )
    return fig


def draw_cell(
    axes: Axes, place: tuple[int, int], difference: dict[str, Any] | None, level: float, norm: TwoSlopeNorm
) -> None:
    """A colored square with its number; the plain cell is white and holds its accuracy."""
    value = 0.0 if difference is None else difference["mean"]
    scaled = float(np.clip(norm(value), 0.0, 1.0))
    corner = (place[0] - 0.5, place[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=COLORS(scaled), edgecolor="white", linewidth=1.5))
    ink = "white" if abs(2 * scaled - 1) > DARK else "black"
    if difference is None:
        axes.text(*place, f"plain\n{level:.1f} %", ha="center", va="center", fontsize=8.5)
        return
    is_told = difference["verdict"] != OPEN
    if is_told:
        inside = (place[0] - 0.46, place[1] - 0.45)
        axes.add_patch(Rectangle(inside, 0.92, 0.9, fill=False, edgecolor=ink, linewidth=1.3))
    style: dict[str, Any] = {"ha": "center", "color": ink}
    weight = "bold" if is_told else "normal"
    axes.text(
        place[0], place[1] - 0.03, rounded(value) + "*" * is_told, va="bottom", fontsize=10, weight=weight, **style
    )
    if difference["low"] is not None:
        ends = f"{difference['low']:+.1f} to {difference['high']:+.1f}"  # -0.0 lies below zero
        axes.text(place[0], place[1] + 0.07, ends, va="top", fontsize=7.2, **style)


def rounded(value: float) -> str:
    """One digit with its sign; no minus before zero.

    >>> rounded(-0.04), rounded(-0.06)
    ('+0.0', '-0.1')
    """
    return f"{round(value, 1) + 0.0:+.1f}"


def forest(found: JsonObject) -> Figure:
    """Every pair of rules: the difference of differences, alone and averaged over the third factor."""
    rows: Rows = found["accuracy"]["interactions"]
    fig = new_figure(1.1 + 0.3 * len(rows))
    axes = fig.subplots()
    for place, row in enumerate(rows):
        for kind, marker, color in KINDS:
            draw_interval(axes, place + (-0.16 if kind == "alone" else 0.16), row[kind], marker, color)
    for kind, marker, color in KINDS:
        label = {"alone": "no third rule", "averaged": "averaged over the third factor"}[kind]
        axes.plot([], [], marker, color=color_of(color, baseline=False), markersize=5, label=label)
    axes.plot([], [], "o", color=MUTED, markerfacecolor="white", markersize=5, label="open: not told apart from zero")
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [" × ".join(SHORT.get(v, v) for v in row["levels"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("interaction, percentage points: left of zero the two fight, right of it they help each other")
    fig.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return fig


def draw_interval(axes: Axes, height: float, estimate: dict[str, Any] | None, marker: str, color: int) -> None:
    """A marker with its interval; filled where it is told apart from zero. Nothing where a cell is missing."""
    if estimate is None:
        return
    look = color_of(color, baseline=False)
    if estimate["low"] is not None:
        axes.plot([estimate["low"], estimate["high"]], [height, height], color=look, linewidth=1.4)
    face = "white" if estimate["verdict"] == OPEN else look
    axes.plot([estimate["mean"]], [height], marker, color=look, markerfacecolor=face, markersize=5)
