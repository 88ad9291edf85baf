"""How far do gated penalties compress a network? `python -m experiments.gated_compression NET DATA [--out DIR] [--quick]`.

Every arm trains `EPOCHS` epochs with its penalty; then, for every ratio of `RATIOS` and from the same weights, the
smallest weights of the whole network are set to zero, and the rest is trained `FINE_TUNE` epochs with the learning rate
of the start, without a penalty and with the zeros kept. Accuracy is that of the weights that a user would store, after all this. `dense` is never pruned.

Each arm gets as many trials (`ARMS`), on one tuning seed and a fifth of the training images held out, judged at the
ratio `TUNED_AT` (`dense`: at ratio 0). The best one is then trained on all training images with the final seeds, the
same for every arm. Every run is a file in `--out`/runs; a run that is there is not done again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import weightspace as ws
from experiments import gated_compression_report
from weightspace.compress import prune, save_sparse
from weightspace.files import read_json, write_json_atomically
from weightspace.registry import make_rule
from weightspace.training.data import Batches, ImageData, load_data
from weightspace.training.environment import machine, versions
from weightspace.training.models import build_model

EPOCHS, FINE_TUNE, BATCH = 8, 3, 64
RATIOS = (0.0, 0.9, 0.95, 0.98, 0.99)
TUNED_AT = 0.98
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 1000
IMAGES = 10_000
NETS: dict[str, dict[str, Any]] = {
    "alexnet": {
        "options": {"widths": (16, 32, 48, 48, 32), "hidden": 512, "dropout": 0.2},
        "lr": 0.02,
    },
    "vgg": {
        "options": {
            "widths": (4, 8, 16, 32),
            "convs_per_stage": 2,
            "hidden": (512, 512),
            "dropout": 0.2,
            "pooling": "flatten",
        },
        "lr": 0.05,
    },
}


@dataclass(frozen=True)
class Trial:
    """What one run trains with.

    Attributes:
        penalty: A rule as in recipes, on all weights; None for none.
        weight_decay: The optimizer's own.
    """

    penalty: Mapping[str, Any] | None = None
    weight_decay: float = 0.0


def _l1(weight: float, gate: Mapping[str, Any] | None = None) -> Trial:
    rule: dict[str, Any] = {"rule": "L1", "weight": weight, "application": "proximal"}
    return Trial({**rule, "gate": dict(gate)} if gate is not None else rule)


_DECAYS = tuple(Trial(weight_decay=w) for w in (1e-4, 3e-4, 1e-3, 3e-3, 5e-3, 1e-2))
_GATED = (0.005, 0.01, 0.02)
_PART = 0.25  # of the training steps, for Delayed; set to a number of steps when the run starts
ARMS: dict[str, tuple[Trial, ...]] = {
    "dense": _DECAYS,
    "magnitude": _DECAYS,
    "L1 always": tuple(_l1(w) for w in (0.0006, 0.00125, 0.0025, 0.005, 0.01, 0.02)),
    "L1 delayed": tuple(_l1(w, {"gate": "Delayed", "steps": p}) for w in _GATED for p in (_PART, 2 * _PART)),
    "L1 coherent total": tuple(
        _l1(w, {"gate": "Coherent", "against": "total", "threshold": t}) for w in _GATED for t in (0.3, 0.6)
    ),
    "L1 coherent history": tuple(
        _l1(w, {"gate": "Coherent", "against": "history", "threshold": t}) for w in _GATED for t in (0.0, 0.2)
    ),
    "L1 random": tuple(_l1(w, {"gate": "RandomGate", "duty": d}) for w in _GATED for d in (0.25, 0.5)),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        net: Name of the network.
        data: Name of the data set.
        root: Folder of the data set, if it is not where it is looked for.
        arm: Name of the arm.
        trial: Settings.
        seed: Of weights, dropout and order.
        is_final: All training images, test images, all ratios; else held-out images and the tuning ratio.
        epochs, fine_tune, images: Budget.
    """

    net: str
    data: str
    root: str | None
    arm: str
    trial: Trial
    seed: int
    is_final: bool
    epochs: int = EPOCHS
    fine_tune: int = FINE_TUNE
    images: int = IMAGES
    ratios: tuple[float, ...] = field(default=RATIOS)

    @property
    def name(self) -> str:
        """The run's file, of its settings alone: arms that share a run share its file."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("arm", "root")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def run(job: Job) -> dict[str, Any]:
    """Trains, prunes, fine-tunes and measures."""
    torch.set_num_threads(1)
    data = load_data(job.data, root=job.root).take(job.images)
    if not job.is_final:
        data = data.hold_out(0.2, seed=0)
    torch.manual_seed(job.seed)
    model = build_model(
        job.net,
        in_channels=data.in_channels,
        image_size=data.image_size,
        num_classes=data.num_classes,
        **NETS[job.net]["options"],
    )
    rules = _train(model, data, job, rate=NETS[job.net]["lr"], epochs=job.epochs, penalty=job.trial.penalty)
    cycles = [] if rules is None else [d for layer in rules.duty_cycles.values() for d in layer.values()]
    found: dict[str, Any] = {
        "net": job.net,
        "arm": job.arm,
        "trial": asdict(job.trial),
        "seed": job.seed,
        "is_final": job.is_final,
        "duty": sum(cycles) / len(cycles) if cycles else None,
        "vanished": {} if rules is None else rules.vanished,
        "accuracy": accuracy(model, data),
        "zeros": _zeros(model),
        "ratios": {},
    }
    for ratio in job.ratios:
        small = copy.deepcopy(model)
        torch.manual_seed(job.seed + 1)
        masks = prune(small, ratio=ratio, force=True)
        pruned = accuracy(small, data)
        _train(small, data, job, rate=NETS[job.net]["lr"], epochs=job.fine_tune, masks=masks)
        found["ratios"][str(ratio)] = {
            "pruned": pruned,
            "accuracy": accuracy(small, data),
            "nonzeros": sum(int((p != 0).sum()) for p in small.parameters()),
            "numbers": sum(p.numel() for p in small.parameters()),
            **(_bytes(small) if job.is_final else {}),
        }
    return found


def _train(
    model: nn.Module,
    data: ImageData,
    job: Job,
    *,
    rate: float,
    epochs: int,
    penalty: Mapping[str, Any] | None = None,
    masks: ws.compress.Masks | None = None,
) -> ws.Rules | None:
    batches = _batches(data, data.train_images, data.train_labels, seed=job.seed)
    steps = max(1, epochs * len(batches))
    decay = job.trial.weight_decay if masks is None else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rules = None if penalty is None else ws.attach(optimizer, model, _rule(penalty, steps))
    if masks is not None:
        masks.attach(optimizer)
    model.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stub lacks it
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return rules


def _rule(penalty: Mapping[str, Any], steps: int) -> ws.kernels.Rule:
    options = {key: value for key, value in penalty.items() if key != "rule"}
    gate = options.get("gate")
    if gate is not None and gate["gate"] == "Delayed":
        options["gate"] = {**gate, "steps": round(gate["steps"] * steps)}
    return make_rule(penalty["rule"], **options)


def _batches(data: ImageData, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> Batches:
    return Batches(
        images,
        labels,
        **{"batch_size": BATCH, "mean": data.mean, "std": data.std, "device": "cpu", "seed": 0, **options},
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData) -> float:
    """Share of the test images that are classified correctly."""
    model.eval()
    right = count = 0
    test = _batches(data, data.test_images, data.test_labels, batch_size=250, shuffle=False, drop_last=False)
    for images, labels in test.epoch(0):
        right += int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
        count += len(labels)
    return right / count


def _zeros(model: nn.Module) -> float:
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


def _bytes(model: nn.Module) -> dict[str, int]:
    """The sizes of real files."""
    with tempfile.TemporaryDirectory() as folder:
        plain, sparse, eight = (Path(folder) / f"{name}.safetensors" for name in ("plain", "sparse", "eight"))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, plain)
        save_sparse(model, sparse)
        save_sparse(model, eight, bits=8)
        return {"plain": plain.stat().st_size, "sparse": sparse.stat().st_size, "eight_bits": eight.stat().st_size}


# ---------------------------------------------------------------- the protocol


def tuning_jobs(base: Mapping[str, Any]) -> Iterator[Job]:
    """Every trial of every arm."""
    for arm, trials in ARMS.items():
        ratios = (0.0,) if arm == "dense" else (TUNED_AT,)
        for trial in trials:
            yield Job(arm=arm, trial=trial, seed=TUNING_SEED, is_final=False, ratios=ratios, **base)


def final_jobs(base: Mapping[str, Any], chosen: Mapping[str, Trial], seeds: Sequence[int]) -> Iterator[Job]:
    """The chosen trial of every arm with every seed; arms interleaved."""
    for seed in seeds:
        for arm, trial in chosen.items():
            yield Job(arm=arm, trial=trial, seed=seed, is_final=True, **base)


def choose(records: Mapping[str, dict[str, Any]], jobs: Sequence[Job]) -> dict[str, Trial]:
    """The trial of every arm with the best held-out accuracy; the first of equals."""
    best: dict[str, tuple[float, Trial]] = {}
    for job in jobs:
        value = records[job.name]["ratios"][str(job.ratios[0])]["accuracy"]
        if value > best.get(job.arm, (-math.inf, job.trial))[0]:
            best[job.arm] = (value, job.trial)
    return {arm: trial for arm, (_, trial) in best.items()}


def run_all(jobs: Sequence[Job], out: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Runs what is not there yet; the records of all jobs by name."""
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    todo = {job.name: job for job in jobs if not (folder / f"{job.name}.json").exists()}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in todo.values()}
        for number, (future, job) in enumerate(futures.items(), 1):
            write_json_atomically(folder / f"{job.name}.json", future.result())
            print(f"{number} of {len(todo)}: {job.arm}, seed {job.seed}", flush=True)
    return {job.name: read_json(folder / f"{job.name}.json") for job in jobs}


def main(arguments: list[str] | None = None) -> None:
    """Tunes, trains the final seeds, writes results.json, table.md and compression.png."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gated_compression", description=__doc__)
    parser.add_argument("net", choices=sorted(NETS))
    parser.add_argument("data", help="a data set's name, such as fashion-mnist")
    parser.add_argument("--root", default=None, help="its folder, if it is not where it is looked for")
    parser.add_argument("--out", type=Path, default=None, help="folder for results (default: gated-NET-DATA)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few images and steps, two seeds: to see that it runs")
    options = parser.parse_args(arguments)
    out = options.out or Path(f"gated-{options.net}-{options.data}")
    budget = {"epochs": 1, "fine_tune": 1, "images": 500} if options.quick else {}
    base: dict[str, Any] = {"net": options.net, "data": options.data, "root": options.root, **budget}
    tuning = list(tuning_jobs(base))
    chosen = choose(run_all(tuning, out, options.workers), tuning)
    final = list(final_jobs(base, chosen, SEEDS[:2] if options.quick else SEEDS))
    records = run_all(final, out, options.workers)
    results = {
        "settings": {
            "net": options.net,
            "data": options.data,
            "model": NETS[options.net],
            "batch": BATCH,
            "epochs": EPOCHS,
            "fine_tune": FINE_TUNE,
            "images": IMAGES,
            "tuned_at": TUNED_AT,
            **budget,
        },
        "versions": versions(),
        "machine": machine(),
        "chosen": {arm: asdict(trial) for arm, trial in chosen.items()},
        "runs": [{**records[job.name], "arm": job.arm} for job in final],
    }
    write_json_atomically(out / "results.json", results)
    gated_compression_report.write(results, out)


if __name__ == "__main__":
    main()
