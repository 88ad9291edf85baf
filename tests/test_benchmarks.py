"""The benchmarks can be imported, and the arithmetic that they compare times with is counted rightly."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

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
    assert {"step", "spectra", "moments", "penalties", "scaling", "memory"} <= set(main.NAMES)
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
