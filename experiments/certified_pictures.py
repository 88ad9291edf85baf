"""Spectra of the layers and one attacked image: `python -m experiments.certified_pictures DIR` after the experiment.

Reads the weights of seed 0 that the experiment keeps in DIR/weights; writes DIR/spectra.png and DIR/image.png.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from safetensors.torch import load_file
from torch import Tensor

import weightspace as ws
from experiments.certified import Data, Size, load, plain, radii_of, slug, weighted
from experiments.certified_attack import smallest_change
from experiments.certified_report import COLORS
from weightspace.figures import MUTED, STYLE, new_figure, save_figure
from weightspace.files import read_json
from weightspace.training.data import load_data

SPECTRA = ("spectral_norm", "torchlip", "weightspace")
SHOWN = ("Adam", "spectral_norm", "weightspace")
SIDES = {"patches": 28, "conv1": 7, "conv2": 7}
NAMES = {"patches": "4x4, stride 4", "conv1": "3x3", "conv2": "3x3", "hidden": "linear", "head": "linear"}
SEARCHED = tuple(0.05 * 1.18**i for i in range(24))  # radii of the attack, up to about 2.3
CANDIDATES = 60


def networks(folder: Path, data: Data, size: Size, arms: tuple[str, ...]) -> dict[str, Any]:
    """The trained networks of seed 0."""
    found: dict[str, Any] = {}
    for arm in arms:
        model = plain(arm, data, size)
        model.load_state_dict(load_file(folder / "weights" / f"{slug(arm)}.safetensors"))
        found[arm] = model.eval()
    return found


def spectra(models: dict[str, Any], path: Path) -> None:
    """All singular values of every layer under its own zero padding, descending; 1 is what a layer should have."""
    with rc_context(STYLE):
        figure = new_figure(3.1)
        panels = figure.subplots(1, len(NAMES), sharey=True)
        for axes, (name, title) in zip(panels, NAMES.items(), strict=True):
            axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
            for arm, model in models.items():
                layer = weighted(model)[name]
                values = ws.singular_values(layer, SIDES.get(name)).detach().cpu()
                share = torch.linspace(0, 100, len(values))
                axes.plot(share, values, color=COLORS[arm], linewidth=1.8, label=arm)
                if arm == "spectral_norm" and name.startswith("conv"):
                    axes.plot(0, values[0], "o", markersize=4, color=COLORS[arm], clip_on=False)
                    axes.annotate(f"{values[0]:.2f}", (6, float(values[0])), color=COLORS[arm], fontsize=8, va="center")
            axes.set_title(f"{name}: {title}")
            axes.set_xticks([0, 50, 100])
            axes.set_xlim(0, 100)
        panels[0].set_ylabel("singular value")
        panels[0].set_ylim(0, None)
        panels[2].set_xlabel("share of singular values, %, descending")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False)
        save_figure(figure, path)


def image(models: dict[str, Any], data: Data, classes: tuple[str, ...], path: Path) -> None:
    """One test image: how far each network is proved to hold, and the nearest change found that fools it."""
    images, labels = (part[:CANDIDATES] for part in data.test)
    certificates = {arm: radii_of(model, images, labels) for arm, model in models.items()}
    radii = {arm: found for arm, (_, found) in certificates.items()}
    right = torch.stack(list(radii.values())).min(dim=0).values > 0
    own = torch.where(right, radii["weightspace"], -math.inf)
    chosen = int((own - own[right].median()).abs().argmin())  # a typical image: of median certified radius
    picture, label = images[chosen : chosen + 1], labels[chosen : chosen + 1]
    with rc_context(STYLE):
        figure = new_figure(4.6)
        grid = figure.add_gridspec(len(models), 4, width_ratios=[1, 1, 1, 3.2])
        line = figure.add_subplot(grid[:, 3])
        for row, (arm, model) in enumerate(models.items()):
            found, change = smallest_change(model, picture, label, SEARCHED, steps=60)
            fooled, length = picture + change, float(found)
            panels = [figure.add_subplot(grid[row, column]) for column in range(3)]
            with torch.no_grad():
                wrong = classes[int(model(fooled).argmax())]
            show(panels[0], picture, classes[int(label)] if row == 0 else "")
            show(panels[1], change * 2 + 0.5, "change, twice" if row == 0 else "")
            show(panels[2], fooled, f"now “{wrong}”", color=COLORS[arm])
            panels[0].set_ylabel(arm, color=COLORS[arm], fontsize=9.5)
            radius = float(radii[arm][chosen])
            bar(line, row, radius, length, COLORS[arm])
            if arm == "spectral_norm":  # the same margin over the constant of layers whose norms are 1
                claim(line, row, radius * (certificates[arm][0].body or 0.0) * data.std, COLORS[arm])
        line.set_yticks([])
        line.set_ylim(len(models) - 0.5, -0.5)
        line.set_xlim(0, 1.08 * line.get_xlim()[1])
        line.set_xlabel("Euclidean norm of the change, pixels in [0, 1]")
        line.set_title("bar: proved, no such change matters; cross: one that does")
        save_figure(figure, path)


def show(axes: Axes, picture: Tensor, title: str, *, color: str = "#000000") -> None:
    """A gray image without axes."""
    axes.imshow(picture[0, 0].clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title(title, color=color, loc="center", fontsize=8.5)


def bar(axes: Axes, row: int, radius: float, length: float, color: str) -> None:
    """Certified radius and the norm of the change found, in one line."""
    axes.barh(row, radius, height=0.34, color=color, alpha=0.85)
    axes.plot([radius, length], [row, row], color=color, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.plot(length, row, "x", color=color, markersize=8, markeredgewidth=2)
    axes.text(length, row - 0.16, f"  {length:.2f}", color=color, fontsize=8.5, va="bottom", ha="center")
    axes.text(radius, row + 0.2, f"{radius:.2f}", color=color, fontsize=8.5, va="top", ha="center")


def claim(axes: Axes, row: int, radius: float, color: str) -> None:
    """A radius that is not proved, and here not true."""
    axes.barh(row, radius, height=0.34, fill=False, edgecolor=color, linestyle=(0, (3, 2)), linewidth=1.0)
    axes.text(
        radius, row + 0.2, f"false: {radius:.2f}", color=color, fontsize=8.5, va="top", ha="center", fontstyle="italic"
    )


def main() -> None:
    """Draws both pictures."""
    folder = Path(sys.argv[1])
    size = read_json(folder / "results.json")["size"]
    data = load("cpu")
    arms = tuple(dict.fromkeys((*SPECTRA, *SHOWN)))
    models = networks(folder, data, Size(**size), arms)
    spectra({arm: models[arm] for arm in SPECTRA}, folder / "spectra.png")
    image({arm: models[arm] for arm in SHOWN}, data, load_data("fashion-mnist").class_names, folder / "image.png")


if __name__ == "__main__":
    main()
