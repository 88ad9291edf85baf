"""The benchmarks can be imported, and the arithmetic that they compare times with is counted rightly."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from weightspace.manifolds import Sphere, Stiefel
from weightspace.operators import ConvGeometry, operator_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.network")


def geometry(inputs: int, outputs: int, taps: int, size: int, stride: int = 1) -> ConvGeometry:
    layer = nn.Conv2d(inputs, outputs, taps, stride=stride, padding=taps // 2, bias=False)
    return operator_of(layer, size).geometry


def test_all_benchmarks_are_sections_of_a_page(network: ModuleType) -> None:
    main = importlib.import_module("benchmarks.__main__")
    known = {"step", "spectra", "moments", "penalties", "scaling", "memory", "sphere", "stiefel", "slices"}
    assert known <= set(main.NAMES)
    for page in main.PAGES:
        assert (main.DOCS / page).exists()


def test_flops_of_known_layers(network: ModuleType) -> None:
    square = geometry(8, 8, 3, 16)
    assert network.application_flops(square) == 2 * 8 * 8 * 9 * 16 * 16
    # 81 pairs of taps, 45 of them up to mirroring; the gradient takes each of the 81 once more.
    assert network.moment_flops(square) == 2 * 8**3 * (45 + 81)
    assert network.spectrum_flops(square) == pytest.approx(8 / 3 * 16 * 16 * 8**3)
    assert network.spectrum_flops(geometry(8, 16, 1, 16, stride=2)) == pytest.approx(4 / 3 * 8**3)
    assert network.spectrum_flops(geometry(4, 64, 3, 16, stride=2)) == pytest.approx(8 / 3 * 64 * 16**3)


def test_a_training_step_is_three_applications_but_for_the_first_layer(network: ModuleType) -> None:
    small = network.resnet18(2, 32, 4)
    applications = [network.application_flops(operator_of(*layer).geometry) for layer in small.layers]
    assert len(applications) == 20
    assert small.step_flops() == 2 * (3 * sum(applications) - applications[0])


# --------------------------------------------------------------------------- steps on manifolds


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.manifolds_step")


@pytest.fixture
def peers(step: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.manifolds_peers")


@pytest.fixture
def sets(step: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.manifolds_kernels")


def test_the_kernel_sets_are_those_of_the_networks(sets: ModuleType) -> None:
    # torchvision's: 11,689,512 and 25,557,032 parameters, without the head and the batch norms' 9,600 and 53,120.
    for shapes, count, numel in ((sets.resnet18_shapes(), 20, 11_166_912), (sets.resnet50_shapes(), 53, 23_454_912)):
        assert len(shapes) == count
        assert sum(torch.Size(s).numel() for s in shapes) == numel


def test_our_contestants_step_and_stay_on_the_manifold(sets: ModuleType, step: ModuleType) -> None:
    shapes = [(8, 3, 3, 3), (12, 8, 3, 3), (12, 8, 1, 1)]
    for manifold, build in (
        (Sphere("filter"), step.on_spheres),
        (Stiefel(), step.on_stiefel),
        (Stiefel("slice"), step.on_slices),
    ):
        kernels = sets.kernels("small", shapes, manifold)
        before = [w.clone() for w in kernels.weights]
        for contestant in build(kernels):
            for _ in range(3):
                contestant()
            assert contestant.steps == 3
            loose = {"every": 0.05, "tolerance": 1.1 * step.TIGHT}
            bound = next((value for word, value in loose.items() if word in contestant.name), 1e-6)
            assert contestant.error() <= bound, contestant.name
            assert not torch.equal(contestant.weights()[0], kernels.weights[0]), "the step moves the weights"
        assert all(torch.equal(a, b) for a, b in zip(before, kernels.weights, strict=True)), "contestants are apart"


def test_the_error_is_seen(sets: ModuleType) -> None:
    kernels = sets.kernels("small", [(8, 3, 3, 3)], Stiefel())
    assert kernels.error([1.5 * w for w in kernels.weights]) == pytest.approx(0.5, rel=1e-5)


def test_the_formulas_count_the_products(sets: ModuleType, step: ModuleType, peers: ModuleType) -> None:
    kernels = sets.kernels("small", [(8, 256, 3, 3)], Stiefel())  # p^3 is 1/288 of np^2
    unit = 2304 * 8**2
    assert kernels.flops(step.FLOOR) == 7 * unit
    found = {c.name: c for c in step.on_stiefel(kernels)}
    for name, contestant in found.items():
        contestant()
        most, least = (8, 7) if 'step_size="' in name or "canonical" in name else (25, 4)
        assert 0.98 * least * unit <= contestant.flops() <= 1.02 * most * unit, name
    for contestant in peers.pogo(kernels):
        with FlopCounterMode(display=False) as counter:
            contestant()
        assert counter.get_total_flops() == pytest.approx(contestant.flops())


def test_a_missing_peer_is_left_out_with_a_reason(
    peers: ModuleType, sets: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    kernels = sets.kernels("small", [(4, 3, 3, 3)], Sphere("filter"))
    assert peers.geoopt_spheres(kernels) == []
    assert [c.name for c in peers.sphere_parametrizations(kernels)] == ["torch `weight_norm`, norms frozen"]
    printed = capsys.readouterr().out
    assert "geoopt is left out: No module named 'geoopt'" in printed
    assert "geotorch is left out" in printed


def test_the_quick_page_of_manifolds_runs(step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("benchmarks.__main__")
    page = main.DOCS / "benchmarks-manifolds.md"
    before = page.read_bytes() if page.exists() else None
    threads = torch.get_num_threads()
    try:
        main.main(["--quick", "--threads", "1", "--only", "sphere", "stiefel", "slices"])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for title in ("## Unit filters", "## Orthonormal filters", "## Slices"):
        assert title in printed
    assert printed.count("Target: at most") == 3
    assert "nan" not in printed
    assert (page.read_bytes() if page.exists() else None) == before, "a quick run writes no page"
