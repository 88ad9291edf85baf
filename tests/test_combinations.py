"""The factorial experiment: contrasts by hand, known interactions found, cells missing, and the recipe's thirty cells."""

from __future__ import annotations

import copy
import importlib
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scipy import stats

import weightspace as ws
from fabricated import fabricate, make_recipe
from weightspace.compare.plan import make_plan
from weightspace.files import read_json
from weightspace.training.data import load_data
from weightspace.training.models import build_model
from weightspace.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
GRID = (("none", "M"), ("none", "A", "B"), ("none", "P", "P gated"))
FACTORS = ("metric", "manifold", "penalty")
MAIN = {"M": 1.0, "A": 2.0, "B": -1.0, "P": -3.0, "P gated": 0.5}
JOINT = {("M", "A"): 4.0, ("B", "P"): -2.0}  # what two do beyond their sum
NOISE = (0.01, -0.02, 0.03, -0.01, 0.02)  # of a seed and cell; small beside every effect


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)

    def get(name: str) -> ModuleType:
        return importlib.import_module(f"experiments.combinations{name}")

    return get


def truth(cell: tuple[str, ...]) -> float:
    joint = sum(v for pair, v in JOINT.items() if set(pair) <= set(cell))
    return 80.0 + sum(MAIN.get(level, 0.0) for level in cell) + joint


def values(*, noisy: bool) -> dict[tuple[str, ...], dict[int, float]]:
    """What a seed does to all cells alike is large, what it does to one cell is small or nothing."""
    return {
        cell: {s: truth(cell) + 5.0 * s + noisy * NOISE[(s + 2 * place) % 5] for s in range(5)}
        for place, cell in enumerate(itertools.product(*GRID))
    }


def design(module: Any, found: dict[tuple[str, ...], dict[int, float]], **options: Any) -> Any:
    return module("_effects").Design(GRID, {"P": "P gated"}, found, **options)


def test_contrasts_give_back_what_was_put_in_exactly(module: Any) -> None:
    effects, made = module("_effects"), design(module, values(noisy=False))
    for row in effects.interactions(made):
        expected = JOINT.get(tuple(row["levels"]), 0.0)
        assert row["alone"]["mean"] == pytest.approx(expected, abs=1e-12), row["levels"]
        assert row["averaged"]["mean"] == pytest.approx(expected, abs=1e-12), row["levels"]
    # M helps A by 4 in one of three manifolds, so on average by 4/3 more; B and P likewise.
    expected = {"M": 1 + 4 / 3, "A": 2 + 4 / 2, "B": -1 - 2 / 3, "P": -3 - 2 / 3, "P gated": 0.5}
    found = effects.effects(made, {cell: "+".join(cell) for cell in made.all_cells})
    assert {row["level"]: row["effect"]["mean"] for row in found["effects"]} == pytest.approx(expected)
    changes = {(row["metric"], row["manifold"]): row["change"]["mean"] for row in found["gates"]}
    assert changes == pytest.approx({(m, s): 3.5 + 2.0 * (s == "B") for m in GRID[0] for s in GRID[1]})
    assert found["differences"]["M+A+none"]["mean"] == pytest.approx(7.0)
    assert "none+none+none" not in found["differences"]
    assert found["best parts"]["M+A+P"] == "M+A+none"
    assert found["best parts"]["none+B+P"] == "none+none+none"
    assert found["over best part"]["none+B+P"]["mean"] == pytest.approx(-6.0)
    assert found["over best part"]["none+B+none"] is None  # one rule alone has no parts


def test_verdicts_follow_the_adjusted_test(module: Any) -> None:
    rows = module("_effects").interactions(design(module, values(noisy=True)))
    verdicts = {tuple(row["levels"]): row["alone"]["verdict"] for row in rows}
    assert verdicts.pop(("M", "A")) == "help together"
    assert verdicts.pop(("B", "P")) == "fight"
    assert set(verdicts.values()) == {"not told apart"}
    row = next(row["alone"] for row in rows if row["levels"] == ["M", "A"])
    signs = {("M", "A", "none"): 1, ("M", "none", "none"): -1, ("none", "A", "none"): -1, ("none",) * 3: 1}
    runs = values(noisy=True)
    per_seed = [sum(sign * runs[cell][s] for cell, sign in signs.items()) for s in range(5)]
    assert row["p"] == pytest.approx(stats.ttest_1samp(per_seed, 0.0).pvalue, rel=1e-6)
    assert row["p"] < row["p_holm"] <= len(rows) * row["p"]


def test_of_a_loss_lower_is_better(module: Any) -> None:
    losses = {cell: {s: -v for s, v in runs.items()} for cell, runs in values(noisy=True).items()}
    made = design(module, losses, sign=-1)
    rows = module("_effects").interactions(made)
    row = next(row["alone"] for row in rows if row["levels"] == ["M", "A"])
    assert (row["verdict"], row["mean"] < -3.9) == ("help together", True)
    assert made.best_part(("none", "B", "P")) == ("none", "none", "none")


def test_missing_cells_and_seeds_cost_only_what_needs_them(module: Any) -> None:
    full = values(noisy=False)
    del full["M", "A", "none"]
    full["none", "B", "none"] = {s: v for s, v in full["none", "B", "none"].items() if s != 3}
    full["none", "none", "P gated"] = {}
    rows = {tuple(r["levels"]): r for r in module("_effects").interactions(design(module, full))}
    assert rows["M", "A"]["alone"] is None
    assert rows["M", "A"]["averaged"]["mean"] == pytest.approx(4.0)  # from the other levels of the third factor
    assert rows["M", "B"]["alone"]["n"] == rows["M", "B"]["averaged"]["n"] == 4
    assert rows["M", "P gated"]["alone"] is None
    assert rows["A", "P"]["alone"]["n"] == 5


def test_one_seed_has_no_interval_and_no_verdict(module: Any) -> None:
    one = {cell: {0: runs[0]} for cell, runs in values(noisy=True).items()}
    row = module("_effects").interactions(design(module, one))[0]["alone"]
    assert (row["low"], row["p"], row["verdict"]) == (None, None, "not told apart")


def results_of(cells: dict[tuple[str, ...], dict[int, float]]) -> dict[str, Any]:
    """results.json of made-up runs."""
    named: dict[str, Any] = {}
    for cell, runs in cells.items():
        rows = [
            {"seed": s, "status": "diverged" if v < 60 else "done", "accuracy": v / 100, "loss": 2 - v / 100}
            | {
                "train_loss": None,
                "zeros": 0.5,
                "zeros by layer": {"features.0.weight": 0.2, "classifier.1.weight": 0.6},
            }
            | {
                "violation": None,
                "duty": 0.25 if "gated" in cell[2] else None,
                "seconds_per_step": 0.01,
                "spread": 4.0 + s,
            }
            for s, v in runs.items()
        ]
        name = " + ".join(level for level in cell if level != "none") or "plain"
        trials = [{"lr": lr, "accuracy": 0.8, "loss": 0.4} for lr in (0.1, 0.2, 0.3)]
        named[name] = {"levels": dict(zip(FACTORS, cell, strict=True)), "lr": 0.1, "trials": trials, "runs": rows}
    factors = {factor: list(levels) for factor, levels in zip(FACTORS, GRID, strict=True)}
    return {"level": 0.95, "chance": 0.1, "factors": factors, "gates": {"P": "P gated"}, "cells": named}


def test_the_report_draws_and_counts_with_cells_missing(module: Any, tmp_path: Path) -> None:
    cells = values(noisy=True)
    del cells["M", "B", "P"]
    cells["M", "A", "P"] = dict.fromkeys(range(5), 10.0)
    module("_report").write(results_of(cells), tmp_path)
    found = read_json(tmp_path / "effects.json")
    assert found["missing"] == ["M / B / P"]
    assert found["runs"] == 17 * 5
    assert (found["cells"]["M + A + P"]["diverged"], found["cells"]["M + A + P"]["collapsed"]) == (5, 5)
    plain = found["cells"]["plain"]
    assert (plain["zeros_convolutions"], plain["zeros_linear"], plain["lr_at_edge"]) == pytest.approx((0.2, 0.6, True))
    assert plain["spread"] == 6.0  # the median
    table = (tmp_path / "table.md").read_text()
    assert sum(line.startswith(("| none |", "| M |")) for line in table.splitlines()) == 17 + 1  # and the effect of M
    assert "| M × A |" in table
    assert "| P | M | B | – | – | – → 50.0 |" in table  # the gate where its penalty is missing
    assert min((tmp_path / f"{name}.png").stat().st_size for name in ("combinations", "interactions")) > 20_000


def test_collecting_reads_a_comparison_and_its_spectra(module: Any, tmp_path: Path) -> None:
    arms = {
        "plain": {},
        "Stiefel": {"rules": [{"rule": "Stiefel"}]},
        "L1 gated": {"rules": [{"rule": "L1", "gate": {"gate": "Coherent"}}]},
    }
    values_of = make_recipe(arms, seeds=2, epochs=1, grid=(0.1, 0.2)).to_dict()
    values_of["compare"]["baseline"] = "plain"
    values_of["model"] = {"name": "vgg", "options": {"widths": [2], "convs_per_stage": 1, "hidden": 4}}
    fabricate(tmp_path, Recipe.from_dict(values_of))
    for path in tmp_path.rglob("final/*/result.json"):
        whole = read_json(path) | {"weights": {"zeros": 0.0, "layers": {}}, "duty": {}, "constraints": None}
        ws.files.write_json_atomically(path, whole)
        layers = {"features.0": [0.5, 2.0], "features.3": [1.0, 4.0]}
        ws.files.write_json_atomically(path.parent / "spectra.json", {"layers": layers})
    results = module("").collect(tmp_path)
    assert results["factors"] == {"metric": ["none"], "manifold": ["none", "Stiefel"], "penalty": ["none", "L1 gated"]}
    assert results["gates"] == {}  # the penalty without its gate is no arm here
    for cell in results["cells"].values():
        assert len(cell["trials"]) == len(cell["runs"]) == 2
        assert all(run["spread"] == pytest.approx(4.0) for run in cell["runs"])
    folder = next(tmp_path.rglob("final/*/spectra.json")).parent
    ws.files.write_json_atomically(folder / "spectra.json", {"layers": {"features.0": [1e-9, 2.0]}})
    assert module("").spread_in(folder) == {"spread": None, "singular": True}
    ws.files.write_json_atomically(folder / "spectra.json", {"layers": {"features.0": None}})
    assert module("").spread_in(folder) == {"spread": None, "singular": False}


def test_training_leaves_spectra_and_no_weights(module: Any, tmp_path: Path) -> None:
    recipe = load_recipe("fashion-mnist-combinations", ["data.name=digits", "train.epochs=1"]).with_overrides(
        {
            "model.options": {"widths": [2, 4], "convs_per_stage": 1, "hidden": 4, "dropout": 0.0},
            "rules": [{"rule": "Stiefel"}],
        }
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = load_data("digits").take(200, 100)
    result = module("").train_and_measure(recipe, tmp_path, seed=0, data=data, accelerator="cpu")
    torch.set_num_threads(threads)
    layers = read_json(tmp_path / "spectra.json")["layers"]
    assert (result["status"], list(layers)) == ("done", ["features.0", "features.3"])
    assert all(0 < low <= high < 3.001 for low, high in layers.values())  # orthonormal rows: 3, for a 3 x 3 kernel
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["fashion-mnist-combinations", "fashion-mnist-combinations-full"])
def test_the_recipe_is_the_whole_matrix_and_every_cell_attaches(module: Any, name: str) -> None:
    plan = make_plan(load_recipe(name))
    found = {}
    for arm in plan.arms:
        at = module("").levels_of(arm.recipe.to_dict()["rules"])
        assert arm.name == (" + ".join(level for level in at.values() if level != "none") or "plain")
        found[tuple(at.values())] = arm
    penalties = ("none", "L1", "L1 gated", "SingularValueBand", "SingularValueBand gated")
    assert set(found) == set(itertools.product(("none", "ChannelL2"), ("none", "Sphere", "Stiefel"), penalties))
    assert plan.settings.baseline == "plain"
    assert len({len(arm.trials) for arm in plan.arms}) == 1
    if name.endswith("-full"):
        return
    options = plan.recipe.model.options | {"widths": [2, 4, 4], "hidden": 4}
    model = build_model("vgg", in_channels=1, image_size=8, num_classes=3, **options)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for arm in found.values():
        rules = arm.recipe.make_rules()
        network = copy.deepcopy(model)
        sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        attached = ws.attach(sgd, network, *rules) if rules else None
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        sgd.step()
        if attached is not None and len(rules) == 3:
            attached.verify()
        assert all(bool(p.isfinite().all()) for p in network.parameters())
