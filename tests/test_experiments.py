"""The committed experiments still run, on sizes of seconds, and write what their pages are made of."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import weightspace as ws
from fabricated import fabricate, make_recipe
from weightspace.compare.tolerance import Cell, Tolerance
from weightspace.files import read_json, write_json_atomically
from weightspace.training.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kernel_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    yield importlib.import_module("experiments.kernel_only")
    torch.set_num_threads(threads)


def test_kernel_only_writes_results_table_and_figure(kernel_only: ModuleType, tmp_path: Path) -> None:
    kernel_only.main(["--quick", "--seeds", "2", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert [(layer["inputs"], layer["outputs"]) for layer in results["layers"]] == list(kernel_only.LAYERS[:2])
    for layer in results["layers"]:
        assert set(layer["arms"]) == set(kernel_only.ARMS)  # both are small enough for the dense penalties
        for arm in layer["arms"].values():
            assert len(arm["runs"]) == 2
            assert all(run["penalty_after"] < run["penalty_before"] for run in arm["runs"])
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} |" in table for name in kernel_only.ARMS)
    assert (tmp_path / "spectra.png").stat().st_size > 10_000


def test_every_term_of_the_library_has_an_arm(kernel_only: ModuleType) -> None:
    terms = {name for name, value in vars(ws.penalties).items() if isinstance(value, type) and "evaluate" in dir(value)}
    abstract = {"OperatorPenalty", "SpectralPenalty"}
    assert terms - abstract == {type(arm()).__name__ for arm in kernel_only.ARMS.values()}


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 3), (5, 2), (2, 5)])
def test_the_isometry_of_the_torus_is_one(kernel_only: ModuleType, inputs: int, outputs: int) -> None:
    layer = kernel_only.torus_isometry(inputs, outputs, seed=0)
    values = ws.singular_values(layer, 8, padding_mode="circular")
    assert torch.allclose(values, torch.ones_like(values), atol=1e-12)


def test_a_central_orthogonal_kernel_is_an_isometry_under_zero_padding(kernel_only: ModuleType) -> None:
    layer = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    found = kernel_only.spectrum(layer)
    assert found["center"] == 1.0
    assert found["zero"] == {"max": 1.0, "min": 1.0, "count": 256, "singular": 0}


def test_penalty_spectra_prints_a_row_for_every_arm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    script = importlib.import_module("experiments.penalty_spectra")
    band = {"rule": "SingularValueBand", "low": 1.0, "high": 1.0, "weight": 0.3}
    values = make_recipe({"SGD": {}, "band": {"rules": [band]}}, epochs=4, grid=None).to_dict()
    values["model"] = {"name": "vgg", "options": {"widths": [4, 4], "convs_per_stage": 1, "hidden": 8}}
    fabricate(tmp_path, Recipe.from_dict(values))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
    script.main([str(tmp_path)])
    torch.set_num_threads(threads)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["arm", ":---", "before training", "SGD", "band"]
    assert rows[0][2:] == ["features.0", "features.3", "classifier.1", "classifier.4"]
    assert {len(row) for row in rows} == {6}

    def spread(row: list[str]) -> float:
        low, high = map(float, row[3].split(" to "))
        return max(high - 1, 1 - low)

    assert spread(rows[4]) < 0.5 * spread(rows[2]) < spread(rows[3])


@pytest.fixture
def gated_compression(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT)
    threads = torch.get_num_threads()
    yield importlib.import_module("experiments.gated_compression")
    torch.set_num_threads(threads)


def test_gated_compression_keeps_zeros_and_measures_real_files(gated_compression: ModuleType) -> None:
    trial = gated_compression.ARMS["L1 coherent history"][0]
    job = gated_compression.Job(
        "alexnet", "digits", None, "arm", trial, 0, True, epochs=1, fine_tune=1, images=300, ratios=(0.0, 0.95)
    )
    found = gated_compression.run(job)
    assert found == gated_compression.run(job)  # of its seed alone
    assert 0.0 <= found["duty"] <= 1.0
    dense, sparse = found["ratios"]["0.0"], found["ratios"]["0.95"]
    assert dense["nonzeros"] / dense["numbers"] > 0.99
    weights, biases = 0.05, 0.01  # of all numbers, at most
    assert sparse["nonzeros"] / sparse["numbers"] < weights + biases
    assert 6 < sparse["plain"] / sparse["sparse"] < sparse["plain"] / sparse["eight_bits"]


def test_gated_compression_tunes_and_reports(
    gated_compression: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arms = {arm: gated_compression.ARMS[arm][:1] for arm in ("dense", "magnitude", "L1 delayed")}
    monkeypatch.setattr(gated_compression, "ARMS", arms)
    gated_compression.main(["alexnet", "digits", "--quick", "--workers", "1", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [(arm, seed) for seed in (0, 1) for arm in arms]
    table = (tmp_path / "table.md").read_text()
    assert table.count("| L1 delayed | 9") == 4  # at 90, 95, 98 and 99 %
    assert table.count("| dense | 0 %") == 1
    assert (tmp_path / "compression.png").stat().st_size > 10_000


def test_the_better_trial_is_chosen_and_the_first_of_equals(gated_compression: ModuleType) -> None:
    jobs = list(gated_compression.tuning_jobs({"net": "vgg", "data": "digits", "root": None}))
    records = {job.name: {"ratios": {str(job.ratios[0]): {"accuracy": 0.5}}} for job in jobs}
    better = next(job for job in jobs if job.arm == "L1 random" and job.trial == gated_compression.ARMS["L1 random"][2])
    records[better.name] = {"ratios": {str(better.ratios[0]): {"accuracy": 0.6}}}
    chosen = gated_compression.choose(records, jobs)
    assert chosen["L1 random"] == better.trial
    assert chosen["magnitude"] == gated_compression.ARMS["magnitude"][0]
    assert len({job.name for job in jobs}) == len(jobs)


def test_gates_are_compared_seed_by_seed_where_always_on_has_collapsed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    script = importlib.import_module("experiments.gates_report")
    accuracies = {
        ("no penalty", 0.0): (0.8, 0.9, 0.85),
        ("always", 0.1): (0.8, 0.8, 0.8),
        ("always", 0.2): (0.1, 0.1, 0.2),
        ("coherent-total", 0.1): (0.7, 0.7, 0.7),
        ("coherent-total", 0.2): (0.60, 0.62, 0.64),
        ("random as total", 0.1): (0.6, 0.7, 0.8),
        ("random as total", 0.2): (0.10, 0.13, 0.13),
    }
    cells = tuple(
        Cell(gate, strength, values, None, None, None, {}, 0.0, (), 0)
        for (gate, strength), values in accuracies.items()
    )
    gates = ("always", "coherent-total", "random as total")
    sweep = Tolerance("mine", "L1", "vgg", 4, "digits", 0.1, 0.95, gates, cells, (), {})
    write_json_atomically(tmp_path / "tolerance.json", sweep.to_json())
    script.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| no penalty | – | 85.0 | |"
    assert lines[3] == "| always | between 0.1 and 0.2 | 80.0 | 13.3 x |"
    row = lines[-1]
    # differences 50, 49, 51: mean 50, s = 1, t(0.975, 2) = 4.303, half the interval 4.303 / sqrt(3) = 2.5
    assert row == (
        "| mine, L1 | 0.2 | coherent-total − random as total | +50.0 (+47.5 to +52.5) | <0.001 | "
        "+0.0 (-24.8 to +24.8) |"
    )
    script.main([str(tmp_path), "--from-seed", "1"])
    assert "| +50.0 (+37.3 to +62.7) |" in capsys.readouterr().out  # 49 and 51: t(0.975, 1) = 12.71, s / sqrt(2) = 1
    script.main([str(tmp_path), "--out", str(tmp_path / "table.md")])
    assert row in (tmp_path / "table.md").read_text()
