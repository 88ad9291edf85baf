"""Tables and the main picture of `experiments.certified`: `python -m experiments.certified_report DIR [PAGE]`.

With a page, what stands between its markers `<!-- NAME:begin -->` and `<!-- NAME:end -->` is written anew, and results
and pictures are copied into the folder beside it that has its name.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from weightspace.compare.statistics import Estimate, mean_interval, paired_difference
from weightspace.figures import BASELINE_COLOR, MUTED, STYLE, label_lines, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

OURS = "weightspace"
# Okabe and Ito's palette; warm: no certificate worth the name, cold: networks made for one.
COLORS = {
    "Adam": BASELINE_COLOR,
    "AdamW": "#8c8c8c",
    "spectral_norm": "#D55E00",
    "torchlip": "#E69F00",
    "orthogonium": "#CC79A7",
    "weightspace, ReLU": "#56B4E9",
    "weightspace": "#0072B2",
    "weightspace, cap": "#009E73",
    "weightspace, no 3x3": "#7b5ea7",
}
Rows = dict[str, list[dict[str, Any]]]


def line(record: dict[str, Any]) -> str:
    """One run, for the log."""
    certified = ", ".join(f"{record['certified'][i]:.3f}" for i in (4, 10, 20, 40))
    return (
        f"{record['arm']}, seed {record['seed']}: accuracy {record['accuracy']:.3f}, certified at 0.1, 0.25, 0.5, 1: "
        f"{certified}; attacked {', '.join(f'{a:.3f}' for a in record['attacked'])}; L <= {record['bound']:.3f}, "
        f">= {record['stretch']:.3f}; {record['violations']} violations, {record.get('implied_violations', 'none')} "
        f"implied; {record['milliseconds']:.0f} ms"
    )


def write(results: dict[str, Any], folder: Path) -> None:
    """table.md and accuracy.png."""
    parts = [main_table(results), difference_table(results), bound_table(results), tuning_table(results)]
    write_text_atomically(folder / "table.md", "\n".join(parts))
    with rc_context(STYLE):
        curves(results, folder / "accuracy.png")


def by_arm(results: dict[str, Any]) -> Rows:
    """Runs of each arm in the order of seeds."""
    rows: Rows = {}
    for run in results["runs"]:
        rows.setdefault(run["arm"], []).append(run)
    return rows


def certified(results: dict[str, Any], runs: Sequence[dict[str, Any]], radius: float) -> list[float]:
    """Certified accuracy of every run at a radius, percent."""
    place = list(results["curve"]).index(radius)
    return [100 * run["certified"][place] for run in runs]


def main_table(results: dict[str, Any]) -> str:
    """Clean, certified and attacked accuracy, percent, means with intervals."""
    radii = results["radii"]
    lines = [
        "| arm | accuracy, % | " + " | ".join(f"certified at {r:g}, %" for r in radii) + " | "
        + " | ".join(f"attacked at {r:g}, %" for r in radii) + " | ms a step |",
        "|:---|" + "---:|" * (2 * len(radii) + 2),
    ]  # fmt: skip
    for arm, runs in by_arm(results).items():
        cells = [written(mean_interval([100 * run["accuracy"] for run in runs]))]
        cells += [written(mean_interval(certified(results, runs, r))) for r in radii]
        cells += [f"{100 * fmean(run['attacked'][i] for run in runs):.1f}" for i in range(len(radii))]
        cells.append(f"{float(np.median([run['milliseconds'] for run in runs])):.0f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference_table(results: dict[str, Any]) -> str:
    """The arm "weightspace" minus every other, seed by seed."""
    rows, radii = by_arm(results), results["radii"]
    lines = [
        f"| {OURS} minus | accuracy, points | " + " | ".join(f"certified at {r:g}, points" for r in radii) + " |",
        "|:---|" + "---:|" * (len(radii) + 1),
    ]
    for arm, runs in rows.items():
        if arm == OURS or OURS not in rows:
            continue
        own = rows[OURS]
        found = [paired_difference([100 * r["accuracy"] for r in own], [100 * r["accuracy"] for r in runs])]
        found += [paired_difference(certified(results, own, r), certified(results, runs, r)) for r in radii]
        lines.append(f"| {arm} | " + " | ".join(written(e, signed=True) for e in found) + " |")
    return "\n".join(lines) + "\n"


def bound_table(results: dict[str, Any]) -> str:
    """What is proved and what was found, range over seeds."""
    lines = [
        "| arm | certified bound of the Lipschitz constant | stretch found by ascent | norms of conv1, conv2 | broken |",
        "|:---|---:|---:|---:|---:|",
    ]
    images = results["attacked_images"]
    for arm, runs in by_arm(results).items():
        convs = [c for run in runs for name, c in run["constants"].items() if name.startswith("conv")]
        broken, total = sum(run["violations"] for run in runs), images * len(runs)
        cells = [
            extent([run["bound"] for run in runs]),
            extent([run["stretch"] for run in runs]),
            extent(convs) if convs else "–",
            f"{broken} of {total:,}",
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        if "implied_bound" in runs[0]:
            broken = sum(run["implied_violations"] for run in runs)
            bound = f"{runs[0]['implied_bound']:.2f} (claimed)"
            lines.append(f"| {arm}, if each norm were 1 | {bound} | {cells[1]} | 1 (claimed) | {broken} of {total:,} |")
    return "\n".join(lines) + "\n"


def tuning_table(results: dict[str, Any]) -> str:
    """All trials: settings and validation accuracy certified at the tuned radius; the chosen one in bold."""
    lines = ["| arm | trials: learning rate, temperature or weight decay: certified, % |", "|:---|:---|"]
    for arm, tuned in results["tuning"].items():
        words: list[str] = []
        for trial in tuned["trials"]:
            s = trial["settings"]
            second = f", {s['weight_decay']:g}" if s["weight_decay"] else ""
            second = f", {s['temperature']:g}" if s["temperature"] != 1 else second
            text = f"{s['lr']:g}{second}: {100 * trial['certified']:.1f}"
            words.append(f"**{text}**" if s == tuned["settings"] else text)
        lines.append(f"| {arm} | {'; '.join(words)} |")
    return "\n".join(lines) + "\n"


def written(estimate: Estimate, digits: int = 1, *, signed: bool = False) -> str:
    """Mean and interval."""
    sign = "+" if signed else ""
    text = f"{estimate.mean:{sign}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{sign}.{digits}f} to {estimate.high:{sign}.{digits}f})"


def extent(values: Sequence[float]) -> str:
    """Smallest to largest."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def curves(results: dict[str, Any], path: Path) -> None:
    """Accuracy against radius: what is proved, and what an attack leaves."""
    figure = new_figure(4.3)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    rows = by_arm(results)
    proved(left, results, rows)
    radii = [0.0, *results["radii"]]
    for arm, runs in rows.items():
        values = np.array([[run["accuracy"], *run["attacked"]] for run in runs]) * 100
        right.fill_between(radii, values.min(0), values.max(0), color=COLORS[arm], alpha=0.18, linewidth=0)
        right.plot(radii, values.mean(0), marker="o", markersize=3, linewidth=1.4, color=COLORS[arm])
    right.set_title("Attacked: what projected gradient descent leaves")
    ends = [100 * fmean(run["attacked"][-1] for run in runs) for runs in rows.values()]
    for axes in (left, right):
        axes.set_xlim(0, radii[-1])
        axes.set_ylim(0, 100)
        axes.set_xlabel("Euclidean radius, pixels in [0, 1]")
    left.set_ylabel("correct test images, %")
    figure.draw_without_rendering()
    label_lines(right, ends, list(rows), [(COLORS[arm], "-") for arm in rows])
    save_figure(figure, path)


def proved(axes: Axes, results: dict[str, Any], rows: Rows) -> None:
    """Certified accuracy with the range over seeds; dashed: what spectral_norm would promise if its norms were 1."""
    radii = np.array(results["curve"])
    for arm, runs in rows.items():
        values = 100 * np.array([run["certified"] for run in runs])
        axes.fill_between(radii, values.min(0), values.max(0), color=COLORS[arm], alpha=0.18, linewidth=0)
        axes.plot(radii, values.mean(0), linewidth=1.8, color=COLORS[arm])
        if "implied_certified" in runs[0]:
            claimed = 100 * np.array([run["implied_certified"] for run in runs]).mean(0)
            axes.plot(radii, claimed, linewidth=1.2, linestyle=(0, (4, 2)), color=COLORS[arm])
            tried = np.array(results["radii"])
            left = 100 * np.array([run["attacked"] for run in runs]).mean(0)
            refuted = left < claimed[np.searchsorted(radii, tried)]  # attacked images are fewer than certified ones
            look = {"markersize": 5, "markeredgewidth": 1.4, "color": COLORS[arm], "clip_on": False}
            axes.plot(tried[refuted], left[refuted], "x", **look)
            place = int(np.searchsorted(radii, 0.8))
            axes.annotate(
                "false: as if each norm of\nspectral_norm were 1\n(x: what the attack leaves)",
                (float(radii[place]), float(claimed[place])),
                (0.99, 97),
                ha="right",
                va="top",
                fontsize=8,
                color=COLORS[arm],
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6},
            )
    axes.set_title("Certified: proved for every change up to this radius")


# ---------------------------------------------------------------- the page


def summary(results: dict[str, Any]) -> str:
    """What the numbers say, in sentences that follow from the intervals."""
    rows, radius = by_arm(results), 0.25
    own = rows[OURS]
    clean = fmean(100 * run["accuracy"] for run in own)
    first = (
        f"- **{OURS}**: {clean:.1f} % accuracy, {fmean(certified(results, own, radius)):.1f} % certified at radius "
        f"{radius}, {fmean(certified(results, own, 0.5)):.1f} % at 0.5 (means of {len(own)} seeds). Its bound is "
        f"{extent([run['bound'] for run in own])}, and ascent over pairs reaches {extent([r['stretch'] for r in own])}: "
        "the certificate is nearly tight."
    )
    lines = [first]
    compared = ("Adam", "orthogonium", "torchlip", "spectral_norm", "weightspace, cap", "weightspace, no 3x3")
    for arm in (arm for arm in compared if arm in rows):
        found = paired_difference(certified(results, own, radius), certified(results, rows[arm], radius))
        accuracy = paired_difference([100 * r["accuracy"] for r in own], [100 * r["accuracy"] for r in rows[arm]])
        lines.append(
            f"- Certified at {radius}, it is {verdict(found)} **{arm}** ({written(found, signed=True)} points); in "
            f"accuracy {verdict(accuracy)} it ({written(accuracy, signed=True)})."
        )
    false = rows["spectral_norm"]
    lines.append(
        f"- **The certificate that `spectral_norm` suggests is false.** Its 3x3 convolutions have norms of "
        f"{extent([run['constants'][name] for run in false for name in ('conv1', 'conv2')])}; ascent finds pairs of "
        f"images that are stretched {extent([run['stretch'] for run in false])} times where "
        f"{false[0]['implied_bound']:.2f} is implied; the attack changes the prediction inside the implied radius for "
        f"{sum(run['implied_violations'] for run in false)} of {results['attacked_images'] * len(false):,} images. Of "
        f"the certificates computed here it broke {sum(run['violations'] for run in results['runs'])}."
    )
    return "\n".join(lines) + "\n"


def verdict(found: Estimate) -> str:
    """What an interval allows to say."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "not told apart from"
    return "ahead of" if found.low > 0 else "behind"


def protocol(results: dict[str, Any]) -> str:
    """Training and tuning, from the settings of the run."""
    rate, heat, decay = (results["ranges"][key] for key in ("lr", "temperature", "weight_decay"))
    trials = {len(tuned["trials"]) for tuned in results["tuning"].values()}
    steps, seeds = results["size"]["steps"], len({run["seed"] for run in results["runs"]})
    return (
        f"- **Training**: Adam, {steps} steps of 128 images ({128 * steps / 55_000:.1f} epochs), warm-up and cosine; "
        "cross-entropy of the scores times a temperature. A small budget, the same for all arms; "
        f"{seeds} seeds.\n"
        f"- **Tuning**: {max(trials)} trials for every arm at {results['tuning_steps']} steps, the same points of the "
        f"unit cube: learning rate ({rate[0]:g} to {rate[1]:g}) and temperature ({heat[0]:g} to {heat[1]:g}) or weight "
        f"decay ({decay[0]:g} to {decay[1]:g}), log-uniform; judged by the accuracy certified at radius 0.25 on 5,000 "
        "held-out training images.\n"
    )


def taps(results: dict[str, Any]) -> str:
    """How much of the 3x3 kernels stands on their central tap."""
    shares = {
        arm: [100 * share for run in runs for share in run.get("center", {}).values()]
        for arm, runs in by_arm(results).items()
    }
    words = [f"{arm} {min(s):.0f} to {max(s):.0f} %" for arm, s in shares.items() if s]
    return (
        f"Share of the squares of the 3x3 kernels that the central tap holds (a ninth if spread): {'; '.join(words)}.\n"
    )


def fill(results: dict[str, Any], folder: Path, page: Path) -> None:
    """Writes the page's generated parts and copies what it shows."""
    place = (
        f"{results['machine']['processor']}, {results['machine']['cores']} cores, torch {results['versions']['torch']}"
    )
    parts = {
        "protocol": protocol(results),
        "summary": summary(results),
        "main": main_table(results),
        "differences": difference_table(results),
        "bounds": bound_table(results),
        "spectra": taps(results),
        "tuning": tuning_table(results),
        "machine": f"Numbers above: {place}, {results['size']['steps']} steps.\n",
    }
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        head, _, rest = text.partition(f"<!-- {name}:begin -->")
        text = f"{head}<!-- {name}:begin -->\n{part}<!-- {name}:end -->{rest.partition(f'<!-- {name}:end -->')[2]}"
    write_text_atomically(page, text)
    beside = page.with_suffix("")
    beside.mkdir(exist_ok=True)
    for name in ("results.json", "accuracy.png", "spectra.png", "image.png"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, beside / name)


def main() -> None:
    """Writes tables and the picture anew, and fills a page."""
    folder = Path(sys.argv[1])
    results = read_json(folder / "results.json")
    write(results, folder)
    if len(sys.argv) > 2:
        fill(results, folder, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
