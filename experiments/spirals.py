"""Two-arm spirals: SGD, weight decay, constrained SGD, SGLD, constrained SGLD. `python -m experiments.spirals [--out DIR]`.

A net of one hidden layer learns to tell two interleaved spirals apart from `POINTS` points; test points come from the
same law. Every seed has its own points, initial weights and batches, the same in every arm. All seeds are trained at
once: weights have a leading dimension of chains.

Every arm gets `TRIALS` trials: the same points of the unit cube, of which each arm reads the coordinates that it has.
They are judged by the mean validation accuracy over `TUNING_SEEDS` (spirals of their own). `CLOSER` more are within a
factor `NEAR` of the arm's best; the best of all is then trained with the final seeds. What is finished is kept in
`--out`/runs and not done again; `--arm` does some arms only, so that several processes can share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import weightspace as ws
from experiments import spirals_report
from weightspace.files import read_json, write_json_atomically
from weightspace.training.environment import machine, versions

POINTS, TURNS, NOISE = 100, 2.5, 0.02
TEST_POINTS = 2000
HIDDEN, BATCH, STEPS, MOMENTUM = 200, 20, 10_000, 0.9
AVERAGED = 50  # samples of the second half whose predictions are averaged
TRIALS, CLOSER, NEAR = 8, 4, 3.0
SEEDS = tuple(range(12))
TUNING_SEEDS = tuple(range(1000, 1005))
GRID = 121  # of decision boundaries, points along an edge
REACH = 1.15

Ranges = Mapping[str, tuple[float, float]]
LR, DECAY, HEAT = (0.01, 0.5), (1e-6, 1e-3), (1e-3, 1.0)
RADII = {"radius_1": (1.0, 30.0), "radius_2": (0.3, 10.0)}
ARMS: dict[str, Ranges] = {
    "SGD": {"lr": LR},
    "SGD, weight decay": {"lr": LR, "weight_decay": DECAY},
    "constrained SGD": {"lr": LR, **RADII},
    "SGLD": {"lr": LR, "temperature": HEAT},
    "constrained SGLD": {"lr": LR, "temperature": HEAT, **RADII},
}
COORDINATES = ("lr", "weight_decay", "temperature", "radius_1", "radius_2")


@dataclass(frozen=True)
class Settings:
    """What one run trains with; circles where there are radii.

    Attributes:
        lr: Of SGD: the square of the time step.
        weight_decay: Of all weights and biases.
        temperature: In units of the posterior's; `num_data` is `POINTS`.
        radius_1: Bound of the weights of the hidden layer.
        radius_2: Bound of the weights of the output.
    """

    lr: float
    weight_decay: float = 0.0
    temperature: float = 0.0
    radius_1: float | None = None
    radius_2: float | None = None


def trials(arm: str, count: int = TRIALS) -> list[Settings]:
    """The settings that an arm tries: log-uniform, the same draws for every arm."""
    draws = torch.rand(count, len(COORDINATES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: list[Settings] = []
    for row in draws.tolist():
        places = dict(zip(COORDINATES, row, strict=True))
        values = {key: low * (high / low) ** places[key] for key, (low, high) in ARMS[arm].items()}
        found.append(Settings(**{key: float(f"{value:.4g}") for key, value in values.items()}))
    return found


def closer(arm: str, best: Settings, count: int = CLOSER) -> list[Settings]:
    """Settings within a factor `NEAR` of the best so far: a Sobol sequence, the same for every arm.

    Radii stay within their ranges below, for initial weights have to fit.
    """
    draws = torch.quasirandom.SobolEngine(len(COORDINATES), scramble=True, seed=1).draw(count, dtype=torch.float64)
    found: list[Settings] = []
    for row in draws.tolist():
        places = dict(zip(COORDINATES, row, strict=True))
        values = {key: getattr(best, key) * NEAR ** (2 * places[key] - 1) for key in ARMS[arm]}
        for key in RADII.keys() & values.keys():
            values[key] = max(values[key], RADII[key][0])
        found.append(Settings(**{key: float(f"{value:.4g}") for key, value in values.items()}))
    return found


# ---------------------------------------------------------------- data and net


def spirals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points `(count, 2)` of two arms by turns and their labels, 0 or 1; uniform in area along an arm."""
    radius = torch.rand(count, generator=generator).sqrt()
    labels = (torch.arange(count) % 2).float()
    angle = 2 * math.pi * TURNS * radius + math.pi * labels
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return points + NOISE * torch.randn(count, 2, generator=generator), labels


class Nets(nn.Module):
    """As many nets 2-hidden-1 with ReLU as there are chains; torch's default initial weights."""

    def __init__(self, seeds: Sequence[int], hidden: int) -> None:
        super().__init__()
        shapes = {"weight_1": (hidden, 2), "bias_1": (1, hidden), "weight_2": (1, hidden), "bias_2": (1, 1)}
        bounds = {"weight_1": 2**-0.5, "bias_1": 2**-0.5, "weight_2": hidden**-0.5, "bias_2": hidden**-0.5}
        generators = [torch.Generator().manual_seed(3 * seed + 1) for seed in seeds]
        for name, shape in shapes.items():
            drawn = [torch.rand(shape, generator=generator) for generator in generators]
            self.register_parameter(name, nn.Parameter((2 * torch.stack(drawn) - 1) * bounds[name]))

    def forward(self, x: Tensor) -> Tensor:
        """Log odds `(chains, n)` of points `(chains, n, 2)`."""
        p = dict(self.named_parameters())
        hidden = torch.baddbmm(p["bias_1"], x, p["weight_1"].mT).relu_()
        return torch.baddbmm(p["bias_2"], hidden, p["weight_2"].mT)[..., 0]


def make_optimizer(nets: Nets, settings: Settings, seed: int) -> torch.optim.Optimizer:
    """SGD with momentum, or Langevin dynamics with the same momentum; biases are never constrained."""
    if settings.temperature == 0 and settings.radius_1 is None:
        return torch.optim.SGD(nets.parameters(), lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)
    weights = {name: p for name, p in nets.named_parameters() if name.startswith("weight")}
    biases = [p for name, p in nets.named_parameters() if name.startswith("bias")]
    groups: list[dict[str, Any]] = [{"params": biases, "chains": True}]
    for (_, weight), radius in zip(weights.items(), (settings.radius_1, settings.radius_2), strict=True):
        group: dict[str, Any] = {"params": [weight], "chains": True}
        if radius is not None:  # above all initial weights
            group["manifold"] = ws.manifolds.Circle(radius=radius)
        groups.append(group)
    return ws.optim.ConstrainedLangevin(
        groups,
        lr=settings.lr,
        momentum=MOMENTUM,
        temperature=settings.temperature,
        num_data=POINTS,
        scheme="BAOA" if settings.temperature else "OBA",
        weight_decay=settings.weight_decay,
        seed=seed,
        check_finite=False,
    )


# ---------------------------------------------------------------- one run


def train(settings: Settings, seeds: Sequence[int], *, steps: int, hidden: int) -> tuple[dict[str, Any], Tensor]:
    """Trains all seeds at once.

    Returns:
        Results, lists over seeds: accuracy on training and test points of the last weights, accuracy and negative
        log-likelihood on test points also of the average over `AVERAGED` weights of the second half; and
        `(chains, GRID, GRID)` probabilities of the last weights.
    """
    generators = [torch.Generator().manual_seed(3 * seed) for seed in seeds]
    drawn = [(*spirals(POINTS, g), *spirals(TEST_POINTS, g)) for g in generators]
    x, y, test_x, test_y = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
    nets = Nets(seeds, hidden)
    optimizer = make_optimizer(nets, settings, seeds[0])
    orders = [torch.Generator().manual_seed(3 * seed + 2) for seed in seeds]
    batches, begin = POINTS // BATCH, time.perf_counter()
    every = max(1, steps // 2 // AVERAGED)
    average, count, order = torch.zeros_like(test_y), 0, torch.empty(0)
    for step in range(steps):
        if step % batches == 0:
            order = torch.stack([torch.randperm(POINTS, generator=g) for g in orders]).unflatten(1, (batches, BATCH))
        chosen = order[:, step % batches]
        points, labels = x.gather(1, chosen[..., None].expand(-1, -1, 2)), y.gather(1, chosen)
        loss = binary_cross_entropy_with_logits(nets(points), labels, reduction="none").mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps // 2 and (step + 1) % every == 0:
            with torch.no_grad():
                average, count = average + nets(test_x).sigmoid(), count + 1
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        scores = nets(test_x)
        record = {
            "train_accuracy": _right(nets(x), y),
            "test_accuracy": _right(scores, test_y),
            "test_nll": binary_cross_entropy_with_logits(scores, test_y, reduction="none").mean(1).tolist(),
            "averaged_accuracy": _right(average / count - 0.5, test_y),
            "averaged_nll": _nll(average / count, test_y),
            "seconds": seconds,
        }
        grid = nets(boundary_points().expand(len(seeds), -1, -1)).sigmoid().unflatten(1, (GRID, GRID))
    return record, grid


def boundary_points() -> Tensor:
    """`(GRID^2, 2)`: the square of pictures, row by row from below."""
    edge = torch.linspace(-REACH, REACH, GRID)
    v, u = torch.meshgrid(edge, edge, indexing="ij")
    return torch.stack([u.flatten(), v.flatten()], -1)


def _right(scores: Tensor, labels: Tensor) -> list[float]:
    # NaN of a diverged chain is no larger than 0: chance
    return ((scores > 0) == (labels > 0.5)).double().mean(1).tolist()


def _nll(probabilities: Tensor, labels: Tensor) -> list[float]:
    right = torch.where(labels > 0.5, probabilities, 1 - probabilities)
    return (-right.double().clamp_min(1e-12).log().mean(1)).tolist()


# ---------------------------------------------------------------- the protocol


def run(settings: Settings, seeds: Sequence[int], out: Path, *, steps: int, hidden: int) -> dict[str, Any]:
    """`train`, unless its file is there: the file's name is of the settings alone."""
    facts = {
        "settings": asdict(settings),
        "seeds": list(seeds),
        "steps": steps,
        "hidden": hidden,
        "data": [POINTS, TURNS, NOISE, TEST_POINTS, BATCH],
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = out / "runs" / f"{name}.json"
    if not path.exists():
        record, grid = train(settings, seeds, steps=steps, hidden=hidden)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"probability": grid[:3].half().contiguous()}, path.with_suffix(".safetensors"))
        write_json_atomically(path, {**facts, **record})
        mean = 100 * sum(record["test_accuracy"]) / len(seeds)
        print(f"{settings}: {mean:.1f} % in {record['seconds']:.0f} s", flush=True)
    return {**read_json(path), "grid": f"runs/{name}.safetensors"}


def tune(arm: str, out: Path, *, quick: bool) -> list[dict[str, Any]]:
    """All trials of an arm."""
    size, tuning = sizes(quick=quick), TUNING_SEEDS[:2] if quick else TUNING_SEEDS
    records = [run(settings, tuning, out, **size) for settings in trials(arm, 2 if quick else TRIALS)]
    records += [run(s, tuning, out, **size) for s in closer(arm, best_of(records), 1 if quick else CLOSER)]
    return records


def best_of(records: Sequence[Mapping[str, Any]]) -> Settings:
    """The settings with the highest accuracy, the first of equals."""
    return Settings(**max(records, key=lambda record: sum(record["test_accuracy"]))["settings"])


def sizes(*, quick: bool) -> dict[str, int]:
    """Steps and width."""
    return {"steps": 60, "hidden": 16} if quick else {"steps": STEPS, "hidden": HIDDEN}


def main(arguments: list[str] | None = None) -> None:
    """Tunes, trains the final seeds, writes results.json, table.md and pictures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.spirals", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("spirals"), help="folder for results (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps and seeds: to see that it runs")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="this arm only, without tables; repeatable")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds, size = SEEDS[:3] if options.quick else SEEDS, sizes(quick=options.quick)
    tried: dict[str, list[dict[str, Any]]] = {}
    final: dict[str, dict[str, Any]] = {}
    for arm in options.arm or ARMS:
        tried[arm] = tune(arm, options.out, quick=options.quick)
        final[arm] = run(best_of(tried[arm]), seeds, options.out, **size)
        print(f"final {arm}: {100 * sum(final[arm]['test_accuracy']) / len(seeds):.1f} %", flush=True)
    if options.arm:
        return
    results = {
        "settings": {
            **size,
            "points": POINTS,
            "test_points": TEST_POINTS,
            "turns": TURNS,
            "noise": NOISE,
            "batch": BATCH,
            "momentum": MOMENTUM,
            "averaged": AVERAGED,
            "seeds": list(seeds),
            "tuning_seeds": list(TUNING_SEEDS[:2] if options.quick else TUNING_SEEDS),
            "ranges": {arm: {key: list(ends) for key, ends in ranges.items()} for arm, ranges in ARMS.items()},
        },
        "versions": versions(),
        "machine": machine(),
        "tried": {
            arm: [{**r["settings"], "validation_accuracy": r["test_accuracy"]} for r in records]
            for arm, records in tried.items()
        },
        "final": final,
    }
    write_json_atomically(options.out / "results.json", results)
    spirals_report.write(results, options.out)


if __name__ == "__main__":
    main()
