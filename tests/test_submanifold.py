"""SubmanifoldSGD and SubmanifoldAdam: equal to torch where nothing is constrained, to loops in numpy where something is."""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, SelectionError, VerificationError
from weightspace.manifolds import Constraint, Oblique, Orthogonal, Product, Sphere, Stiefel, ZeroMeanSphere
from weightspace.manifolds._moves import curvature_factor
from weightspace.optim import PowerDecayLR, SubmanifoldAdam, SubmanifoldSGD, convergence_conditions

MANIFOLDS = [
    Sphere(),
    Sphere("slice", radius=2.0),
    ZeroMeanSphere(),
    Oblique(),
    Oblique("input"),
    Stiefel(),
    Stiefel(retraction="qr"),
    Stiefel(metric="canonical"),
    Stiefel(tolerance=1e-2),
    Stiefel(every=3),
    Stiefel("both"),
    Orthogonal("slice"),
    Product(("sphere(slice)", "stiefel(slice)"), assignment="random", every=2),
    Product(("stiefel(matrix)", "sphere(filter)"), over="output"),
    Product(("orthogonal(slice)", "zeromeansphere(slice)"), over="slice", shares=(1, 3)),
]


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)]
    return nn.Sequential(*layers).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> float:
    loss = torch.zeros(())
    for k in range(start, stop):
        g = torch.Generator().manual_seed(k % 2)
        x = torch.randn(8, 3, 8, 8, generator=g).to(next(model.parameters()))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(8, device=x.device) % 4)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def sgd_on(model: nn.Module, manifold: ws.manifolds.Manifold, **options: object) -> SubmanifoldSGD:
    return SubmanifoldSGD(ws.param_groups(model, {ws.on.convs: manifold}), **{"lr": 0.1, "momentum": 0.9, **options})


class SlowConstraint(Constraint):
    keeps_tangent = False


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---------------------------------------------------------------- nothing constrained: torch, bit for bit


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-3},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ],
)
def test_sgd_without_a_manifold_is_torch_bit_for_bit(options, foreach):
    model, plain = make_model(), make_model()
    train(model, SubmanifoldSGD(model.parameters(), lr=0.1, foreach=foreach, **options), 0, 5)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, foreach=foreach, **options), 0, 5)
    assert equal(model, plain)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 1e-2, "amsgrad": True}, {"betas": (0.8, 0.9), "maximize": True}]
)
def test_adam_without_a_manifold_is_torch_bit_for_bit(options, decoupled):
    model, plain = make_model(), make_model()
    train(model, SubmanifoldAdam(model.parameters(), lr=0.01, decoupled_weight_decay=decoupled, **options), 0, 5)
    torch_adam = torch.optim.AdamW if decoupled else torch.optim.Adam
    train(plain, torch_adam(plain.parameters(), **{"lr": 0.01, "weight_decay": 0.0, **options}), 0, 5)
    assert equal(model, plain)


# ---------------------------------------------------------------- independent references in numpy


def numpy_polar(a: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


def reference_stiefel_step(x, m, lr):
    """One step of momentum m on a wide X with orthonormal rows, step size of the paper's kind, rho = 1."""
    sym = (m @ x.T + x @ m.T) / 2
    v = m - sym @ x
    norm = np.sqrt((v * v).sum())
    r = math.sqrt(max(1.0, norm**2 * max((2 + norm) ** 2, 1 + math.sqrt(0.5) * (1 + norm))))
    return numpy_polar(x - lr / r * v)


def test_stiefel_follows_a_loop_in_numpy():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    optimizer = SubmanifoldSGD([{"params": [weight], "manifold": Stiefel()}], lr=0.5, momentum=0.9, dampening=0.2)
    x = weight.detach().numpy().reshape(4, 27).copy()
    np.testing.assert_allclose(x @ x.T, np.eye(4), atol=1e-12)
    m = np.zeros_like(x)
    for k in range(6):
        g = np.random.default_rng(k).normal(size=x.shape)
        m = 0.9 * m + (1.0 if k == 0 else 0.8) * g  # as in torch, the first gradient is not dampened
        x = reference_stiefel_step(x, m, 0.5)
        weight.grad = torch.from_numpy(g).view(4, 3, 3, 3)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy().reshape(4, 27), x, atol=1e-12)


def test_geodesic_steps_on_spheres_have_the_length_that_the_step_size_says():
    weight = nn.Parameter(torch.randn(5, 2, 3, 3, dtype=torch.float64))
    optimizer = SubmanifoldSGD([{"params": [weight], "manifold": Sphere()}], lr=0.3, update="geodesic")
    for k in range(4):
        before = weight.detach().clone().view(1, 5, 1, 18)
        weight.grad = 10.0**k * torch.randn(5, 2, 3, 3, dtype=torch.float64)
        tangent = Sphere().project_tangent(before, weight.grad.view(1, 5, 1, 18)).norm(dim=(-2, -1))
        optimizer.step()
        length = Sphere().distance(before, weight.detach().view(1, 5, 1, 18))
        factor = curvature_factor(tangent.square(), 1.0, 0.0)
        torch.testing.assert_close(length, 0.3 * tangent / factor)
        assert float(length.max()) <= 0.3


def test_one_step_size_for_the_factors_of_a_product():
    """The slices of a filter under `input` share r; alone each has its own. Steep slices then slow the others down."""
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    gradient = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    gradient[0, 0] *= 100
    ends = {}
    for grouping in ("slice", "input", "output", "both"):
        w = nn.Parameter(weight.clone())
        optimizer = SubmanifoldSGD([{"params": [w], "manifold": Sphere(grouping)}], lr=0.1)
        start = w.detach().clone()
        w.grad = gradient.clone()
        optimizer.step()
        ends[grouping] = (w.detach() - start).norm(dim=(-2, -1))
        expected = {"slice": (1, 2, 3), "input": (1, 2, 1), "output": (1, 1, 3), "both": (1, 1, 1)}[grouping]
        assert tuple(optimizer._figures[id(w)].factor.shape) == expected
    slow, free = ends["input"], ends["slice"]
    assert float(slow[0, 1]) < 0.2 * float(free[0, 1])
    assert float(ends["output"][1, 0]) < 0.2 * float(free[1, 0])
    assert float(ends["both"][1, 2]) < 0.2 * float(free[1, 2])


def test_adam_has_one_second_moment_a_point_and_steps_of_length_lr():
    weight = nn.Parameter(torch.randn(5, 2, 3, 3, dtype=torch.float64))
    optimizer = SubmanifoldAdam([{"params": [weight], "manifold": Sphere()}], lr=1e-3, update="geodesic")
    before = weight.detach().clone().view(1, 5, 1, 18)
    weight.grad = torch.randn(5, 2, 3, 3, dtype=torch.float64) * torch.logspace(-3, 3, 5).view(5, 1, 1, 1)
    optimizer.step()
    assert optimizer.state[weight]["exp_avg_sq"].shape == (1, 5, 1, 1)
    length = Sphere().distance(before, weight.detach().view(1, 5, 1, 18))
    torch.testing.assert_close(length, torch.full((1, 5), 1e-3 * math.sqrt(17), dtype=torch.float64), rtol=1e-4, atol=0)


# ---------------------------------------------------------------- every manifold


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: m.text())
class TestEveryManifold:
    def test_weights_start_and_stay_on_it_while_the_loss_falls(self, manifold):
        model = make_model()
        optimizer = sgd_on(model, manifold)
        assert set(optimizer.moved) == {"0.weight", "2.weight"}
        optimizer.verify()
        first = train(model, optimizer, 0, 1)
        last = train(model, optimizer, 1, 25)
        assert last < first
        for check in optimizer.verify():
            assert check.holds
            assert check.parameters[0] in ("0.weight", "2.weight")

    def test_adam_stays_on_it_while_the_loss_falls(self, manifold):
        model = make_model()
        optimizer = SubmanifoldAdam(ws.param_groups(model, {ws.on.convs: manifold}), lr=0.01)
        first = train(model, optimizer, 0, 1)
        assert train(model, optimizer, 1, 15) < first
        assert len(optimizer.verify()) == 2

    @pytest.mark.parametrize("kind", ["SGD", "Adam"])
    def test_resume_is_bit_exact_through_a_file_without_pickle(self, manifold, kind):
        def build(model):
            groups = ws.param_groups(model, {ws.on.convs: manifold})
            if kind == "SGD":
                return SubmanifoldSGD(groups, lr=0.1, momentum=0.9)
            return SubmanifoldAdam(groups, lr=0.01, amsgrad=True)

        model = make_model()
        optimizer = build(model)
        train(model, optimizer, 0, 3)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        train(model, optimizer, 3, 6)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        twin = make_model()
        resumed = build(twin)
        twin.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(twin, resumed, 3, 6)
        assert equal(model, twin)

    def test_a_copy_of_model_and_optimizer_goes_on_alike(self, manifold):
        model = make_model()
        optimizer = sgd_on(model, manifold)
        train(model, optimizer, 0, 3)
        twin, other = copy.deepcopy((model, optimizer))
        train(model, optimizer, 3, 5)
        train(twin, other, 3, 5)
        assert equal(model, twin)
        again = pickle.loads(pickle.dumps(optimizer))
        assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]

    def test_16_bit_weights_stay_within_their_resolution(self, manifold):
        model = make_model()
        optimizer = sgd_on(model, manifold)
        train(model, optimizer, 0, 2)
        model.to(torch.bfloat16)
        train(model, optimizer, 2, 6)
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        assert len(optimizer.verify()) == 2

    def test_channels_last_weights_keep_their_strides(self, manifold):
        model = make_model().to(memory_format=torch.channels_last)
        optimizer = sgd_on(model, manifold)
        strides = [p.stride() for p in model.parameters()]
        first = train(model, optimizer, 0, 1)
        assert train(model, optimizer, 1, 15) < first
        assert [p.stride() for p in model.parameters()] == strides
        optimizer.verify()

    def test_nan_gradients_are_refused_and_nothing_is_touched(self, manifold):
        model = make_model()
        optimizer = sgd_on(model, manifold)
        train(model, optimizer, 0, 2)
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        model[2].weight.grad[0, 0, 0, 0] = math.nan
        with pytest.raises(NonFiniteGradientError, match=r"gradient of 2\.weight holds 1 NaN"):
            optimizer.step()
        after = (model.state_dict(), optimizer.state_dict()["state"])
        assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
        for k, saved in before[1].items():
            assert all(torch.equal(v, after[1][k][key]) for key, v in saved.items())

    def test_absurd_steps_end_on_the_manifold(self, manifold):
        model = make_model()
        optimizer = sgd_on(model, manifold, lr=1e6, step_size="plain", momentum=0.0)
        train(model, optimizer, 0, 2)
        assert all(torch.isfinite(p).all() for p in (model[0].weight, model[2].weight))
        if not (isinstance(manifold, Stiefel) and manifold.every > 1):
            optimizer.verify()


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "manifold", [Sphere(), Stiefel(), Stiefel(metric="canonical"), Oblique()], ids=lambda m: m.text()
)
def test_carried_momentum_is_tangent(manifold):
    model = make_model(torch.float64)
    optimizer = sgd_on(model, manifold, transport="norm")
    train(model, optimizer, 0, 4)
    for weight in (model[0].weight, model[2].weight):
        view = manifold.points_of(weight, ws.kernels.Channels())
        x, m = view.read(weight.detach()), view.read(optimizer.state[weight]["momentum_buffer"])
        torch.testing.assert_close(manifold.project_tangent(x, m), m, rtol=1e-10, atol=1e-12)


def test_norm_transport_keeps_the_length_and_projection_does_not():
    ends = {}
    for transport in ("projection", "norm"):
        w = nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        optimizer = SubmanifoldSGD(
            [{"params": [w], "manifold": Sphere("kernel")}],
            lr=1.0,
            momentum=0.9,
            step_size="plain",
            transport=transport,
        )
        w.grad = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
        optimizer.step()  # to (1, 1) / sqrt(2): the angle between the tangents is 45 degrees
        before = w.detach().clone()
        w.grad = torch.zeros(1, 2, dtype=torch.float64)
        optimizer.step()  # by momentum alone
        ends[transport] = math.tan(float(Sphere().distance(before, w.detach())))
    assert ends["norm"] == pytest.approx(0.9)
    assert ends["projection"] == pytest.approx(0.9 * math.sqrt(0.5))


@pytest.mark.parametrize("step_size", ["plain", "curvature"])
@pytest.mark.parametrize("manifold", [m for m in MANIFOLDS if not isinstance(m, Product)], ids=lambda m: m.text())
def test_projected_momentum_takes_the_steps_of_momentum_that_is_carried(manifold, step_size):
    """The fast way keeps the tangent part at the old point, the slow one projects it to the new point at once."""
    ends = []
    for is_fast in (True, False):
        model = make_model(torch.float64)
        if manifold.is_slack:
            continue
        optimizer = sgd_on(model, manifold, transport="projection", step_size=step_size)
        if not is_fast:
            for group in optimizer.param_groups[:1]:
                for k, weight in enumerate(group["params"]):
                    optimizer._constraint(weight, group, k).__class__ = SlowConstraint
        train(model, optimizer, 0, 6)
        ends.append([p.detach() for p in model.parameters()])
    for pair in zip(*ends, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


def test_plain_and_curvature_agree_for_small_gradients():
    ends = []
    for step_size in ("plain", "curvature"):
        w = nn.Parameter(torch.eye(3, dtype=torch.float64)[:2].clone())
        optimizer = SubmanifoldSGD([{"params": [w], "manifold": Stiefel()}], lr=0.1, step_size=step_size)
        w.grad = 0.05 * torch.arange(6, dtype=torch.float64).view(2, 3) / 6
        optimizer.step()
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_measurements_tell_norm_factor_and_fallbacks():
    model = make_model()
    optimizer = sgd_on(model, Stiefel())
    assert optimizer.measurements() == {}
    train(model, optimizer, 0, 1)
    figures = optimizer.measurements()
    assert set(figures) == {"0.weight", "2.weight"}
    row = figures["0.weight"]
    assert row["r"] >= 1
    assert row["R"] > 0
    assert row["fallbacks"] == 0


def test_fallbacks_are_counted():
    w = nn.Parameter(torch.eye(4, 6))
    optimizer = SubmanifoldSGD([{"params": [w], "manifold": Stiefel()}], lr=1e15, step_size="plain")
    w.grad = torch.zeros(4, 6)
    w.grad[0, 5] = 1e10  # one direction is infinitely longer than the others
    optimizer.step()
    optimizer.verify()
    assert int(optimizer.state[w]["fallbacks"]) >= 1


def test_closures_and_metrics_and_schedules_work():
    model = make_model()
    optimizer = sgd_on(model, Sphere())
    rules = ws.attach(optimizer, model, ws.metrics.ChannelL2(), ws.penalties.SoftOrthogonality())
    schedule = PowerDecayLR(optimizer, rate=1.0, exponent=1.0)
    x = torch.randn(8, 3, 8, 8)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(4):
        losses.append(float(optimizer.step(closure).detach()))
        schedule.step()
    assert losses[-1] < losses[0]
    assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.02)] * 2
    optimizer.verify()
    rules.verify()


def test_a_skipped_step_of_a_grad_scaler_changes_nothing():
    model = make_model()
    optimizer = sgd_on(model, Stiefel())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(model(torch.randn(2, 3, 8, 8)).sum()).backward()
    model[0].weight.grad.fill_(math.inf)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# ---------------------------------------------------------------- weights written to, layouts, bad input


def test_a_weight_written_to_is_moved_back_at_the_next_step_and_verify_sees_it_before():
    model = make_model()
    optimizer = sgd_on(model, Stiefel(), lr=0.0)
    with torch.no_grad():
        model[0].weight.mul_(3)
    with pytest.raises(VerificationError, match=r"stiefel\(matrix\) on 0\.weight"):
        optimizer.verify()
    optimizer.moved.clear()
    train(model, optimizer, 0, 1)
    optimizer.verify()
    assert optimizer.moved["0.weight"] == pytest.approx(2 / 3, rel=1e-3)


def test_weights_on_the_manifold_are_not_touched():
    model = make_model()
    ws.param_groups(model, {ws.on.convs: Stiefel()})
    sgd_on(model, Stiefel())
    saved = copy.deepcopy(model.state_dict())
    again = sgd_on(model, Stiefel())
    assert not again.moved
    assert all(torch.equal(saved[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("manifold", [Sphere(), ZeroMeanSphere(), Oblique(), Stiefel(), Orthogonal("slice")])
@pytest.mark.parametrize("fill", ["zeros", "rank one", "constant"])
def test_degenerate_weights_become_valid_points(manifold, fill):
    layer = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        if fill == "rank one":
            layer.weight.copy_(torch.ones(6, 1, 1, 1) * torch.randn(1, 4, 3, 3))
        else:
            layer.weight.fill_(0.0 if fill == "zeros" else 2.0)
    optimizer = SubmanifoldSGD(ws.param_groups(layer, {ws.on.convs: manifold}), lr=0.1)
    optimizer.verify()


def test_refusals_say_what_to_do():
    layer = nn.Conv2d(4, 6, 1)
    with pytest.raises(SelectionError, match=r"1x1 kernel: its slices are single numbers"):
        ws.param_groups(layer, {ws.on.convs: Stiefel("slice")})
    optimizer = SubmanifoldSGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(SelectionError, match="no matrix or kernel"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))], "manifold": "stiefel(matrix)"})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(RuleError, match="There is no manifold 'stifel'; the nearest is 'stiefel'|no manifold 'stifel'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5, 2))], "manifold": "stifel(matrix)"})
    with pytest.raises(RuleError, match="manifold=3; pass one such as"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5, 2))], "manifold": 3})
    with pytest.raises(SelectionError, match="holds NaN or infinity"):
        SubmanifoldSGD([{"params": [nn.Parameter(torch.full((3, 3), math.nan))], "manifold": Sphere()}], lr=0.1)
    with pytest.raises(SelectionError, match=r"0\.weight is on two manifolds"):
        ws.param_groups(make_model(), {ws.on.convs: Sphere(), ws.on.name("0.*"): Stiefel()})
    with pytest.raises(RuleError, match="pass selections and manifolds"):
        ws.param_groups(make_model(), {"convs": Sphere()})
    for bad in ({"step_size": "riemann"}, {"update": "exp"}, {"transport": "parallel"}, {"distance_bound": 0.0}):
        with pytest.raises(RuleError, match=f"got {next(iter(bad))}="):
            SubmanifoldSGD([nn.Parameter(torch.ones(2))], lr=0.1, **bad)
    with pytest.raises(RuleError, match="nesterov"):
        SubmanifoldSGD([nn.Parameter(torch.ones(2))], lr=0.1, nesterov=True)
    with pytest.raises(RuleError, match="nesterov=True with transport='projection'"):
        SubmanifoldSGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9, nesterov=True, transport="projection")
    with pytest.raises(RuleError, match="betas"):
        SubmanifoldAdam([nn.Parameter(torch.ones(2))], betas=(0.9, 1.0))


def test_states_of_other_manifolds_are_refused():
    model = make_model()
    state = sgd_on(model, Sphere()).state_dict()
    with pytest.raises(
        AttachError, match=r"saved with manifold='sphere\(filter\)', this group has 'stiefel\(matrix\)'"
    ):
        sgd_on(make_model(), Stiefel()).load_state_dict(state)


def test_frozen_and_shared_weights():
    model = make_model()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    optimizer = sgd_on(model, Stiefel())
    train(model, optimizer, 0, 3)
    assert torch.equal(model[0].weight, frozen)
    first = nn.Conv2d(4, 4, 3)
    tied = nn.Sequential(first, nn.Tanh(), first, nn.Flatten(), nn.Linear(64, 2))
    groups = ws.param_groups(tied, {ws.on.convs: Stiefel()})
    assert [name for name, _ in groups[0]["params"]] == ["0.weight"]
    optimizer = SubmanifoldSGD(groups, lr=0.1)
    tied(torch.randn(2, 4, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.verify()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 9),
        nn.Linear(9, 5),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Conv3d(3, 5, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("manifold", [Sphere(), Oblique(), Stiefel(), Sphere("kernel")], ids=lambda m: m.text())
def test_every_kind_of_layer(layer, manifold):
    layer = copy.deepcopy(layer)
    optimizer = SubmanifoldSGD(
        ws.param_groups(layer, {ws.on.everything & ~ws.on.biases: manifold}), lr=0.1, momentum=0.9
    )
    for _ in range(3):
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
    assert len(optimizer.verify()) == 1


def test_the_table_of_groups_gives_reasons():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    table = str(ws.param_groups(model, {ws.on.convs: Stiefel("slice")}).table())
    assert "is a 1x1 kernel" in table.replace("\n", " ") or "1x1" in table
    assert "slice (1 × 8 × 3 × 3 × 3)" in table


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    manifold=st.sampled_from([Sphere(), Oblique(), Oblique(by="column"), Stiefel(), Sphere("slice"), Stiefel("slice")]),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
)
def test_any_shape_is_constrained_or_refused_by_name(shape, manifold, scale):
    weight = nn.Parameter(scale * torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    try:
        optimizer = SubmanifoldSGD([{"params": [weight], "manifold": manifold}], lr=0.1)
    except SelectionError as error:
        said = str(error)
        event(said[:60])
        return
    weight.grad = torch.randn(shape)
    optimizer.step()
    optimizer.verify()


# ---------------------------------------------------------------- schedules


def test_power_decay_is_its_formula_and_conditions_are_told():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = PowerDecayLR(optimizer, rate=0.1, exponent=0.75)
    for k in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / (1 + 0.1 * k) ** 0.75)
        optimizer.step()
        schedule.step()
    assert convergence_conditions(schedule).hold
    other = PowerDecayLR(optimizer, rate=1.0)
    other.load_state_dict(schedule.state_dict())
    assert other.rate == 0.1
    with pytest.raises(RuleError, match="PowerDecayLR got rate=0"):
        PowerDecayLR(optimizer, rate=0)


@pytest.mark.parametrize(
    ("schedule", "diverges", "converge"),
    [
        (lambda _: None, True, False),
        (lambda o: PowerDecayLR(o, 1.0, 0.5), True, False),
        (lambda o: PowerDecayLR(o, 1.0, 0.51), True, True),
        (lambda o: PowerDecayLR(o, 1.0, 1.0), True, True),
        (lambda o: PowerDecayLR(o, 1.0, 1.5), False, True),
        (lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.1), False, True),
        (lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), False, True),
        (lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10], 0.1), True, False),
        (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda _: 1.0), None, None),
    ],
)
def test_conditions_of_convergence(schedule, diverges, converge):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    found = convergence_conditions(schedule(optimizer))
    assert (found.sum_diverges, found.squares_converge) == (diverges, converge)
    assert found.hold == bool(diverges and converge)
