"""Gated and proximal penalties on optimizers: when they act, on what they decide, what is remembered and reported."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import weightspace as ws
from small_training import OPTIMIZERS, backward, make_model, weights
from weightspace.errors import AttachError, VanishedWeightsWarning
from weightspace.gates import Always, Coherent, Delayed, RandomGate
from weightspace.metrics import ChannelL2, transform_gradient
from weightspace.optim import _gates
from weightspace.penalties import L1, L2, CautiousWeightDecay, ElasticNet, GramFrobenius, GroupL1, SingularValueBand

AGAINST = ("total", "history", "previous", "lookahead")
WEIGHTS = ("0.weight", "2.weight", "4.weight", "6.weight")
ALWAYS = Always()


def run(model, optimizer, start=0, stop=1):
    """Training steps with a closure, which every gate can work with."""
    for k in range(start, stop):

        def closure(k=k):
            optimizer.zero_grad()
            return backward(model, k)

        optimizer.step(closure)


def trained(*rules, steps=4, make=OPTIMIZERS["SGD"], **options):
    """A model after some steps, with its rules."""
    model = make_model()
    optimizer = make(model.parameters())
    attached = ws.attach(optimizer, model, *rules, **options)
    run(model, optimizer, 0, steps)
    return model, attached


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def gradients(model, k):
    """Loss gradients of a batch by weight; the model is left as it was."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    backward(twin, k)
    return {name: p.grad for name, p in twin.named_parameters()}


# --------------------------------------------------------------------------------------------- what a step does


@pytest.mark.parametrize("name", ["SGD", "SGD foreach", "SGD fused"])
def test_l2_is_weight_decay_bit_for_bit(name):
    decayed, plain = make_model(), make_model()
    settings = {"lr": 0.1, "momentum": 0.9, **{key: True for key in ("foreach", "fused") if key in name}}
    optimizer = torch.optim.SGD(decayed.parameters(), weight_decay=1e-2, **settings)
    ws.attach(torch.optim.SGD(plain.parameters(), **settings), plain, L2(1e-2, on=ws.on.everything))
    other = torch.optim.SGD(plain.parameters(), **settings)
    ws.attach(other, plain, L2(1e-2, on=ws.on.everything))
    for k in range(5):
        for model, opt in ((decayed, optimizer), (plain, other)):
            opt.zero_grad()
            backward(model, k)
            opt.step()
    if name == "SGD fused":  # it fuses a multiplication with an addition
        for a, b in zip(weights(decayed), weights(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    else:
        assert equal(decayed, plain)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("term", [L1(0.02), ElasticNet(0.02), GroupL1(0.02), L2(0.02, every=2)], ids=str)
def test_the_gradient_form_is_added_after_metrics(term, inplace):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ws.attach(optimizer, model, term, ChannelL2(), inplace=inplace)
    for k in range(2):
        optimizer.zero_grad()
        backward(model, k)
        start, grad = model[2].weight.detach().clone(), model[2].weight.grad.clone()
        own = term.gradient(start, ws.penalties.weights.Channels())
        optimizer.step()
        factor = term.weight * term.every if k % term.every == 0 else 0.0
        expected = start - 0.5 * (transform_gradient(ChannelL2(), grad) + factor * own)
        torch.testing.assert_close(model[2].weight.detach(), expected)
        assert inplace or torch.equal(model[2].weight.grad, grad)


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD"], OPTIMIZERS["AdamW"], OPTIMIZERS["SGD fused"]])
@pytest.mark.parametrize("rate", ["number", "tensor"])
def test_the_proximal_form_acts_after_the_step_with_the_groups_rate_and_the_schedule(make, rate):
    term = L1(0.05, every=2, application="proximal")
    models = make_model(), make_model()
    optimizers = []
    for model in models:
        optimizer = make([{"params": model[:3].parameters()}, {"params": model[3:].parameters(), "lr": 0.03}])
        if rate == "tensor":
            optimizer.param_groups[1]["lr"] = torch.tensor(0.03)
        optimizers.append(optimizer)
    if rate == "tensor" and optimizers[0].defaults.get("foreach"):
        pytest.skip("torch takes tensor rates with foreach only when it is capturable")
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    ws.attach(optimizers[0], models[0], term)
    for k in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, k)
            optimizer.step()
        if k % 2 == 0:
            for group, layers in zip(optimizers[1].param_groups, ((0, 2), (4, 6)), strict=True):
                for layer in layers:
                    w = models[1][layer].weight.data
                    w.copy_(w.sign() * (w.abs() - float(group["lr"]) * 0.05 * 2).clamp_min(0))
        for scheduler in schedulers:
            scheduler.step()
        for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert (models[0][4].weight == 0).any()


def test_proximal_l2_divides():
    model, plain = make_model(), make_model()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    ws.attach(optimizer, model, L2(0.5, application="proximal"))
    run(model, optimizer)
    run(plain, other)
    for k in (0, 2, 4, 6):
        torch.testing.assert_close(model[k].weight, plain[k].weight / 1.05)
        assert torch.equal(model[k].bias, plain[k].bias)


@pytest.mark.parametrize("name", ["SGD", "Adam amsgrad"])
def test_cautious_decay_equals_a_plain_loop(name):
    model, plain = make_model(), make_model()
    optimizer, other = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
    # A proximal penalty before it changes nothing of what it sees of the optimizer's step.
    ws.attach(optimizer, model, L1(0.01, application="proximal"), CautiousWeightDecay(0.3))
    for k in range(4):
        run(model, optimizer, k, k + 1)
        starts = [plain[i].weight.detach().clone() for i in (0, 2, 4, 6)]
        run(plain, other, k, k + 1)
        lr = other.param_groups[0]["lr"]
        for i, start in zip((0, 2, 4, 6), starts, strict=True):
            w = plain[i].weight.data
            for entry, (after, before) in enumerate(zip(w.flatten().tolist(), start.flatten().tolist(), strict=True)):
                if (after - before) * before <= 0:
                    w.view(-1)[entry] -= lr * 0.3 * before
            w.copy_(w.sign() * (w.abs() - lr * 0.01).clamp_min(0))
    for a, b in zip(weights(model), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("term", [L1(0.3, application="proximal"), CautiousWeightDecay(0.3)], ids=str)
def test_a_step_that_a_scaler_skips_shrinks_nothing(term):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    ws.attach(optimizer, model, term)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for k, bad in enumerate((True, False)):
        start = weights(model)
        optimizer.zero_grad()
        x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(k))
        scaler.scale(model(x).square().mean()).backward()
        if bad:
            model[2].weight.grad[0, 0, 0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True)) == bad


@pytest.mark.parametrize("application", ["gradient", "proximal"])
def test_scaled_and_plain_gradients_give_the_same_steps_and_decisions(application):
    results = []
    for scale in (1024.0, None):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        rules = ws.attach(optimizer, model, L1(0.02, application=application, gate=Coherent("total", threshold=0.6)))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for k in range(4):
            optimizer.zero_grad()
            x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(k))
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((weights(model), rules.duty_cycles))
    assert results[0][1] == results[1][1]
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weights_on_a_manifold_stay_there():
    sphere = ws.manifolds.Sphere(on=ws.on.name("2.weight"))
    for term in (L1(0.1), L1(0.1, application="proximal"), CautiousWeightDecay(0.1)):
        model, rules = trained(term, sphere, steps=5, make=lambda p: torch.optim.SGD(p, lr=0.1))
        norms = model[2].weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(6), rtol=1e-5, atol=1e-5)
        assert all(check.holds for check in rules.verify())


def test_optimizers_that_ascend_take_what_acts_after_the_step_only():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(
        AttachError, match="maximize=True and would make L1.* as large as it can; minimize the negative"
    ):
        ws.attach(optimizer, model, L1(0.1))
    ws.attach(optimizer, model, L1(0.1, application="proximal"))


# --------------------------------------------------------------------------------------------- what gates see


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("against", ["total", "history", "previous"])
def test_gates_see_the_gradient_after_metrics_and_before_any_penalty(against, scope):
    """Every decision of five steps, computed once more from deep copies of the model."""
    threshold = {"total": 0.2, "history": 0.3, "previous": 0.1}[against] if scope == "global" else 0.3
    gate = Coherent(against, threshold=threshold, decay=0.5, scope=scope)
    term, other, metric = L1(0.05, gate=gate), L2(0.5), ChannelL2(on=ws.on.convs)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, other, term, metric)
    memory = {name: torch.zeros_like(model.get_parameter(name)) for name in WEIGHTS}
    counts = dict.fromkeys(WEIGHTS, 0)
    seen, cosines = set(), []
    for k in range(6):
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        grads = gradients(model, k)
        g = {n: grads[n] if n == "6.weight" else transform_gradient(metric, grads[n]) for n in WEIGHTS}
        compared = {n: g[n] + 0.05 * start[n].sign() if against == "total" else memory[n] for n in WEIGHTS}
        flat = [torch.cat([x[n].flatten() for n in WEIGHTS]) for x in (g, compared)]
        run(model, optimizer, k, k + 1)
        for n in WEIGHTS:
            a, b = flat if scope == "global" else (g[n].flatten(), compared[n].flatten())
            cosine = float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))
            is_open = cosine >= threshold
            seen.add(is_open)
            cosines.append(round(cosine, 3))
            counts[n] += is_open
            assert rules.duty_cycles[n][str(term)] == pytest.approx(counts[n] / (k + 1)), (k, n, cosine)
            measured = rules.measurements[n]["cosine"]
            assert measured == pytest.approx(cosine, abs=1e-5, nan_ok=True)
            added = 0.5 * start[n] + (0.05 * start[n].sign() if is_open else 0.0)
            torch.testing.assert_close(model.get_parameter(n).detach(), start[n] - 0.1 * (g[n] + added))
            memory[n] = 0.5 * memory[n] + 0.5 * g[n] if against == "history" else g[n]
    assert seen == {True, False}, cosines


def test_every_kth_step_is_asked_only():
    _, rules = trained(L1(0.1, every=3, gate=RandomGate(1.0)), L2(0.1, every=2, gate=Delayed(3)), steps=7)
    state = rules.state_dict()["penalties"]["2.weight"]
    assert [int(state[i]["gate.asked"]) for i in ("0", "1")] == [3, 4]  # steps 0, 3, 6 and 0, 2, 4, 6
    assert [int(state[i]["gate.opened"]) for i in ("0", "1")] == [3, 2]


def test_a_gate_of_a_penalty_without_strength_changes_nothing():
    for against in ("total", "history"):
        gated, rules = trained(L1(0.0, gate=Coherent(against)), steps=3)
        plain, _ = trained(ChannelL2(smoothing=1.0, on=ws.on.name("nothing*") | ws.on.head), steps=0)
        optimizer = OPTIMIZERS["SGD"](plain.parameters())
        run(plain, optimizer, 0, 3)
        assert equal(gated, plain)
        assert not rules.vanished
    assert set(trained(L1(0.0, gate=Coherent("total")), steps=3)[1].duty_cycles["2.weight"].values()) == {1.0}


def test_always_is_no_gate():
    one, rules = trained(L1(0.01), steps=3)
    two, _ = trained(L1(0.01, gate=Always()), steps=3)
    three, _ = trained(L1(0.01, gate=Delayed(0)), steps=3)
    assert equal(one, two)
    assert equal(one, three)
    assert rules.duty_cycles == {}


def test_delayed_penalties_act_from_their_step_on():
    plain, _ = trained(L1(0.0), steps=3)
    same, _ = trained(L1(0.1, gate=Delayed(3)), steps=3)
    later, rules = trained(L1(0.1, gate=Delayed(3)), steps=4)
    assert equal(plain, same)
    assert not equal(later, trained(L1(0.0), steps=4)[0])
    assert rules.duty_cycles["2.weight"] == {str(L1(0.1, gate=Delayed(3))): 0.25}


def test_random_gates_draw_by_layer_or_for_all():
    _, layered = trained(L1(0.0, gate=RandomGate(0.5)), steps=12)
    _, shared = trained(L1(0.0, gate=RandomGate(0.5, scope="global")), steps=12)
    counts = [layered.duty_cycles[n][str(layered.rules[0])] for n in WEIGHTS]
    assert len(set(counts)) > 1
    assert len({next(iter(shared.duty_cycles[n].values())) for n in WEIGHTS}) == 1


def test_several_gates_on_one_weight_are_reported_apart():
    terms = (
        L1(0.01, gate=Coherent()), L2(0.01, gate=RandomGate(0.5)), SingularValueBand(1, 1, weight=0.1, gate=Coherent("history")),
    )  # fmt: skip
    _, rules = trained(*terms, CautiousWeightDecay(0.01), measure_every=1)
    keys = set(rules.measurements["2.weight"])
    assert {"L1", "L2", "SingularValueBand", "CautiousWeightDecay", "duty", "cosine", "zeros"} <= keys
    assert {"duty of L2", "duty of SingularValueBand", "cosine of SingularValueBand"} <= keys
    assert set(rules.duty_cycles["2.weight"]) == {str(t) for t in terms}
    assert rules.measurements["2.weight"]["zeros"] == 0.0


# --------------------------------------------------------------------------------------------- operator penalties


class Counting(SingularValueBand):
    """Counts its evaluations."""

    calls = 0

    def evaluate(self, operator, memory=None):
        type(self).calls += 1
        return super().evaluate(operator, memory)


@pytest.mark.parametrize(
    ("gate", "evaluations"),
    [
        (Always(), 16),
        (Delayed(3), 4),
        (RandomGate(0.0), 0),
        (RandomGate(1.0), 16),
        *((Coherent(against, threshold=-1.0), 16) for against in AGAINST),
        (Coherent("history", threshold=1.0), 16),  # closed, and asked again at each step
    ],
    ids=str,
)
def test_operator_penalties_behind_every_gate(gate, evaluations):
    Counting.calls = 0
    model, rules = trained(Counting(1.0, 1.0, weight=0.1, gate=gate))
    assert Counting.calls == evaluations  # four steps on four weights; what a schedule keeps closed is not computed
    free, _ = trained(SingularValueBand(1.0, 1.0, weight=0.0))
    is_closed = evaluations == 0 or getattr(gate, "threshold", None) == 1.0
    assert equal(model, free) == is_closed
    state = rules.state_dict()["penalties"]["2.weight"]["0"]
    assert isinstance(gate, Always) or int(state["gate.asked"]) == 4
    assert rules.verify()


# --------------------------------------------------------------------------------------------- lookahead


class Noisy(nn.Module):
    """Everything that a second pass could disturb: dropout, statistics, a buffer that is replaced, a foreign weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.head, self.foreign = nn.Linear(6, 3), nn.Linear(3, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.masks = []

    def forward(self, x):
        self.passes = self.passes + 1
        y = self.drop(torch.relu(self.norm(self.conv(x))))
        self.masks.append((y == 0).detach())
        return self.foreign(self.head(y.mean((2, 3))))


def noisy_step(gate, zero="zero_grad", penalty=None):
    model = Noisy()
    optimizer = torch.optim.SGD([*model.conv.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, model, penalty or L1(0.5, gate=gate, on=ws.on.name("conv") & ws.on.convs))
    losses = []

    def closure():
        if zero == "zero_grad":
            optimizer.zero_grad()
        elif zero == "in place":
            optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(
            model(torch.ones(5, 2, 6, 6) * torch.arange(5.0)[:, None, None, None]), torch.tensor([0, 1, 2, 0, 1])
        )
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    torch.manual_seed(7)
    optimizer.step(closure)
    return model, rules, losses, torch.rand(3)


@pytest.mark.parametrize("zero", ["zero_grad", "in place", "not at all"])
def test_looking_ahead_leaves_everything_as_one_pass_leaves_it(zero):
    seen, rules, losses, numbers = noisy_step(Coherent("lookahead", threshold=1.0), zero)  # closed: it only looks
    plain, _, once, expected = noisy_step(Delayed(9), zero)
    assert rules.needs_closure
    assert len(losses) == 2
    assert len(once) == 1
    assert losses[0] == once[0] != losses[1]
    assert torch.equal(numbers, expected)
    a, b = seen.state_dict(), plain.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in b)
    assert float(seen.passes) == 1.0
    assert torch.equal(seen.masks[0], plain.masks[0])
    assert rules.measurements["conv.weight"]["cosine"] < 0.999
    for (name, p), q in zip(seen.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


def test_the_second_pass_drops_the_same_units():
    model, *_ = noisy_step(Coherent("lookahead"), penalty=L2(1e-9, gate=Coherent("lookahead")))
    assert torch.equal(model.masks[0], model.masks[1])


@pytest.mark.parametrize("application", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", ["L1", "GramFrobenius", "SingularValueBand"])
def test_looking_ahead_compares_with_the_gradient_at_the_moved_weights(kind, application):
    gate = Coherent("lookahead", threshold=0.99)
    if kind == "L1":
        term = L1(0.3, every=2, application=application, gate=gate)
    elif application == "gradient":
        cls = GramFrobenius if kind == "GramFrobenius" else lambda **o: SingularValueBand(1.0, 1.0, **o)
        term = cls(weight=0.3, every=2, gate=gate)
    else:
        return
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    rules = ws.attach(optimizer, model, term)
    start, first = copy.deepcopy(model), gradients(model, 0)
    moved = copy.deepcopy(model)
    sizes = {0: 8, 2: 6, 4: 4, 6: None}
    for i, size in sizes.items():
        w = moved[i].weight.data
        if kind != "L1":
            w -= 0.2 * 0.3 * 2 * term.evaluate(ws.operators.operator_of(start[i], size))[1]
        elif application == "gradient":
            w -= 0.2 * 0.3 * 2 * w.sign()
        else:
            w.copy_(w.sign() * (w.abs() - 0.2 * 0.3 * 2).clamp_min(0))
    second = gradients(moved, 0)
    run(model, optimizer)
    for name in WEIGHTS:
        cosine = torch.cosine_similarity(first[name].flatten(), second[name].flatten(), dim=0)
        assert rules.measurements[name]["cosine"] == pytest.approx(float(cosine), abs=2e-5), name
        assert next(iter(rules.duty_cycles[name].values())) == float(cosine >= 0.99), name


def test_without_a_closure_a_step_says_what_to_do():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, L1(0.1, gate=Coherent("lookahead")))
    assert rules.needs_closure
    backward(model)
    start = weights(model)
    with pytest.raises(AttachError, match=r"call optimizer\.step\(closure\) with a closure that zeroes the gradients"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))
    rules.remove()
    assert not ws.attach(optimizer, model, L1(0.1, gate=Coherent())).needs_closure


def test_a_closure_that_fails_ahead_leaves_the_weights_where_they_were():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, L1(0.1, gate=Coherent("lookahead")))
    start, calls = weights(model), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        optimizer.zero_grad()
        return backward(model)

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


# --------------------------------------------------------------------------------------------- state, copies, nesting


GATES = [Delayed(3), RandomGate(0.5), *map(Coherent, AGAINST), Coherent("history", scope="global")]


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_resume_and_copies_are_bit_exact(gate):
    terms = (L1(0.02, gate=gate), L2(0.02, application="proximal", gate=gate))
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rules = ws.attach(optimizer, model, *terms)
    run(model, optimizer, 0, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rules.state_dict()))
    twin, twin_optimizer, twin_rules = copy.deepcopy((model, optimizer, rules))
    run(model, optimizer, 2, 5)
    run(twin, twin_optimizer, 2, 5)
    other = make_model(seed=1)
    resumed_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    resumed = ws.attach(resumed_optimizer, other, *terms)
    for target, state in zip((other, resumed_optimizer, resumed), saved, strict=True):
        target.load_state_dict(state)
    run(other, resumed_optimizer, 2, 5)
    assert equal(model, twin)
    assert equal(model, other)
    assert rules.duty_cycles == twin_rules.duty_cycles == resumed.duty_cycles
    assert rules.duty_cycles


class Nested(torch.optim.SGD):
    """An optimizer whose step calls its parent's: torch fires its hooks twice."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("gate", GATES[:5], ids=str)
@pytest.mark.parametrize("application", ["gradient", "proximal"])
def test_a_step_within_a_step_asks_and_shrinks_once(gate, application):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # hooks SGD.step itself
    results = []
    for make in (torch.optim.SGD, Nested):
        model = make_model()
        optimizer = make(model.parameters(), lr=0.1, momentum=0.9)
        rules = ws.attach(optimizer, model, L1(0.05, application=application, gate=gate))
        for k in range(4):
            optimizer.zero_grad()
            backward(model, k)
            optimizer.step()
        asked = int(rules.state_dict()["penalties"]["2.weight"]["0"]["gate.asked"])
        results.append((model, rules.duty_cycles, rules.steps, asked))
    assert equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_removed_rules_act_no_more():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, L1(0.5, application="proximal", gate=RandomGate(1.0)))
    run(model, optimizer)
    rules.remove()
    assert rules.duty_cycles == rules.vanished == {}
    start = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), start, strict=True))


def test_weights_without_a_gradient_are_not_shrunk_nor_asked():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(optimizer, model, L1(0.1, application="proximal", gate=Coherent(threshold=-1.0)))
    backward(model)
    model[2].weight.grad = None
    start = weights(model)
    optimizer.step()
    assert torch.equal(model[2].weight, start[2])
    assert "2.weight" not in rules.duty_cycles
    assert not torch.equal(model[4].weight, start[4])


# --------------------------------------------------------------------------------------------- vanished weights


def vanish(strength=10.0, steps=100, application="proximal", gate=ALWAYS):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.features = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rules = ws.attach(
        optimizer, model, L1(strength, application=application, gate=gate, on=ws.on.name("features.3.weight"))
    )
    for k in range(steps):
        optimizer.zero_grad()
        model.features(torch.randn(8, 3, generator=torch.Generator().manual_seed(k))).square().mean().backward()
        optimizer.step()
    return model, optimizer, rules


def test_weights_that_vanish_are_named_once_and_leave_the_list_when_they_come_back():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, optimizer, rules = vanish(steps=150)
    messages = [str(w.message) for w in caught if issubclass(w.category, VanishedWeightsWarning)]
    assert len(messages) == 1
    assert messages[0].startswith("all weights of features.3 are zero since step 50: strength above tolerance")
    assert rules.vanished == {"features.3.weight": 50}
    assert rules.measurements["features.3.weight"]["zeros"] == 1.0
    copied = copy.deepcopy((model, optimizer, rules))[2]
    assert copied.vanished == rules.vanished
    optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        model.features[3].weight.fill_(1.0)
    for _ in range(50):
        optimizer.step()
    assert rules.vanished == {}


@pytest.mark.parametrize(
    ("strength", "application", "gate", "expected"),
    [
        (10.0, "gradient", Always(), True),  # it chatters around zero
        (1e-4, "gradient", Always(), False),
        (1e-4, "proximal", Always(), False),
        (10.0, "proximal", Delayed(1000), False),
        (40.0, "gradient", Delayed(1000), False),  # chatter is longer than the weights: not a sign behind a gate
    ],
)
def test_only_weights_that_vanished_are_reported(strength, application, gate, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, _, rules = vanish(strength, 50, application, gate)
    assert (rules.vanished == {"features.3.weight": 50}) == expected
    assert bool(rules.vanished) == expected


# --------------------------------------------------------------------------------------------- decisions on a device


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Decisions stay tensors that nobody reads, as on an accelerator."""
    monkeypatch.setattr(_gates, "is_read_at_once", lambda _: False)


RULES = [
    *(L1(0.05, gate=Coherent(against, threshold=0.3)) for against in AGAINST),
    L1(0.05, application="proximal", gate=Coherent("total", threshold=0.3)),
    L1(0.05, gate=Coherent("history", scope="global")),
    CautiousWeightDecay(0.3, gate=Coherent("history")),
    L2(0.05, gate=Coherent("previous")),
    GroupL1(0.05, application="proximal", gate=Coherent("previous")),
    ElasticNet(0.05, gate=Coherent("total")),
    GramFrobenius(weight=0.05, gate=Coherent("total")),
]


@pytest.mark.parametrize("term", RULES, ids=str)
def test_decisions_as_tensors_equal_decisions_as_numbers(term, monkeypatch):
    model, rules = trained(term, steps=6)
    monkeypatch.setattr(_gates, "is_read_at_once", lambda _: False)
    other, others = trained(term, steps=6)
    assert rules.duty_cycles == others.duty_cycles
    if isinstance(term, L1 | CautiousWeightDecay):
        assert equal(model, other)
    else:  # a multiplication and an addition in one rounding or in two
        for a, b in zip(weights(model), weights(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Syncs(TorchDispatchMode):
    """Counts numbers that are read from floating-point or boolean tensors: each would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_read = func is torch.ops.aten._local_scalar_dense.default
        if is_read and args[0].dtype != torch.int64:  # the count of steps lives on the CPU
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("check_finite", [True, False])
@pytest.mark.parametrize("term", [t for t in RULES if not isinstance(t, GramFrobenius)], ids=str)
def test_a_step_waits_for_the_device_once(term, check_finite):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ws.attach(optimizer, model, term, check_finite=check_finite)
    run(model, optimizer, 0, 2)
    with Syncs() as syncs:
        run(model, optimizer, 2, 3)
    assert syncs.count == (1 if check_finite else 0)
