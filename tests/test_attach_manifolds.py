"""Constraints on any torch optimizer, through `attach`."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, SelectionError, VerificationError
from weightspace.manifolds import Oblique, Product, Sphere, Stiefel
from weightspace.optim._manifolds import momentum_keys

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)]
    return nn.Sequential(*layers).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, generator=g).to(next(model.parameters()))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 4)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def read(manifold, weight, tensor=None):
    return manifold.points_of(weight, ws.kernels.Channels()).read(weight.detach() if tensor is None else tensor)


@pytest.mark.parametrize("manifold", [Sphere(), Oblique("slice"), Stiefel(), Stiefel("slice")], ids=lambda m: m.text())
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_stays_on_it_with_tangent_momentum_while_the_loss_falls(name, manifold):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    rules = ws.attach(optimizer, model, manifold)
    losses = train(model, optimizer, 12)
    assert losses[-1] < losses[0]
    checks = rules.verify()
    assert {c.parameters[0] for c in checks} == {"0.weight", "2.weight"}
    for weight in (model[0].weight, model[2].weight):
        for key in momentum_keys(optimizer):
            x, m = read(manifold, weight), read(manifold, weight, optimizer.state[weight][key])
            off = (m - manifold.project_tangent(x, m)).norm() / m.norm()
            assert float(off) < 1e-5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_muon_on_linear_layers():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.02)
    rules = ws.attach(optimizer, model, Stiefel(on=ws.on.linears & ~ws.on.head))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    rules.verify()


def test_sgd_without_momentum_is_the_retraction_of_the_riemannian_gradient():
    model = make_model(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.1)
    ws.attach(optimizer, model, Stiefel())
    x = read(Stiefel(), model[2].weight).clone()
    train(model, optimizer, 1)
    g = read(Stiefel(), model[2].weight, model[2].weight.grad)
    v = g - (g @ x.mT + x @ g.mT) / 2 @ x
    u, _, vt = torch.linalg.svd(x - 0.3 * v, full_matrices=False)
    torch.testing.assert_close(read(Stiefel(), model[2].weight), u @ vt, rtol=1e-10, atol=1e-12)


def test_the_gradient_that_backward_made_is_left_alone_and_metrics_and_penalties_act_before():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = ws.attach(
        optimizer,
        model,
        Sphere(),
        ws.penalties.GramFrobenius(weight=1e-2, input_size=8),
        ws.metrics.ChannelL2(),
        measure_every=1,
    )
    assert [type(r).__name__ for r in rules.rules] == ["ChannelL2", "GramFrobenius", "Sphere"]
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert rules.measurements["0.weight"]["R"] > 0
    rules.verify()


def test_moved_weights_are_reported_in_the_table():
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, Stiefel())
    assert set(rules.moved) == {"0.weight", "2.weight"}
    assert "moved by" in str(rules.table())
    assert "matrix (1 × 8 × 27)" in str(rules.table())
    assert rules.fallbacks == {"0.weight": 0, "2.weight": 0}


# ---------------------------------------------------------------- in force, whatever happens to the weights


def test_loaded_weights_are_moved_at_once():
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, Stiefel())
    model.load_state_dict(make_model().state_dict())
    rules.verify()
    rules.remove()
    plain = make_model().state_dict()
    model.load_state_dict(plain)
    assert all(torch.equal(plain[k], v) for k, v in model.state_dict().items())


def test_a_deliberately_broken_constraint_is_caught_and_named():
    model = make_model()
    rules = ws.attach(torch.optim.SGD(model.parameters(), lr=0.0), model, Sphere())
    model[2].weight.data[3] *= 1.001
    with pytest.raises(VerificationError, match=r"sphere\(filter\) on 2\.weight: .*found to hold up to 1\.00e-03"):
        rules.verify()


def test_a_change_of_dtype_keeps_the_constraint_in_force():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, model, Stiefel())
    train(model, optimizer, 2)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        optimizer.state.clear()
        model.to(dtype)
        train(model, optimizer, 2)
        rules.verify()


def test_copies_and_removed_rules():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, model, Stiefel())
    train(model, optimizer, 2)
    twin, other, copied = copy.deepcopy((model, optimizer, rules))
    train(model, optimizer, 2)
    train(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    copied.verify()
    rules.remove()
    train(model, optimizer, 2)
    copied.verify()
    lone = copy.deepcopy(model)
    lone.load_state_dict(make_model().state_dict())


def test_products_drawn_anew_move_before_the_next_forward_pass():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rule = Product(("sphere(slice)", "orthogonal(slice)"), assignment="random", every=2)
    rules = ws.attach(optimizer, model, rule)
    for _ in range(5):
        train(model, optimizer, 1)
        rules.verify()
    first, second = (rule.assign(8, "2.weight", epoch)[0].tolist() for epoch in (0, 1))
    assert first != second


def test_a_step_of_nan_is_refused_before_anything_changes():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    ws.attach(optimizer, model, Sphere())
    train(model, optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad[0] = math.nan
    with pytest.raises(NonFiniteGradientError, match=r"0\.weight holds 27 NaN"):
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_grad_scaler_skips_and_unscales():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, model, Stiefel())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(2, 3, 8, 8)).square().mean()).backward()
        if bad:
            model[0].weight.grad[0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        rules.verify()


# ---------------------------------------------------------------- what is refused, what is warned about


def test_optimizers_whose_state_is_not_known_are_refused_unless_they_declare_it():
    class Mine(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        state = self.state[p]
                        state["velocity"] = 0.9 * state.get("velocity", 0) + p.grad
                        p.data.add_(state["velocity"], alpha=-0.1)

    model = make_model()
    with pytest.raises(AttachError, match="What Mine keeps between steps is not known"):
        ws.attach(Mine(model.parameters()), model, Sphere())
    with pytest.raises(AttachError, match="What Rprop keeps"):
        ws.attach(torch.optim.Rprop(model.parameters()), model, Sphere())
    optimizer = Mine(model.parameters())
    optimizer.weightspace_momentum = ("velocity",)
    rules = ws.attach(optimizer, model, Sphere())
    train(model, optimizer, 3)
    rules.verify()
    x, m = (
        read(Sphere(), model[0].weight),
        read(Sphere(), model[0].weight, optimizer.state[model[0].weight]["velocity"]),
    )
    assert float((x * m).sum((-2, -1)).abs().max()) < 1e-6


def test_two_constraints_on_one_weight_are_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SelectionError, match=r"0\.weight is on two manifolds"):
        ws.attach(optimizer, model, Sphere(), Stiefel())
    constrained = ws.optim.SubmanifoldSGD(ws.param_groups(model, {ws.on.convs: Sphere()}), lr=0.1)
    with pytest.raises(AttachError, match=r"is on sphere\(filter\) in this SubmanifoldSGD already"):
        ws.attach(constrained, model, Stiefel())
    ws.attach(constrained, model, ws.metrics.ChannelL2())


def test_corrections_now_and_then_belong_to_submanifold_sgd():
    model = make_model()
    with pytest.raises(RuleError, match="SubmanifoldSGD"):
        ws.attach(torch.optim.SGD(model.parameters(), lr=0.1), model, Stiefel(every=4))


def test_weight_decay_is_harmless_or_warned_about():
    model = make_model()
    with pytest.warns(UserWarning, match=r"Adam adds weight_decay=0\.1 to the gradient of 0\.weight"):
        ws.attach(torch.optim.Adam(model.parameters(), weight_decay=0.1), model, Sphere())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (torch.optim.AdamW, torch.optim.SGD):
            model = make_model()
            ws.attach(make(model.parameters(), lr=0.1, weight_decay=0.1), model, Sphere())


def test_weight_decay_of_sgd_changes_nothing_on_a_sphere():
    ends = []
    for decay in (0.0, 0.5):
        model = make_model(torch.float64)
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
        ws.attach(optimizer, model, Sphere())
        for k in range(5):
            model[0].weight.grad = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(k)).double()
            optimizer.step()
        ends.append(model[0].weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)
