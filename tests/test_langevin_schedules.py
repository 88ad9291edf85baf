"""Schedules and presets of ConstrainedLangevin."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import RuleError, SelectionError
from weightspace.optim import LANGEVIN_PRESETS, ConstrainedLangevin, CyclicalSchedule, LangevinSchedule, langevin_preset
from weightspace.optim.langevin_schedules import constant, cosine, cyclical, is_exploring, ramp, takes_sample


def sampler(**options: object) -> ConstrainedLangevin:
    groups = [{"params": [nn.Parameter(torch.zeros(3))]}, {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.02}]
    return ConstrainedLangevin(groups, **{"lr": 0.1, "temperature": 0.5, "num_data": 10, "seed": 0, **options})


def read(optimizer: torch.optim.Optimizer, name: str) -> list[float]:
    return [g[name] for g in optimizer.param_groups]


# ---------------------------------------------------------------- factors


def test_cyclical_is_the_published_formula():
    """alpha_k = alpha_0 / 2 (cos(pi mod(k - 1, ceil(K / M)) / ceil(K / M)) + 1), k from 1: Zhang et al., equation (1)."""
    total, cycles = 103, 4
    length = math.ceil(total / cycles)
    for k in range(1, total + 1):
        expected = 0.5 * (math.cos(math.pi * ((k - 1) % length) / length) + 1)
        assert cyclical(k - 1, length) == pytest.approx(expected)


def test_ends_of_factors():
    assert [ramp(k, 10, 2.0, 1.0) for k in (0, 5, 10, 11)] == [2.0, 1.5, 1.0, 1.0]
    assert cosine(0, 10, end=0.2) == 1.0
    assert cosine(10, 10, end=0.2) == cosine(99, 10, end=0.2) == pytest.approx(0.2)
    assert constant(5) == 1.0


@pytest.mark.parametrize("exploration", [0.0, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("cycle", [1, 2, 10, 37])
@pytest.mark.parametrize("every", [1, 3])
def test_every_cycle_ends_with_a_sample_and_none_is_taken_while_it_explores(cycle, exploration, every):
    steps = range(3 * cycle)
    taken = [k for k in steps if takes_sample(k, cycle, exploration, every)]
    assert all(not is_exploring(k, cycle, exploration) for k in taken)
    assert {cycle - 1, 2 * cycle - 1, 3 * cycle - 1} <= set(taken)
    exploring = [is_exploring(k, cycle, exploration) for k in range(cycle)]
    assert exploring == sorted(exploring, reverse=True)
    assert sum(exploring) == min(cycle - 1, round(exploration * cycle))


# ---------------------------------------------------------------- on an optimizer


def test_it_multiplies_what_each_group_had_and_leaves_the_rest_to_torchs_schedulers():
    optimizer = sampler(friction=2.0)
    ours = LangevinSchedule(
        optimizer,
        friction=functools.partial(ramp, steps=2, start=1.0, end=3.0),
        temperature=functools.partial(ramp, steps=4, start=0.0, end=1.0),
    )
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert read(optimizer, "temperature") == [0.0, 0.0]
    for p in (p for g in optimizer.param_groups for p in g["params"]):
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
        ours.step()
        theirs.step()
    assert read(optimizer, "temperature") == [0.25, 0.25]
    assert read(optimizer, "friction") == [6.0, 6.0]
    assert read(optimizer, "lr") == [pytest.approx(0.025), pytest.approx(0.005)]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "temperature": 2.0})
    ours.step()
    assert read(optimizer, "temperature") == [0.375, 0.375, 1.5]


def test_resume_is_exact_whichever_is_built_first():
    def build() -> tuple[ConstrainedLangevin, LangevinSchedule]:
        optimizer = sampler()
        return optimizer, CyclicalSchedule(optimizer, 10, exploration=0.5)

    optimizer, schedule = build()
    for _ in range(13):
        schedule.step()
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    twin, again = build()
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for _ in range(9):
        for name in ("lr", "temperature"):
            assert read(twin, name) == read(optimizer, name)
        assert again.takes_sample == schedule.takes_sample
        schedule.step()
        again.step()


def test_cycles_set_rate_and_temperature_together():
    optimizer = sampler()
    schedule = CyclicalSchedule(optimizer, 5, exploration=0.6, every=2)
    seen = []
    for _ in range(5):
        seen.append(
            (round(optimizer.param_groups[0]["lr"], 4), read(optimizer, "temperature")[0], schedule.takes_sample)
        )
        schedule.step()
    assert [t for _, t, _ in seen] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert [s for _, _, s in seen] == [False, False, False, False, True]
    assert [lr for lr, _, _ in seen] == [round(0.1 * cyclical(k, 5), 4) for k in range(5)]
    assert read(optimizer, "lr") == [0.1, 0.02]


def test_a_rate_in_a_tensor_is_filled_in_place():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5))
    rate = optimizer.param_groups[0]["lr"]
    schedule = LangevinSchedule(optimizer, lr=lambda k: 0.5**k)
    schedule.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.125


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LangevinSchedule(sampler()), "nothing to schedule"),
        (lambda: LangevinSchedule(sampler(), lr=0.5), "lr=0.5; pass a function of the step"),
        (
            lambda: LangevinSchedule(sampler(momentum=0.9), friction=constant),
            "group 0 has not; it has momentum instead",
        ),
        (lambda: LangevinSchedule(sampler(), friction=lambda _: 0.0), "0 as the factor of friction at step 0"),
        (lambda: LangevinSchedule(sampler(), temperature=lambda _: -1.0), "a factor of temperature=-1.0"),
        (lambda: LangevinSchedule(sampler(), lr=lambda _: math.nan), "a factor of lr=nan"),
        (lambda: CyclicalSchedule(sampler(), 0), "cycle=0"),
        (lambda: CyclicalSchedule(sampler(), 10, exploration=1.0), "exploration=1.0; it must be below 1"),
        (lambda: CyclicalSchedule(sampler(), 10, every=0), "every=0"),
        (lambda: CyclicalSchedule(sampler(), 10).load_state_dict({}), "steps=None"),
    ],
)
def test_bad_schedules_are_named(make, sentence):
    with pytest.raises(RuleError, match=sentence):
        make()


# ---------------------------------------------------------------- presets


def resnet_like() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 10)
    )


def manifolds_of(optimizer: ConstrainedLangevin) -> dict[str, str]:
    names = {}
    for group in optimizer.param_groups:
        names.update(dict.fromkeys(group["param_names"], group["manifold"]))
    return names


@pytest.mark.parametrize("name", LANGEVIN_PRESETS)
def test_presets_have_the_settings_that_they_tell_and_train(name):
    entry = LANGEVIN_PRESETS[name]
    assert set(entry.origin) == set(entry.options)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 400), nn.ReLU(), nn.Linear(400, 10))
    optimizer = langevin_preset(name, model)
    for group in optimizer.param_groups:
        assert {k: group[k] for k in entry.options} == dict(entry.options)
    found = manifolds_of(optimizer)
    assert found["0.bias"] == found["2.bias"] == "euclidean(kernel)"
    if entry.constraint == "circle":
        assert (found["0.weight"], found["2.weight"]) == ("circle(entry, radius=0.05)", "circle(entry, radius=0.1)")
    else:
        assert (found["0.weight"], found["2.weight"]) == ("euclidean(kernel)", "stiefel(matrix)")
    x, y = torch.randn(50, 600), torch.randint(10, (50,))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    optimizer.verify()


def test_the_numbers_of_the_authors():
    ortho, circle = LANGEVIN_PRESETS["o-cola-ud"], LANGEVIN_PRESETS["c-cola-ud"]
    assert (ortho.options["lr"], ortho.options["momentum"], ortho.options["scheme"]) == (0.1, 0.9, "OBA")
    assert math.sqrt(circle.options["lr"]) == pytest.approx(0.3)
    assert (circle.options["friction"], circle.first_radius, circle.radius) == (1.0, 0.05, 0.1)
    assert all(LANGEVIN_PRESETS[k].origin["scheme"] == "derived" for k in ("o-cola-od", "c-cola-od"))


def test_overrides_and_kinds_of_layers():
    model = resnet_like()
    optimizer = langevin_preset("o-cola-ud", model, friction=0.5, temperature=0.1, num_data=100, lr=0.01)
    assert {g["momentum"] for g in optimizer.param_groups} == {None}
    assert manifolds_of(optimizer) == {
        "0.weight": "euclidean(kernel)",
        "0.bias": "euclidean(kernel)",
        "1.weight": "euclidean(kernel)",
        "1.bias": "euclidean(kernel)",
        "3.weight": "stiefel(matrix)",
        "3.bias": "euclidean(kernel)",
        "5.weight": "stiefel(matrix)",
        "5.bias": "euclidean(kernel)",
    }
    with pytest.raises(SelectionError, match=r"0\.weight: circle\(entry, radius=0\.05\).*take radius='auto'"):
        langevin_preset("c-cola-ud", resnet_like())
    free = langevin_preset("c-cola-ud", resnet_like(), first_radius="auto", radius="auto")
    assert manifolds_of(free)["5.weight"] == "circle(entry)"


def test_presets_refuse_by_name():
    with pytest.raises(RuleError, match="no preset 'o-cola'; did you mean 'o-cola-[uo]d'"):
        langevin_preset("o-cola", resnet_like())
    with pytest.raises(RuleError, match="no preset 3; known are o-cola-ud, o-cola-od"):
        langevin_preset(3, resnet_like())
    with pytest.raises(RuleError, match="o-cola-ud has no radius"):
        langevin_preset("o-cola-ud", resnet_like(), radius=0.1)
    with pytest.raises(SelectionError, match="no convolution and no linear layer"):
        langevin_preset("c-cola-ud", nn.BatchNorm2d(3))
    with pytest.raises(SelectionError):
        langevin_preset("o-cola-ud", nn.Linear(4, 3))
    with pytest.raises(RuleError, match="without num_data"):
        langevin_preset("o-cola-ud", resnet_like(), temperature=1.0)
    one = langevin_preset("c-cola-ud", nn.Linear(4, 3), first_radius=1.0)
    assert isinstance(one, ws.optim.ConstrainedLangevin)
