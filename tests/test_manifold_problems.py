"""The experiments on manifolds: minima in closed form, gradients, that every way to step gets there, and their statistics."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

from weightspace.files import read_json

ROOT = Path(__file__).parents[1]
NAMES = (
    "Rayleigh quotient, Sphere",
    "weighted PCA, Sphere",
    "weighted PCA, Oblique",
    "weighted PCA, Stiefel",
    "Procrustes, Stiefel",
    "Procrustes, Orthogonal",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"experiments.{name}")


@pytest.fixture
def optima(load):
    return load("manifold_optima")


def test_every_problem_is_tested(optima):
    assert tuple(optima.problems((0,))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_derivatives_of_the_loss(optima, name):
    problem = optima.problems((0, 1), scale=3.0)[name]
    w = torch.randn(
        problem.start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    problem.loss(w).sum().backward()
    assert torch.allclose(w.grad, problem.gradient(w.detach()), atol=1e-12)
    everything = torch.randperm(optima.SAMPLES).repeat(2, 1)
    assert torch.allclose(w.grad, problem.gradient(w.detach(), everything), atol=1e-12)
    parts = torch.stack([problem.gradient(w.detach(), batch) for batch in everything.split(32, dim=1)])
    assert torch.allclose(w.grad, parts.mean(0), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "weights"), [(NAMES[0], [1.0]), (NAMES[1], [1.0]), (NAMES[2], [2.5]), (NAMES[3], [1, 0.75, 0.5, 0.25])]
)
def test_minima_of_weighted_pca_are_those_of_its_spectrum(optima, name, weights):
    expected = -0.5 * 2.0 * sum(d * value for d, value in zip(weights, optima.SPECTRUM, strict=False))
    found = optima.problems((0, 7), scale=2.0)[name].minimum()
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-12)


@pytest.mark.parametrize("name", NAMES[4:])
def test_the_minimum_of_procrustes_is_taken_by_the_polar_factor(optima, name):
    problem = optima.problems((0, 1, 2))[name]
    U, _, Vt = torch.linalg.svd(problem.inputs.mT @ problem.targets, full_matrices=False)
    assert torch.allclose(problem.loss(U @ Vt), problem.minimum(), atol=1e-12)
    assert (problem.loss(problem.start) > problem.minimum() + 0.1).all()
    if name == NAMES[5]:
        assert torch.equal(torch.linalg.det(problem.start).sign(), torch.linalg.det(U @ Vt).sign())


ARMS = (
    ("plain, retraction, no momentum", 1.0),
    ("plain, geodesic, tangent momentum 0.9", 0.3),
    ("curvature, retraction, no momentum", 1.0),
    ("curvature, retraction, tangent momentum 0.9", 1.0),
    ("SubmanifoldAdam", 0.1),
    ("attach(SGD, momentum 0.9)", 0.3),
    ("attach(Adam)", 0.03),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("arm", "lr"), ARMS)
def test_the_known_optimum_is_reached(load, optima, name, arm, lr):
    script = load("manifold_problems")
    problem = optima.problems((0, 1))[name]
    gaps = script.minimize(problem, script.ARMS[arm], lr, 500)
    assert gaps[0].tolist() == pytest.approx([1.0, 1.0])
    assert gaps[-1].abs().max() < 1e-6
    assert gaps.min() > -1e-12  # nothing is better than the optimum, and no point leaves the manifold


def test_noise_is_the_same_for_every_arm_and_seeds_are_independent_of_their_company(load):
    script = load("manifold_problems")
    assert torch.equal(script.batches((0, 1), 5)[:, 1], script.batches((1,), 5)[:, 0])
    name, make, noise = NAMES[3], script.ARMS["curvature, retraction, no momentum"], script.batches((0, 1), 20)
    both = script.minimize(script.problems((0, 1))[name], make, 0.3, 20, noise=noise, decay=script.DECAY)
    alone = script.minimize(script.problems((1,))[name], make, 0.3, 20, noise=noise[:, 1:], decay=script.DECAY)
    assert torch.allclose(both[:, 1:], alone, rtol=1e-9)


def test_statistics_of_known_curves(load):
    script = load("manifold_problems")
    steps = torch.arange(10_001, dtype=torch.float64)
    gaps = torch.stack([(1 + steps) ** -0.75, torch.ones_like(steps)], dim=1)
    assert script.slopes(gaps) == pytest.approx([-0.75, 0.0], abs=0.01)
    assert script.steps_to(torch.tensor([1.0, 1e-7, 1.0, 1e-7, 1e-8]), 1e-6) == 3
    assert script.steps_to(torch.tensor([1.0, 1e-7, 1.0]), 1e-6) is None
    curves = script.at_log_steps(gaps)
    assert curves["steps"][0] == 0
    assert len(curves["gap"]) == 2
    assert len(curves["gap"][0]) == len(curves["steps"]) > 40
    assert set(curves["gap"][1]) == {1.0}


def test_widths_are_counted_in_decades_from_the_common_best(load):
    report = load("manifold_problems_report")
    entry = {
        "rates": [0.01, 0.1, 1.0, 10.0],
        "plain": [[1, 0.5, 0.1, 1], [1, 1, 0.1, 1]],
        "curvature": [[0.1, 0.05, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1]],
    }
    assert report.widths(entry, 0.06) == {"plain": [1.0, 1.0], "curvature": [3.0, 4.0]}
    cells = report.width_cells(entry, 0.06)
    assert cells[0] == "1.00 [1.00, 1.00]"
    assert cells[2].startswith("2.50 [")
    assert cells[3:] == ["1", "0.1"]


def test_the_script_writes_results_tables_and_figures(load, tmp_path):
    script = load("manifold_problems")
    script.main(["--quick", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert set(results["convergence"]) == set(NAMES)
    assert set(results["sweep"]) == {"1", "100"}
    rows = (tmp_path / "table.md").read_text()
    assert all(f"| {arm} |" in rows for arm in script.ARMS)
    for name in ("convergence-all-samples", "convergence-minibatches", "schedules", "sweep"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_the_network_script_writes_results_table_and_figure(load, tmp_path):
    script = load("manifold_network")
    script.main(["--quick", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert {which: tuple(found) for which, found in results["runs"].items()} == script.WHICH
    for entry in results["runs"]["kernels"].values():
        assert all(
            0 <= value <= 1
            for step_size in ("plain", "curvature")
            for row in entry[step_size]["accuracy"]
            for value in row
        )
    assert (tmp_path / "network.png").stat().st_size > 10_000
    assert (tmp_path / "table.md").read_text().count("| kernels |") == 6


def test_a_network_whose_gradient_is_not_finite_counts_as_chance(load):
    script = load("manifold_network")
    data = script.load_data("digits").take(200, 100)
    run = script.train(data, script.manifolds()["Sphere"], "plain", 1e15, 0, which="all", epochs=2)
    assert run["loss"] is None or math.isfinite(run["loss"])
    assert run["accuracy"] < 0.3
