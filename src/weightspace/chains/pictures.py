"""The pictures of sampled chains: predictions against the number of samples, calibration, traces, temperatures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from weightspace.errors import SamplingError
from weightspace.figures import BASELINE_COLOR, MUTED, STYLE, color_of, new_figure, robust_limits, save_figure
from weightspace.sampling import Reliability, chain_folder, reliability_plot, trace_plot
from weightspace.training.json_lines import read_whole_lines
from weightspace.training.logs import METRICS_FILE

PREDICTIONS, RELIABILITY, TRACES, TEMPERATURES = "predictions", "reliability", "traces", "temperatures"
_TRACED = 5


def draw_pictures(results: Mapping[str, Any], run_dir: Path, folder: Path) -> dict[str, Path]:
    """Draw what there is to draw.

    Args:
        results: Of `evaluate_chains`.
        run_dir: Folder of the chains.
        folder: Where the PNG files go.

    Returns:
        The files by name: `predictions`, `reliability-point`, `reliability`, and where there are any `traces` and
        `temperatures`.

    Raises:
        RunError: A file cannot be written.
    """
    made: dict[str, Path] = {}
    with rc_context(STYLE):
        made[PREDICTIONS] = save_figure(predictions_figure(results), folder / f"{PREDICTIONS}.png")
        temperatures = temperature_figure(results, run_dir)
        if temperatures is not None:
            made[TEMPERATURES] = save_figure(temperatures, folder / f"{TEMPERATURES}.png")
    for name, row, title in (
        (f"{RELIABILITY}-point", "last point", "The last point of one chain"),
        (RELIABILITY, "all chains", "All chains, averaged"),
    ):
        table = _reliability(results["calibration"][row]["bins"])
        made[name] = reliability_plot(table, folder / f"{name}.png", title=title)
    values, notes = _traced(results)
    if values:
        try:
            made[TRACES] = trace_plot(values, folder / f"{TRACES}.png", notes=notes)
        except SamplingError:  # a chain whose values are not finite: the diagnosis says so
            return made
    return made


def predictions_figure(results: Mapping[str, Any]) -> Figure:
    """Negative log-likelihood and accuracy against the number of samples averaged.

    Lines: each chain, its samples one after the other. Dots: one sample alone. Diamonds: the first one, two, ... chains
    together. Dashed: the mean of the chains' last points.
    """
    figure = new_figure(3.6)
    panels: Any = figure.subplots(1, 2)
    for panel, title, alone, together, score, factor in (
        (panels[0], "negative log-likelihood, nats", 1, 2, "nll", 1.0),
        (panels[1], "accuracy, %", 3, 4, "accuracy", 100.0),
    ):
        limits: list[float] = []
        for place, chain in enumerate(results["chains"]):
            curve = np.asarray([[_number(v) for v in row] for row in chain["curve"]], dtype=np.float64)
            numbers, color = np.arange(1, len(curve) + 1), color_of(place, baseline=False)
            panel.plot(numbers, factor * curve[:, alone], ".", color=color, alpha=0.35, markersize=3)
            label = f"chain {chain['chain']}" if score == "nll" else None
            panel.plot(numbers, factor * curve[:, together], color=color, linewidth=1.4, label=label)
            limits += [*(factor * curve[:, together]), *np.percentile(factor * curve[:, alone], [25, 75])]
        steps = results["cumulative"]
        counts, ends = [row["samples"] for row in steps], [factor * _number(row[score]) for row in steps]
        point = factor * _number(results["rows"][0][score]["value"])
        panel.plot(counts, ends, "D--", color=BASELINE_COLOR, markersize=4, linewidth=0.8, label="chains together")
        panel.axhline(point, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label="last points, mean")
        panel.set_ylim(*robust_limits([*limits, *ends, point], reach=4.0))
        panel.set_title(title)
        _count_axis(panel, max(counts))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return figure


def temperature_figure(results: Mapping[str, Any], run_dir: Path) -> Figure | None:
    """Both temperatures of every group over the steps, chain by chain, relative to what was asked; None without any."""
    found: dict[str, list[tuple[int, list[dict[str, Any]]]]] = {}
    for chain in results["chains"]:
        records, _ = read_whole_lines(chain_folder(run_dir, chain["chain"]) / METRICS_FILE)
        for name in dict.fromkeys(str(r.get("name")) for r in records if r.get("kind") == "temperature"):
            own = [r for r in records if r.get("kind") == "temperature" and r.get("name") == name]
            found.setdefault(name, []).append((chain["chain"], own))
    if not found:
        return None
    figure = new_figure(0.6 + 2.3 * len(found))
    rows: Any = figure.subplots(len(found), 2, squeeze=False, sharex=True)
    for panels, (name, chains) in zip(rows, found.items(), strict=True):
        for panel, key, what in ((panels[0], "kinetic", "velocities"), (panels[1], "configurational", "positions")):
            heights: list[float] = []
            for place, (number, records) in enumerate(chains):
                steps = [record["step"] for record in records]
                values = [_number(record.get(key)) / record["target"] for record in records]
                label = f"chain {number}" if panel is rows[0][0] else None
                panel.plot(steps, values, color=color_of(place, baseline=False), linewidth=1.2, label=label)
                heights += values[len(values) // 4 :]
            panel.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
            low, high = robust_limits([*heights, 0.8, 1.2])
            panel.set_ylim(max(-0.5, low), high)
            panel.set_title(f"{what} of {name}: measured / asked for")
            panels[0].figure.align_ylabels()
    for panel in rows[-1]:
        panel.set_xlabel("step")
    if len(results["chains"]) > 1:
        handles, labels = rows[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _count_axis(panel: Axes, most: int) -> None:
    panel.set_xlabel("samples averaged")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlim(0, max(2, most) * 1.03)


def _traced(results: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A few quantities worth a look, the worst first of those that chains share, and what stands beside them."""
    table = {row["name"]: row for row in results["diagnostics"]}
    shared = [name for name in results["quantities"] if name not in results["within"]]
    order = sorted(shared[2:], key=lambda name: -(_number(table.get(name, {}).get("rhat")) or 0.0))
    values = {name: torch.tensor(results["quantities"][name]) for name in [*shared[:2], *order][:_TRACED]}
    notes = {
        name: f"R-hat {_number(table[name]['rhat']):.3f}, {_number(table[name]['ess_bulk']):.0f} effective draws"
        for name in values
        if name in table
    }
    return values, notes


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Reliability:
    def column(key: str) -> torch.Tensor:
        return torch.tensor([_number(row[key]) for row in bins], dtype=torch.float64)

    return Reliability(torch.tensor([row["count"] for row in bins]), column("confidence"), column("accuracy"))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
