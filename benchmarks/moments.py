"""Moments, bounds and extremes: against circular `svdvals`, and beside a training step of ResNet-18 at batch 128."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.network import application_flops, moment_flops, resnet18
from benchmarks.timing import Timing, device, gemm_rate, interleave, threads
from weightspace.operators import operator_of
from weightspace.operators.bounds import norm_bound
from weightspace.operators.extremes import COLD_STEPS, WARM_STEPS, Extremes, extreme_singular_values
from weightspace.operators.moments import singular_value_moments, stochastic_moments

PENALTY_TARGET = 50.0
WARM_TARGET = 0.05
MOMENTS, STOCHASTIC = (
    "`singular_value_moments`, forward + backward",
    "`stochastic_moments(probes=1)`, forward + backward",
)
WARM, COLD = "`extreme_singular_values`, warm", "`extreme_singular_values`, cold"
SVDVALS = "circular `svdvals` through autograd, forward + backward"


def moments_backward(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """`||M^T M - I||_F^2`, normalized, forward and backward."""
    moments = singular_value_moments(layer, size)
    (moments.gram_distance(1.0) / moments.smaller_side).backward()


def svdvals_backward(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    """The same number for circular padding, from its definition: fft2 over the whole grid, svdvals, autograd."""
    symbols = torch.fft.fft2(layer.weight, s=size).permute(2, 3, 0, 1)
    (torch.linalg.svdvals(symbols).square() - 1).square().mean().backward()


def penalty_rows(*, quick: bool = False) -> dict[str, Timing]:
    """The speed target: a 64x64x3x3 layer at 32x32, at least 50 times faster than circular svdvals autograd."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device())
    size = (32, 32)
    return interleave(
        {
            MOMENTS: lambda: moments_backward(layer, size),
            SVDVALS: lambda: svdvals_backward(layer, size),
            "`norm_bound`, forward + backward": lambda: norm_bound(layer, size).backward(),
        },
        MOMENTS,
        rounds=3 if quick else 12,
        warm_up=1,
        seconds=60,
    )


def network_rows(*, quick: bool = False) -> tuple[dict[str, Timing], dict[str, float]]:
    """All convolutions of a ResNet-18, each time for the whole network, beside its forward and backward pass.

    Returns:
        The times, and the share of the pass's arithmetic that each contestant cannot do without, where that is simple.
    """
    network = resnet18(*((8, 32, 8) if quick else ()))
    found: list[Extremes] = [extreme_singular_values(*layer, exact=False) for layer in network.layers]

    def warm() -> None:
        """With a drifted weight, so that the change is measured and the bound follows from the old one."""
        with torch.no_grad():
            for layer, _ in network.layers:
                layer.weight.mul_(1 + 1e-6)
        found[:] = [
            extreme_singular_values(*layer, start=old, exact=False)
            for layer, old in zip(network.layers, found, strict=True)
        ]

    def bound_value(layer: nn.Conv2d, size: tuple[int, int]) -> None:
        with torch.no_grad():
            norm_bound(layer, size)

    rows = interleave(
        {
            "forward + backward of the network": network.forward_backward,
            MOMENTS: network.for_all(moments_backward),
            STOCHASTIC: network.for_all(
                lambda layer, size: stochastic_moments(layer, size, probes=1).gram_distance(1.0).backward()
            ),
            WARM: warm,
            COLD: network.for_all(lambda layer, size: extreme_singular_values(layer, size, exact=False)),
            "`norm_bound`, value": network.for_all(bound_value),
        },
        "forward + backward of the network",
        rounds=2 if quick else 5,
        warm_up=1,
        seconds=120,
    )
    step = network.step_flops()
    once = network.flops(application_flops)
    floors = {
        MOMENTS: network.flops(moment_flops) / step,
        STOCHASTIC: 3 * 3 * once / step,  # forward, back, forward; the backward pass takes twice as much
        WARM: 4 * WARM_STEPS * once / step,  # steps forward and back with two images
        COLD: 4 * COLD_STEPS * once / step,
    }
    return rows, floors


def section(*, quick: bool = False) -> str:
    """The benchmark as Markdown."""
    with threads(1):
        rate = gemm_rate()
        layer = penalty_rows(quick=quick)
        network, floors = network_rows(quick=quick)
    geometry = operator_of(nn.Conv2d(64, 64, 3, padding=1), 32).geometry
    floor = moment_flops(geometry) / rate
    faster = layer[SVDVALS].ratio
    warm = network[WARM].ratio
    size = "a ResNet-18 of width 8 at batch 8" if quick else "ResNet-18"
    lines = [
        "## Moments, extremes and bounds",
        "",
        f"One thread; a float32 matrix product runs at {rate / 1e9:.0f} Gflop/s.",
        "",
        "| one 64x64x3x3 layer at 32x32 | ms | times the first: median (quartiles) |",
        "|---|---|---|",
        *(f"| {name} | {timing.cells()} |" for name, timing in layer.items()),
        "",
        (
            f"Floor of the first: {moment_flops(geometry) / 1e6:.0f} Mflop of products of channel matrices, {1e3 * floor:.2f} ms; "
            f"it takes {layer[MOMENTS].seconds / floor:.1f} times that."
        ),
        "",
        f"| all convolutions of {size}, 32x32 images | ms | times forward + backward at batch 128 | the same for the flops alone |",
        "|---|---|---|---|",
        *(
            f"| {name} | {timing.cells()} | {f'{floors[name]:.3f}' if name in floors else '–'} |"
            for name, timing in network.items()
        ),
        "",
        (
            f"Targets: the moment penalty on one layer at least {PENALTY_TARGET:g} times faster than `svdvals` autograd: "
            f"{'met' if faster >= PENALTY_TARGET else '**not met**'} ({faster:.0f}). "
            f"A warm interval below {100 * WARM_TARGET:g} % of a step: {'met' if warm < WARM_TARGET else '**not met**'} "
            f"({100 * warm:.1f} %), while the weights drift by less than 1 % of the bound; each time they have drifted that far, "
            "that layer costs one `norm_bound`."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(section())
