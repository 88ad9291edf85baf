"""Ensembles from Langevin chains against deep ensembles at equal compute. `python -m experiments.uncertainty [--out DIR]`.

A 784-100-10 network on 10,000 training images of Fashion-MNIST. Every arm may compute the gradient of `EPOCHS` epochs
and keep `MEMBERS` networks, whose probabilities are averaged; `single SGD` keeps one, the chains' rows of
`MEMBERS * MORE` samples and `deep ensemble, 5 x compute` stand beside for reference. All repetitions of an arm are
trained at once: weights have a leading dimension of chains. Chains are cyclical: in each cycle the learning rate falls
along half a cosine, at temperature 0 for the first `EXPLORATION` of it.

Every arm gets `TRIALS` trials: the same points of the unit cube, of which each arm reads the coordinates that it has. They
are judged by the negative log-likelihood of the arm's own average on a fifth of the training images held out. What is
finished is kept in `--out`/runs and not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import weightspace as ws
from experiments import uncertainty_report
from experiments.uncertainty_data import Images, Judge, Stack, member
from weightspace.files import read_json, write_json_atomically
from weightspace.optim.langevin_schedules import LangevinSchedule, cyclical, is_exploring
from weightspace.sampling import SampleStore
from weightspace.training.environment import machine, versions

EPOCHS, MEMBERS, MORE, EXPLORATION = 30, 5, 4, 0.8
BATCH, HIDDEN, MOMENTUM, IMAGES = 128, 100, 0.9, 10_000
TRIALS, REPETITIONS, TUNING_SEED = 4, 5, 1000

Ranges = Mapping[str, tuple[float, float]]
COORDINATES = ("lr", "weight_decay", "temperature", "radius_1", "radius_2")
LR, DECAY, HEAT = (0.01, 0.3), (1e-5, 3e-3), (0.01, 1.0)
SGD: Ranges = {"lr": LR, "weight_decay": DECAY}
CHAIN: Ranges = {**SGD, "temperature": HEAT}
STIEFEL_ENSEMBLE = "Stiefel deep ensemble"
ARMS: dict[str, Ranges] = {
    "single SGD": SGD,
    "deep ensemble": SGD,
    "snapshots, temperature 0": SGD,
    "Langevin chain": CHAIN,
    "circle chain": {**CHAIN, "radius_1": (0.04, 0.4), "radius_2": (0.12, 1.2)},
    "Stiefel chain": CHAIN,
    "Stiefel snapshots, temperature 0": SGD,
    STIEFEL_ENSEMBLE: SGD,
}
REFERENCE = "deep ensemble, 5 x compute"  # members are single runs, with their settings


@dataclass(frozen=True)
class Settings:
    """What one run trains with.

    Attributes:
        lr: Largest learning rate.
        weight_decay: Of all numbers that are not on a manifold of fixed norm.
        temperature: Of sampling steps; 1 is the posterior's.
        radius_1: Of circles of the hidden layer's weights.
        radius_2: Of circles of the head's weights.
    """

    lr: float
    weight_decay: float = 0.0
    temperature: float = 0.0
    radius_1: float | None = None
    radius_2: float | None = None


@dataclass(frozen=True)
class Budget:
    """How much one arm may compute and keep.

    Attributes:
        epochs: Of all networks of an arm together.
        members: Networks that are kept.
        images: Training images.
        hidden: Width of the net.
    """

    epochs: int = EPOCHS
    members: int = MEMBERS
    images: int = IMAGES
    hidden: int = HIDDEN


def trials(arm: str, count: int) -> list[Settings]:
    """The settings that an arm tries: a Sobol sequence on logarithmic scales, the same draws for every arm."""
    draws = torch.quasirandom.SobolEngine(len(COORDINATES), scramble=True, seed=0).draw(count, dtype=torch.float64)
    found: list[Settings] = []
    for row in draws.tolist():
        places = dict(zip(COORDINATES, row, strict=True))
        values = {key: low * (high / low) ** places[key] for key, (low, high) in ARMS[arm].items()}
        found.append(Settings(**{key: float(f"{value:.4g}") for key, value in values.items()}))
    return found


# ---------------------------------------------------------------- training


def make_sampler(
    arm: str, stack: Stack, settings: Settings, *, num_data: int, cycle: int, seed: int
) -> tuple[ws.optim.ConstrainedLangevin, LangevinSchedule]:
    """The chains' optimizer and its schedule."""
    p = stack.parameters_by_name
    manifolds: dict[str, ws.manifolds.Manifold] = {}
    if arm == "circle chain":
        manifolds["hidden.0.weight"] = ws.manifolds.Circle(radius=settings.radius_1 or 1.0)
        manifolds["fc.weight"] = ws.manifolds.Circle(radius=settings.radius_2 or 1.0)
    elif arm.startswith("Stiefel"):
        manifolds["hidden.0.weight"] = ws.manifolds.Stiefel()
    free = [p[name] for name in p if name not in manifolds]
    groups: list[dict[str, Any]] = [{"params": free, "chains": True}]
    groups += [{"params": [p[name]], "chains": True, "manifold": m} for name, m in manifolds.items()]
    sampler = ws.optim.ConstrainedLangevin(
        groups,
        lr=settings.lr,
        momentum=MOMENTUM,
        temperature=settings.temperature,
        num_data=num_data,
        weight_decay=settings.weight_decay,
        seed=seed,
        check_finite=False,
    )
    return sampler, LangevinSchedule(
        sampler,
        lr=partial(cyclical, cycle=cycle),
        temperature=lambda step: 0.0 if is_exploring(step, cycle, EXPLORATION) else 1.0,
    )


def train_sgd(settings: Settings, seeds: Sequence[int], *, data: Images, epochs: int, hidden: int) -> Stack:
    """As many networks as seeds, each `epochs` epochs with a cosine schedule."""
    stack = Stack(seeds, hidden)
    optimizer = torch.optim.SGD(
        stack.parameters(), lr=settings.lr, momentum=MOMENTUM, weight_decay=settings.weight_decay
    )
    steps = epochs * (len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for images, labels in data.batches(seeds, BATCH, steps):
        optimizer.zero_grad()
        _loss(stack, images, labels).backward()
        optimizer.step()
        schedule.step()
    return stack


def train_chains(
    arm: str, settings: Settings, seeds: Sequence[int], *, budget: Budget, data: Images, folder: Path
) -> list[SampleStore]:
    """A chain for each seed; a store for each of them, with `MORE` samples of each of `members` cycles."""
    stack = Stack(seeds, budget.hidden)
    cycle = budget.epochs * (len(data.labels) // BATCH) // budget.members
    sampler, schedule = make_sampler(arm, stack, settings, num_data=len(data.labels), cycle=cycle, seed=seeds[0])
    every = max(1, math.floor((1 - EXPLORATION) * cycle) // MORE)
    stores = [
        SampleStore(folder / f"seed-{seed}", cycle=cycle, per_cycle=MORE, every=every, chain=number)
        for number, seed in enumerate(seeds)
    ]
    for step, (images, labels) in enumerate(data.batches(seeds, BATCH, cycle * budget.members), 1):
        sampler.zero_grad()
        _loss(stack, images, labels).backward()
        sampler.step()
        schedule.step()
        if stores[0].wants(step):
            for number, store in enumerate(stores):
                store.offer(step, member(stack, number))
    return stores


def _loss(stack: Stack, images: Tensor, labels: Tensor) -> Tensor:
    scores = stack(images)
    return cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]


# ---------------------------------------------------------------- one arm


def run(
    arm: str, settings: Settings, seeds: Sequence[int], *, budget: Budget, judge: Judge, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Trains an arm with all seeds and judges it.

    Returns:
        For each row of the table the scores of each seed.
    """
    if arm == STIEFEL_ENSEMBLE:
        return {arm: _stiefel_ensemble(settings, seeds, budget, judge, folder)}
    if arm not in ("single SGD", "deep ensemble", REFERENCE):
        stores = train_chains(arm, settings, seeds, budget=budget, data=judge.data, folder=folder)
        cycles = budget.epochs / budget.members
        last = [list(store)[MORE - 1 :: MORE] for store in stores]
        return {
            arm: [judge(samples, cycles) for samples in last],
            f"{arm}, {MORE * budget.members} samples": [judge(list(store), cycles / MORE) for store in stores],
        }
    count = 1 if arm == "single SGD" else budget.members
    epochs = budget.epochs // count if arm == "deep ensemble" else budget.epochs
    members = member_seeds(seeds, count)
    stack = train_sgd(settings, members, data=judge.data, epochs=epochs, hidden=budget.hidden)
    states = [member(stack, k) for k in range(len(members))]
    return {arm: [judge(states[count * r : count * (r + 1)], epochs) for r in range(len(seeds))]}


def _stiefel_ensemble(
    settings: Settings, seeds: Sequence[int], budget: Budget, judge: Judge, folder: Path
) -> list[dict[str, Any]]:
    """Members are chains of one cycle without noise, on the manifold of the Stiefel chain."""
    count, epochs = budget.members, budget.epochs // budget.members
    short = replace(budget, epochs=epochs, members=1)
    every = member_seeds(seeds, count)
    stores = train_chains(STIEFEL_ENSEMBLE, settings, every, budget=short, data=judge.data, folder=folder)
    last = [list(store)[-1] for store in stores]
    return [judge(last[count * r : count * (r + 1)], epochs) for r in range(len(seeds))]


def member_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """Of the networks of each repetition; the first ones are those of single runs."""
    return [10_000 * seed + k for seed in seeds for k in range(count)]


def kept(
    arm: str, settings: Settings, seeds: Sequence[int], *, budget: Budget, judge: Judge, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """`run`, unless its file is there."""
    facts = {"arm": arm, "settings": asdict(settings), "seeds": list(seeds), **asdict(budget), "held": judge.is_tuning}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = out / "runs" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        rows = run(arm, settings, seeds, budget=budget, judge=judge, folder=out / "samples" / name)
        write_json_atomically(path, {**facts, "rows": rows, "cpu_seconds": time.process_time() - begin})
        print(f"{arm}, {'trial' if judge.is_tuning else 'final'}: {uncertainty_report.nlls(rows)}", flush=True)
    return read_json(path)["rows"]


def tune(arm: str, out: Path, budget: Budget, judge: Judge, count: int) -> tuple[Settings, list[dict[str, Any]]]:
    """The trial with the lowest held-out negative log-likelihood, and all of them."""
    tried: list[dict[str, Any]] = []
    for settings in trials(arm, count):
        scores = kept(arm, settings, (TUNING_SEED,), budget=budget, judge=judge, out=out)[arm]
        tried.append({**asdict(settings), "nll": scores[0]["clean"]["nll"]})
    best = min(range(count), key=lambda k: math.inf if math.isnan(tried[k]["nll"]) else tried[k]["nll"])
    return trials(arm, count)[best], tried


def main(arguments: list[str] | None = None) -> None:
    """Tunes, trains the repetitions, writes results.json, table.md and pictures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.uncertainty", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("uncertainty"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument("--data", default="fashion-mnist", help="data set of 28 x 28 images (default: %(default)s)")
    parser.add_argument("--root", default=None, help="its folder, if it is not where it is looked for")
    parser.add_argument("--quick", action="store_true", help="a few images and steps: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    budget = Budget(epochs=5, images=700) if options.quick else Budget()
    count, seeds = (2, range(2)) if options.quick else (TRIALS, range(REPETITIONS))
    data = ws.training.data.load_data(options.data, root=options.root).take(
        budget.images, 500 if options.quick else None
    )
    tuning, final = (
        Judge(d, budget.hidden, is_tuning=t) for d, t in ((data.hold_out(0.2, seed=0), True), (data, False))
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, Any] = {}
    tried: dict[str, Any] = {}
    for arm in ARMS:
        settings, tried[arm] = tune(arm, options.out, budget, tuning, count)
        chosen[arm] = asdict(settings)
        rows.update(kept(arm, settings, seeds, budget=budget, judge=final, out=options.out))
    rows.update(kept(REFERENCE, Settings(**chosen["single SGD"]), seeds, budget=budget, judge=final, out=options.out))
    results = {
        "settings": {
            **asdict(budget),
            "data": options.data,
            "batch": BATCH,
            "momentum": MOMENTUM,
            "exploration": EXPLORATION,
            "more": MORE,
            "seeds": list(seeds),
        },
        "versions": versions(),
        "machine": machine(),
        "chosen": chosen,
        "tried": tried,
        "rows": rows,
    }
    write_json_atomically(options.out / "results.json", results)
    uncertainty_report.write(results, options.out)


if __name__ == "__main__":
    main()
