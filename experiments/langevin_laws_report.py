"""Tables, figures and page of `experiments.langevin_laws`: `python -m experiments.langevin_laws_report DIR [PAGE]`.

With a page (docs/results/langevin-laws.md) its table is put between `<!-- table:begin -->` and `<!-- table:end -->`, and
figures and results.csv into the folder beside it.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments.langevin_known import colder
from weightspace.figures import MUTED, STYLE, color_of, new_figure, save_figure
from weightspace.files import read_json, write_text_atomically

SCHEMES = ("BAOA", "OBABO", "OBA", "overdamped")
ORDER = {"BAOA": 2, "OBABO": 2, "OBA": 1, "overdamped": 1}
MARKERS = dict(zip(SCHEMES, "osD^", strict=True))
FILES = ("results.csv", "orders.png", "temperatures.png")
# Its law is even, so that <a, x> averages to 0 and with it the divergence of the thermometer's field.
WITHOUT_CONFIGURATIONAL = ("Sphere S², Watson",)

Row = dict[str, Any]


def budget(scheme: str, h: float) -> float:
    """The largest bias that is allowed to an observable between -1 and 1; also in the tests."""
    return 0.25 * h**2 if ORDER[scheme] == 2 else 0.5 * h


def write(results: dict[str, Any], folder: Path) -> None:
    """results.csv, table.md, orders.png and temperatures.png."""
    rows = [row for law in results["laws"].values() for row in law]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text_atomically(folder / "results.csv", text.getvalue())
    write_text_atomically(folder / "table.md", "\n".join(table(results)) + "\n")
    with rc_context(STYLE):
        save_figure(orders_figure(results), folder / "orders.png")
        save_figure(temperatures_figure(results), folder / "temperatures.png")


def series(results: dict[str, Any]) -> Iterator[tuple[str, str, list[Row]]]:
    """(law, scheme, rows of its first observable by time step)."""
    for name, rows in results["laws"].items():
        first = rows[0]["observable"]
        for scheme in SCHEMES:
            yield name, scheme, [r for r in rows if r["scheme"] == scheme and r["observable"] == first]


# ---------------------------------------------------------------------------------------------------------- table


def table(results: dict[str, Any]) -> list[str]:
    """A row a law and scheme: biases at four time steps, the worst share of a budget, the leading term, temperatures."""
    lines = [
        "| law, observable, exact value | scheme | h | bias x 1000 (standard error) | of budget | leading term | kinetic | configurational |",
        "|:---|:---|:---|:---|---:|:---|:---|:---|",
    ]
    seen = ""
    for name, scheme, rows in series(results):
        head = f"**{name}**: {rows[0]['observable']} = {rows[0]['exact']:.6f}" if name != seen else ""
        seen = name
        steps = ", ".join(f"{r['h']:g}" for r in rows)
        biases = ", ".join(f"{1e3 * r['bias']:.1f} ({1e3 * r['error']:.1f})" for r in rows)
        lines.append(
            f"| {head} | {scheme} | {steps} | {biases} | {share(rows):.0%} | {leading_cell(rows)} | "
            f"{temperatures(rows, 'kinetic')} | {temperatures(rows, 'configurational')} |"
        )
    return lines


def share(rows: Sequence[Row]) -> float:
    """The largest part of its budget that a bias takes, beyond two standard errors."""
    return max(max(0.0, abs(r["bias"]) - 2 * r["error"]) / budget(r["scheme"], r["h"]) for r in rows)


def temperatures(rows: Sequence[Row], which: str) -> str:
    """At all time steps."""
    if rows[0][which] is None or (which == "configurational" and rows[0]["law"] in WITHOUT_CONFIGURATIONAL):
        return ""
    return ", ".join(f"{r[which]:.3f}" for r in rows)


def leading(rows: Sequence[Row]) -> tuple[float, float]:
    """The coefficient of the scheme's order in the bias, and its standard error, by weighted least squares.

    Schemes of second order are symmetric: `a h^2 + b h^4`; the others `a h + b h^2 + c h^3`.
    """
    powers = (2, 4) if ORDER[rows[0]["scheme"]] == 2 else (1, 2, 3)
    design = np.array([[r["h"] ** p / r["error"] for p in powers[: len(rows)]] for r in rows])
    covariance = np.linalg.inv(design.T @ design)
    found = covariance @ design.T @ np.array([r["bias"] / r["error"] for r in rows])
    return float(found[0]), float(covariance[0, 0] ** 0.5)


def leading_cell(rows: Sequence[Row]) -> str:
    """The coefficient and its standard error; of OBA also what a colder law would have."""
    value, error = leading(rows)
    text = f"{value:.3f} ({error:.3f}) h" + ("²" if ORDER[rows[0]["scheme"]] == 2 else "")
    return text + (f", predicted {colder(rows[0]['law']):.3f} h" if rows[0]["scheme"] == "OBA" else "")


# ---------------------------------------------------------------------------------------------------------- figures


def orders_figure(results: dict[str, Any]) -> Figure:
    """A panel a law: the absolute bias against the time step, with intervals; arrows: below two standard errors."""
    names = list(results["laws"])
    columns = 4
    height = math.ceil(len(names) / columns)
    figure = new_figure(0.9 + 2.2 * height)
    grid = list(figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat)
    for spare in grid[len(names) :]:
        spare.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        for which, rows in ((scheme, rows) for law, scheme, rows in series(results) if law == name):
            draw_bias(axes, which, rows)
        axes.set_title(f"{name}\n{results['laws'][name][0]['observable']}", fontsize=8)
        guides(axes)
    for axes in grid[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("time step h (of overdamped: lr)", fontsize=9)
    figure.supylabel("absolute bias", fontsize=9)
    found = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    return figure


def draw_bias(axes: Axes, scheme: str, rows: Sequence[Row]) -> None:
    """Points with intervals of two standard errors; where these hold 0 an arrow from their upper end."""
    color = color_of(SCHEMES.index(scheme), baseline=False)
    clear = [r for r in rows if abs(r["bias"]) > 2 * r["error"]]
    hidden = [r for r in rows if abs(r["bias"]) <= 2 * r["error"]]
    axes.errorbar(
        [r["h"] for r in clear], [abs(r["bias"]) for r in clear], yerr=[2 * r["error"] for r in clear], color=color,
        marker=MARKERS[scheme], markersize=3.5, linewidth=1.1, elinewidth=0.8, label=scheme,
    )  # fmt: skip
    ends = [abs(r["bias"]) + 2 * r["error"] for r in hidden]
    if hidden:
        axes.errorbar(
            [r["h"] for r in hidden], ends, yerr=[0.4 * e for e in ends], uplims=True, color=color, linestyle="",
            marker="_", markersize=5, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    computed = [abs(r["computed_bias"]) for r in rows if r["computed_bias"] is not None]
    if computed:
        label = "computed, not sampled" if scheme == "BAOA" else None
        axes.plot(
            [r["h"] for r in rows],
            computed,
            color="black",
            linestyle=(0, (2, 1.5)),
            linewidth=0.9,
            label=label,
            zorder=3,
        )


def guides(axes: Axes) -> None:
    """Logarithmic axes, and slopes 1 and 2."""
    axes.set(xscale="log", yscale="log", xlim=(0.02, 0.75), ylim=(5e-5, 0.4))
    h = (0.022, 0.7)
    axes.plot(h, [0.3 * v for v in h], color=MUTED, linewidth=0.7, linestyle=":", zorder=1)
    axes.plot(h, [0.1 * v**2 for v in h], color=MUTED, linewidth=0.7, linestyle=":", zorder=1)
    axes.text(0.11, 0.065, "slope 1", fontsize=6.5, color=MUTED)
    axes.text(0.05, 0.00009, "slope 2", fontsize=6.5, color=MUTED)
    axes.xaxis.set_major_locator(FixedLocator([0.025, 0.05, 0.1, 0.2, 0.4]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)


def temperatures_figure(results: dict[str, Any]) -> Figure:
    """Both thermometers against the time step: a thin line a law."""
    figure = new_figure(3.4)
    for axes, which in zip(figure.subplots(1, 2), ("kinetic", "configurational"), strict=True):
        for name, scheme, rows in series(results):
            if rows[0][which] is None or (which == "configurational" and name in WITHOUT_CONFIGURATIONAL):
                continue
            color = color_of(SCHEMES.index(scheme), baseline=False)
            axes.plot(
                [r["h"] for r in rows], [r[which] for r in rows], color=color, linewidth=0.8, marker=MARKERS[scheme],
                markersize=3, alpha=0.75, label=scheme if name == next(iter(results["laws"])) else None,
            )  # fmt: skip
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set(title=f"{which} temperature / what was asked for", xlabel="time step h (of overdamped: lr)")
        axes.legend(frameon=False, fontsize=8)
    return figure


def put_on_page(folder: Path, page: Path) -> None:
    """The table between its marks, figures and numbers beside the page."""
    beside = page.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, beside / name)
    head, mark, rest = page.read_text().partition("<!-- table:begin -->")
    _, end, tail = rest.partition("<!-- table:end -->")
    write_text_atomically(page, f"{head}{mark}\n{(folder / 'table.md').read_text()}{end}{tail}")


if __name__ == "__main__":
    write(read_json(Path(sys.argv[1]) / "results.json"), Path(sys.argv[1]))
    if len(sys.argv) > 2:
        put_on_page(Path(sys.argv[1]), Path(sys.argv[2]))
