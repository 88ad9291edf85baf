"""All singular values of ResNet-18's convolutions, against numpy and torch on the full grid of frequencies.

`python -m benchmarks.spectra` prints a Markdown section. Every convolution of the network is taken with circular padding,
its stride included, 32x32 (small stem) and 224x224 inputs. Contestants take turns, layer by layer:

- numpy, from the definition: `fft2` of the kernel on the whole grid, `svd(compute_uv=False)`, LAPACK single-threaded;
- torch: the same with `torch.linalg.svdvals`, single-threaded (with more threads it is slower on small matrices);
- `singular_values` with one thread and with all of them, and with `fast=True`.

The full-grid contestants take a sample of the frequencies that is spread over the grid, and the time of their SVDs is
scaled up: every matrix costs the same. Layers of equal shape are measured once and counted as often as they occur.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.timing import machine
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.spectrum import singular_values
from weightspace.training.models import build_model

NUMPY, TORCH = "numpy fft2 + svd", "torch svdvals, full grid"
SAMPLE_FLOPS = 3e9  # of one full-grid turn: tens to hundreds of milliseconds


def convolutions(image_size: int, stem: str) -> Counter[ConvGeometry]:
    """The geometries of ResNet-18's convolutions on a torus, with how often each occurs."""
    model = build_model("resnet18", in_channels=3, image_size=image_size, num_classes=10, stem=stem)
    found: Counter[ConvGeometry] = Counter()

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        found[operator_of(layer, tuple(inputs[0].shape[2:])).circular().geometry] += 1

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return found


def full_grid(operator: ConvOperator, library: str) -> Callable[[], float]:
    """Seconds of the full-grid SVDs of a layer; those of the sample times the share that it is."""
    g, kernel = operator.geometry, operator.weight.numpy()
    n, s = g.input_size[0], g.stride[0]
    size = g.in_channels * s * s, g.out_channels
    flops = 32 / 3 * min(size) ** 2 * max(size)
    total = (n // s) ** 2
    step = max(1, int(total * flops / SAMPLE_FLOPS))

    def run() -> float:
        start = time.perf_counter()
        # Polyphase, from the definition: the inputs at places r, r + s, ... are channels of their own.
        spread = np.zeros((*kernel.shape[:2], n, n), kernel.dtype)
        for p, q in np.ndindex(*kernel.shape[2:]):
            spread[:, :, p % n, q % n] += kernel[:, :, p, q]
        phases = spread.reshape(*kernel.shape[:2], n // s, s, n // s, s).transpose(0, 1, 3, 5, 2, 4)
        transform = np.fft.fft2(phases.reshape(g.out_channels, -1, n // s, n // s), axes=(2, 3))
        matrices = transform.transpose(2, 3, 0, 1).reshape(total, g.out_channels, -1)
        middle = time.perf_counter()
        sample = np.ascontiguousarray(matrices[::step])
        begin = time.perf_counter()
        if library == NUMPY:
            np.linalg.svd(sample, compute_uv=False)
        else:
            torch.linalg.svdvals(torch.from_numpy(sample))
        return middle - start + (time.perf_counter() - begin) * total / len(sample)

    return run


def ours(operator: ConvOperator, threads: int, *, fast: bool) -> Callable[[], float]:
    """Seconds of `singular_values` with so many threads."""

    def run() -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        singular_values(operator, fast=fast)
        seconds = time.perf_counter() - start
        torch.set_num_threads(1)
        return seconds

    return run


def measure(operator: ConvOperator, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant, turn by turn."""
    contestants = {
        NUMPY: full_grid(operator, NUMPY),
        TORCH: full_grid(operator, TORCH),
        "ours, 1 thread": ours(operator, 1, fast=False),
        f"ours, {threads} threads": ours(operator, threads, fast=False),
        "ours, fast, 1 thread": ours(operator, 1, fast=True),
        f"ours, fast, {threads} threads": ours(operator, threads, fast=True),
    }
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with threadpool_limits(1, user_api="blas"):
        for turn in range(rounds + 1):
            for name, run in contestants.items():
                seconds = run()
                if turn:  # the first is warm-up
                    times[name].append(seconds)
    torch.set_num_threads(threads)
    return times


def errors(operator: ConvOperator) -> tuple[float, float]:
    """Largest error in float32 relative to the largest value: as it is, and with `fast=True`."""
    exact = singular_values(operator.with_weight(operator.weight.double()))
    found = (singular_values(operator, fast=fast).double() for fast in (False, True))
    plain, fast = (float((values - exact).abs().max() / exact[0]) for values in found)
    return plain, fast


def quartiles(slow: list[float], quick: list[float]) -> str:
    """Speed-up, median and quartiles over the turns."""
    lower, middle, upper = statistics.quantiles([a / b for a, b in zip(slow, quick, strict=True)], n=4)
    return f"{middle:.1f} ({lower:.1f}–{upper:.1f})"


def network_section(image_size: int, stem: str, rounds: int) -> str:
    """One table: every kind of layer, and the sums over the network."""
    threads = torch.get_num_threads()
    lines: list[str] = []
    sums: dict[str, dict[str, list[float]]] = {"stride 1": {}, "all": {}}
    for geometry, count in convolutions(image_size, stem).items():
        torch.manual_seed(0)
        operator = ConvOperator(torch.randn(geometry.weight_shape) / geometry.in_channels, geometry)
        times = measure(operator, threads, rounds)
        for name, seconds in times.items():
            for key in ("stride 1", "all") if geometry.stride == (1, 1) else ("all",):
                old = sums[key].setdefault(name, [0.0] * rounds)
                sums[key][name] = [a + count * b for a, b in zip(old, seconds, strict=True)]
        size = f"{geometry.out_channels}x{geometry.in_channels}x{geometry.kernel_size[0]}x{geometry.kernel_size[1]}"
        # One Hermitian tridiagonal reduction for each frequency of the half grid.
        side = min(geometry.out_channels, geometry.in_channels * geometry.stride[0] ** 2)
        floor = 8 / 3 * geometry.output_size[0] ** 2 * side**3 / 1e9
        lines.append(
            f"| {count} of {size} /{geometry.stride[0]} at {geometry.input_size[0]} | {floor:.2f} |" + cells(times)
        )
    for key, times in sums.items():
        lines.append(f"| **{key}, whole network** | |" + cells(times))
    names = list(times)[2:]
    header = (
        "| layers | Gflop floor | ms: "
        + " / ".join(names)
        + " | "
        + " | ".join(f"{n}: faster than {r}" for n in names for r in ("numpy", "torch"))
        + " |"
    )
    return "\n".join(
        [f"{image_size}x{image_size} inputs:", "", header, "|---|---|---|" + "---|" * (2 * len(names)), *lines, ""]
    )


def cells(times: dict[str, list[float]]) -> str:
    """Milliseconds of ours, then each one's speed-up over numpy and torch."""
    names = list(times)[2:]
    milliseconds = " / ".join(f"{1e3 * statistics.median(times[name]):.3g}" for name in names)
    ratios = [quartiles(times[slow], times[name]) for name in names for slow in (NUMPY, TORCH)]
    return f" {milliseconds} | " + " | ".join(ratios) + " |"


def accuracy_section() -> str:
    """Errors of float32 on random layers of the network's sizes."""
    lines = ["| layer | largest error / sigma_max | with fast=True |", "|---|---|---|"]
    base = next(iter(convolutions(32, "cifar")))
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        torch.manual_seed(0)
        square = replace(base, in_channels=channels, out_channels=channels, input_size=(size, size))
        plain, fast = errors(ConvOperator(torch.randn(square.weight_shape), square))
        lines.append(f"| {channels}x{channels}x3x3 at {size} | {plain:.1e} | {fast:.1e} |")
    return "\n".join(lines)


def section(rounds: int = 7) -> str:
    """The benchmark as Markdown."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    return "\n".join(
        [f"## All singular values of ResNet-18's convolutions\n\n{machine()}; {rounds} turns, medians (quartiles).\n"]
        + [network_section(size, stem, rounds) for size, stem in ((32, "cifar"), (224, "imagenet"))]
        + [accuracy_section()]
    )


if __name__ == "__main__":
    print(section())
