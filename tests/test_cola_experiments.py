"""Spirals and uncertainty, the experiments on constrained Langevin dynamics: their parts, and that they still run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import weightspace as ws
from fabricated import fabricate, make_recipe
from weightspace.files import read_json
from weightspace.sampling import SampleStore
from weightspace.training.data import ImageData
from weightspace.training.models import build_model
from weightspace.training.optimizers import make_optimizer
from weightspace.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def module(name: str) -> ModuleType:
    return importlib.import_module(f"experiments.{name}")


# ---------------------------------------------------------------- bootstrap


def test_the_bootstrap_has_the_width_of_theory() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = module("paired_bootstrap").bootstrap(values.tolist())
    half = 1.96 * float(values.std()) / 20
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


def test_pairs_take_the_spread_of_seeds_away() -> None:
    bootstrap = module("paired_bootstrap")
    found = bootstrap.paired([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert bootstrap.paired([0.4], [0.5]).high < 0
    with pytest.raises(ValueError, match="argument 2"):
        bootstrap.paired([0.5], [0.4, 0.6])


# ---------------------------------------------------------------- spirals


def test_spirals_are_two_arms_opposite_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    spirals = module("spirals")
    monkeypatch.setattr(spirals, "NOISE", 0.0)
    points, labels = spirals.spirals(500, torch.Generator().manual_seed(0))
    assert labels.sum() == 250
    radius = points.norm(dim=1)
    turned = torch.atan2(points[:, 1], points[:, 0]) - 2 * torch.pi * spirals.TURNS * radius - torch.pi * labels
    assert torch.allclose(turned.cos(), torch.ones(500), atol=1e-3)
    assert float((radius < 0.5).float().mean()) == pytest.approx(0.25, abs=0.06)  # uniform in area


def test_stacked_nets_are_nets() -> None:
    nets = module("spirals").Nets((3, 4), hidden=6)
    x = torch.randn(2, 5, 2)
    for k in range(2):
        one, two = torch.nn.Linear(2, 6), torch.nn.Linear(6, 1)
        one.weight.data, one.bias.data = nets.weight_1[k].data, nets.bias_1[k, 0].data
        two.weight.data, two.bias.data = nets.weight_2[k].data, nets.bias_2[k, 0].data
        assert torch.allclose(two(one(x[k]).relu())[:, 0], nets(x)[k], atol=1e-6)


@pytest.mark.parametrize("radii", [{}, {"radius_1": 1.0, "radius_2": 0.5}])
def test_a_seed_trains_alike_alone_and_beside_others(radii: dict[str, float]) -> None:
    spirals = module("spirals")
    settings = spirals.Settings(lr=0.1, **radii)
    both, grids = spirals.train(settings, (7, 8), steps=40, hidden=8)
    alone, grid = spirals.train(settings, (8,), steps=40, hidden=8)
    assert both["test_nll"][1] == pytest.approx(alone["test_nll"][0], rel=1e-4)
    assert both["averaged_nll"][1] == pytest.approx(alone["averaged_nll"][0], rel=1e-4)
    assert torch.allclose(grids[1], grid[0], atol=1e-3)
    assert both["test_nll"][0] != pytest.approx(both["test_nll"][1], rel=1e-4)


def test_circles_bound_the_weights_and_noise_needs_the_number_of_points() -> None:
    spirals = module("spirals")
    nets = spirals.Nets((0, 1), hidden=8)
    settings = spirals.Settings(lr=0.5, temperature=100.0, radius_1=0.8, radius_2=0.4)
    optimizer = spirals.make_optimizer(nets, settings, seed=0)
    assert all(group["num_data"] == spirals.POINTS for group in optimizer.param_groups)
    for _ in range(20):
        optimizer.zero_grad()
        nets(torch.randn(2, 4, 2)).sum().backward()
        optimizer.step()
    assert 0.7 < float(nets.weight_1.detach().abs().max()) <= 0.8
    assert float(nets.weight_2.detach().abs().max()) <= 0.4


def test_every_arm_tries_the_same_draws() -> None:
    spirals = module("spirals")
    found = {arm: spirals.trials(arm, 4) for arm in spirals.ARMS}
    assert len({tuple(t.lr for t in tried) for tried in found.values()}) == 1
    assert [t.temperature for t in found["SGLD"]] == [t.temperature for t in found["constrained SGLD"]]
    assert all(t.radius_1 is None for t in found["SGD"])
    assert set(module("spirals_report").PUBLISHED) == set(spirals.ARMS)


def test_spirals_writes_tables_and_pictures_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spirals = module("spirals")
    spirals.main(["--quick", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert {len(found["test_accuracy"]) for found in results["final"].values()} == {3}
    table = (tmp_path / "table.md").read_text()
    assert table.count("| constrained SGLD |") == 2
    assert "| constrained SGD − SGD |" in table
    assert (tmp_path / "boundaries.png").stat().st_size > 50_000
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    spirals.main(["--quick", "--out", str(tmp_path)])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()} == times  # nothing is done twice
    assert "final SGD" in capsys.readouterr().out


# ---------------------------------------------------------------- uncertainty


def images(train: int = 240, test: int = 60) -> ImageData:
    """Bright squares whose place is the class."""
    count = train + test
    labels = torch.arange(count) % 10
    noise = torch.randint(0, 90, (count, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, label in enumerate(labels.tolist()):
        noise[number, 0, 2 * label : 2 * label + 5, 4:12] += 100
    return ImageData(
        name="squares",
        train_images=noise[:train],
        train_labels=labels[:train],
        test_images=noise[train:],
        test_labels=labels[train:],
        class_names=tuple("0123456789"),
        mean=(0.2,),
        std=(0.2,),
        source="made here",
    )


def test_a_stack_is_its_plain_nets() -> None:
    data = module("uncertainty_data")
    stack = data.Stack((5, 6), hidden=7)
    x = torch.randn(2, 3, 784)
    for k in range(2):
        net = data.plain(7)
        net.load_state_dict(data.member(stack, k))
        assert torch.allclose(net(x[k].view(3, 1, 28, 28)), stack(x)[k], atol=1e-5)
    assert torch.equal(
        data.Stack((6,), hidden=7).parameters_by_name["fc.weight"][0], stack.parameters_by_name["fc.weight"][1]
    )


def test_batches_are_epochs_in_an_order_of_each_seed() -> None:
    data = module("uncertainty_data")
    made = data.Images(torch.arange(10.0)[:, None], torch.arange(10))
    labels = torch.stack([y for _, y in made.batches((0, 1), 5, 4)], 1)  # (chains, steps, 5)
    for epoch in labels.unflatten(1, (2, 2)).flatten(2).unbind(1):
        assert torch.equal(epoch.sort(1).values, torch.arange(10).expand(2, 10))
    assert not torch.equal(labels[0], labels[1])
    again = torch.stack([y for _, y in made.batches((1,), 5, 4)], 1)
    assert torch.equal(again[0], labels[1])


def test_changed_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module("uncertainty_data")
    clean = images(10, 5).test_images.float() / 255
    monkeypatch.setattr(data, "ROTATION", 90.0)
    assert torch.allclose(data.rotated(clean), torch.rot90(clean, 1, (2, 3)), atol=1e-4)
    noisy = data.noisy(clean)
    assert torch.equal(noisy, data.noisy(clean))
    assert 0.0 <= float(noisy.min()) <= float(noisy.max()) <= 1.0
    assert data.digits().shape == (1797, 1, 28, 28)


def test_auroc_counts_ties_half() -> None:
    auroc = module("uncertainty_data").auroc
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert auroc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5


def test_chains_sample_the_ends_of_their_cycles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uncertainty = module("uncertainty")
    monkeypatch.setattr(uncertainty, "BATCH", 8)
    judge = module("uncertainty_data").Judge(images(), 6, is_tuning=True)
    budget = uncertainty.Budget(epochs=5, members=2, hidden=6)  # 150 steps
    settings = uncertainty.Settings(lr=0.05, temperature=1.0, radius_1=0.1, radius_2=0.5)
    stores = uncertainty.train_chains("circle chain", settings, (0, 1), budget=budget, data=judge.data, folder=tmp_path)
    assert [[sample.step for sample in store] for store in stores] == [[66, 69, 72, 75, 141, 144, 147, 150]] * 2
    first, second = (next(iter(store)).load()["hidden.0.weight"] for store in stores)
    assert float(first.abs().max()) <= 0.1
    assert not torch.equal(first, second)


def test_single_runs_are_the_first_members_of_the_reference() -> None:
    uncertainty = module("uncertainty")
    judge = module("uncertainty_data").Judge(images(), 6, is_tuning=True)
    budget = uncertainty.Budget(epochs=2, members=2, hidden=6)
    settings = uncertainty.Settings(lr=0.05)
    where = {"budget": budget, "judge": judge, "folder": Path()}
    single = uncertainty.run("single SGD", settings, (0, 1), **where)["single SGD"]
    reference = uncertainty.run(uncertainty.REFERENCE, settings, (0, 1), **where)[uncertainty.REFERENCE]
    assert [run["path"][0] for run in single] == [pytest.approx(run["path"][0], rel=1e-4) for run in reference]
    assert [len(run["path"]) for run in reference] == [2, 2]


def test_members_of_the_stiefel_ensemble_are_chains_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uncertainty = module("uncertainty")
    monkeypatch.setattr(uncertainty, "BATCH", 8)
    judge = module("uncertainty_data").Judge(images(), 6, is_tuning=True)
    budget = uncertainty.Budget(epochs=4, members=2, hidden=6)
    arm = uncertainty.STIEFEL_ENSEMBLE
    found = uncertainty.run(arm, uncertainty.Settings(lr=0.05), (0, 1), budget=budget, judge=judge, folder=tmp_path)
    assert [[epochs for epochs, _ in run["path"]] for run in found[arm]] == [[2, 4], [2, 4]]
    stores = [SampleStore.open(folder) for folder in sorted(tmp_path.iterdir())]
    assert len(stores) == 4
    weights = [list(store)[-1].load()["hidden.0.weight"] for store in stores]
    assert all(torch.allclose(w @ w.T, torch.eye(6), atol=1e-4) for w in weights)
    assert not torch.allclose(weights[0], weights[1], atol=0.01)


def test_uncertainty_writes_tables_and_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uncertainty = module("uncertainty")
    data = images(300)
    arms = {arm: uncertainty.ARMS[arm] for arm in ("single SGD", "deep ensemble", "Stiefel chain")}

    def load(name: str, **options: Any) -> ImageData:
        assert (name, options) == ("squares", {"root": None})
        return data

    monkeypatch.setattr(ws.training.data, "load_data", load)
    monkeypatch.setattr(ImageData, "take", lambda self, *_: self)
    monkeypatch.setattr(uncertainty, "BATCH", 12)
    monkeypatch.setattr(uncertainty, "ARMS", arms)
    uncertainty.main(["--quick", "--data", "squares", "--out", str(tmp_path)])
    rows = read_json(tmp_path / "results.json")["rows"]
    assert list(rows) == [
        "single SGD",
        "deep ensemble",
        "Stiefel chain",
        "Stiefel chain, 20 samples",
        uncertainty.REFERENCE,
    ]
    assert {len(runs) for runs in rows.values()} == {2}
    assert [point[0] for point in rows["deep ensemble"][0]["path"]] == [1, 2, 3, 4, 5]
    assert rows["Stiefel chain"][0]["path"][-1][0] == rows["Stiefel chain, 20 samples"][0]["path"][-1][0] == 5
    assert all(0 <= run["auroc"] <= 1 for runs in rows.values() for run in runs)
    table = (tmp_path / "table.md").read_text()
    assert all(table.count(f"| {name} |") >= 2 for name in rows)
    assert (tmp_path / "compute.png").stat().st_size > 10_000
    assert (tmp_path / "reliability.png").stat().st_size > 10_000


# ---------------------------------------------------------------- losses of comparisons, recipes


def test_losses_are_paired_and_missing_runs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms: dict[str, Any] = {"SGD": {}, "other": {"rules": [{"rule": "GradientCentralization"}]}}
    fabricate(tmp_path, make_recipe(arms, epochs=2, grid=None), without=(("other", 1),))
    module("comparison_losses").main([str(tmp_path)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["arm", "training loss", "test loss", "n", "test loss minus SGD"]
    sgd, other = rows[2:]
    assert sgd[0] == "SGD"
    assert sgd[4] == "–"
    assert int(other[3]) == int(sgd[3]) - 1
    assert other[4][0] in "+-"


@pytest.mark.parametrize("name", ["fashion-mnist-cola", "fashion-mnist-cola-full"])
def test_the_recipes_have_the_published_step(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data.train_size == 10_000
    assert recipe.train.batch_size == 128
    assert recipe.train.optimizer.lr == pytest.approx(0.3**2)
    assert recipe.compare is not None
    published = recipe.compare.arms["circles as published"]
    assert not published.tune
    assert published.rules is not None
    assert [rule["radius"] for rule in published.rules] == [0.05, 0.1]
    assert published.set["train.optimizer.options"] == {"scheme": "OBA", "friction": 1.0, "temperature": 0.0}


def test_published_circles_are_put_on_the_recipes_model() -> None:
    recipe = load_recipe("fashion-mnist-cola")
    assert recipe.compare is not None
    published = recipe.compare.arms["circles as published"]
    recipe = recipe.with_overrides({"rules": published.rules, **published.set, "model.options.hidden": 1000})
    sizes = {"in_channels": 1, "image_size": 28, "num_classes": 10}
    model = build_model(recipe.model.name, **sizes, **recipe.model.options)
    sampler = make_optimizer(recipe, model, num_data=10_000)
    radii = {str(group["manifold"]) for group in sampler.param_groups}
    assert radii == {"circle(entry, radius=0.05)", "circle(entry, radius=0.1)", "euclidean(kernel)"}
