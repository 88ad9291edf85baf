"""What came of the chains: scores of their averages and last points, calibration, convergence, temperatures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightspace.chains.keeper import ChainOrder
from weightspace.chains.scores import SCORES, Prediction, Scorer, average_of
from weightspace.errors import SamplingError
from weightspace.files import JsonObject
from weightspace.sampling import (
    ChainQuantities,
    Predictive,
    SampleStore,
    batch_norm_statistics,
    chain_diagnostics,
    chain_folder,
    chain_quantities,
    measure_calibration,
    posterior_predictive,
)
from weightspace.sampling.diagnostics import LEAST_DRAWS
from weightspace.training.data import Data
from weightspace.training.loop import WEIGHTS_FILE
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe, SampleSettings
from weightspace.training.trained import load_weights

POINT, ENSEMBLE, CHAIN, ALL = "last point", "all last points", "one chain", "all chains"
_LARGEST = 4_000_000_000  # bytes of one table of probabilities


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain that ended: its number, store, result, and what its average and its last point predict."""

    number: int
    store: SampleStore
    result: JsonObject
    average: Predictive
    point: Predictive


def evaluate_chains(recipe: Recipe, run_dir: Path, data: Data, *, accelerator: str = "auto") -> JsonObject:
    """Judge the chains of a folder on the test data.

    Args:
        recipe: With its `sample`.
        run_dir: Folder of the chains; all have ended.
        data: The recipe's data.
        accelerator: Where to compute.

    Returns:
        `rows`: mean scores of the chains' last points and averages, scores of the average of all last points (a deep
        ensemble) and of all chains; `chains`: the same for each; `gain`: what averaging all chains changes against
        the last points, on the same resampled points; `calibration` of both; `diagnostics`, `quantities`, `predictive`,
        `diverged`, `concerns`.

    Raises:
        SamplingError: Every chain diverged, or a store is damaged.

    Cost: one pass over the test data for every sample.
    """
    settings = recipe.sample or SampleSettings()
    device = _device(accelerator)
    model = build_model(recipe.model.name, **data.model_arguments, **recipe.model.options).to(device)
    chains, diverged = _read(recipe, run_dir, data, model, device)
    points = [Prediction.of(chain.point) for chain in chains]
    averages = [Prediction.of(chain.average) for chain in chains]
    everything = average_of(averages)
    scorer = Scorer(chains[0].point.labels, settings.level)
    rows = [scorer.row(POINT, points), scorer.row(ENSEMBLE, [average_of(points)])]
    rows += [scorer.row(CHAIN, averages), scorer.row(ALL, [everything])]
    quantities = _quantities(model, chains, data, device)
    return {
        "level": settings.level,
        "resamples": scorer.resamples,
        "points": len(everything.labels),
        "unit": data.describe().get("unit", "images"),
        "samples": [len(chain.store) for chain in chains],
        "bytes": sum(chain.store.bytes for chain in chains),
        "rows": [row.summary() for row in rows],
        "gain": {score: vars(rows[3].minus(rows[0], score)) for score in SCORES},
        "gain_of_ensemble": {score: vars(rows[1].minus(rows[0], score)) for score in SCORES},
        "chains": [_of_one(*known, scorer) for known in zip(chains, points, averages, strict=True)],
        "cumulative": _cumulative(averages),
        "calibration": {
            name: measure_calibration(
                p.probabilities, p.labels, resamples=scorer.resamples, level=settings.level
            ).summary()
            for name, p in ((POINT, points[0]), (ALL, everything))
        },
        **_diagnosed(quantities),
        "diverged": diverged,
    }


def _of_one(chain: Chain, point: Prediction, average: Prediction, scorer: Scorer) -> JsonObject:
    return {
        "chain": chain.number,
        "samples": len(chain.store),
        "steps": [sample.step for sample in chain.store],
        "seconds": chain.result.get("seconds"),
        "temperatures": chain.result.get("temperatures", []),
        "point": scorer.row(f"last point of chain {chain.number}", [point]).summary(),
        "average": scorer.row(f"chain {chain.number}", [average]).summary(),
        "curve": [[s.step, s.nll, s.average_nll, s.accuracy, s.average_accuracy] for s in chain.average.samples],
    }


def _device(accelerator: str) -> torch.device:
    from weightspace.compare.pool import find_devices

    devices = find_devices(accelerator)
    return torch.device("cuda" if devices.cuda else "mps" if devices.count else "cpu")


def _read(
    recipe: Recipe, run_dir: Path, data: Data, model: nn.Module, device: torch.device
) -> tuple[list[Chain], list[JsonObject]]:
    """The chains that ended well, with their predictions; number and reason of those that diverged."""
    settings = recipe.sample or SampleSettings()
    test = data.test_batches(device=device)
    renew = None
    if settings.renew_batch_norm:
        train = data.train_batches(batch_size=recipe.train.batch_size, seed=0, device=device)
        renew = batch_norm_statistics(lambda: train.epoch(0), device)
    found: list[Chain] = []
    diverged: list[JsonObject] = []
    for number in range(settings.chains):
        folder = chain_folder(run_dir, number)
        result = ChainOrder(recipe, run_dir, number).finished()
        if result is None:
            raise SamplingError(f"{folder} holds no finished chain; sample again, without --fresh")
        if result["status"] == "diverged":
            diverged.append({"chain": number, "reason": result["reason"]})
            continue
        store = SampleStore.open(folder)
        if not len(store):
            raise SamplingError(f"{folder} holds no samples: max_megabytes is less than one of them needs; raise it")
        _refuse_large(data, store)
        average = posterior_predictive(model, store, lambda: test.epoch(0), device=device, renormalize=renew)
        load_weights(model, folder / WEIGHTS_FILE)
        point = posterior_predictive(model, [model], lambda: test.epoch(0), device=device)
        found.append(Chain(number, store, result, average, point))
    if not found:
        raise SamplingError(f"every chain diverged, the first because {diverged[0]['reason']}; take a smaller lr")
    return found, diverged


def _refuse_large(data: Data, store: SampleStore) -> None:
    points = data.describe().get("test")
    size = 8 * data.num_classes * points if isinstance(points, int) else 0
    if size > _LARGEST:
        raise SamplingError(
            f"probabilities of {data.num_classes:,} classes for {points:,} test points need {size / 1e9:.0f} GB; set "
            f"data.test_size to fewer. The {len(store)} samples of each chain are kept"
        )


def _quantities(model: nn.Module, chains: Sequence[Chain], data: Data, device: torch.device) -> ChainQuantities | None:
    """Functions of the network, sample by sample, on the first test batch; None where a chain has too few samples."""
    if min(len(chain.store) for chain in chains) < LEAST_DRAWS:
        return None
    batch = next(iter(data.test_batches(device=device).epoch(0)))
    return chain_quantities(model, [chain.store for chain in chains], batch, device=device, points=3, norms=2)


def _diagnosed(quantities: ChainQuantities | None) -> JsonObject:
    if quantities is None:
        reason = f"chains of under {LEAST_DRAWS} samples cannot be diagnosed"
        return {"diagnostics": [], "diagnosis": reason, "quantities": {}, "within": []}
    values = {name: table.tolist() for name, table in quantities.values.items()}
    held: dict[str, Any] = {"quantities": values, "within": list(quantities.within)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ warns of chains that stand still, which the verdict says too
            found = chain_diagnostics(quantities)
    except SamplingError as error:
        return {"diagnostics": [], "diagnosis": str(error), **held}
    return {"diagnostics": found.summary(), "diagnosis": found.verdict, **held}


def _cumulative(averages: Sequence[Prediction]) -> list[JsonObject]:
    """Samples, negative log-likelihood and accuracy of the average over the first chains: one, two, and so on."""
    found: list[JsonObject] = []
    for count in range(1, len(averages) + 1):
        part = average_of(averages[:count])
        right = (part.probabilities.argmax(-1) == part.labels).double().mean()
        found.append({"samples": part.samples, "nll": -float(part.log_likelihood.mean()), "accuracy": float(right)})
    return found
