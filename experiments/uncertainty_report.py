"""Tables and pictures of `experiments.uncertainty`, from results.json: `python -m experiments.uncertainty_report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import rc_context

from weightspace.compare.statistics import Estimate, holm, mean_interval, paired_difference
from weightspace.figures import MUTED, STYLE, color_of, line_of, marker_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

BASELINE = "deep ensemble"
FEWEST = 500  # images of all repetitions in a bin that is drawn
Score = Callable[[Mapping[str, Any]], float]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md, compute.png, reliability.png."""
    tables = [clean_table(results["rows"]), shifted_table(results["rows"]), tuning_table(results)]
    write_text_atomically(folder / "table.md", "\n".join(tables))
    with rc_context(STYLE):
        compute(results, folder / "compute.png")
        reliability(results, folder / "reliability.png")


def drawn(rows: Rows) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows of pictures: those with more samples of a chain lie on those with fewer."""
    return {name: runs for name, runs in rows.items() if not name.endswith(" samples")}


def nlls(rows: Rows) -> str:
    """A line for the log."""
    return ", ".join(f"{name} {fmean(r['clean']['nll'] for r in runs):.4f}" for name, runs in rows.items())


def of(test_set: str, key: str) -> Score:
    """One score of one test set."""
    return lambda run: run[test_set][key]


def values(rows: Rows, name: str, score: Score, scale: float = 1.0) -> list[float]:
    """One score of every repetition."""
    return [scale * score(run) for run in rows[name]]


def difference(rows: Rows, name: str, score: Score, scale: float = 1.0) -> Estimate:
    """To the deep ensemble, repetition by repetition."""
    return paired_difference(values(rows, name, score, scale), values(rows, BASELINE, score, scale))


def clean_table(rows: Rows) -> str:
    """Clean test images: means with intervals, differences of the log-likelihood with Holm's adjustment."""
    others = [name for name in rows if name != BASELINE]
    found = {name: difference(rows, name, of("clean", "nll")) for name in others}
    adjusted = dict(zip(others, holm([found[name].p_value for name in others]), strict=True))
    lines = [
        "| arm | accuracy, % | NLL | NLL minus deep ensemble | p (Holm) | accuracy minus deep ensemble, points | ECE, % | Brier | one network alone, % |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in rows:
        p = adjusted.get(name)
        cells = [
            name,
            written(mean_interval(values(rows, name, of("clean", "accuracy"), 100)), 2),
            written(mean_interval(values(rows, name, of("clean", "nll"))), 4),
            "–" if name == BASELINE else written(found[name], 4, signed=True),
            "–" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001",
            "–" if name == BASELINE else written(difference(rows, name, of("clean", "accuracy"), 100), 2, signed=True),
            written(mean_interval(values(rows, name, of("clean", "ece"), 100)), 2),
            f"{fmean(values(rows, name, of('clean', 'brier'))):.4f}",
            f"{fmean(values(rows, name, lambda run: run['alone'], 100)):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shifted_table(rows: Rows) -> str:
    """Rotated and noisy test images, and digits against clothes."""
    lines = [
        "| arm | rotated: accuracy, % | NLL minus deep ensemble | ECE, % | noisy: accuracy, % | NLL minus deep ensemble | ECE, % | digits: AUROC of entropy, % | minus deep ensemble, points | of disagreement, % |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in rows:
        cells = [name]
        for test_set in ("rotated", "noisy"):
            nll = of(test_set, "nll")
            level = f"{fmean(values(rows, name, nll)):.3f}"
            cells += [
                f"{fmean(values(rows, name, of(test_set, 'accuracy'), 100)):.2f}",
                f"{level}, baseline" if name == BASELINE else written(difference(rows, name, nll), 3, signed=True),
                f"{fmean(values(rows, name, of(test_set, 'ece'), 100)):.1f}",
            ]
        entropy: Score = lambda run: run["auroc"]  # noqa: E731  # a score, as those of `of`
        cells += [
            f"{fmean(values(rows, name, entropy, 100)):.1f}",
            "–" if name == BASELINE else written(difference(rows, name, entropy, 100), 1, signed=True),
            "–"
            if len(rows[name][0]["path"]) == 1  # one network agrees with itself
            else f"{fmean(values(rows, name, lambda run: run['auroc_disagreement'], 100)):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def tuning_table(results: dict[str, Any]) -> str:
    """What was chosen, and the trials' held-out log-likelihoods."""
    lines = ["| arm | chosen | held-out NLL of the trials, sorted |", "|:---|:---|:---|"]
    for arm, tried in results["tried"].items():
        chosen = [f"{key} {value:g}" for key, value in results["chosen"][arm].items() if value]
        lines.append(
            f"| {arm} | {', '.join(chosen)} | {', '.join(f'{t:.3f}' for t in sorted(t['nll'] for t in tried))} |"
        )
    return "\n".join(lines) + "\n"


def written(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    """Mean and interval."""
    sign = "+" if signed else ""
    text = f"{estimate.mean:{sign}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{sign}.{digits}f} to {estimate.high:{sign}.{digits}f})"


def compute(results: dict[str, Any], path: Path) -> None:
    """Log-likelihood on clean images as networks are added, against what they cost."""
    rows = drawn(results["rows"])
    figure = new_figure(4.2)
    axes = figure.subplots()
    for place, (name, runs) in enumerate(rows.items()):
        paths = np.asarray([run["path"] for run in runs], dtype=np.float64)
        look = {"color": color_of(place - 1, baseline=place == 0), "linestyle": line_of(place - 1, baseline=place == 0)}
        epochs, mean = paths[0, :, 0], paths[:, :, 1].mean(0)
        axes.plot(
            epochs,
            mean,
            marker=marker_of(place - 1, baseline=place == 0),
            markersize=4 if len(epochs) < 10 else 2.5,
            linewidth=1.4,
            label=name,
            **look,
        )
    axes.axvline(results["settings"]["epochs"], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    axes.set_xscale("log")
    budget = results["settings"]["epochs"]
    ticks = [budget * factor / 5 for factor in (1, 2, 5, 10, 25)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("epochs computed so far; dashed: the budget")
    axes.set_ylabel("negative log-likelihood, test images")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path)


def reliability(results: dict[str, Any], path: Path) -> None:
    """Accuracy minus confidence by confidence, bins of all repetitions together."""
    rows = drawn(results["rows"])
    figure = new_figure(3.8)
    axes = figure.subplots()
    for place, (name, runs) in enumerate(rows.items()):
        points: list[tuple[float, float]] = []
        for bins in zip(*(run["bins"] for run in runs), strict=True):
            count = sum(b["count"] for b in bins)
            if count < FEWEST:
                continue
            confidence = sum(b["count"] * (b["confidence"] or 0.0) for b in bins) / count
            accuracy = sum(b["count"] * (b["accuracy"] or 0.0) for b in bins) / count
            points.append((confidence, accuracy - confidence))
        x, y = zip(*points, strict=True) if points else ((), ())
        look = {"color": color_of(place - 1, baseline=place == 0), "linestyle": line_of(place - 1, baseline=place == 0)}
        axes.plot(
            x, y, marker=marker_of(place - 1, baseline=place == 0), markersize=3.5, linewidth=1.3, label=name, **look
        )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy − confidence")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path)


def main() -> None:
    """Writes tables and pictures anew."""
    folder = Path(sys.argv[1])
    write(read_json(folder / "results.json"), folder)


if __name__ == "__main__":
    main()
