"""Rules on optimizers: what a step does, what it leaves alone, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import weightspace as ws
from small_training import OPTIMIZERS, backward, batch, make_model, manual_steps, weights
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, SelectionError, VerificationError
from weightspace.kernels import describe, view_of
from weightspace.metrics import (
    ChannelL2,
    ChannelSobolev,
    GradientCentralization,
    LaplacianSmoothing,
    Layout,
    transform_gradient,
)
from weightspace.optim._transform import _witness


@pytest.mark.parametrize("batching", ["auto", "single", "stacked"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_transforming_by_hand_and_leaves_p_grad_alone(name, batching):
    metric = ChannelL2(smoothing=3.0)
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    ws.attach(optimizer, model, metric, batching=batching)
    for k in range(3):
        optimizer.zero_grad()
        backward(model, k)
        before = [(p.grad, p.grad.clone()) for p in model.parameters()]
        optimizer.step()
        for p, (grad, value) in zip(model.parameters(), before, strict=True):
            assert p.grad is grad
            assert torch.equal(grad, value)
    for got, expected in zip(weights(model), manual_steps(metric, OPTIMIZERS[name]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_inplace_gives_the_same_weights_and_no_buffers():
    model = make_model()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    rules = ws.attach(optimizer, model, ChannelL2(smoothing=3.0), inplace=True)
    for k in range(3):
        optimizer.zero_grad()
        backward(model, k)
        g = model[2].weight.grad.clone()
        optimizer.step()
        assert not torch.equal(model[2].weight.grad, g)
    assert all(b.block.numel() == 0 for b in rules._plan.batches)
    for got, expected in zip(weights(model), manual_steps(ChannelL2(smoothing=3.0), OPTIMIZERS["SGD"]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_remove_leaves_a_plain_optimizer():
    model, plain = make_model(), make_model()
    optimizer, reference = (OPTIMIZERS["SGD"](m.parameters()) for m in (model, plain))
    ws.attach(optimizer, model, ChannelL2()).remove()
    for k in range(2):
        for m, o in ((model, optimizer), (plain, reference)):
            o.zero_grad()
            backward(m, k)
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(plain), strict=True))
    ws.attach(optimizer, model, ChannelL2())  # and it can be attached again


def test_closure_optimizers_see_the_transformed_gradient():
    metric = ChannelL2(smoothing=3.0)
    for as_keyword in (False, True):
        model = make_model()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        ws.attach(optimizer, model, metric)
        for k in range(3):

            def closure(k: int = k, model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer):
                optimizer.zero_grad()
                return backward(model, k)

            loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
            assert loss.item() > 0
            fresh = copy.deepcopy(model[2].weight.grad)
        expected = manual_steps(metric, OPTIMIZERS["SGD"])
        for got, want in zip(weights(model), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(fresh, transform_gradient(metric, fresh))  # p.grad is the loss's own


def test_gradient_accumulation_equals_the_summed_gradient():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2())
    start = weights(model)
    backward(model, 0)
    backward(model, 1)
    total = model[2].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[2].weight, start[2] - 0.1 * transform_gradient(ChannelL2(), total))
    optimizer.step()  # without zero_grad: the same gradient acts again, transformed once
    torch.testing.assert_close(model[2].weight, start[2] - 0.2 * transform_gradient(ChannelL2(), total))


def test_parameters_without_gradient_are_left_alone():
    model = make_model()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    ws.attach(optimizer, model, ChannelL2(), batching="stacked")
    backward(model)
    model[2].weight.grad = None
    start = weights(model)
    optimizer.step()
    assert torch.equal(model[2].weight, start[2])
    assert not torch.equal(model[4].weight, start[4])
    assert model[2].weight.grad is None


def test_schedulers_and_param_groups_work():
    model = make_model()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters(), "weight_decay": 0.1}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    start = weights(model)
    expected = start[2].clone()
    for k in range(2):
        optimizer.zero_grad()
        backward(model, k)
        gradient = transform_gradient(ChannelL2(), model[2].weight.grad)
        expected -= 0.1 ** (k + 1) * (gradient + 0.1 * expected)  # weight decay is not smoothed
        optimizer.step()
        scheduler.step()
        torch.testing.assert_close(model[2].weight, expected)
    assert rules.steps == 2
    assert torch.equal(model[0].weight, start[0])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-3)


def test_groups_added_later_are_routed():
    model = make_model()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    assert [r.info.name for r in rules.table().routed] == ["0.weight"]
    optimizer.add_param_group({"params": list(model[2:].parameters())})
    start = weights(model)
    backward(model)
    g = model[2].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[2].weight, start[2] - 0.1 * transform_gradient(ChannelL2(), g))
    assert [r.info.name for r in rules.table().routed] == ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("name", ["SGD", "SGD fused"])
def test_grad_scaler_gives_unscaled_transformed_steps(name):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    ws.attach(optimizer, model, ChannelL2(smoothing=3.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for k in range(3):
        optimizer.zero_grad()
        x, y = batch(k)
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    for got, expected in zip(weights(model), manual_steps(ChannelL2(smoothing=3.0), OPTIMIZERS[name]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "SGD fused"])
def test_grad_scaler_skips_a_step_with_infinite_gradients(name):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    ws.attach(optimizer, model, ChannelL2())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(backward_loss := model(batch()[0]).square().sum()).backward()
    assert backward_loss.isfinite()
    model[2].weight.grad[0, 0, 0, 0] = math.inf
    start = weights(model)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    assert scaler.get_scale() == 512.0


def test_compiled_optimizer_step_equals_the_eager_one():
    model = make_model()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    ws.attach(optimizer, model, ChannelL2(smoothing=3.0))
    # The eager backend traces as inductor does, without half a minute of C++.
    step = torch.compile(optimizer.step, backend="eager")
    for k in range(3):
        optimizer.zero_grad()
        backward(model, k)
        g = model[2].weight.grad.clone()
        step()
        assert torch.equal(model[2].weight.grad, g)
    for got, expected in zip(weights(model), manual_steps(ChannelL2(smoothing=3.0), OPTIMIZERS["SGD"]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_unfreezing_casting_and_relayout_after_attach_keep_the_rule_in_force():
    model = make_model()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    assert "2.weight" not in [r.info.name for r in rules.table().routed]
    model[2].weight.requires_grad_(True)
    assert "2.weight" in rules.state_dict()["routes"]
    for change in (lambda m: m, lambda m: m.double(), lambda m: m.to(memory_format=torch.channels_last)):
        change(model)
        optimizer.zero_grad()
        x, y = batch()
        nn.functional.cross_entropy(model(x.to(model[0].weight.dtype)), y).backward()
        start, g = weights(model), model[2].weight.grad.clone()
        optimizer.step()
        torch.testing.assert_close(model[2].weight, start[2] - 0.1 * transform_gradient(ChannelL2(), g))
    for p in model.parameters():
        p.requires_grad_(False)
    model[6].bias.requires_grad_(True)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch()[0].double()), batch()[1]).backward()
    optimizer.step()  # everything the rule selects is frozen for a while: no reason to stop a training


# --------------------------------------------------------------------------- bad gradients


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("layer", [0, 4])
def test_non_finite_gradients_raise_before_anything_changes(bad, layer, inplace):
    model = make_model()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    ws.attach(optimizer, model, ChannelL2(), inplace=inplace)
    backward(model)
    model[layer].weight.grad[3, 1, 2, 0] = bad
    start, grads = weights(model), [p.grad.clone() for p in model.parameters()]
    with pytest.raises(NonFiniteGradientError, match=rf"{layer}\.weight holds . NaN and . infinite"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    for p, g in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g, equal_nan=True)
    assert not optimizer.state  # no momentum was begun
    optimizer.zero_grad()
    backward(model)
    optimizer.step()  # and training can go on


def test_check_finite_can_be_switched_off():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(), check_finite=False)
    backward(model)
    model[0].weight.grad[0] = math.nan
    optimizer.step()
    assert model[0].weight.isnan().any()


def test_a_step_that_raises_gives_the_gradients_back_at_the_next():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    backward(model)
    g = model[2].weight.grad
    original, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], "broken"
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = original
    rules.restore_gradients()
    assert model[2].weight.grad is g


def test_sparse_gradients_are_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(on=ws.on.name("2.weight")))
    backward(model)
    model[2].weight.grad = model[2].weight.grad.to_sparse()
    with pytest.raises(AttachError, match="sparse"):
        optimizer.step()


def test_gradients_in_another_layout_are_brought_into_the_weights():
    model, twin = make_model(), make_model()
    for m, layout in ((model, torch.channels_last), (twin, torch.contiguous_format)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        ws.attach(optimizer, m, ChannelL2())
        backward(m)
        m[2].weight.grad = m[2].weight.grad.contiguous(memory_format=layout)
        optimizer.step()
    torch.testing.assert_close(model[2].weight, twin[2].weight)


def test_channels_last_models_keep_their_strides():
    model = make_model().to(memory_format=torch.channels_last)
    strides = [p.stride() for p in model.parameters()]
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    ws.attach(optimizer, model, ChannelL2(smoothing=3.0))
    for k in range(3):
        optimizer.zero_grad()
        backward(model, k)
        optimizer.step()
    assert [p.stride() for p in model.parameters()] == strides
    for got, expected in zip(weights(model), manual_steps(ChannelL2(smoothing=3.0), OPTIMIZERS["SGD"]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- refusals


def test_refusals_say_what_to_do():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuleError, match="got no rule"):
        ws.attach(optimizer, model)
    with pytest.raises(RuleError, match="is no rule"):
        ws.attach(optimizer, model, ChannelL2)
    with pytest.raises(RuleError, match="same rule twice"):
        ws.attach(optimizer, model, ChannelL2(), ChannelL2())
    for bad in (0, 1.5, "a"):
        with pytest.raises(RuleError, match="measure_every="):
            ws.attach(optimizer, model, ChannelL2(), measure_every=bad)
    with pytest.raises(RuleError, match="on='convs'; pass a selection"):
        ws.attach(optimizer, model, ChannelL2(on="convs"))
    with pytest.raises(AttachError, match=r"torch\.nn\.Module"):
        ws.attach(optimizer, [model], ChannelL2())
    with pytest.raises(RuleError, match="batching='fast'"):
        ws.attach(optimizer, model, ChannelL2(), batching="fast")
    with pytest.raises(SelectionError, match="selects nothing"):
        ws.attach(optimizer, model, ChannelL2(on=ws.on.name("layer9.*")))
    with pytest.raises(AttachError, match="LBFGS"):
        ws.attach(torch.optim.LBFGS(model.parameters()), model, ChannelL2())
    with pytest.raises(AttachError, match=r"torch\.optim\.Optimizer"):
        ws.attach(model, optimizer, ChannelL2())
    ws.attach(optimizer, model, ChannelL2())  # none of the refusals left anything behind
    with pytest.raises(AttachError, match=r"already carries .*remove\(\)"):
        ws.attach(optimizer, model, GradientCentralization())


# --------------------------------------------------------------------------- state, measurements, verify


def test_state_round_trip_and_foreign_states():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    backward(model)
    optimizer.step()
    state = copy.deepcopy(rules.state_dict())
    rules.remove()
    again = ws.attach(optimizer, model, ChannelL2())
    again.load_state_dict(state)
    assert again.steps == 1
    again.remove()
    other = ws.attach(optimizer, model, ChannelL2(smoothing=2.0))
    with pytest.raises(AttachError, match="other rules.*smoothing=4.0"):
        other.load_state_dict(state)
    with pytest.raises(AttachError, match="lacks routes, rules, steps, version"):
        other.load_state_dict({})
    with pytest.raises(AttachError, match="version 99"):
        other.load_state_dict({**state, "version": 99})
    other.remove()
    fewer = ws.attach(optimizer, model, ChannelL2(on=None), batching="stacked")
    with pytest.raises(AttachError, match="other parameters"):
        fewer.load_state_dict({**state, "routes": {"0.weight": [0]}})


@pytest.mark.parametrize("batching", ["single", "stacked"])
def test_measurements_are_rho_and_shrinkage_of_the_step(batching):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2(), measure_every=2, batching=batching)
    assert rules.measurements == {}
    backward(model)
    g = model[2].weight.grad.double().clone()
    optimizer.step()
    measured = rules.measurements
    assert sorted(measured) == ["0.weight", "2.weight", "4.weight"]
    rho = float(6 * g.mean(0).square().sum() / g.square().sum())
    assert measured["2.weight"]["rho"] == pytest.approx(rho, rel=1e-5)
    assert measured["2.weight"]["shrinkage"] == pytest.approx(math.sqrt(rho + (1 - rho) / 16), rel=1e-5)
    optimizer.zero_grad()
    backward(model, 1)
    optimizer.step()
    assert rules.measurements == measured  # the second step is not measured


def test_two_metrics_act_one_after_the_other():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = weights(model)
    ws.attach(optimizer, model, GradientCentralization(), ChannelSobolev())
    backward(model)
    g, head = model[2].weight.grad.clone(), model[6].weight.grad.clone()
    optimizer.step()
    expected = transform_gradient(ChannelSobolev(), transform_gradient(GradientCentralization(), g))
    torch.testing.assert_close(model[2].weight, start[2] - 0.1 * expected)
    centered = transform_gradient(GradientCentralization(), head)
    torch.testing.assert_close(model[6].weight, start[6] - 0.1 * centered)


def test_verify_measures_every_layout_and_catches_a_wrong_metric(monkeypatch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2(keep_norm=True), GradientCentralization())
    checks = rules.verify()
    assert all(c.holds for c in checks)
    assert {n for c in checks for n in c.parameters} == {"0.weight", "2.weight", "4.weight", "6.weight"}

    def wrong(self, grad, out, layout, work):
        out.copy_(grad / self.smoothing)

    monkeypatch.setattr(ChannelL2, "transform", wrong)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rules.remove()
        model.to(dtype)
        rules = ws.attach(optimizer, model, ChannelL2())
        with pytest.raises(VerificationError, match=r"ChannelL2.*0\.weight.*allowed is"):
            rules.verify()


# --------------------------------------------------------------------------- hooks within hooks


class Nested(torch.optim.SGD):
    """An optimizer whose step calls its parent's: torch fires its hooks twice."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("batching", ["single", "stacked"])
def test_a_step_within_a_step_transforms_and_counts_once(batching):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # hooks SGD.step itself
    model = make_model()
    optimizer = Nested(model.parameters(), lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, model, ChannelL2(smoothing=3.0), batching=batching)
    for k in range(3):

        def closure(k: int = k):
            optimizer.zero_grad()
            return backward(model, k)

        optimizer.step(closure)
    assert rules.steps == 3
    expected = manual_steps(ChannelL2(smoothing=3.0), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    for got, want in zip(weights(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_a_users_post_hook_sees_the_loss_gradient():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(model[2].weight.grad))
    ws.attach(optimizer, model, ChannelL2())
    backward(model)
    g = model[2].weight.grad
    optimizer.step()
    assert seen[0] is g


def test_overflow_on_the_way_back_to_16_bits_is_caught():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.Flatten(), nn.Linear(6, 2)).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(smoothing=0.1))
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[0].weight.grad[3] = 40000.0
    start = weights(model)
    with pytest.raises(NonFiniteGradientError, match="overflowed"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


def test_differentiable_optimizers_and_removed_rules_are_refused():
    model = make_model()
    with pytest.raises(AttachError, match="differentiable"):
        ws.attach(torch.optim.SGD(model.parameters(), lr=0.1, differentiable=True), model, ChannelL2())
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ChannelL2())
    rules.remove()
    with pytest.raises(AttachError, match="removed"):
        rules.verify()


# --------------------------------------------------------------------------- more optimizers


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["Muon", "Adafactor", "Adamax", "ASGD"])
def test_the_rest_of_torchs_optimizers_too(name, inplace):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    metric = ChannelL2(smoothing=3.0, on=ws.on.linears)
    results = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(3)])  # Muon takes matrices only
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.02)
        if not by_hand:
            ws.attach(optimizer, model, metric, inplace=inplace)
        for k in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6, generator=torch.Generator().manual_seed(k))).square().sum().backward()
            if by_hand:
                for p in model.parameters():
                    p.grad = transform_gradient(metric, p.grad)
            optimizer.step()
        results.append(weights(model))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_two_metrics_in_every_precision_with_and_without_closure(inplace, with_closure, dtype):
    model = make_model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, GradientCentralization(), ChannelL2(smoothing=3.0), inplace=inplace)
    for k in range(2):
        start, seen = weights(model), []

        def closure(k: int = k, seen: list = seen):
            optimizer.zero_grad()
            x, y = batch(k)
            loss = nn.functional.cross_entropy(model(x.to(dtype)), y)
            loss.backward()
            seen.append(model[2].weight.grad.clone())
            return loss

        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        once = transform_gradient(GradientCentralization(), seen[0])
        expected = start[2] - 0.1 * transform_gradient(ChannelL2(smoothing=3.0), once)
        torch.testing.assert_close(model[2].weight, expected)
        assert torch.equal(model[2].weight.grad, seen[0]) != inplace


def test_gradients_of_another_dtype_than_the_weight():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False), nn.Conv2d(6, 2, 1)).bfloat16()
    if not hasattr(model[0].weight, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2())
    for layer in (0, 1):
        weight = model[layer].weight
        weight.grad_dtype = torch.float32  # after attach: buffers follow
        weight.grad = torch.randn(weight.shape)
    start, grads = weights(model), [m.weight.grad.clone() for m in model[:2]]
    optimizer.step()
    for layer, grad in enumerate(grads):
        expected = start[layer].clone().add_(transform_gradient(ChannelL2(), grad), alpha=-0.1)
        assert torch.equal(model[layer].weight, expected)
        assert torch.equal(model[layer].weight.grad, grad)
    model[0].weight.grad = None
    model[0].weight.grad_dtype = None  # any
    model[0].weight.grad = grads[0].double()
    start = weights(model)
    with pytest.raises(AttachError, match=r"gradient of 0\.weight is torch\.float64, its stand-in torch\.bfloat16"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


# --------------------------------------------------------------------------- inplace: all or nothing


@pytest.mark.parametrize("bad", ["layout", "sparse"])
def test_inplace_transforms_all_gradients_or_none(bad):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(), inplace=True)
    backward(model)
    grad = model[4].weight.grad
    model[4].weight.grad = grad.to_sparse() if bad == "sparse" else grad.to(memory_format=torch.channels_last)
    first, start = model[0].weight.grad.clone(), weights(model)
    with pytest.raises(AttachError, match=r"gradient of 4\.weight (is sparse|has strides)"):
        optimizer.step()
    assert torch.equal(model[0].weight.grad, first)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


def test_inplace_overflow_on_the_way_back_to_16_bits_is_caught():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.Flatten(), nn.Linear(6, 2)).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2(smoothing=0.1), inplace=True)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[0].weight.grad[3] = 40000.0
    start = weights(model)
    with pytest.raises(NonFiniteGradientError, match=r"overflowed .* no weight was changed.*zero_grad\(\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


@pytest.mark.parametrize(
    "metric", [ChannelL2(), ChannelSobolev(), ChannelSobolev(axis="in"), GradientCentralization(), LaplacianSmoothing()],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_bad_entry_shows_in_the_witness(metric, dtype):
    for place in [(0, 0, 0, 0), (39, 2, 1, 1), (17, 1, 0, 2)]:
        for bad in (math.nan, math.inf, -math.inf):
            grad = torch.randn(40, 3, 2, 3).to(dtype)
            assert _witness(view_as_metric(metric, transform_gradient(metric, grad))).isfinite().all()
            grad[place] = bad
            assert not _witness(view_as_metric(metric, transform_gradient(metric, grad))).isfinite().all()


def view_as_metric(metric, tensor):
    conv = nn.Conv2d(3, 40, (2, 3), bias=False)
    return view_of(describe(conv)[0], metric.view, tensor)(tensor)


# --------------------------------------------------------------------------- the model changes


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("how", ["parametrize", "prune"])
def test_a_weight_that_is_parametrized_after_attach_is_refused(how):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    if how == "parametrize":
        parametrize.register_parametrization(model[2], "weight", Double())
    else:
        prune.l1_unstructured(model[2], "weight", 0.5)
    backward(model)
    start = weights(model)
    for _ in range(2):
        with pytest.raises(AttachError, match=r"ChannelL2\(\) acted on 2\.weight and cannot any more: .*remove\(\)"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    rules.remove()
    again = ws.attach(optimizer, model, ChannelL2())
    assert [r.info.name for r in again.table().routed] == ["0.weight", "4.weight"]
    optimizer.step()


def test_freezing_in_turn_keeps_the_buffers():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2(), measure_every=1)
    memory = [b.data_ptr() for b in rules._plan._blocks.values()]
    for k in range(6):
        model[4].weight.requires_grad_(k % 2 == 1)
        optimizer.zero_grad()
        start = weights(model)
        backward(model, k)
        optimizer.step()
        assert ("4.weight" in rules.measurements) == (k % 2 == 1)
        for place, layer in ((2, 2), (4, 4))[: 1 + k % 2]:
            expected = start[place] - 0.1 * transform_gradient(ChannelL2(), model[layer].weight.grad)
            torch.testing.assert_close(model[layer].weight, expected)
        assert [b.data_ptr() for b in rules._plan._blocks.values()] == memory
    assert len(rules._plan._routings) == 2


# --------------------------------------------------------------------------- options and measured properties


@pytest.mark.parametrize(
    "options", [{"measure_every": True}, {"check_finite": 1}, {"check_finite": None}, {"inplace": "yes"}], ids=str
)
def test_options_of_the_wrong_type_are_refused(options):
    model = make_model()
    (name,) = options
    with pytest.raises(RuleError, match=f"attach\\(\\) got {name}="):
        ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ChannelL2(), **options)


def test_a_closure_that_cannot_be_called_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, ChannelL2())
    loss = backward(model)
    with pytest.raises(AttachError, match=r"optimizer\.step\(\) got tensor.*cannot be called"):
        optimizer.step(loss)
    optimizer.step()


def test_verify_catches_a_norm_that_is_not_kept_and_a_stack_that_mixes_weights(monkeypatch):
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ChannelL2(keep_norm=True), batching="stacked")
    said = [c.what for c in rules.verify()]
    assert len(said) == 5  # two layouts: equation and norm; the one of two weights: stack too
    original = ChannelL2.apply

    def wrong_norm(self, grad, out, layout, work):
        original(self, grad, out, layout, work)
        if self.keep_norm:
            out.mul_(1.01)

    def mixed(self, grad, out, layout, work):
        original(self, grad, out, Layout(1, layout.grid), work)  # one norm for the whole stack

    for wrong, what in ((wrong_norm, "keep_norm gives"), (mixed, "stacked weights get")):
        monkeypatch.setattr(ChannelL2, "apply", wrong)
        with pytest.raises(VerificationError, match=what):
            rules.verify()


def test_removed_rules_say_so():
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, ChannelL2())
    rules.remove()
    rules.remove()  # twice does no harm
    assert repr(rules) == "<Rules ChannelL2(), removed>"
    for ask in (rules.table, rules.verify, rules.state_dict):
        with pytest.raises(AttachError, match="rules were removed"):
            ask()


def test_reading_measurements_synchronizes_once(monkeypatch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2(), measure_every=1)
    backward(model)
    optimizer.step()
    reads = []
    for name in ("__float__", "item", "tolist"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, f=original: (reads.append(t), f(t))[1])
    assert len(rules.measurements) == 3
    assert len(reads) == 1
