"""ConstrainedLangevin as an optimizer: torch's SGD where it is one, its state, layouts, dtypes, and what it refuses.

The laws that it samples are in `test_langevin_laws.py`.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError, SelectionError, VerificationError
from weightspace.manifolds import (
    Circle,
    Euclidean,
    LevelSet,
    Oblique,
    Orthogonal,
    Product,
    Sphere,
    Stiefel,
    ZeroMeanSphere,
)
from weightspace.optim import ConstrainedLangevin, langevin_units

SCHEMES = ["BAOA", "OBA", "OBABO", "overdamped"]


def kernel_cap(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """|q| <= 3: the norm of a kernel, with one slack variable."""
    return q.square().sum() + s.square().sum() - 9.0


MANIFOLDS = [
    Euclidean(),
    Sphere(),
    ZeroMeanSphere(),
    Oblique(),
    Stiefel(),
    Stiefel("slice"),
    Orthogonal("slice"),
    Circle(),
    Circle(radius=2.0, slack=2),
    Product(("sphere(slice)", "stiefel(slice)"), assignment="random", every=2),
    LevelSet(kernel_cap, "kernel", slack=1),
]
manifolds = pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: m.text())


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(dtype)


def sampler_on(model: nn.Module, manifold: ws.manifolds.Manifold, **options: object) -> ConstrainedLangevin:
    settings = {"lr": 0.01, "temperature": 1.0, "num_data": 50, "seed": 3, **options}
    groups = model.parameters() if isinstance(manifold, Euclidean) else ws.param_groups(model, {ws.on.convs: manifold})
    return ConstrainedLangevin(groups, **settings)


def backward(model: nn.Module, k: int) -> float:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 2, 6, 6, generator=generator).to(next(model.parameters()))
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(x), torch.arange(6) % 3)
    loss.backward()
    return float(loss.detach())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[float]:
    losses = []
    for k in range(start, stop):
        losses.append(backward(model, k))
        optimizer.step()
    return losses


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def largest_gap(a: nn.Module, b: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---------------------------------------------------------------- temperature 0 is SGD with momentum


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_oba_at_temperature_0_is_sgd_with_momentum(momentum, options):
    model, plain = make_model(torch.float64), make_model(torch.float64)
    own = {k: v for k, v in options.items() if k == "maximize"}
    train(
        model,
        ConstrainedLangevin(model.parameters(), lr=0.05, momentum=momentum, temperature=0.0, scheme="OBA", **options),
        0,
        8,
    )
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.05, momentum=momentum, **{**options, **own}), 0, 8)
    assert largest_gap(model, plain) < 1e-14


@pytest.mark.parametrize("scheme", ["BAOA", "OBABO"])
def test_other_orders_at_temperature_0_are_sgd_with_half_the_sum_of_lr_and_c_lr(scheme):
    """BAOA moves x by h (1 + c) / 2 v; OBABO, kicked twice by half, meets the same positions."""
    c, lr = 0.8, 0.05
    model, plain = make_model(torch.float64), make_model(torch.float64)
    train(model, ConstrainedLangevin(model.parameters(), lr=lr, momentum=c, temperature=0.0, scheme=scheme), 0, 8)
    train(plain, torch.optim.SGD(plain.parameters(), lr=lr * (1 + c) / 2, momentum=c), 0, 8)
    assert largest_gap(model, plain) < 1e-14


def test_overdamped_at_temperature_0_is_gradient_descent_and_on_a_sphere_projected():
    model, plain = make_model(torch.float64), make_model(torch.float64)
    train(model, ConstrainedLangevin(model.parameters(), lr=0.05, temperature=0.0, scheme="overdamped"), 0, 5)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.05), 0, 5)
    assert largest_gap(model, plain) < 1e-15
    w = nn.Parameter(torch.tensor([[0.6, 0.8]], dtype=torch.float64))
    sampler = ConstrainedLangevin(
        [{"params": [w], "manifold": Sphere("kernel")}], lr=0.5, temperature=0.0, scheme="overdamped"
    )
    w.grad = torch.tensor([[0.0, -0.4]], dtype=torch.float64)
    sampler.step()
    torch.testing.assert_close(w.detach(), torch.tensor([[0.6, 1.0]], dtype=torch.float64) / math.sqrt(1.36))


def test_friction_and_momentum_are_two_names():
    ends = []
    for options in ({"friction": 2.0}, {"momentum": langevin_units(0.04, friction=2.0).momentum}):
        model = make_model()
        train(
            model,
            ConstrainedLangevin(model.parameters(), lr=0.04, temperature=1.0, num_data=20, seed=1, **options),
            0,
            4,
        )
        ends.append(model)
    assert largest_gap(*ends) < 1e-6


def test_velocities_stay_right_when_lr_changes():
    """v is physical: after a change of lr it goes on with the same speed, where SGD's buffer would be rescaled."""
    q = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    sampler = ConstrainedLangevin([q], lr=0.04, friction=1e-9, temperature=0.0)
    q.grad = torch.tensor([-1.0], dtype=torch.float64)
    sampler.step()  # v = h
    q.grad.zero_()
    sampler.param_groups[0]["lr"] = 0.01
    before = float(q.detach())
    sampler.step()
    assert float(q.detach()) - before == pytest.approx(0.1 * 0.2)


# ---------------------------------------------------------------- state


@manifolds
def test_state_is_there_from_the_start_and_resume_is_bit_exact_noise_included(manifold):
    options = {"measure_every": 2}
    model = make_model()
    sampler = sampler_on(model, manifold, **options)
    keys = {k: set(s) for k, s in sampler.state_dict()["state"].items()}
    train(model, sampler, 0, 3)
    assert {k: set(s) for k, s in sampler.state_dict()["state"].items()} == keys
    saved = copy.deepcopy((model.state_dict(), sampler.state_dict()))
    train(model, sampler, 3, 6)
    twin = make_model()
    with torch.no_grad():  # "auto" radii must come from the state
        for p in twin.parameters():
            p.mul_(0.5)
    resumed = sampler_on(twin, manifold, **{**options, "seed": 99})
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(twin, resumed, 3, 6)
    assert equal(model, twin)
    resumed.verify()


@manifolds
def test_pickled_and_copied_samplers_go_on_alike(manifold):
    model = make_model()
    sampler = sampler_on(model, manifold, check_finite=False)
    train(model, sampler, 0, 2)
    copies = [copy.deepcopy((model, sampler)), pickle.loads(pickle.dumps((model, sampler)))]  # our own
    train(model, sampler, 2, 4)
    for twin, other in copies:
        train(twin, other, 2, 4)
        assert equal(model, twin)
        assert other._check_finite is False


def test_a_state_is_tensors_and_plain_values_and_survives_a_file_of_tensors():
    model = make_model()
    sampler = sampler_on(model, Circle(), measure_every=1)
    train(model, sampler, 0, 2)
    state = sampler.state_dict()
    tensors = {f"{k}.{name}": t.clone() for k, s in state["state"].items() for name, t in s.items()}
    assert all(isinstance(t, torch.Tensor) for t in tensors.values())
    for group in state["param_groups"]:
        assert all(isinstance(v, int | float | str | bool | list | type(None)) for v in group.values()), group
    back: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        back.setdefault(int(number), {})[name] = tensor
    twin = copy.deepcopy(model)
    resumed = sampler_on(twin, Circle(radius=50.0), measure_every=1)
    resumed.param_groups[0]["manifold"] = "circle(entry)"
    resumed.load_state_dict({"state": back, "param_groups": state["param_groups"]})
    train(model, sampler, 2, 4)
    train(twin, resumed, 2, 4)
    assert equal(model, twin)


def test_states_of_other_manifolds_are_refused():
    state = sampler_on(make_model(), Sphere()).state_dict()
    with pytest.raises(AttachError, match="saved with manifold='sphere"):
        sampler_on(make_model(), Stiefel()).load_state_dict(state)


def test_same_seed_same_noise_other_seed_other_noise_and_generators():
    ends = {}
    for name, options in {
        "a": {"seed": 5},
        "b": {"seed": 5},
        "c": {"seed": 6},
        "d": {"seed": None, "generator": torch.Generator().manual_seed(1)},
        "e": {"seed": None, "generator": torch.Generator().manual_seed(1)},
    }.items():
        model = make_model()
        torch.manual_seed(0)
        sampler = sampler_on(model, Stiefel(), **options)
        state = torch.get_rng_state()
        train(model, sampler, 0, 3)
        assert torch.equal(state, torch.get_rng_state())  # the script's own random numbers are left alone
        ends[name] = model
    assert equal(ends["a"], ends["b"])
    assert equal(ends["d"], ends["e"])
    assert not equal(ends["a"], ends["c"])
    groups = [{"params": [nn.Parameter(torch.zeros(4))]}, {"params": [nn.Parameter(torch.zeros(4))]}]
    sampler = ConstrainedLangevin(groups, temperature=1.0, num_data=1, seed=0)
    for group in groups:
        group["params"][0].grad = torch.zeros(4)
    sampler.step()
    assert not torch.equal(groups[0]["params"][0], groups[1]["params"][0])


# ---------------------------------------------------------------- with the rest of torch


def test_schedulers_closures_and_a_scaler_that_skips():
    model = make_model()
    sampler = sampler_on(model, Stiefel(), temperature=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(sampler, 1, 0.5)
    loss = sampler.step(lambda: torch.tensor(backward(model, 0)))
    schedule.step()
    assert float(loss) > 0
    assert {g["lr"] for g in sampler.param_groups} == {0.005}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy((model.state_dict(), sampler.state_dict()))
    scaler.scale(model(torch.randn(2, 2, 6, 6)).sum()).backward()
    model[0].weight.grad.fill_(math.inf)
    scaler.step(sampler)
    scaler.update()
    assert all(torch.equal(before[0][k], v) for k, v in model.state_dict().items())
    assert sampler.state_dict()["param_groups"] == before[1]["param_groups"]  # no noise was used up


def test_groups_added_later_have_their_state_and_options():
    model = make_model()
    sampler = ConstrainedLangevin([model[0].weight], lr=0.01, momentum=0.9, temperature=0.0, seed=0)
    sampler.add_param_group(
        {"params": [model[2].weight], "manifold": Circle(), "friction": 2.0, "temperature": 1.0, "num_data": 10}
    )
    assert sampler.param_groups[1]["momentum"] is None
    assert set(sampler.state[model[2].weight]) >= {"step", "velocity", "fallbacks", "radius"}
    train(model, sampler, 0, 3)
    sampler.verify()
    with pytest.raises(RuleError, match="friction=-1"):
        sampler.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "friction": -1})
    assert len(sampler.param_groups) == 2


def test_frozen_weights_and_weights_without_gradient_rest():
    model = make_model()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    sampler = sampler_on(model, Sphere())
    before = model[2].weight.detach().clone()
    backward(model, 0)
    model[2].weight.grad = None
    sampler.step()
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(model[2].weight, before)
    assert int(sampler.state[model[2].weight]["step"]) == 0


def test_two_processes_with_one_seed_draw_alike():
    """Every rank runs the same program on the same reduced gradients: nothing but seed, group and step may matter."""
    ranks = []
    for rank in range(2):
        torch.manual_seed(rank)  # ranks differ in torch's own generator
        torch.rand(rank + 3)
        model = make_model()
        torch.manual_seed(100 + rank)
        train(model, sampler_on(model, Circle()), 0, 3)
        ranks.append(model)
    assert equal(*ranks)


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    sampler = sampler_on(model, Stiefel())
    for k in range(4):
        x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(10 * k + rank))  # each rank its own data
        sampler.zero_grad()
        wrapped(x).square().mean().backward()
        sampler.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(both, weights)
    Path(folder, str(rank)).write_text(str(torch.equal(*both)), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_stays_in_sync(tmp_path):
    torch.multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]


# ---------------------------------------------------------------- layouts, dtypes, chains


@pytest.mark.parametrize("scheme", SCHEMES)
@manifolds
def test_every_manifold_under_every_scheme_stays_on_it(manifold, scheme):
    model = make_model()
    sampler = sampler_on(model, manifold, scheme=scheme, measure_every=1)
    train(model, sampler, 0, 4)
    assert len(sampler.verify()) == (0 if isinstance(manifold, Euclidean) else 2)
    assert all(p.isfinite().all() for p in model.parameters())
    for row in sampler.measurements().values():
        assert row.get("fallbacks", 0.0) == 0.0


@manifolds
def test_channels_last_takes_the_same_steps(manifold):
    if isinstance(manifold, LevelSet | Product):
        return  # their law does not depend on memory, their noise does
    model, other = make_model(torch.float64), make_model(torch.float64).to(memory_format=torch.channels_last)
    for m in (model, other):
        train(m, sampler_on(m, manifold, temperature=0.0), 0, 4)
    assert largest_gap(model, other) < 1e-12
    assert other[2].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(5, 9), nn.Conv1d(4, 6, 3), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(4, 6, 3, groups=2)],
    ids=str,
)
@pytest.mark.parametrize(
    "manifold", [Sphere(), Oblique(), Stiefel(), Circle(), Circle(slack=3)], ids=lambda m: m.text()
)
def test_every_kind_of_layer(layer, manifold):
    layer = copy.deepcopy(layer)
    groups = ws.param_groups(layer, {ws.on.everything & ~ws.on.biases: manifold})
    sampler = ConstrainedLangevin(groups, lr=0.1, temperature=1.0, num_data=10, seed=0)
    for _ in range(3):
        layer.weight.grad = torch.randn_like(layer.weight)
        sampler.step()
    assert len(sampler.verify()) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@manifolds
def test_dtypes_are_kept(manifold, dtype):
    model = make_model(dtype)
    sampler = sampler_on(model, manifold, measure_every=1)
    for k in range(3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(p)
        sampler.step()
    assert {p.dtype for p in model.parameters()} == {dtype}
    sampler.verify()
    for key in ("angle", "slack_variables"):
        for state in sampler.state.values():
            assert key not in state or state[key].dtype.itemsize >= 4


@pytest.mark.parametrize(
    "manifold", [Euclidean(), Sphere(), Oblique(), Stiefel(), Circle(radius=4.0), Circle(radius=4.0, slack=2)], ids=str
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_chains_equal_a_loop_over_chains_at_temperature_0(manifold, scheme):
    start = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)

    def gradient(w: torch.Tensor, k: int) -> torch.Tensor:
        return torch.sin(w + k)

    def run(weight: torch.Tensor, *, chains: bool) -> torch.Tensor:
        w = nn.Parameter(weight.clone())
        group = {"params": [w], "manifold": manifold, "chains": chains}
        sampler = ConstrainedLangevin([group], lr=0.1, temperature=0.0, scheme=scheme)
        for k in range(5):
            w.grad = gradient(w.detach(), k)
            sampler.step()
        if not isinstance(manifold, Euclidean):
            sampler.verify()
        return w.detach()

    together = run(start, chains=True)
    for chain, end in zip(start, together, strict=True):
        torch.testing.assert_close(run(chain, chains=False), end, rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------- Circle


@pytest.mark.parametrize("slack", [1, 2, 5])
def test_weights_that_the_user_writes_get_their_slack_anew(slack):
    model = make_model(torch.float64)
    sampler = sampler_on(model, Circle(radius=1.0, slack=slack), temperature=0.0, lr=1e-8)
    train(model, sampler, 0, 2)
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    train(model, sampler, 2, 3)
    assert float((model[0].weight - 0.25).detach().abs().max()) < 1e-6
    sampler.verify()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 1.5
    with pytest.raises(SelectionError, match=r"0\.weight: circle.* numbers up to 1\.5; take radius='auto'"):
        train(model, sampler, 3, 4)


def test_numbers_beyond_the_radius_are_refused_or_the_radius_makes_room():
    model = make_model()
    with pytest.raises(SelectionError, match=r"0\.weight: circle\(entry, radius=0\.01\) was asked for a weight with"):
        sampler_on(model, Circle(radius=0.01))
    sampler = sampler_on(model, Circle())
    largest = float(model[0].weight.detach().abs().max())
    assert float(sampler.state[model[0].weight]["radius"]) == pytest.approx(1.25 * largest)
    train(model, sampler, 0, 5)
    sampler.verify()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 2.0
    with pytest.raises(VerificationError, match="circle"):
        sampler.verify()


def test_without_loss_and_friction_a_number_turns_at_its_speed():
    w = nn.Parameter(torch.full((1, 1), 2.0 / math.sqrt(2), dtype=torch.float64))
    sampler = ConstrainedLangevin(
        [{"params": [w], "manifold": Circle(radius=2.0)}], lr=0.01, friction=1e-12, temperature=0.0
    )
    sampler.state[w]["velocity"].fill_(3.0)
    w.grad = torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(1000):
        sampler.step()
    assert float(w.detach()) == pytest.approx(2.0 * math.cos(math.pi / 4 + 3.0 / 2.0 * 0.1 * 1000), abs=1e-6)


# ---------------------------------------------------------------- priors, preconditioning, thermometers


def test_weight_decay_is_a_gaussian_prior():
    """Without data the law of q is normal with variance tau / weight_decay."""
    q = nn.Parameter(torch.zeros(40_000))
    sampler = ConstrainedLangevin([q], lr=0.04, temperature=2.0, num_data=8, weight_decay=0.5, seed=0)
    for _ in range(150):
        q.grad = torch.zeros_like(q)
        sampler.step()
    assert float(q.detach().var()) == pytest.approx(2.0 / 8 / 0.5, rel=0.04)


def test_the_preconditioner_is_frozen_after_its_steps_and_the_law_holds():
    scale = torch.tensor([0.1, 10.0]).repeat_interleave(20_000)
    q = nn.Parameter(torch.zeros(40_000))
    sampler = ConstrainedLangevin(
        [q], lr=0.02, temperature=1.0, num_data=1, preconditioner="rmsprop", adapt_steps=50, seed=0
    )
    frozen = torch.empty(0)
    for k in range(400):
        q.grad = scale * q.detach()
        sampler.step()
        if k == 60:
            frozen = sampler.state[q]["square_avg"].clone()
    assert torch.equal(frozen, sampler.state[q]["square_avg"])
    found = q.detach().view(2, -1).var(1)
    torch.testing.assert_close(found * torch.tensor([0.1, 10.0]), torch.ones(2), rtol=0.06, atol=0.0)


@manifolds
def test_the_preconditioner_is_for_free_weights_only(manifold):
    if isinstance(manifold, Euclidean):
        sampler_on(make_model(), manifold, preconditioner="rmsprop")
        return
    with pytest.raises(RuleError, match=r"preconditioner='rmsprop' for weights on .*; give it to free groups only"):
        sampler_on(make_model(), manifold, preconditioner="rmsprop")


def test_temperatures_are_read_forgotten_and_refused_without_measurements():
    model = make_model()
    sampler = sampler_on(model, Stiefel(), measure_every=1, temperature=0.5)
    train(model, sampler, 0, 12)
    rows = sampler.temperatures()
    assert [r.name for r in rows] == ["stiefel(matrix)", "euclidean(kernel)"]
    for row in rows:
        assert row.target == 0.5
        assert row.measurements >= 6
        assert row.kinetic > 0
        assert math.isfinite(row.configurational)
    sampler.reset_thermometers()
    assert all(r.measurements == 0 and math.isnan(r.kinetic) for r in sampler.temperatures())
    with pytest.raises(RuleError, match="pass measure_every=10"):
        sampler_on(model, Stiefel()).temperatures()
    cap = sampler_on(make_model(), LevelSet(kernel_cap, "kernel", slack=1), measure_every=1)
    train(make_model(), cap, 0, 0)
    assert math.isnan(cap.temperatures()[0].configurational)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": 1.0, "num_data": None}, "temperature=1 without num_data, the number of training examples"),
        ({"num_data": 0}, "num_data=0"),
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": math.inf}, "lr=inf"),
        ({"friction": 0.0}, "friction=0.0 with scheme='BAOA', which needs a friction above 0"),
        ({"friction": -1.0, "scheme": "OBA"}, "friction=-1.0 with scheme='OBA'"),
        ({"friction": "much"}, "friction='much'"),
        ({"friction": 1.0, "momentum": 0.9}, "friction=1.0 and momentum=0.9; pass one of them"),
        ({"momentum": 1.0}, "momentum=1.0; it must be below 1"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"scheme": "BAOAB"}, "scheme='BAOAB'"),
        ({"flow": "euler"}, "flow='euler'"),
        ({"solver_tolerance": 0.0}, "solver_tolerance=0"),
        ({"preconditioner": "adam"}, "preconditioner='adam'; it is 'rmsprop' or None"),
        ({"measure_every": 0}, "measure_every=0"),
        ({"seed": "x"}, "seed='x'"),
        ({"maximize": "no"}, "maximize='no'"),
        ({"solver_iterations": 0}, "solver_iterations=0"),
        ({"adapt_steps": -1}, "adapt_steps=-1"),
        ({"preconditioner_decay": 1.0}, "preconditioner_decay=1"),
        ({"preconditioner_epsilon": 0.0}, "preconditioner_epsilon=0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(options, sentence):
    with pytest.raises(RuleError, match=re.escape(sentence)):
        sampler_on(make_model(), Euclidean(), **options)


def test_friction_0_is_for_the_overdamped_scheme():
    sampler_on(make_model(), Euclidean(), scheme="overdamped", friction=0.0)


@pytest.mark.parametrize("manifold", [Stiefel(metric="canonical"), Stiefel(tolerance=0.01), Stiefel(every=2)], ids=str)
def test_manifolds_whose_law_would_be_another_are_refused(manifold):
    with pytest.raises(RuleError, match=r"ConstrainedLangevin got stiefel.*(metric='embedded'|leave out tolerance)"):
        sampler_on(make_model(), manifold)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@manifolds
def test_gradients_that_are_not_finite_change_nothing(manifold, value):
    model = make_model()
    sampler = sampler_on(model, manifold, measure_every=1)
    train(model, sampler, 0, 2)
    saved = copy.deepcopy((model.state_dict(), sampler.state_dict()))
    backward(model, 2)
    model[5].weight.grad[0, 0] = value  # the last one: those before must not have moved
    with pytest.raises(NonFiniteGradientError):
        sampler.step()
    assert all(torch.equal(saved[0][k], v) for k, v in model.state_dict().items())
    now = sampler.state_dict()
    assert now["param_groups"] == saved[1]["param_groups"]
    for k, state in saved[1]["state"].items():
        for name, tensor in state.items():  # NaN: a thermometer of positions that has no formula
            torch.testing.assert_close(now["state"][k][name], tensor, rtol=0, atol=0, equal_nan=True)


def test_a_solver_that_fails_is_counted_reported_and_falls_back():
    w = nn.Parameter(torch.eye(6, 3, dtype=torch.float64))
    sampler = ConstrainedLangevin(
        [{"params": [w], "manifold": Stiefel()}], lr=4.0, friction=1e-6, temperature=0.0, seed=0
    )
    w.grad = 5 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampler.step()
    assert sampler.measurements()["parameter 0"]["fallbacks"] >= 1
    sampler.verify()
    assert w.isfinite().all()


def test_a_temperature_that_a_script_raises_without_num_data_is_refused_at_the_step():
    model = make_model()
    sampler = ConstrainedLangevin(model.parameters(), temperature=0.0)
    sampler.param_groups[0]["temperature"] = 1.0
    before = copy.deepcopy(model.state_dict())
    backward(model, 0)
    with pytest.raises(RuleError, match="without num_data"):
        sampler.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("manifold", [Circle(), Stiefel()], ids=str)
def test_verify_measures_what_is_declared(manifold):
    model = make_model()
    sampler = sampler_on(model, manifold)
    train(model, sampler, 0, 30)
    checks = sampler.verify()
    assert {c.parameters[0] for c in checks} == {"0.weight", "2.weight"}
    assert all(c.holds and c.rule == manifold.text().replace("circle(entry)", c.rule) for c in checks)
    with torch.no_grad():
        model[0].weight.mul_(10)
    with pytest.raises(VerificationError, match=r"on 0\.weight"):
        sampler.verify()


# ------------------------------------------------------------------------------------ schedules at their ends, devices


@manifolds
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rate_of_zero_moves_nothing_and_what_follows_is_sound(manifold, scheme):
    model = make_model()
    sampler = sampler_on(model, manifold, scheme=scheme)
    before = [p.detach().clone() for p in model.parameters()]
    for group in sampler.param_groups:
        group["lr"] = 0.0
    backward(model, 0)
    sampler.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for group in sampler.param_groups:
        group["lr"] = 0.01
    backward(model, 1)
    sampler.step()
    assert all(p.isfinite().all() for p in model.parameters())
    sampler.verify()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -0.1), ("temperature", -1.0), ("friction", math.nan), ("scheme", "AB")]
)
def test_what_a_schedule_sets_out_of_range_is_refused_before_anything_moves(name, value):
    model = make_model()
    sampler = sampler_on(model, Stiefel())
    backward(model, 0)
    before, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(sampler.state_dict())
    sampler.param_groups[-1][name] = value
    with pytest.raises(RuleError, match=f"{name}=.* at this step"):
        sampler.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert sampler.param_groups[0]["draws"] == state["param_groups"][0]["draws"]


def test_a_state_of_torchs_sgd_is_refused_with_a_sentence():
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model, 0)
    sgd.step()
    with pytest.raises(AttachError, match="saved by another optimizer"):
        ConstrainedLangevin(model.parameters(), temperature=0.0).load_state_dict(sgd.state_dict())


def test_bfloat16_weights_keep_velocities_at_their_temperature():
    q = nn.Parameter(torch.zeros(20_000, dtype=torch.bfloat16))
    sampler = ConstrainedLangevin([q], lr=1e-4, temperature=1.0, num_data=1, seed=0, measure_every=1)
    for _ in range(300):  # a free particle: its velocity forgets with exp(-friction t), t = 3
        q.grad = torch.zeros_like(q)
        sampler.step()
    assert q.dtype == torch.bfloat16
    assert abs(float(sampler.state[q]["velocity"].square().mean()) - (1 - math.exp(-2 * 3.0))) < 0.05


def test_the_preconditioner_of_16_bit_weights_keeps_its_precision_through_a_state():
    q = nn.Parameter(torch.ones(50, dtype=torch.bfloat16))
    sampler = ConstrainedLangevin([q], lr=0.01, temperature=1.0, num_data=5, preconditioner="rmsprop", seed=0)
    q.grad = torch.full_like(q, 0.3)
    sampler.step()
    before = sampler.state[q]["square_avg"].clone()
    sampler.load_state_dict(copy.deepcopy(sampler.state_dict()))
    assert before.dtype == torch.float32
    assert torch.equal(sampler.state[q]["square_avg"], before)


def test_weights_without_gradients_do_not_cool_the_thermometer():
    moving, resting = (nn.Parameter(torch.zeros(4_000)) for _ in range(2))
    sampler = ConstrainedLangevin([moving, resting], lr=0.04, temperature=2.0, num_data=10, seed=0, measure_every=1)
    for _ in range(200):
        moving.grad = moving.detach().clone()
        sampler.step()
    (found,) = sampler.temperatures()
    assert found.dimension == 4_000
    assert abs(found.kinetic - 2.0) < 0.1


def test_every_process_of_a_distributed_run_takes_the_first_ones_seed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda seeds: seeds.__setitem__(0, 77))
    assert ConstrainedLangevin([nn.Parameter(torch.zeros(2))], temperature=0.0).param_groups[0]["seed"] == 77
