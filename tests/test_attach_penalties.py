"""Penalties on optimizers: what a step adds, how sizes are found, resume, copies, refusals."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import weightspace as ws
from small_training import OPTIMIZERS, backward, make_model, weights
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, VerificationError
from weightspace.metrics import ChannelL2, transform_gradient
from weightspace.operators import operator_of
from weightspace.penalties import (
    GramFrobenius,
    LargestSingularValue,
    SingularValueBand,
    SoftOrthogonality,
)

BAND = SingularValueBand(1.0, 1.0, weight=0.1)
SIZES = {0: (8, 8), 2: (6, 6), 4: (4, 4), 6: None}


def added(penalty, model):
    """Strength times gradient for every weight, by hand."""
    factor = penalty.weight * penalty.every
    return {k: factor * penalty.evaluate(operator_of(model[k], size))[1] for k, size in SIZES.items()}


def step(model, optimizer, k=0):
    optimizer.zero_grad()
    backward(model, k)
    optimizer.step()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("batching", ["single", "stacked"])
def test_metrics_see_the_loss_gradient_and_penalties_are_added(inplace, order, batching):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rules = [ChannelL2(), BAND][::order]
    ws.attach(optimizer, model, *rules, inplace=inplace, batching=batching, measure_every=1)
    for k in range(2):
        optimizer.zero_grad()
        backward(model, k)
        start, extra = weights(model), added(BAND, model)
        grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for i, p in enumerate(model.parameters()):
            layer = 2 * (i // 2)
            expected = grads[i]
            if i % 2 == 0:
                expected = (transform_gradient(ChannelL2(), grads[i]) if layer < 6 else grads[i]) + extra[layer]
            torch.testing.assert_close(p.detach(), start[i] - 0.5 * expected)
            assert inplace or torch.equal(p.grad, grads[i])


def test_every_kth_step_with_k_times_the_strength():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    penalty = SingularValueBand(1.0, 1.0, weight=0.1, every=3)
    ws.attach(optimizer, model, penalty)
    for k in range(5):
        optimizer.zero_grad()
        backward(model, k)
        start, extra, grad = model[2].weight.detach().clone(), added(penalty, model)[2], model[2].weight.grad.clone()
        optimizer.step()
        expected = grad + (extra if k % 3 == 0 else 0)
        torch.testing.assert_close(model[2].weight.detach(), start - 0.5 * expected)


@pytest.mark.parametrize("name", ["SGD", "SGD foreach", "SGD fused", "AdamW", "Rprop"])
def test_a_penalty_alone_equals_adding_it_to_the_loss_gradient(name):
    models = make_model(), make_model()
    optimizers = [OPTIMIZERS[name](m.parameters()) for m in models]
    ws.attach(optimizers[0], models[0], BAND)
    for k in range(3):
        step(models[0], optimizers[0], k)
        optimizers[1].zero_grad()
        backward(models[1], k)
        for layer, extra in added(BAND, models[1]).items():
            models[1][layer].weight.grad += extra
        optimizers[1].step()
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_random_frequencies_change_from_step_to_step_and_layer_to_layer():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(layer, copy.deepcopy(layer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = ws.attach(optimizer, model, SingularValueBand(1.0, 1.0, frequencies=1))
    model(torch.randn(1, 2, 9, 9)).sum().backward()
    values = []
    for _ in range(3):
        optimizer.step()
        values += [figures["SingularValueBand"] for figures in rules.measurements.values()]
    assert len(set(values)) == 6


def test_several_penalties_add_up_and_are_measured():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    soft = SoftOrthogonality(weight=0.01, on=ws.on.name("2.weight"))
    rules = ws.attach(optimizer, model, BAND, soft, ChannelL2(), measure_every=1)
    optimizer.zero_grad()
    backward(model)
    start, grad = model[2].weight.detach().clone(), model[2].weight.grad.clone()
    extra = added(BAND, model)[2] + 0.01 * soft.evaluate(operator_of(model[2], 6))[1]
    band = float(BAND.evaluate(operator_of(model[2], 6))[0])
    optimizer.step()
    torch.testing.assert_close(model[2].weight.detach(), start - transform_gradient(ChannelL2(), grad) - extra)
    measured = rules.measurements
    assert set(measured["2.weight"]) == {"rho", "shrinkage", "SingularValueBand", "SoftOrthogonality"}
    assert measured["2.weight"]["SingularValueBand"] == pytest.approx(band)
    assert set(measured["6.weight"]) == {"SingularValueBand"}
    assert "0.bias" not in measured


# --------------------------------------------------------------------------------------------- input sizes


@pytest.mark.parametrize("inplace", [False, True])
def test_without_a_forward_pass_or_a_size_a_step_says_what_to_do(inplace):
    model = make_model()
    backward(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rules = ws.attach(optimizer, model, ChannelL2(), BAND, inplace=inplace)
    start, grads = weights(model), [p.grad.clone() for p in model.parameters()]
    with pytest.raises(AttachError, match=r"0\.weight needs the size.*run the model before.*or pass input_size="):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert rules.verify()  # needs no size
    rules.remove()
    ws.attach(optimizer, model, SingularValueBand(1.0, 1.0, input_size=8))
    optimizer.step()


def test_linear_layers_and_flat_penalties_need_no_size():
    model = make_model()
    backward(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rules = ws.attach(optimizer, model, SoftOrthogonality(), SingularValueBand(on=ws.on.linears))
    assert not any(m._forward_pre_hooks for m in model)
    optimizer.step()
    assert set(rules.measurements["6.weight"]) == {"SoftOrthogonality", "SingularValueBand"}


def test_the_latest_forward_pass_counts():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = ws.attach(optimizer, model, GramFrobenius())
    for size in ((4, 6), (5, 3)):
        model(torch.randn(1, 2, *size)).sum().backward()
        optimizer.step()
        expected = float(GramFrobenius().evaluate(operator_of(model[0], size))[0])
        assert rules.measurements["0.weight"]["GramFrobenius"] == pytest.approx(expected)
    model[0](input=torch.randn(2, 7, 8)).sum().backward()  # by keyword, and without a batch
    optimizer.step()
    expected = float(GramFrobenius().evaluate(operator_of(model[0], (7, 8)))[0])
    assert rules.measurements["0.weight"]["GramFrobenius"] == pytest.approx(expected)


def test_sizes_that_do_not_fit_are_refused():
    model = make_model()
    backward(model)
    for size, sentence in (((8, 8, 8), "0.weight has 2 spatial dimensions"), (1, "shorter than the kernel's reach")):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ws.attach(optimizer, model, GramFrobenius(input_size=size))
        with pytest.raises(AttachError, match=sentence):
            optimizer.step()


def test_recorders_come_off_with_the_rules():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rules = ws.attach(optimizer, model, BAND)
    assert sum(len(m._forward_pre_hooks) for m in model) == 3
    rules.remove()
    assert not any(m._forward_pre_hooks for m in model)
    ws.attach(optimizer, model, BAND)
    del optimizer, rules
    assert not any(m._forward_pre_hooks for m in model)


def test_copies_of_a_model_record_nothing():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = ws.attach(optimizer, model, BAND)
    backward(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin[:5](torch.zeros(1, 2, 20, 20))
    optimizer.step()
    expected = float(BAND.evaluate(operator_of(model[0], 8))[0])
    assert rules.measurements["0.weight"]["SingularValueBand"] == pytest.approx(expected)


def test_a_copy_of_all_three_trains_like_the_original():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = (LargestSingularValue(0.1, weight=0.1), SingularValueBand(1, 1, frequencies=2, weight=0.1))
    rules = ws.attach(optimizer, model, *penalties)
    step(model, optimizer)
    twin, other, copied = copy.deepcopy((model, optimizer, rules))
    assert copied.measurements == rules.measurements
    for k in range(1, 4):
        step(twin, other, k)
    for k in range(1, 4):
        step(model, optimizer, k)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True))


@pytest.mark.parametrize("compile_first", [False, True])
def test_compiled_models(compile_first):
    torch._dynamo.reset()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if compile_first:
        compiled = torch.compile(model, backend="eager")
        rules = ws.attach(optimizer, compiled, BAND)
    else:
        rules = ws.attach(optimizer, model, BAND)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    backward(compiled)
    optimizer.step()
    assert rules.measurements["2.weight"]["SingularValueBand"] > 0
    plain = make_model()
    twin = torch.optim.SGD(plain.parameters(), lr=0.1)
    ws.attach(twin, plain, BAND)
    step(plain, twin)
    for a, b in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(a, b)


# --------------------------------------------------------------------------------------------- state


def test_vectors_are_saved_as_tensors_and_make_resume_exact():
    penalty = LargestSingularValue(0.1, weight=0.1, steps=1)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, penalty)
    for k in range(2):
        step(model, optimizer, k)
    state = rules.state_dict()
    vectors = state["penalties"]["2.weight"]["0"]
    assert set(vectors) == {"start", "latest"}
    assert isinstance(vectors["start"], torch.Tensor)
    saved = copy.deepcopy((model.state_dict(), state))
    step(model, optimizer, 2)
    for with_state in (True, False):
        twin = make_model()
        twin.load_state_dict(saved[0])
        other = torch.optim.SGD(twin.parameters(), lr=0.1)
        resumed = ws.attach(other, twin, penalty)
        if with_state:
            resumed.load_state_dict(saved[1])
        step(twin, other, 2)
        assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True)) == with_state


def test_states_of_metrics_have_no_penalties_and_states_of_penalties_must():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, ChannelL2())
    assert set(rules.state_dict()) == {"version", "rules", "routes", "steps"}
    rules.remove()
    rules = ws.attach(optimizer, model, BAND)
    state = rules.state_dict()
    del state["penalties"]
    with pytest.raises(AttachError, match="it lacks penalties"):
        rules.load_state_dict(state)


def test_freezing_in_turn_keeps_what_is_remembered():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, LargestSingularValue(0.1))
    step(model, optimizer)
    before = rules.state_dict()["penalties"]["2.weight"]["0"]["start"]
    model[2].weight.requires_grad_(False)
    step(model, optimizer)
    assert "2.weight" not in rules.state_dict()["penalties"]
    model[2].weight.requires_grad_(True)
    assert torch.equal(rules.state_dict()["penalties"]["2.weight"]["0"]["start"], before)
    step(model, optimizer)
    model[2].weight.requires_grad_(False)
    step(model, optimizer)
    model[2].weight.requires_grad_(True)
    step(model, optimizer)  # what the frozen layer read was noted


# --------------------------------------------------------------------------------------------- numbers and refusals


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_computed_in_float32(dtype):
    model = make_model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    ws.attach(optimizer, model, BAND)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model(torch.randn(1, 2, 8, 8, dtype=dtype))
    optimizer.step()
    expected = added(BAND, model)
    for layer, extra in expected.items():
        assert extra.dtype == torch.float32
        assert torch.equal(optimizer.state[model[layer].weight]["momentum_buffer"], extra.to(dtype))


def test_a_fused_optimizer_under_a_scaler_gets_scaled_penalties():
    models = make_model(), make_model()
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        ws.attach(optimizer, model, BAND)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for k in range(2):
            optimizer.zero_grad()
            x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(k))
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_and_weights_raise_before_anything_changes(bad):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, BAND)
    step(model, optimizer)
    backward(model)
    model[6].weight.grad[0, 1] = bad
    start = weights(model)
    with pytest.raises(NonFiniteGradientError, match=r"gradient of 6\.weight holds"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    model[6].weight.grad[0, 1] = 0.0
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = bad
    with pytest.raises(NonFiniteGradientError, match=r"weight 2\.weight holds NaN or infinity.*checkpoint"):
        optimizer.step()


def test_weights_without_a_gradient_are_left_alone():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, BAND)
    backward(model)
    model[2].weight.grad = None
    start = weights(model)
    optimizer.step()
    assert torch.equal(model[2].weight, start[2])
    assert not torch.equal(model[4].weight, start[4])


def test_routing_says_why_not():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, BAND)
    assert {r.info.name for r in rules.table().routed} == {"0.weight", "4.weight"}
    reasons = {r.info.name: r.reasons.get(0) for r in rules.table().routes}
    assert reasons["2.weight"] == "grouped kernel (2 groups)"
    assert reasons["1.weight"] == "norm weight"
    rules.remove()
    ws.attach(optimizer, model, SingularValueBand(on=ws.on.everything))
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    optimizer.step()


def test_transposed_and_grouped_layers_carry_penalties():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.Flatten(1),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = ws.attach(optimizer, model, SingularValueBand(1, 1, on=ws.on.convs), GramFrobenius(on=ws.on.convs))
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    for name, layer, size in (("0.weight", model[0], 4), ("1.weight", model[1], 8)):
        for term in (SingularValueBand(1, 1), GramFrobenius()):
            expected = float(term.evaluate(operator_of(layer, size))[0])
            assert rules.measurements[name][type(term).__name__] == pytest.approx(expected)
    assert len(rules.verify()) == 4


def test_verify_catches_a_wrong_gradient(monkeypatch):
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, BAND, ChannelL2())
    checks = rules.verify()
    assert {c.rule.partition("(")[0] for c in checks} == {"SingularValueBand", "ChannelL2"}
    assert {name for c in checks for name in c.parameters} == {"0.weight", "2.weight", "4.weight", "6.weight"}
    right = SingularValueBand.phi
    monkeypatch.setattr(SingularValueBand, "phi", lambda *a: (right(*a)[0], 1.01 * right(*a)[1]))
    with pytest.raises(VerificationError, match="SingularValueBand.*derivative of its value"):
        rules.verify()


def test_what_is_no_rule_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuleError, match="same rule twice"):
        ws.attach(optimizer, model, BAND, SingularValueBand(1.0, 1.0, weight=0.1))
    with pytest.raises(RuleError, match="which is no rule"):
        ws.attach(optimizer, model, SingularValueBand)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 1, padding=2, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same", dilation=2),
        nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Conv1d(2, 70, 5, padding=12, padding_mode="reflect"),
        nn.Linear(50, 3),
    ],
    ids=str,
)
def test_verify_and_flat_penalties_find_a_size_that_fits_any_layer(layer):
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, SoftOrthogonality(), BAND, GramFrobenius())
    assert len(rules.verify()) == 3
