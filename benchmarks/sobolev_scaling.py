"""ChannelSobolev's time against the number of output channels: a straight line through the origin."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.timing import device, interleave
from weightspace.kernels import Workspace
from weightspace.metrics import ChannelSobolev, Layout

CHANNELS = (64, 128, 256, 512, 1024, 2048, 4096)
INNER = 1152  # 128 input channels of 3x3 taps


def measure(rounds: int = 15) -> dict[str, list[float]]:
    """Median seconds for every order and number of channels, at a fixed number of inputs."""
    forms = {
        "H1": ChannelSobolev(),
        "mean+derivative": ChannelSobolev(order="mean+derivative"),
        "dense matrix (for comparison)": None,
    }
    result: dict[str, list[float]] = {name: [] for name in forms}
    for channels in CHANNELS:
        grad = torch.randn(1, channels, INNER, device=device())
        out = torch.empty_like(grad)
        dense = torch.randn(channels, channels, device=device())
        calls: dict[str, Callable[[], object]] = {}
        for name, metric in forms.items():
            if metric is None:
                calls[name] = lambda dense=dense, grad=grad, out=out: torch.mm(dense, grad[0], out=out[0])
            else:
                calls[name] = lambda metric=metric, grad=grad, out=out: metric.apply(
                    grad, out, Layout(1, (grad.shape[1],)), Workspace()
                )
        timings = interleave(calls, "H1", rounds=rounds, seconds=20)
        for name, timing in timings.items():
            result[name].append(timing.seconds)
    return result


def slope(seconds: list[float], *, above: int = 256) -> float:
    """Exponent of the power law through the points at `above` channels and more: 1 is linear."""
    points = [(math.log(c), math.log(s)) for c, s in zip(CHANNELS, seconds, strict=True) if c >= above]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def plot(result: dict[str, list[float]], path: Path, machine: str) -> None:
    """Both axes logarithmic, a line of slope one for the eye."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, seconds), style in zip(result.items(), ("o-", "s-", "^:"), strict=True):
        axes.loglog(CHANNELS, [s * 1e3 for s in seconds], style, label=f"{name}: slope {slope(seconds):.2f}")
    first = result["H1"][2] * 1e3
    axes.loglog(CHANNELS, [first * c / CHANNELS[2] for c in CHANNELS], color="gray", lw=1, label="slope 1")
    axes.set_xlabel("output channels")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"ChannelSobolev, {INNER} inputs a channel\n{machine}", fontsize=9)
    axes.set_xticks(CHANNELS, [str(c) for c in CHANNELS])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
