"""Optimizers on manifolds against known optima: `python -m experiments.manifold_problems [--out DIR] [--quick]`.

Three experiments on the problems of `experiments.manifold_optima`, seeds 0 to 4, float64, one thread:

- `convergence`: thirteen ways to step (`ARMS`), with gradients of all samples and of minibatches of `BATCH`; each with
  the learning rate that ended lowest on an instance kept for tuning (gaps below 1e-14 count as equal, the smallest rate
  wins). Minibatches: under `PowerDecayLR`.
- `schedules`: `PowerDecayLR(rate, exponent)` against a constant learning rate, step size `curvature`, minibatches: the
  slope of log gap against log step over the last decade. Theory: minus the exponent; a constant rate has slope 0.
- `sweep`: `curvature` against `plain` over eight decades of the learning rate, loss times 1 and times 100.

Every number is the gap: the loss above the known minimum, as a share of what it was at the start. Writes results.json
after each part, then table.md and figures, into `--out`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from experiments import manifold_problems_report
from experiments.manifold_optima import SAMPLES, Problem, problems
from weightspace.files import read_json, write_json_atomically
from weightspace.training.environment import machine, versions

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 1000
BATCH = 16
DECAY = {"rate": 0.05, "exponent": 0.75}  # of the learning rate in all minibatch runs but those of `schedules`

Make = Callable[[nn.Module, ws.manifolds.Manifold, float], torch.optim.Optimizer]


def submanifold_sgd(step_size: str, update: str = "retraction", momentum: str = "none") -> Make:
    """An arm of SubmanifoldSGD; momentum is "none", "ambient" or "tangent" (transport by projection)."""
    options = {"none": {}, "ambient": {"momentum": 0.9}, "tangent": {"momentum": 0.9, "transport": "projection"}}[
        momentum
    ]

    def make(model: nn.Module, manifold: ws.manifolds.Manifold, lr: float) -> torch.optim.Optimizer:
        groups = ws.param_groups(model, {ws.on.everything: manifold})
        return ws.optim.SubmanifoldSGD(groups, lr=lr, step_size=step_size, update=update, **options)

    return make


def submanifold_adam(model: nn.Module, manifold: ws.manifolds.Manifold, lr: float) -> torch.optim.Optimizer:
    """The arm of SubmanifoldAdam."""
    return ws.optim.SubmanifoldAdam(ws.param_groups(model, {ws.on.everything: manifold}), lr=lr)


def attached(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Make:
    """An arm of a torch optimizer with the manifold attached."""

    def make(model: nn.Module, manifold: ws.manifolds.Manifold, lr: float) -> torch.optim.Optimizer:
        made = optimizer(model.parameters(), lr=lr, **options)
        ws.attach(made, model, manifold)
        return made

    return make


ARMS: dict[str, Make] = {
    f"{step_size}, {update}, " + ("no momentum" if momentum == "none" else f"{momentum} momentum 0.9"): submanifold_sgd(
        step_size, update, momentum
    )
    for step_size in ("plain", "curvature")
    for update, momentum in (
        ("retraction", "none"),
        ("retraction", "ambient"),
        ("retraction", "tangent"),
        ("geodesic", "none"),
        ("geodesic", "tangent"),
    )
} | {
    "SubmanifoldAdam": submanifold_adam,
    "attach(SGD, momentum 0.9)": attached(torch.optim.SGD, momentum=0.9),
    "attach(Adam)": attached(torch.optim.Adam),
}


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    seeds: tuple[int, ...] = SEEDS
    steps: int = 300
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    schedule_problems: tuple[str, ...] = (
        "Rayleigh quotient, Sphere",
        "weighted PCA, Stiefel",
        "Procrustes, Orthogonal",
    )
    schedule_steps: int = 10000
    exponents: tuple[float, ...] = (0.0, 0.6, 0.75, 0.9)
    sweep_problems: tuple[str, ...] = (
        "Rayleigh quotient, Sphere", "weighted PCA, Oblique", "weighted PCA, Stiefel", "Procrustes, Stiefel", "Procrustes, Orthogonal",
    )  # fmt: skip
    sweep_steps: int = 300
    sweep_rates: tuple[float, ...] = tuple(10 ** (i / 2) for i in range(-10, 7))


QUICK = Sizes(
    seeds=(0, 1), steps=20, rates=(0.3,), schedule_problems=("Rayleigh quotient, Sphere",), schedule_steps=100, exponents=(0.0, 0.75),
    sweep_problems=("Rayleigh quotient, Sphere", "Procrustes, Stiefel"), sweep_steps=10, sweep_rates=(0.01, 0.1, 1.0),
)  # fmt: skip


def batches(seeds: Sequence[int], steps: int) -> Tensor:
    """Indices of samples `(steps, seeds, BATCH)`, drawn with replacement."""
    generators = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    return torch.stack([torch.randint(SAMPLES, (steps, BATCH), generator=g) for g in generators], dim=1)


def minimize(
    problem: Problem,
    make: Make,
    lr: float,
    steps: int,
    *,
    noise: Tensor | None = None,
    decay: dict[str, float] | None = None,
) -> Tensor:
    """Gaps `(steps + 1, seeds)`, before each step and after the last.

    Args:
        problem: Its instances are the groups of one grouped convolution: each is a point of its own.
        make: The arm.
        lr: First learning rate.
        steps: Number of steps.
        noise: Minibatches `(steps, seeds, size)`; None: all samples.
        decay: Options of PowerDecayLR; None: a constant learning rate.
    """
    model = problem.model()
    weight = model.weight
    weight.grad = torch.zeros_like(weight)
    optimizer = make(model, problem.manifold, lr)
    schedule = None if decay is None else ws.optim.PowerDecayLR(optimizer, **decay)
    minimum = problem.minimum()
    losses = []
    with torch.no_grad():
        for step in range(steps + 1):
            w = weight.view(problem.start.shape)
            losses.append(problem.loss(w))
            if step == steps:
                break
            gradient = problem.gradient(w, None if noise is None else noise[step])
            weight.grad.copy_(gradient.view(weight.shape))
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return (torch.stack(losses) - minimum) / (problem.loss(problem.start) - minimum)


@functools.cache
def instances(seeds: tuple[int, ...], scale: float = 1.0) -> dict[str, Problem]:
    """The problems of some seeds."""
    return problems(seeds, scale=scale)


def at_log_steps(gaps: Tensor, count: int = 60) -> dict[str, Any]:
    """Means of the gap over windows of equal width in log step, and its first and last value."""
    last = len(gaps) - 1
    edges = sorted({round(float(e)) for e in torch.logspace(0, torch.tensor(float(last)).log10(), count)} | {last})
    rows, middles = [gaps[0]], [0.0]
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        rows.append(gaps[low + 1 : high + 1].mean(0))
        middles.append((low + 1 + high) / 2)
    return {"steps": middles, "gap": [[_short(v) for v in row] for row in torch.stack(rows).mT.tolist()]}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def final(gaps: Tensor, *, noisy: bool) -> Tensor:
    """The last gap; with noise the mean over the last tenth of the steps."""
    return gaps[-max(1, len(gaps) // 10) :].mean(0) if noisy else gaps[-1]


def convergence(sizes: Sizes) -> dict[str, Any]:
    """Every problem, with and without noise, and every arm at its own learning rate."""
    found: dict[str, Any] = {}
    for name in instances(sizes.seeds):
        for label in ("all samples", "minibatches"):
            noisy = label == "minibatches"
            options: dict[str, Any] = {"decay": DECAY if noisy else None}
            entry = found.setdefault(name, {}).setdefault(label, {})
            for arm, make in ARMS.items():
                tried: dict[float, float] = {}
                for lr in sizes.rates:
                    noise = batches((TUNING_SEED,), sizes.steps) if noisy else None
                    gaps = minimize(instances((TUNING_SEED,))[name], make, lr, sizes.steps, noise=noise, **options)
                    tried[lr] = float(final(gaps, noisy=noisy))
                best = min(tried, key=lambda lr: (max(tried[lr], 1e-14), lr))
                noise = batches(sizes.seeds, sizes.steps) if noisy else None
                gaps = minimize(instances(sizes.seeds)[name], make, best, sizes.steps, noise=noise, **options)
                entry[arm] = {
                    "rate": best,
                    "tried": {f"{lr:g}": _short(v) for lr, v in tried.items()},
                    "final": [_short(v) for v in final(gaps, noisy=noisy).tolist()],
                    "steps_to_1e-6": [steps_to(row, 1e-6) for row in gaps.mT],
                    **at_log_steps(gaps),
                }
    return found


def steps_to(gaps: Tensor, target: float) -> int | None:
    """The first step after which the gap stays below the target; None if it does not."""
    above = (gaps > target).nonzero()
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(gaps) else None


def schedules(sizes: Sizes) -> dict[str, Any]:
    """Gaps of minibatch runs under `lr / (1 + rate t)^exponent`; exponent 0 is a constant rate."""
    found: dict[str, Any] = {}
    noise = batches(sizes.seeds, sizes.schedule_steps)
    for name in sizes.schedule_problems:
        problem = instances(sizes.seeds)[name]
        for exponent in sizes.exponents:
            decay = {"rate": 0.1, "exponent": exponent} if exponent else None
            gaps = minimize(problem, submanifold_sgd("curvature"), 1.0, sizes.schedule_steps, noise=noise, decay=decay)
            entry = {"decay": decay, "slopes": [_short(s) for s in slopes(gaps)], **at_log_steps(gaps)}
            entry["final"] = [_short(v) for v in final(gaps, noisy=True).tolist()]
            found.setdefault(name, {})[f"{exponent:g}"] = entry
    return found


def slopes(gaps: Tensor, bins: int = 10) -> list[float]:
    """Slope of log mean gap against log step over the last decade of steps, by least squares, for every seed."""
    last = len(gaps) - 1
    edges = (
        torch.logspace(torch.tensor(last / 10.0).log10(), torch.tensor(float(last)).log10(), bins + 1).round().long()
    )
    means = torch.stack([gaps[a + 1 : b + 1].mean(0) for a, b in itertools.pairwise(edges)]).log()
    x = ((edges[:-1] + edges[1:]).double() / 2).log()
    x = x - x.mean()
    return ((x[:, None] * means).sum(0) / x.square().sum()).tolist()


def sweep(sizes: Sizes) -> dict[str, Any]:
    """Final gaps over learning rates, for both step sizes, with and without noise, loss times 1 and times 100."""
    found: dict[str, Any] = {}
    noise = batches(sizes.seeds, sizes.sweep_steps)
    for scale in (1.0, 100.0):
        for name, problem in instances(sizes.seeds, scale).items():
            if name not in sizes.sweep_problems:
                continue
            for label in ("all samples", "minibatches"):
                noisy = label == "minibatches"
                options: dict[str, Any] = {"noise": noise, "decay": DECAY} if noisy else {}
                entry: dict[str, Any] = {"rates": [_short(lr) for lr in sizes.sweep_rates]}
                for step_size in ("plain", "curvature"):
                    make = submanifold_sgd(step_size)
                    ends = [
                        final(minimize(problem, make, lr, sizes.sweep_steps, **options), noisy=noisy)
                        for lr in sizes.sweep_rates
                    ]
                    entry[step_size] = [[_short(v) for v in row] for row in torch.stack(ends).mT.tolist()]
                found.setdefault(f"{scale:g}", {}).setdefault(name, {})[label] = entry
    return found


PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "convergence": convergence,
    "schedules": schedules,
    "sweep": sweep,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts, writes after each."""
    parser = argparse.ArgumentParser(prog="python -m experiments.manifold_problems", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("manifold-problems"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=list(PARTS), help="which to run; results of others are kept"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    settings = {**vars(sizes), "batch": BATCH, "decay": DECAY}
    path = options.out / "results.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    results |= {"settings": settings, "versions": versions(), "machine": machine()}
    begin = time.perf_counter()
    for part in options.parts:
        results[part] = PARTS[part](sizes)
        write_json_atomically(path, results)
        print(f"{part} done after {time.perf_counter() - begin:.0f} s", flush=True)
    manifold_problems_report.write(results, options.out)


if __name__ == "__main__":
    main()
