"""The experiment on signals by depth: its quantities by hand, and a run of seconds from a comparison's folder."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from weightspace.files import read_json, write_json_atomically
from weightspace.training.models import Plain
from weightspace.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def deep_plain(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    yield importlib.import_module("experiments.deep_plain")
    torch.set_num_threads(threads)


def shifting_net(gain):
    """Three layers of one channel that multiply by `gain`, and a head that reads the mean."""
    model = Plain(in_channels=1, image_size=4, num_classes=2, depth=3, width=1, strided=0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer in model.features[::2]:
            layer.weight[0, 0, 1, 1] = gain
        model.fc.weight.copy_(torch.tensor([[1.0], [0.0]]))
    return model


def test_quantities_of_a_net_that_multiplies_by_a_half(deep_plain):
    images = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None, None, None].expand(2, 1, 4, 4)
    found = deep_plain.by_depth(shifting_net(0.5), images, torch.tensor([1, 1]))
    assert found["activation"] == pytest.approx([math.sqrt(5) / 2**k for k in (1, 2, 3)], rel=1e-3)
    assert found["spread"] == pytest.approx([1 / 2**k for k in (1, 2, 3)], rel=1e-3)
    # d loss / d (mean of the last map) is the softmax of class 0; each of 16 places carries a 16th of it.
    slopes = torch.sigmoid(torch.tensor([1.0, 3.0]) / 8)
    last = float(slopes.square().mean().sqrt()) / 16
    assert found["gradient"] == pytest.approx([last / 4, last / 2, last], rel=1e-3)
    values = deep_plain.spectra(shifting_net(0.5), 4)
    assert values == {key: [0.5, 0.5, 0.5] for key in ("smallest", "largest", "rms")}


def test_weights_that_are_not_finite_are_none(deep_plain):
    found = deep_plain.measure(shifting_net(math.inf), torch.ones(2, 1, 4, 4), torch.tensor([0, 1]))
    assert found["gradient"] == [None] * 3
    assert found["singular values"]["rms"] == [None] * 3


def comparison_folder(folder, *, model="plain", arms=None, strided=2):
    options = {"plain": {"depth": 3, "width": 4, "strided": strided}, "mlp": {"hidden": 4}}[model]
    band = {"rule": "SingularValueBand", "low": 1.5, "high": 1.5, "weight": 1.0}
    recipe = Recipe.from_dict(
        {
            "name": "tiny",
            "data": {"name": "digits", "train_size": 200, "test_size": 50},
            "model": {"name": model, "options": options},
            "train": {"epochs": 3, "batch_size": 50, "optimizer": {"name": "SGD", "lr": 0.2}, "measure_every": None},
            "compare": {
                "baseline": "SGD",
                "seeds": 2,
                "arms": arms
                or {"SGD": {}, "not finite": {"set": {"train.optimizer.lr": 1e30}}, "band": {"rules": [band]}},
            },
        }
    )
    write_json_atomically(folder / "compare.json", {"recipe": recipe.to_dict()})
    return folder


def test_trains_measures_and_draws_every_arm(deep_plain, tmp_path):
    run_dir, out = comparison_folder(tmp_path / "run"), tmp_path / "out"
    deep_plain.main([str(run_dir), "--out", str(out), "--seeds", "2"])
    results = read_json(out / "depth.json")
    assert list(results["arms"]) == ["SGD", "not finite", "band"]
    before = {name: arm["runs"][0]["before"] for name, arm in results["arms"].items()}
    assert before["SGD"] == before["band"]  # the same initial weights
    for run in results["arms"]["band"]["runs"]:
        assert [len(run[state]["gradient"]) for state in ("before", "after")] == [3, 3]
        assert all(a > b for a, b in zip(*(run[s]["singular values"]["rms"] for s in ("after", "before")), strict=True))
        assert run["repeats"] is False  # the folder has no final runs to repeat
    rows = (out / "depth.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| SGD", "| not finite", "| band"]
    assert all((out / f"{name}.png").stat().st_size > 5_000 for name in ("gradients", "spread"))
    text = (out / "depth.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_arms_that_are_there_are_kept(deep_plain, tmp_path):
    run_dir, out = comparison_folder(tmp_path / "run"), tmp_path / "out"
    deep_plain.main([str(run_dir), "--out", str(out), "--seeds", "1", "--arms", "SGD"])
    first = read_json(out / "depth.json")
    first["arms"]["SGD"]["runs"][0]["test_accuracy"] = 0.125
    (out / "depth.json").write_text(json.dumps(first))
    deep_plain.main([str(run_dir), "--out", str(out), "--seeds", "1", "--arms", "SGD", "band"])
    second = read_json(out / "depth.json")
    assert list(second["arms"]) == ["SGD", "band"]
    assert second["arms"]["SGD"]["runs"][0]["test_accuracy"] == 0.125


def test_other_models_are_refused(deep_plain, tmp_path):
    with pytest.raises(SystemExit, match="measures the model 'plain'"):
        deep_plain.main([str(comparison_folder(tmp_path, model="mlp")), "--out", str(tmp_path / "out")])


def test_constrained_kernels_are_measured_on_their_manifold(deep_plain, tmp_path):
    arms = {
        "SGD": {},
        "attached": {"rules": [{"rule": "Sphere", "radius": 1.5}]},
        "own": {"set": {"train.optimizer.name": "SubmanifoldSGD"}, "rules": [{"rule": "Sphere", "radius": 1.5}]},
    }
    run_dir, out = comparison_folder(tmp_path / "run", arms=arms, strided=0), tmp_path / "out"
    deep_plain.main([str(run_dir), "--out", str(out), "--seeds", "1", "--arms", "attached", "own"])
    results = read_json(out / "depth.json")
    for name in ("attached", "own"):
        (run,) = results["arms"][name]["runs"]
        for state in ("before", "after"):
            # Four filters of norm 1.5 as a 4 -> 4 layer: the squares of 4 values a frequency add up to 4 * 1.5^2.
            assert run[state]["singular values"]["rms"][2] == pytest.approx(1.5, rel=1e-3)


def test_the_recipe_on_manifolds_repeats_the_arms_it_shares():
    there = load_recipe("deep-plain").to_dict()
    here = load_recipe(str(ROOT / "experiments" / "deep_plain_manifolds.yaml")).to_dict()
    assert {key: here[key] for key in ("data", "model", "train")} == {
        key: there[key] for key in ("data", "model", "train")
    }
    shared = there["compare"]["arms"].keys() & here["compare"]["arms"].keys()
    assert shared == {"SGD", "SoftOrthogonality SO", "SingularValueBand sqrt 2 to 2", "He"}
    assert all(here["compare"]["arms"][name] == there["compare"]["arms"][name] for name in shared)
    assert here["compare"]["tune"] == there["compare"]["tune"]
