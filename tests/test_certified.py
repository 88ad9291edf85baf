"""`experiments.certified`: the attack finds what is known, exports keep the scores, a small run writes everything."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from weightspace.files import read_json

pytest.importorskip("matplotlib")


@pytest.fixture
def certified(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = importlib.import_module("experiments.certified")
    monkeypatch.setattr(script, "TRIALS", 1)
    monkeypatch.setattr(importlib.import_module("experiments.certified_attack"), "STRETCH_STEPS", 3)
    return script


def fabricated(script: ModuleType) -> object:
    generator = torch.Generator().manual_seed(0)
    part = torch.rand(256, 1, 28, 28, generator=generator), torch.randint(10, (256,), generator=generator)
    return script.Data(part, part, (part[0][:24], part[1][:24]), 0.5, 0.3)


def test_the_attack_meets_the_boundary_of_a_linear_classifier_and_never_crosses_a_certificate():
    attack = importlib.import_module("experiments.certified_attack")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    images = 0.4 + 0.2 * torch.rand(12, 1, 4, 4)
    with torch.no_grad():
        model[1].bias -= model(images).mean(0)  # a boundary between the images
        scores = model(images)
    labels = scores.argmax(1)
    weight = model[1].weight.detach()
    distance = (scores[:, 0] - scores[:, 1]).abs() / (weight[0] - weight[1]).norm()
    radii = (0.05, 0.1, 0.2, 0.4, 0.8)
    found, change = attack.smallest_change(model, images, labels, radii, steps=30)
    near = distance < 0.2  # a change of 0.4 stays within [0, 1]
    assert near.sum() > 6
    assert ((found >= distance - 1e-5) | found.isinf()).all()
    assert (found[near] <= 2.05 * distance[near].clamp(min=0.05)).all()  # the next ball holds it
    assert (model(images + change).argmax(1)[near] != labels[near]).all()
    wrong, _ = attack.smallest_change(model, images, 1 - labels, radii)
    assert (wrong == 0).all()


def test_the_stretch_is_below_the_norm_and_near_it():
    attack = importlib.import_module("experiments.certified_attack")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    norm = float(torch.linalg.matrix_norm(model[1].weight.detach(), 2))
    found, x, y = attack.largest_stretch(model, torch.rand(8, 1, 4, 4))
    assert 0.95 * norm < found <= norm * (1 + 1e-5)
    assert x.shape == y.shape == (1, 4, 4)


def test_arms_end_in_a_plain_network_of_torch(certified: ModuleType):
    data, size = fabricated(certified), certified.Size(channels=4, hidden=8)
    for arm in ("AdamW", "spectral_norm", "weightspace, ReLU", "weightspace, cap", "weightspace, no 3x3"):
        model, _ = certified.train(arm, certified.trials(arm)[0], data, size, seed=0, steps=2)
        layers = certified.weighted(model).values()
        assert {type(layer) for layer in layers} == {nn.Conv2d, nn.Linear}
        assert len(layers) == (3 if arm.endswith("no 3x3") else 5)
        bound = certified.radii_of(model, *data.test)[0]
        assert math.isfinite(bound.value)
        if arm.startswith("weightspace"):
            assert bound.value * data.std < 1.5


def test_an_export_that_computes_something_else_is_noticed(certified: ModuleType):
    data, size = fabricated(certified), certified.Size(channels=4, hidden=8)
    model = certified.build("Adam", data, size)
    model.act1 = nn.Tanh()
    with pytest.raises(RuntimeError, match="other scores"):
        certified.exported("Adam", model, data, size)


def test_a_small_run_writes_everything_and_goes_on_where_it_stopped(
    certified: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = fabricated(certified)
    monkeypatch.setattr(certified, "load", lambda _device: data)
    arguments = ["--out", str(tmp_path), "--arms", "spectral_norm", "weightspace", "weightspace, no 3x3"]
    arguments += ["--seeds", "2", "--steps", "2", "--channels", "4", "--hidden", "8"]
    certified.main(arguments)
    results = read_json(tmp_path / "results.json")
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("spectral_norm", "weightspace", "weightspace, no 3x3")
    ]
    assert all(run["violations"] == 0 for run in results["runs"])
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    table = (tmp_path / "table.md").read_text()
    assert "| weightspace minus |" in table
    assert "spectral_norm, if each norm were 1" in table
    monkeypatch.setattr(certified, "train", lambda *_a, **_k: pytest.fail("it was finished"))
    certified.main(arguments)
