"""What penalties cost: every term over all convolutions of a ResNet-18, beside a training step at batch 128.

Two measurements. Alone: `evaluate` for every convolution, with what is remembered between steps, against a forward and
backward pass. In place: whole training steps through `weightspace.attach` with `every=k`, against the same steps
without, a whole cycle of k steps at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

import weightspace as ws
from benchmarks.network import Network, resnet18
from benchmarks.timing import Timing, interleave, threads
from weightspace.operators import operator_of
from weightspace.operators.geometry import torus
from weightspace.operators.symbol import symbol_grid
from weightspace.penalties import Memory, Penalty

P = ws.penalties
TARGET = 0.15
FREQUENCIES = 4
TERMS: dict[str, Penalty] = {
    "`GramFrobenius()`": P.GramFrobenius(),
    "`GramFrobenius(probes=1)`": P.GramFrobenius(probes=1),
    "`LargestSingularValue()`": P.LargestSingularValue(),
    f"`SingularValueBand(frequencies={FREQUENCIES})`": P.SingularValueBand(frequencies=FREQUENCIES),
    f"`SmallestSingularValue(frequencies={FREQUENCIES})`": P.SmallestSingularValue(frequencies=FREQUENCIES),
    "`SingularValueBand()`": P.SingularValueBand(),
    "`GramSpectralNorm()`": P.GramSpectralNorm(),
    "`SmallestSingularValue()`": P.SmallestSingularValue(),
    "`ConditionNumber()`": P.ConditionNumber(),
    '`SoftOrthogonality("SO")`': P.SoftOrthogonality(),
    '`SoftOrthogonality("DSO")`': P.SoftOrthogonality("DSO"),
    '`SoftOrthogonality("SRIP")`': P.SoftOrthogonality("SRIP"),
    "`SelfConvolution()` (OCNN)": P.SelfConvolution(),
}
IN_PLACE: dict[str, Penalty] = {
    "`GramFrobenius(every=3)`": P.GramFrobenius(weight=1e-6, every=3),
    "`LargestSingularValue()`": P.LargestSingularValue(weight=1e-6),
    "`SelfConvolution()` (OCNN)": P.SelfConvolution(weight=1e-6),
}
PASS, STEPS = "forward + backward of the network", "3 training steps without a penalty"


def evaluation(network: Network, penalty: Penalty) -> Callable[[], object]:
    """One evaluation for every convolution; vectors are remembered, the step counts on."""
    memories = [Memory() for _ in network.layers]

    def run() -> None:
        for (layer, size), memory in zip(network.layers, memories, strict=True):
            penalty.evaluate(operator_of(layer, size), memory)
            memory.step += 1

    return run


def svdvals_autograd(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """What one would write: the symbols of the exact half grid, `svdvals`, autograd; `sum (sigma^2 - 1)^2`."""
    geometry = torus(operator_of(layer, size).geometry)
    grid = symbol_grid(geometry)
    symbols = grid.symbols(layer.weight.double()[None], torch.arange(len(grid.frequencies)), torch.float32)
    values = torch.linalg.svdvals(symbols).flatten(1)
    share = grid.multiplicity[:, None] / math.prod(geometry.output_size)
    (share * (values.square() - 1).square()).sum().backward()


def evaluation_rows(network: Network, *, rounds: int) -> dict[str, Timing]:
    """Every term against the pass."""
    contestants: dict[str, Callable[[], object]] = {PASS: network.forward_backward}
    contestants |= {name: evaluation(network, term) for name, term in TERMS.items()}
    contestants["autograd through `svdvals` of the symbols"] = network.for_all(svdvals_autograd)
    for name in (PASS, "`LargestSingularValue()`", "`GramFrobenius()`"):
        contestants[name]()  # cold starts and counted overlaps are paid once in a training
    return interleave(contestants, PASS, rounds=rounds, warm_up=0, seconds=240, fewest=2)


def training(network: Network, penalty: Penalty | None) -> Callable[[], object]:
    """Three whole training steps of a copy of the network; the learning rate is 0 so that nothing drifts."""
    own = resnet18(len(network.images), network.images.shape[-1], network.layers[0][0].out_channels)
    optimizer = torch.optim.SGD(own.model.parameters(), lr=0.0, momentum=0.9)
    if penalty is not None:
        ws.attach(optimizer, own.model, penalty)

    def run() -> None:
        for _ in range(3):
            own.forward_backward()
            optimizer.step()

    return run


def training_rows(network: Network, *, rounds: int) -> dict[str, Timing]:
    """Whole steps with and without penalties."""
    contestants = {STEPS: training(network, None)}
    contestants |= {name: training(network, penalty) for name, penalty in IN_PLACE.items()}
    return interleave(contestants, STEPS, rounds=rounds, warm_up=1, seconds=150, fewest=2)


def section(*, quick: bool = False) -> str:
    """The benchmark as Markdown."""
    with threads(1):
        network = resnet18(*((8, 32, 8) if quick else ()))
        alone = evaluation_rows(network, rounds=2 if quick else 3)
        together = training_rows(network, rounds=2 if quick else 3)
    extra = together["`GramFrobenius(every=3)`"].ratio - 1
    size = "a ResNet-18 of width 8 at batch 8" if quick else "ResNet-18 at batch 128"
    lines = [
        "## Penalties",
        "",
        (
            f"All 20 convolutions of {size}, 32x32 images, one thread. `every` is the smallest with which the evaluation, "
            f"spread over the steps, stays within {100 * TARGET:g} % of a forward and backward pass."
        ),
        "",
        "| one evaluation for all layers | ms | times forward + backward: median (quartiles) | `every` |",
        "|---|---|---|---|",
        *(
            f"| {name} | {timing.cells()} | {'–' if name == PASS else math.ceil(timing.ratio / TARGET)} |"
            for name, timing in alone.items()
        ),
        "",
        "| whole training steps (SGD with momentum), through `attach` | ms | times the first: median (quartiles) |",
        "|---|---|---|",
        *(f"| {name} | {timing.cells()} |" for name, timing in together.items()),
        "",
        (
            f"Target: `GramFrobenius` at most {100 * TARGET:g} % of a training step, amortized: with `every=3`, timed, "
            f"{100 * extra:.0f} %: {'met' if extra <= TARGET else '**not met**'}."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(section())
