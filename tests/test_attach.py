"""Rules on optimizers: what a step does, what it leaves alone, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, SelectionError, VerificationError
from weightspace.metrics import ChannelL2, ChannelSobolev, GradientCentralization, transform_gradient


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(24, 3)
    )


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(4, 2, 8, 8, generator=g), torch.randint(3, (4,), generator=g)


def backward(model: nn.Module, step: int = 0) -> torch.Tensor:
    x, y = batch(step)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def manual_steps(metric, make_optimizer, steps: int = 3) -> list[torch.Tensor]:
    """The same training by hand: the gradient is overwritten before each step."""
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    for k in range(steps):
        optimizer.zero_grad()
        backward(model, k)
        for m in (model[0], model[2], model[4]):
            m.weight.grad = transform_gradient(metric, m.weight.grad)
        optimizer.step()
    return weights(model)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


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
    assert all(b.block.numel() == 0 for b in rules._batches)
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
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters()}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    start = weights(model)
    for k in range(2):
        optimizer.zero_grad()
        backward(model, k)
        optimizer.step()
        scheduler.step()
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


def test_distributed_data_parallel_wrapper_is_seen_through(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_model()
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = OPTIMIZERS["SGD"](wrapped.parameters())
        ws.attach(optimizer, wrapped, ChannelL2(smoothing=3.0))
        for k in range(3):
            optimizer.zero_grad()
            backward(wrapped, k)
            optimizer.step()
        expected = manual_steps(ChannelL2(smoothing=3.0), OPTIMIZERS["SGD"])
        for got, want in zip(weights(model), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_weights_are_refused_by_name(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = make_model()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(AttachError, match=r"0\.weight is a sharded DTensor"):
            ws.attach(optimizer, model, ChannelL2())
    finally:
        torch.distributed.destroy_process_group()


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
