"""Kernels under a penalty alone, without data: `python -m experiments.kernel_only [--out DIR] [--seeds N] [--quick]`.

In the manner of the early experiments with such terms (arXiv 1906.04866, 1907.11235): a random 3x3 kernel with zero
padding, no data, and nothing but gradient steps on one penalty. Before and after, all singular values of the layer are
computed exactly, under its zero padding and on the torus.

Each term gets the same: `STEPS` Adam steps with a cosine schedule through `weightspace.attach` on a zero loss gradient,
and for every layer the learning rate of `RATES` with the lowest final penalty on a kernel kept for that (the smallest
of equals). The final runs start from the same kernels in every arm. Writes results.json, table.md and spectra.png into
`--out`; about a quarter of an hour on one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightspace as ws
from experiments import kernel_only_report
from weightspace.files import write_json_atomically
from weightspace.operators import operator_of
from weightspace.training.environment import machine, versions

STEPS = 200
RATES = (0.003, 0.01, 0.03, 0.1)
SIZE = 8  # the largest matrix, 32 -> 32 channels, then has 2048 rows and columns
TUNING_SEED = 1000
LAYERS = ((1, 1), (3, 3), (3, 16), (8, 8), (16, 16), (32, 16), (32, 32))
# Penalties by the dense matrix take one SVD of it a step.
LARGEST_DENSE = 192  # rows

P = ws.penalties
Arm = Callable[..., ws.penalties.Penalty]
ARMS: dict[str, Arm] = {
    "GramSpectralNorm, circular": P.GramSpectralNorm,
    "GramSpectralNorm, layer": lambda **o: P.GramSpectralNorm(padding_mode="layer", **o),
    "GramFrobenius, circular": lambda **o: P.GramFrobenius(padding_mode="circular", **o),
    "GramFrobenius, layer": P.GramFrobenius,
    "LargestSingularValue(1), circular": lambda **o: P.LargestSingularValue(1.0, padding_mode="circular", **o),
    "LargestSingularValue(1), layer": lambda **o: P.LargestSingularValue(1.0, **o),
    "SmallestSingularValue(0.5), circular": lambda **o: P.SmallestSingularValue(0.5, **o),
    "SmallestSingularValue(0.5), layer": lambda **o: P.SmallestSingularValue(0.5, padding_mode="layer", **o),
    "SingularValueBand(0.5, 2), circular": lambda **o: P.SingularValueBand(0.5, 2.0, **o),
    "SingularValueBand(0.5, 2), layer": lambda **o: P.SingularValueBand(0.5, 2.0, padding_mode="layer", **o),
    "SingularValueBand(1, 1), circular": lambda **o: P.SingularValueBand(1.0, 1.0, **o),
    "SingularValueBand(1, 1), layer": lambda **o: P.SingularValueBand(1.0, 1.0, padding_mode="layer", **o),
    "ConditionNumber, circular": P.ConditionNumber,
    "ConditionNumber, layer": lambda **o: P.ConditionNumber(padding_mode="layer", **o),
    "SoftOrthogonality SO": P.SoftOrthogonality,
    "SoftOrthogonality DSO": lambda **o: P.SoftOrthogonality("DSO", **o),
    "SoftOrthogonality SRIP": lambda **o: P.SoftOrthogonality("SRIP", **o),
    "SelfConvolution": P.SelfConvolution,
}
CHEAP_UNDER_PADDING = ("GramFrobenius, layer", "LargestSingularValue(1), layer")


def layer_of(inputs: int, outputs: int, seed: int) -> nn.Conv2d:
    """A 3x3 layer with 'same' zero padding and He's initial kernel."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.kaiming_normal_(layer.weight, generator=generator)
    return layer


def arms_of(inputs: int, outputs: int) -> list[str]:
    """What is affordable: penalties by the dense matrix only on small layers."""
    is_small = max(inputs, outputs) * SIZE**2 <= LARGEST_DENSE
    return [name for name in ARMS if is_small or not name.endswith("layer") or name in CHEAP_UNDER_PADDING]


def minimize(layer: nn.Conv2d, arm: str, rate: float, steps: int) -> float:
    """Runs the steps on the kernel; the final penalty, infinite if the kernel did not stay finite."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    needs_size = ARMS[arm]().needs_size
    penalty = ARMS[arm](weight=1.0, **({"input_size": SIZE} if needs_size else {}))
    ws.attach(optimizer, layer, penalty)
    layer.weight.grad = torch.zeros_like(layer.weight)  # no data: the penalty is all there is
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    if not layer.weight.isfinite().all():
        return math.inf
    return float(ARMS[arm]().evaluate(operator_of(layer, SIZE))[0])


def best_rate(inputs: int, outputs: int, arm: str, steps: int, rates: tuple[float, ...]) -> dict[float, float]:
    """Final penalties of all learning rates on the kernel for tuning, best first."""
    found = {rate: minimize(layer_of(inputs, outputs, TUNING_SEED), arm, rate, steps) for rate in rates}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def spectrum(layer: nn.Conv2d) -> dict[str, Any]:
    """The extremes under zero padding and on the torus, exact in float64, and what part of the kernel is central."""
    weight = layer.weight.detach().double()
    operator = operator_of(layer, SIZE).with_weight(weight)
    result: dict[str, Any] = {"center": float(weight[:, :, 1, 1].square().sum() / weight.square().sum())}
    for name, values in (
        ("zero", ws.singular_values(operator)),
        ("circular", ws.singular_values(operator, padding_mode="circular")),
    ):
        result[name] = {
            "max": float(values[0]),
            "min": float(values[-1]),
            "count": len(values),
            "singular": int((values < kernel_only_report.SINGULAR * values[0]).sum()),
        }
    return result


def torus_isometry(inputs: int, outputs: int, seed: int) -> nn.Conv2d:
    """A random 3x3 kernel that is an exact isometry with circular padding: all its values there are 1.

    An orthogonal matrix, convolved twice along each dimension with `(Q, I - Q)`, Q a random projector; of wide and tall
    layers the first channels.
    """
    generator = torch.Generator().manual_seed(seed)
    c = max(inputs, outputs)

    def orthogonal() -> torch.Tensor:
        return torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64)).Q

    kernel = orthogonal()[:, :, None, None]
    for dim in (2, 2, 3, 3):
        basis = orthogonal()[:, : c // 2]
        projector = basis @ basis.T
        here = torch.einsum("oi,ic...->oc...", projector, kernel)
        rest = kernel - here
        empty = torch.zeros_like(kernel).narrow(dim, 0, 1)
        kernel = torch.cat([here, empty], dim) + torch.cat([empty, rest], dim)
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, dtype=torch.float64)
    layer.weight.data = kernel[:outputs, :inputs].clone()
    return layer


def run_layer(inputs: int, outputs: int, *, seeds: int, steps: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """Everything about one layer: kernels before, each arm after, an isometry of the torus."""
    starts = [layer_of(inputs, outputs, seed) for seed in range(seeds)]
    floor = P.GramFrobenius()
    result: dict[str, Any] = {
        "inputs": inputs,
        "outputs": outputs,
        "before": [spectrum(layer) for layer in starts],
        "isometry": [],
        "arms": {},
    }
    for seed in range(seeds):
        layer = torus_isometry(inputs, outputs, seed)
        value = float(floor.evaluate(operator_of(layer, SIZE))[0])
        result["isometry"].append({**spectrum(layer), "gram_frobenius": value})
    for arm in arms_of(inputs, outputs):
        tried = best_rate(inputs, outputs, arm, steps, rates)
        rate = next(iter(tried))
        entry: dict[str, Any] = {"rate": rate, "tried": {str(r): v for r, v in tried.items()}, "runs": []}
        for start in starts:
            layer = layer_of(inputs, outputs, 0)
            layer.load_state_dict(start.state_dict())
            before = float(ARMS[arm]().evaluate(operator_of(layer, SIZE))[0])
            after = minimize(layer, arm, rate, steps)
            entry["runs"].append({"penalty_before": before, "penalty_after": after, **spectrum(layer)})
        result["arms"][arm] = entry
    return result


def main(arguments: list[str] | None = None) -> None:
    """Runs all layers, writes after each of them."""
    parser = argparse.ArgumentParser(prog="python -m experiments.kernel_only", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("kernel-only"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="initial kernels a layer (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two small layers, a few steps: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    steps, rates, layers = (4, RATES[:1], LAYERS[:2]) if options.quick else (STEPS, RATES, LAYERS)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "settings": {"steps": steps, "rates": list(rates), "size": SIZE, "seeds": options.seeds, "optimizer": "Adam"},
        "versions": versions(),
        "machine": machine(),
        "layers": [],
    }
    begin = time.perf_counter()
    for inputs, outputs in layers:
        results["layers"].append(run_layer(inputs, outputs, seeds=options.seeds, steps=steps, rates=rates))
        write_json_atomically(options.out / "results.json", results)
        print(f"{inputs} -> {outputs} channels done after {time.perf_counter() - begin:.0f} s", flush=True)
    kernel_only_report.write(results, options.out)


if __name__ == "__main__":
    main()
