"""Table and figure of `experiments.kernel_only`, from results.json: `python -m experiments.kernel_only_report DIR`."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes

from weightspace.compare.statistics import mean_interval
from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

SINGULAR = 1e-9  # share of sigma_max below which a value counts as zero: far above rounding
SUPERSCRIPT = {1e-5: "⁵", 1e-3: "³"}
IN_FIGURE = ((3, 3), (3, 16), (16, 16), (32, 32))

Run = dict[str, Any]


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md and spectra.png."""
    write_text_atomically(folder / "table.md", tables(results))
    with rc_context(STYLE):
        save_figure(figure(results), folder / "spectra.png")


def tables(results: dict[str, Any]) -> str:
    """One Markdown table a layer."""
    parts: list[str] = []
    for layer in results["layers"]:
        values = layer["before"][0]["zero"]["count"]
        parts.append(f"### {layer['inputs']} → {layer['outputs']} channels ({values:,} singular values)\n")
        parts.append(
            "| penalty | its value, before → after | σ_max, zero padding | σ_min, zero padding "
            "| σ_max/σ_min, zero padding | σ_max/σ_min, torus | central tap, % | learning rate |"
        )
        parts.append("|:---|---:|---:|---:|---:|---:|---:|---:|")
        parts.append(row("**initial kernel**", layer["before"], "", ""))
        parts.append(row("an isometry of the torus", layer["isometry"], "", ""))
        for name, arm in layer["arms"].items():
            runs = arm["runs"]
            change = " → ".join(f"{mean(runs, key):.2g}" for key in ("penalty_before", "penalty_after"))
            rates = sorted(float(rate) for rate in arm["tried"])
            edge = len(rates) > 1 and arm["rate"] in (rates[0], rates[-1])
            parts.append(row(name, runs, change, f"{arm['rate']:g}" + (r" \*" if edge else "")))
        parts.append("")
    return "\n".join(parts)


def row(name: str, runs: Sequence[Run], change: str, rate: str) -> str:
    """One line: means with intervals; condition numbers as geometric means."""
    cells = [
        name,
        change,
        arithmetic([run["zero"]["max"] for run in runs]),
        smallest([run["zero"] for run in runs]),
        condition([run["zero"] for run in runs]),
        condition([run["circular"] for run in runs]),
        f"{100 * sum(run['center'] for run in runs) / len(runs):.0f}",
        rate,
    ]
    return "| " + " | ".join(cells) + " |"


def mean(runs: Sequence[Run], key: str) -> float:
    """Plain mean; infinite if a run left the finite numbers."""
    return sum(run[key] if run[key] is not None else math.inf for run in runs) / len(runs)


def arithmetic(values: Sequence[float]) -> str:
    """Mean (interval)."""
    return with_interval(values, lambda v: v)


def smallest(spectra: Sequence[dict[str, float]]) -> str:
    """Geometric mean of sigma_min (interval); in words where it is zero, with the share of all values that are."""
    zeros = [s["singular"] / s["count"] for s in spectra if s["singular"]]
    if zeros:
        percent = 100 * sum(zeros) / len(zeros)
        return f"0{_of(zeros, spectra)} ({percent:.2g} % of its values)"
    return with_interval([math.log(s["min"]) for s in spectra], math.exp)


def condition(spectra: Sequence[dict[str, float]]) -> str:
    """Condition numbers: geometric mean (interval); in words where they are infinite."""
    zeros = [s for s in spectra if s["singular"]]
    if zeros:
        return "∞" + _of(zeros, spectra)
    return with_interval([math.log(s["max"] / s["min"]) for s in spectra], math.exp)


def _of(some: Sequence[object], every: Sequence[object]) -> str:
    return "" if len(some) == len(every) else f" for {len(some)} of {len(every)}"


def with_interval(values: Sequence[float], back: Callable[[float], float]) -> str:
    """`mean (low–high)` after a map back to the value's own scale."""
    estimate = mean_interval(values)
    text = number(back(estimate.mean))
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({number(back(estimate.low))}–{number(back(estimate.high))})"


def number(value: float) -> str:
    """Three digits, without an exponent between a thousandth and a million."""
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.1e}"


def figure(results: dict[str, Any]) -> Any:
    """For some layers and every arm the range from sigma_min to sigma_max, before and after: medians over seeds."""
    layers = [x for x in results["layers"] if (x["inputs"], x["outputs"]) in IN_FIGURE] or results["layers"]
    names = list(dict.fromkeys(name for layer in layers for name in layer["arms"]))
    fig = new_figure(1.3 + 0.25 * (len(names) + 1))
    panels = fig.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=True):
        ends = [end(layer, name, "zero", "min") for name in (None, *layer["arms"])]
        ticks = (0.2, 0.5, 1, 2, 5) if min(ends) > 0.2 else (1e-5, 1e-3, 0.1, 1)
        axes.set_xscale("log")
        axes.set_xlim(ticks[0], 1.5 * max(end(layer, name, "zero", "max") for name in (None, *layer["arms"])))
        axes.set_xticks(ticks, [f"{tick:g}" if tick > 1e-3 else f"10⁻{SUPERSCRIPT[tick]}" for tick in ticks])
        axes.minorticks_off()
        for place, name in enumerate([None, *names]):
            if name is None or name in layer["arms"]:
                bars(axes, place, layer, name, ticks[0])
            else:
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": MUTED}
                axes.text(0.5, place, "not run", transform=axes.get_yaxis_transform(), **style)
        for side in ("min", "max"):
            axes.axvline(end(layer, None, "zero", side), color="black", linewidth=0.7, linestyle=(0, (4, 3)))
        axes.set_xlabel("singular values")
        axes.set_title(f"{layer['inputs']} → {layer['outputs']} channels")
        axes.grid(axis="y", visible=False)
    for axes in panels[1:]:
        axes.tick_params(axis="y", left=False)
    panels[0].set_yticks(range(len(names) + 1), ["initial kernel", *names])
    panels[0].set_ylim(len(names) + 0.5, -0.6)
    handles = panels[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return fig


def end(layer: dict[str, Any], name: str | None, padding: str, side: str) -> float:
    """Median over seeds of one end of the spectrum."""
    runs = layer["before"] if name is None else layer["arms"][name]["runs"]
    return statistics.median(run[padding][side] for run in runs)


def bars(axes: Axes, place: int, layer: dict[str, Any], name: str | None, floor: float) -> None:
    """Two lines with ends, zero padding above, torus below; an arrow where sigma_min lies left of the axis."""
    for offset, padding, index, label in ((-0.17, "zero", 0, "zero padding"), (0.17, "circular", 1, "torus")):
        low, high = (end(layer, name, padding, side) for side in ("min", "max"))
        color = color_of(index, baseline=False)
        text = f"{label}: σ_min to σ_max" if name is None else None
        axes.plot([max(low, floor), high], [place + offset] * 2, color=color, linewidth=2.2, label=text)
        axes.plot([high], [place + offset], "o", color=color, markersize=3.2)
        is_outside = low < floor
        axes.plot(
            [max(low, floor)],
            [place + offset],
            "<" if is_outside else "o",
            color=color,
            markersize=6 if is_outside else 3.2,
            clip_on=False,
        )


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
