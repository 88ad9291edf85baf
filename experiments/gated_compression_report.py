"""Tables and the figure of `experiments.gated_compression`: `python -m experiments.gated_compression_report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from weightspace.compare.statistics import Estimate, mean_interval, paired_difference
from weightspace.figures import STYLE, color_of, line_of, marker_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

BASELINE = "dense"
PRUNING = "magnitude"
Runs = list[dict[str, Any]]


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md and compression.png."""
    write_text_atomically(folder / "table.md", f"{settings(results)}\n{table(results)}\n{limits(results)}")
    with rc_context(STYLE):
        save_figure(figure(results), folder / "compression.png")


def by_arm(results: Mapping[str, Any]) -> dict[str, Runs]:
    """The runs of every arm, by seed."""
    arms: dict[str, Runs] = {}
    for run in results["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    return {arm: sorted(runs, key=lambda run: run["seed"]) for arm, runs in arms.items()}


def accuracies(runs: Runs, ratio: str) -> list[float]:
    """In percent, one for each seed."""
    return [100 * run["ratios"][ratio]["accuracy"] for run in runs]


def reference(arms: Mapping[str, Runs]) -> list[float]:
    """The dense network to beat: of those trained without a penalty the one that is best on the test images.

    The held-out images of one tuning seed may choose another weight decay for `dense` than for `magnitude`, whose
    networks were measured before pruning too. Taking the better one is hard on all that is pruned, and on nothing else.
    """
    return max((accuracies(arms[arm], "0.0") for arm in (BASELINE, PRUNING)), key=fmean)


def ratios_of(arm: str, runs: Runs) -> list[str]:
    """What is reported: only networks without a penalty are looked at without pruning."""
    return [r for r in runs[0]["ratios"] if float(r) > 0.0 or arm == PRUNING] if arm != BASELINE else ["0.0"]


def table(results: Mapping[str, Any]) -> str:
    """One row for each arm and ratio."""
    arms = by_arm(results)
    dense = reference(arms)
    rows = [
        "| arm | zeros | fewer non-zeros | smaller file | with 8 bits | accuracy, % | minus the best dense | minus magnitude |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, runs in arms.items():
        for ratio in ratios_of(arm, runs):
            entries = [run["ratios"][ratio] for run in runs]
            values = accuracies(runs, ratio)
            pruned = accuracies(arms[PRUNING], ratio)
            cells = [
                arm,
                f"{100 * float(ratio):g} %",
                *(f"{fmean(e['numbers'] / e['nonzeros'] for e in entries):.1f}×",),
                *(f"{fmean(e['plain'] / e[kind] for e in entries):.1f}×" for kind in ("sparse", "eight_bits")),
                interval(mean_interval(values)),
                "–" if values == dense else interval(paired_difference(values, dense), sign=True),
                "–" if arm in (BASELINE, PRUNING) else interval(paired_difference(values, pruned), sign=True),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def limits(results: Mapping[str, Any]) -> str:
    """For every arm the sparsest network that loses no accuracy: the interval of the difference reaches zero."""
    arms = by_arm(results)
    dense = reference(arms)
    lines = [
        "Sparsest network whose accuracy is not below that of the best dense one (the interval of the difference holds 0):",
        "",
    ]
    for arm, runs in arms.items():
        if arm == BASELINE:
            continue
        kept = [
            r for r in ratios_of(arm, runs) if float(r) > 0.0 and reaches(paired_difference(accuracies(runs, r), dense))
        ]
        best = max(kept, key=float, default=None)
        if best is None:
            lines.append(f"- {arm}: none of these")
            continue
        entries = [run["ratios"][best] for run in runs]
        fewer, smaller, eight = (
            fmean(e[a] / e[b] for e in entries)
            for a, b in (("numbers", "nonzeros"), ("plain", "sparse"), ("plain", "eight_bits"))
        )
        lines.append(
            f"- {arm}: {fewer:.1f} times fewer non-zeros, a file {smaller:.1f} times smaller ({eight:.1f} with 8 bits)"
        )
    return "\n".join(lines) + "\n"


def reaches(difference: Estimate) -> bool:
    """Whether the interval is not all below zero."""
    return difference.mean >= 0.0 if difference.high is None else difference.high >= 0.0


def settings(results: Mapping[str, Any]) -> str:
    """What tuning chose."""
    arms = by_arm(results)
    lines = ["| arm | chosen | zeros after training | open |", "|:---|:---|---:|---:|"]
    for arm, trial in results["chosen"].items():
        rule = trial["penalty"]
        text = f"weight_decay {trial['weight_decay']:g}"
        if rule is not None:
            gate = rule.get("gate") or {"gate": "Always"}
            rest = ", ".join(f"{k} {v}" for k, v in gate.items() if k != "gate")
            text = f"strength {rule['weight']:g}, {gate['gate']}" + (f" ({rest})" if rest else "")
        duties = [run["duty"] for run in arms[arm] if run["duty"] is not None]
        zeros = fmean(run["zeros"] for run in arms[arm])
        lines.append(f"| {arm} | {text} | {100 * zeros:.1f} % | {f'{fmean(duties):.2f}' if duties else '–'} |")
    return "\n".join(lines) + "\n"


def interval(estimate: Estimate, *, sign: bool = False) -> str:
    """Mean and half the interval."""
    mean = f"{estimate.mean:+.2f}" if sign else f"{estimate.mean:.2f}"
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} ± {(estimate.high - estimate.low) / 2:.2f}"


def figure(results: Mapping[str, Any]) -> Figure:
    """Accuracy against the share of weights that are left, means with intervals; the dense network as a band."""
    arms = by_arm(results)
    fig = new_figure(4.2)
    axes = fig.subplots()
    dense = mean_interval(reference(arms))
    axes.axhline(dense.mean, color="#000000", linewidth=1, label="the best dense one")
    if dense.low is not None and dense.high is not None:
        axes.axhspan(dense.low, dense.high, color="#000000", alpha=0.08, linewidth=0)
    names = [arm for arm in arms if arm != BASELINE]
    for index, arm in enumerate(names):
        runs, ratios = arms[arm], [r for r in ratios_of(arm, arms[arm]) if float(r) > 0.0]
        left = [100 * (1 - float(r)) * 1.03 ** (index - len(names) / 2) for r in ratios]  # side by side, not on top
        found = [mean_interval(accuracies(runs, r)) for r in ratios]
        axes.errorbar(
            left,
            [e.mean for e in found],
            yerr=_half(found),
            label=arm,
            color=color_of(index, baseline=arm == PRUNING),
            linestyle=line_of(index, baseline=arm == PRUNING),
            marker=marker_of(index, baseline=arm == PRUNING),
            capsize=2,
            linewidth=1.2,
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = sorted(
        {round(100 * (1 - float(r)), 6) for arm in names for r in ratios_of(arm, arms[arm]) if float(r) > 0.0}
    )
    axes.set_xticks(ticks, [f"{t:g} %" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights left")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    return fig


def _half(found: Sequence[Estimate]) -> list[float]:
    return [0.0 if e.low is None or e.high is None else (e.high - e.low) / 2 for e in found]


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
