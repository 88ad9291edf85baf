"""How the functions of `weightspace.operators` scale with the size of the image and with the number of channels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.moments import moments_backward
from benchmarks.network import spectrum_flops
from benchmarks.spectra import NUMPY, full_grid
from benchmarks.timing import gemm_rate, threads
from weightspace.operators import operator_of
from weightspace.operators.bounds import norm_bound
from weightspace.operators.extremes import extreme_singular_values
from weightspace.operators.spectrum import singular_values

RESOLUTIONS, CHANNELS = (8, 16, 32, 64, 128, 224), (16, 32, 64, 128, 256, 512)
FIXED_CHANNELS, FIXED_RESOLUTION = 64, 8
REPEATS, LONG = 3, 2.0  # a call of more seconds than this is made once
OURS = "singular_values (circular)"
STYLES = {
    "numpy fft2 + svd": ("#D55E00", "^"),
    OURS: ("#0072B2", "o"),
    "singular_value_moments, forward + backward": ("#009E73", "s"),
    "extreme_singular_values, cold": ("#CC79A7", "v"),
    "extreme_singular_values, warm": ("#E69F00", "D"),
    "norm_bound": ("#56B4E9", "P"),
}
FLOOR = "flop floor of all values"
Curves = dict[str, list[float]]  # seconds by name, one for each size


def contestants(channels: int, size: int) -> dict[str, Callable[[], float | None]]:
    """Calls on one 3x3 layer with zero padding; a contestant that returns a number returns its own seconds."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    found = extreme_singular_values(layer, size, exact=False)
    detached = operator_of(layer, size).with_weight(layer.weight.detach())

    def quietly(function: Callable[[], object]) -> Callable[[], None]:
        return lambda: (function(), None)[1]

    return {
        "numpy fft2 + svd": full_grid(detached.circular(), NUMPY),
        OURS: quietly(lambda: singular_values(detached, padding_mode="circular")),
        "singular_value_moments, forward + backward": quietly(lambda: moments_backward(layer, (size, size))),
        "extreme_singular_values, cold": quietly(lambda: extreme_singular_values(detached, exact=False)),
        "extreme_singular_values, warm": quietly(lambda: extreme_singular_values(detached, start=found, exact=False)),
        "norm_bound": quietly(lambda: norm_bound(detached)),
    }


def seconds_of(call: Callable[[], float | None]) -> float:
    """Median of a few calls, or one long one; the first short one is warm-up."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        own = call()
        times.append(time.perf_counter() - start if own is None else own)
        if times[-1] > LONG:
            return times[-1]
    return statistics.median(times[1:])


def measure(points: list[tuple[int, int]], rate: float) -> Curves:
    """Every contestant at every pair of channels and size, and the floor."""
    curves: Curves = {name: [] for name in (*STYLES, FLOOR)}
    for channels, size in points:
        for name, call in contestants(channels, size).items():
            curves[name].append(seconds_of(call))
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        curves[FLOOR].append(spectrum_flops(operator_of(layer, size).geometry) / rate)
    return curves


def draw(axes: Axes, sizes: tuple[int, ...], curves: Curves, label: str, title: str) -> None:
    """Both axes logarithmic."""
    for name, (color, marker) in STYLES.items():
        axes.loglog(sizes, [1e3 * s for s in curves[name]], color=color, marker=marker, markersize=4.5, label=name)
    axes.loglog(sizes, [1e3 * s for s in curves[FLOOR]], color="gray", linestyle=":", label=FLOOR)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=9)
    axes.grid(visible=True, alpha=0.3)


def table(sizes: tuple[int, ...], curves: Curves, label: str) -> str:
    """Milliseconds as Markdown."""
    lines = [f"| {label}, ms | " + " | ".join(str(size) for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for name, seconds in curves.items():
        lines.append(f"| {name} | " + " | ".join(f"{1e3 * s:.3g}" for s in seconds) + " |")
    return "\n".join(lines)


def section(picture: Path, machine: str, *, quick: bool = False) -> str:
    """The benchmark as Markdown; draws the plot."""
    resolutions, channels = (RESOLUTIONS[:3], CHANNELS[:2]) if quick else (RESOLUTIONS, CHANNELS)
    fixed = 16 if quick else FIXED_CHANNELS
    with threads(1), threadpool_limits(1, user_api="blas"):
        rate = gemm_rate()
        by_size = measure([(fixed, n) for n in resolutions], rate)
        by_channels = measure([(c, FIXED_RESOLUTION) for c in channels], rate)
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, resolutions, by_size, "image size", f"{fixed} channels")
    draw(right, channels, by_channels, "channels", f"{FIXED_RESOLUTION}x{FIXED_RESOLUTION} images")
    left.set_ylabel("milliseconds")
    figure.suptitle(f"One 3x3 layer, one thread. {machine}", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(picture, dpi=130)
    parts = [
        "## Scaling in resolution and channels",
        "",
        "One 3x3 layer with zero padding, one thread; all values on the torus, everything else under the layer's padding. Warm: an unchanged weight.",
        "",
        f"![time against image size and channels](benchmarks/{picture.name})",
        "",
        table(resolutions, by_size, f"{fixed} channels, image size"),
        "",
        table(channels, by_channels, f"{FIXED_RESOLUTION}x{FIXED_RESOLUTION} images, channels"),
        "",
    ]
    return "\n".join(parts)
