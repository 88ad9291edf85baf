"""Heat maps of per-layer measurements: layer by step, one panel per arm, one color scale for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from weightspace.figures import new_figure, shortened
from weightspace.report.collect import LayerTable

Quantity = Literal["rho", "shrinkage", "r"]

_COLUMNS = 3
_TITLES = {
    "rho": "rho: part of the gradient's squared length that lies in its mean over the rule's axis",
    "shrinkage": "shrinkage: length of the transformed gradient over that of the loss gradient",
    "r": "r: largest factor that steps on a manifold were divided by",
}
_MOST_LABELS = 20


def layers_figure(tables: Sequence[LayerTable], quantity: Quantity) -> Figure | None:
    """Layer x step heat maps.

    Args:
        tables: One per arm.
        quantity: What to show.

    Returns:
        The figure, or None when nothing was measured.
    """
    grids = [_grid(table, quantity) for table in tables]
    finite = [grid[np.isfinite(grid)] for grid in grids]
    if not any(values.size for values in finite):
        return None
    top = max(float(values.max()) for values in finite if values.size)
    bottom = min(0.0, *(float(values.min()) for values in finite if values.size))
    columns = min(_COLUMNS, len(tables))
    rows = math.ceil(len(tables) / columns)
    layers = max(len(table.names) for table in tables)
    figure = new_figure(0.7 + rows * (0.62 + max(0.9, min(0.145 * layers, 4.0))))
    panels = figure.subplots(rows, columns, squeeze=False)
    image = None
    for number, panel in enumerate(panels.flat):
        if number >= len(tables):
            panel.set_visible(False)
            continue
        table, grid = tables[number], grids[number]
        image = panel.pcolormesh(_edges(table.steps), np.arange(len(table.names) + 1), grid, cmap="cividis")
        image.set_clim(bottom, top if top > bottom else bottom + 1.0)
        panel.set_title(shortened(table.title), fontsize=8.5)
        panel.grid(visible=False)
        panel.invert_yaxis()
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.tick_params(labelsize=7.5)
        same_layers = number % columns > 0 and table.names == tables[number - 1].names
        stride = math.ceil(len(table.names) / _MOST_LABELS)
        shown = range(0, len(table.names), stride)
        names = [shortened(_short_name(table.names[index]), 22) for index in shown]
        panel.set_yticks([index + 0.5 for index in shown], [""] * len(names) if same_layers else names)
        if number + columns >= len(tables):
            panel.set_xlabel("step")
    figure.suptitle(_TITLES[quantity], fontsize=9.5, x=0.005, ha="left")
    if image is not None:
        figure.colorbar(image, ax=list(panels.flat), shrink=min(1.0, 0.5 + 0.5 / rows), aspect=30, pad=0.01)
    return figure


def _short_name(name: str) -> str:
    """A parameter's name without the `.weight` that all of them share."""
    return name.removesuffix(".weight")


def _edges(steps: Sequence[int]) -> list[float]:
    """Borders of the columns, halfway between the steps."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    inner = [(a + b) / 2 for a, b in pairwise(steps)]
    return [max(0.0, 2 * steps[0] - inner[0]), *inner, steps[-1] + (steps[-1] - inner[-1])]


def _grid(table: LayerTable, quantity: Quantity) -> NDArray[np.float64]:
    if quantity == "rho":
        return table.rho
    grid = table.shrinkage if quantity == "shrinkage" else table.factor
    return np.full_like(table.rho, np.nan) if grid is None else grid
