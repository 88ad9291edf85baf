"""Full precision inside, the script's own setting outside; every case in other precisions, layouts, batches, clipped."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from reliability import precision
from reliability.cases import batch, case, cases, make_model
from torch import nn
from torch.nn.utils import clip_grad_norm_

import weightspace as ws
from weightspace.errors import NonFiniteGradientError
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


# ---------------------------------------------------------------- autocast around the step


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast_is_off_inside_and_comes_back(device: str):
    """On a machine without that device nothing is cast, and nothing is said."""
    dtype = torch.bfloat16
    with torch.autocast("cpu", dtype):
        with full_precision():
            assert not torch.is_autocast_enabled(device)
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == dtype
        with pytest.raises(ZeroDivisionError), full_precision():
            raise ZeroDivisionError
        assert (torch.eye(2) @ torch.eye(2)).dtype == dtype


def test_what_is_asked_within_autocast_is_answered_in_full_precision():
    layer = nn.Conv2d(2, 4, 3)
    expected = ws.singular_values(layer, input_size=(6, 6)), ws.norm_bound(layer, input_size=(6, 6))
    model, optimizer, rules = _attached()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ws.singular_values(layer, input_size=(6, 6)), expected[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ws.norm_bound(layer, input_size=(6, 6)), expected[1], rtol=1e-6, atol=1e-6)
        assert all(check.holds for check in rules.verify())
        other = _attached()  # moved onto its manifold within the block
    assert all(check.holds for check in other[2].verify())
    del model, optimizer


def _attached() -> tuple[nn.Module, torch.optim.Optimizer, ws.optim.Rules]:
    model = make_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, ws.attach(optimizer, model, ws.manifolds.Stiefel(), ws.metrics.ChannelL2())


# ---------------------------------------------------------------- every case, every way

FAST = (
    "GramSpectralNorm layer",
    "ChannelSobolev H1, keep_norm",
    "L1 proximal, history",
    "metric, band, L1, Stiefel",
    "Stiefel polar AdamW",
    "SubmanifoldSGD stiefel(matrix)",
    "SubmanifoldAdam",
    "ConstrainedLangevin circle(entry)",
)


@pytest.mark.parametrize("check", precision.CHECKS)
@pytest.mark.parametrize("name", FAST)
def test_a_case_in_every_way(name: str, check: str):
    found = precision.run(case(name), check)
    assert found is None or found.holds, found


@pytest.mark.slow
@pytest.mark.parametrize("check", precision.CHECKS)
@pytest.mark.parametrize("name", [c.name for c in cases() if c.name not in FAST])
def test_every_case_in_every_way(name: str, check: str):
    found = precision.run(case(name), check)
    assert found is None or found.holds, found


@pytest.mark.parametrize("name", ["Stiefel polar", "SubmanifoldSGD stiefel(matrix)", "ConstrainedLangevin OBA"])
def test_without_the_guard_the_checks_fail(name: str, monkeypatch: pytest.MonkeyPatch):
    """The mutant: rules that compute as the script's autocast says."""
    monkeypatch.setattr("weightspace.precision._AUTOCAST", ())
    found = precision.run(case(name), "bfloat16 autocast")
    assert found is not None
    assert not found.holds


def test_a_scaler_that_does_not_skip_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The mutant: the overflow reaches the step, which refuses it."""
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", lambda _, o, __, *args: o.step(*args))
    found = precision.run(case("Stiefel polar"), "float16 autocast and GradScaler")
    assert found is not None
    assert not found.holds
    assert NonFiniteGradientError.__name__ in found.said


def test_adams_epsilon_is_zero_in_float16_with_and_without_rules():
    """Documented: 0 / 0 where a gradient is zero."""
    for epsilon, is_sound in ((1e-8, False), (1e-4, True)):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
        optimizer = torch.optim.AdamW([weight], lr=0.01, eps=epsilon)
        weight.grad = torch.zeros(3, dtype=torch.float16)
        optimizer.step()
        assert bool(weight.isfinite().all()) == is_sound


# ---------------------------------------------------------------- clipping, where a script puts it


def test_clipping_before_is_of_the_loss_gradient_and_clipping_after_of_what_the_optimizer_sees():
    """Known answer: a metric that shortens gradients makes the two differ, and by how much."""
    ends: dict[str, list[torch.Tensor]] = {}
    for when in ("before", "after"):
        model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False, dtype=torch.float64))
        nn.init.zeros_(model[0].weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ws.attach(optimizer, model, ws.metrics.ChannelL2(smoothing=4.0, on=ws.on.convs))
        if when == "after":
            optimizer.register_step_pre_hook(lambda *_, model=model: clip_grad_norm_(model.parameters(), 0.1) and None)
        gradient = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model[0].weight.grad = gradient.clone()
        if when == "before":
            clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        ends[when] = [-model[0].weight.detach(), model[0].weight.grad]
    metric = ws.metrics.ChannelL2(smoothing=4.0)
    clipped = gradient * (0.1 / (gradient.norm() + 1e-6))
    torch.testing.assert_close(ends["before"][0], transform_gradient(metric, clipped))
    torch.testing.assert_close(ends["before"][1], clipped)
    shaped = transform_gradient(metric, gradient)
    torch.testing.assert_close(ends["after"][0], shaped * (0.1 / (shaped.norm() + 1e-6)))
    assert torch.equal(ends["after"][1], gradient)  # p.grad is the loss gradient, as it was


def test_a_scaler_takes_no_closure_and_unscaling_first_lets_a_script_clip():
    model = make_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ws.manifolds.Stiefel())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch(0, torch.float32)
    with torch.autocast("cpu", torch.float16):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(model.parameters(), 1e-2)
    assert 0.01 < float(norm) < 100  # of the loss, not of a thousand times the loss
    scaler.step(optimizer)
    scaler.update()
    rules.verify()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: loss)


def test_before_torch_2_9_all_three_values_come_back(monkeypatch: pytest.MonkeyPatch):
    value = ["medium"]
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True))
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=True))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: value[0])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda new: value.__setitem__(0, new))
    with full_precision():
        assert (value, torch.backends.cudnn.allow_tf32) == (["highest"], False)
    assert (value, torch.backends.cudnn.allow_tf32) == (["medium"], True)
    monkeypatch.undo()
