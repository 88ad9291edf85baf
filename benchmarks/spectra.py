"""All singular values of ResNet-18's convolutions, against numpy and torch on the full grid of frequencies.

Every convolution of the network is taken with circular padding, its stride included, 32x32 (small stem) and 224x224
inputs. Contestants take turns, layer by layer:

- numpy, from the definition: `fft2` of the kernel on the whole grid, `svd(compute_uv=False)`, LAPACK single-threaded;
- torch: the same with `torch.linalg.svdvals`, single-threaded (with more threads it is slower on small matrices);
- `singular_values` with one thread and with all of them, and with `fast=True`.

The full-grid contestants take a sample of the frequencies that is spread over the grid, and the time of their SVDs is
scaled up: every matrix costs the same. Layers of equal shape are measured once and counted as often as they occur.
The floor is the arithmetic of the tridiagonal reductions (`network.spectrum_flops`) at the rate of a matrix product.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from benchmarks.network import spectrum_flops
from benchmarks.timing import gemm_rate, threads
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.spectrum import singular_values
from weightspace.training.models import build_model

NUMPY, TORCH = "numpy fft2 + svd", "torch svdvals, full grid"
SAMPLE_FLOPS = 3e9  # of one full-grid turn: tens to hundreds of milliseconds
SMALL_FLOPS = 0.5e9  # kinds of layers of less are left out of the table of floors
TARGET = 4.0
Times = dict[str, list[float]]  # seconds of every contestant, turn by turn


@dataclass(frozen=True)
class Kind:
    """The layers of one shape: how many, their times, and the operations of their floor."""

    geometry: ConvGeometry
    count: int
    times: Times
    flops: float


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


def ours(operator: ConvOperator, count: int, *, fast: bool) -> Callable[[], float]:
    """Seconds of `singular_values` with so many threads."""

    def run() -> float:
        with threads(count):
            start = time.perf_counter()
            singular_values(operator, fast=fast)
            return time.perf_counter() - start

    return run


def our_name(count: int, *, fast: bool = False) -> str:
    """Name of a contestant of ours."""
    return f"ours{', fast' if fast else ''}, {count} thread{'s' if count > 1 else ''}"


def measure(operator: ConvOperator, counts: list[int], rounds: int) -> Times:
    """Seconds of every contestant, turn by turn."""
    contestants = {NUMPY: full_grid(operator, NUMPY), TORCH: full_grid(operator, TORCH)}
    for fast in (False, True):
        contestants |= {our_name(count, fast=fast): ours(operator, count, fast=fast) for count in counts}
    times: Times = {name: [] for name in contestants}
    with threads(1), threadpool_limits(1, user_api="blas"):
        for turn in range(rounds + 1):
            for name, run in contestants.items():
                seconds = run()
                if turn:  # the first is warm-up
                    times[name].append(seconds)
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


def kinds_of(image_size: int, stem: str, counts: list[int], rounds: int, *, quick: bool) -> list[Kind]:
    """Measures every kind of layer of the network."""
    found = list(convolutions(image_size, stem).items())
    kinds: list[Kind] = []
    for geometry, count in found[:3] if quick else found:
        torch.manual_seed(0)
        operator = ConvOperator(torch.randn(geometry.weight_shape) / geometry.in_channels, geometry)
        kinds.append(Kind(geometry, count, measure(operator, counts, rounds), spectrum_flops(geometry)))
    return kinds


def summed(kinds: list[Kind]) -> Times:
    """Times of a network: every kind as often as it occurs, turn by turn."""
    return {
        name: [sum(k.count * k.times[name][turn] for k in kinds) for turn in range(len(kinds[0].times[name]))]
        for name in kinds[0].times
    }


def summary_rows(image_size: int, kinds: list[Kind], counts: list[int]) -> list[str]:
    """How many times faster than each reference, on the stride-1 layers and over the network."""
    size, rows = f"{image_size}x{image_size}", []
    plain = [kind for kind in kinds if set(kind.geometry.stride) == {1}]
    for label, part, fast in (
        (f"{size}, stride 1", plain, False),
        (f"{size}, whole network", kinds, False),
        (f"{size}, stride 1, `fast=True`", plain, True),
        (f"{size}, whole network, `fast=True`", kinds, True),
    ):
        times = summed(part)
        ratios = [
            quartiles(times[slow], times[our_name(count, fast=fast)]) for slow in (NUMPY, TORCH) for count in counts
        ]
        seconds = [f"{statistics.median(times[our_name(count, fast=fast)]):.2g}" for count in counts]
        rows.append(f"| {label} | " + " | ".join(ratios + seconds) + " |")
    return rows


def floor_rows(kinds: list[Kind], rate: float) -> list[str]:
    """Every kind of layer of some size beside its floor, with one thread."""
    rows: list[str] = []
    for kind in kinds:
        if kind.flops < SMALL_FLOPS:
            continue
        g = kind.geometry
        plain, fast = (statistics.median(kind.times[our_name(1, fast=fast)]) for fast in (False, True))
        floor = kind.flops / rate
        shape = "x".join(str(n) for n in g.weight_shape)
        rows.append(
            f"| {kind.count} of {shape} /{g.stride[0]} at {g.input_size[0]} | {kind.flops / 1e9:.2f} | {1e3 * floor:.3g} "
            f"| {1e3 * plain:.3g} | {plain / floor:.1f} | {fast / floor:.1f} "
            f"| {quartiles(kind.times[NUMPY], kind.times[our_name(1)])} |"
        )
    return rows


def verdicts(kinds: list[Kind], image_size: int, counts: list[int]) -> str:
    """The targets: four times numpy on the stride-1 layers, four times svdvals over the network."""
    plain = summed([kind for kind in kinds if set(kind.geometry.stride) == {1}])
    whole = summed(kinds)
    words: list[str] = []
    for count in counts:
        for label, times, slow in (
            ("numpy, stride 1", plain, NUMPY),
            ("`svdvals`, network", whole, TORCH),
        ):
            ratio = statistics.median(a / b for a, b in zip(times[slow], times[our_name(count)], strict=True))
            words.append(
                f"{label}, {count} thread{'s' if count > 1 else ''}: {'met' if ratio >= TARGET else '**not met**'} ({ratio:.1f})"
            )
    return f"Targets at {image_size}x{image_size}, at least {TARGET:g} times as fast as " + "; ".join(words) + "."


def accuracy_section(*, quick: bool) -> str:
    """Errors of float32 on random layers of the network's sizes."""
    lines = ["| layer | largest error / sigma_max | with `fast=True` |", "|---|---|---|"]
    base = next(iter(convolutions(32, "cifar")))
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4))[: 1 if quick else 4]:
        torch.manual_seed(0)
        square = replace(base, in_channels=channels, out_channels=channels, input_size=(size, size))
        plain, fast = errors(ConvOperator(torch.randn(square.weight_shape), square))
        lines.append(f"| {channels}x{channels}x3x3 at {size} | {plain:.1e} | {fast:.1e} |")
    return "\n".join(lines)


def section(*, quick: bool = False) -> str:
    """The benchmark as Markdown."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    counts = sorted({1, torch.get_num_threads()})
    with threads(1):
        rate = gemm_rate()
    sizes = ((32, "cifar", 2),) if quick else ((32, "cifar", 5), (224, "imagenet", 3))
    networks = {size: kinds_of(size, stem, counts, rounds, quick=quick) for size, stem, rounds in sizes}
    words = [f"{count} thread{'s' if count > 1 else ''}" for count in counts]
    header = [f"{name}, {word}" for name in ("numpy", "torch `svdvals`") for word in words]
    turns = " and ".join(f"{rounds} turns at {size}x{size}" for size, _, rounds in sizes)
    lines = [
        "## All singular values of ResNet-18's convolutions",
        "",
        (
            f"Circular padding, the layers' strides included; {turns}. The references are written from the definition: the kernel's "
            "Fourier transform on the whole grid of frequencies and an SVD of each symbol, single-threaded; they take a sample of "
            "the frequencies, scaled up. How many times faster `singular_values` is, with so many threads, and how long it takes:"
        ),
        "",
        f"| input, layers | {' | '.join(header)} | " + " | ".join(f"s, {word}" for word in words) + " |",
        "|---|" + "---|" * (len(header) + len(words)),
        *(row for size, kinds in networks.items() for row in summary_rows(size, kinds, counts)),
        "",
        *(verdicts(kinds, size, counts) + "\n" for size, kinds in networks.items()),
        (
            "Beside the floor, one thread. Floor: the tridiagonal reduction of one Hermitian matrix for each frequency of the half grid, "
            f"$\\frac83 n^2 c^3$, at the rate of a float32 matrix product, {rate / 1e9:.0f} Gflop/s. No algorithm reaches it: half of a "
            "reduction is products of a matrix with a vector, which wait for memory, and the SVD that keeps all digits takes twice the arithmetic. Layers of less than half a Gflop are left out."
        ),
        "",
        "| layers | Gflop | floor, ms | ours, ms | times the floor | with `fast=True` | faster than numpy |",
        "|---|---|---|---|---|---|---|",
        *(row for kinds in networks.values() for row in floor_rows(kinds, rate)),
        "",
        "Accuracy, random kernels, float32 against float64:",
        "",
        accuracy_section(quick=quick),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(section())
