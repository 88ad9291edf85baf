"""Full precision inside, the script's own setting outside, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import weightspace as ws
from weightspace.metrics import transform_gradient
from weightspace.metrics.base import Metric
from weightspace.precision import full_precision

NAMES = ("highest", "high", "medium")


def settings() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", NAMES)
def test_the_setting_comes_back_and_is_full_inside(name: str):
    torch.set_float32_matmul_precision(name)
    before = settings()
    with full_precision():
        assert set(settings()) <= {"ieee", "none"}
    assert settings() == before
    assert torch.get_float32_matmul_precision() == name
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize("name", NAMES)
def test_rules_run_in_full_precision(name: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[str, str]] = []
    apply = Metric.apply

    def spy(self: Metric, *arguments: object) -> None:
        seen.append(settings())
        apply(self, *arguments)

    monkeypatch.setattr(Metric, "apply", spy)
    torch.set_float32_matmul_precision(name)
    before = settings()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ws.metrics.ChannelSobolev(on=ws.on.convs))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    rules.verify()
    transform_gradient(ws.metrics.ChannelSobolev(), torch.randn(4, 3))
    assert len(seen) >= 3
    assert all(set(s) <= {"ieee", "none"} for s in seen)
    assert settings() == before
