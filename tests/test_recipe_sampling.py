"""`sample:` and the schedules of samplers in recipes: what is read, which steps it means, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import RecipeError
from weightspace.optim import ConstrainedLangevin
from weightspace.sampling import SampleStore
from weightspace.training.recipe import Recipe, SampleSettings, run_fingerprint
from weightspace.training.recipe_sampling import SamplePlan, sample_plan
from weightspace.training.recipe_settings import OptimizerSettings, ScheduleSettings, TrainSettings
from weightspace.training.schedule import is_exploring, is_heated, rate_setter

LANGEVIN: dict[str, Any] = {"name": "ConstrainedLangevin", "lr": 0.01, "options": {"temperature": 1.0}}


def recipe(sample: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None, **train: Any) -> Recipe:
    settings = {"epochs": 8, "batch_size": 10, "optimizer": optimizer or LANGEVIN, **train}
    values: dict[str, Any] = {"name": "r", "data": {"name": "digits"}, "model": {"name": "mlp"}, "train": settings}
    return Recipe.from_dict({**values, "sample": sample} if sample is not None else values)


def train_settings(epochs: int = 8, **schedule: Any) -> TrainSettings:
    return TrainSettings(
        epochs=epochs, batch_size=4, optimizer=OptimizerSettings(lr=0.1), schedule=ScheduleSettings(**schedule)
    )


def steps_of(plan: SamplePlan, steps: int, folder: Any) -> list[int]:
    """The steps that a store with this plan keeps: the slow, independent way."""
    store = SampleStore(
        folder, burn_in=plan.burn_in, every=plan.every, cycle=plan.cycle, per_cycle=plan.per_cycle, chain=0
    )
    return [step for step in range(1, steps + 1) if store.wants(step)]


def test_what_is_read() -> None:
    read = recipe({"chains": 3, "burn_in_epochs": 2, "max_samples": 10, "dtype": "bfloat16"})
    assert read.sample is not None
    assert (read.sample.chains, read.sample.burn_in_epochs, read.sample.dtype) == (3, 2, "bfloat16")
    assert Recipe.from_dict(read.to_dict()) == read
    assert recipe().sample is None


def test_sampling_and_unused_schedules_decide_no_number_of_a_run() -> None:
    plain = run_fingerprint(recipe(), 0)
    assert run_fingerprint(recipe({"chains": 7, "max_samples": 3}), 0) == plain
    cycles = {"name": "cyclical", "cycles": 4}
    assert len({plain, *(run_fingerprint(recipe(schedule=s), 0) for s in (cycles, {**cycles, "cycles": 2}))}) == 3
    warm = {"temperature": {"start": 0.0, "end": 1.0, "epochs": 2}}
    assert run_fingerprint(recipe(optimizer={"name": LANGEVIN["name"], "lr": 0.01}, schedule=warm), 0) != plain


def test_samples_are_evenly_spaced_and_end_with_the_last_step(tmp_path: Any) -> None:
    plan = sample_plan(SampleSettings(burn_in_epochs=2, max_samples=10), train_settings(), 20)
    assert steps_of(plan, 160, tmp_path) == list(range(52, 161, 12))
    assert plan.count == 10


def test_one_sample_is_the_last_weights(tmp_path: Any) -> None:
    plan = sample_plan(SampleSettings(max_samples=1), train_settings(), 20)
    assert steps_of(plan, 160, tmp_path) == [160]


def test_cycles_are_sampled_at_their_ends(tmp_path: Any) -> None:
    train = train_settings(name="cyclical", cycles=4, exploration=0.75)
    plan = sample_plan(SampleSettings(per_cycle=3, every_steps=2), train, 20)
    assert steps_of(plan, 160, tmp_path) == [36, 38, 40, 76, 78, 80, 116, 118, 120, 156, 158, 160]
    spread = sample_plan(SampleSettings(max_samples=8), train, 20)  # 2 a cycle, over its sampling part of 10 steps
    assert steps_of(spread, 160, tmp_path / "spread") == [35, 40, 75, 80, 115, 120, 155, 160]


@given(
    epochs=st.integers(1, 12),
    per_epoch=st.integers(1, 30),
    cycles=st.none() | st.integers(1, 6),
    exploration=st.floats(0, 0.95),
    most=st.integers(1, 40),
    every=st.none() | st.integers(1, 20),
    burn_in=st.none() | st.floats(0, 12),
)
def test_a_plan_keeps_what_it_says(
    tmp_path_factory: Any,
    epochs: int,
    per_epoch: int,
    cycles: int | None,
    exploration: float,
    most: int,
    every: int | None,
    burn_in: float | None,
) -> None:
    epochs = epochs * (cycles or 1)
    schedule = {"name": "cyclical", "cycles": cycles, "exploration": exploration} if cycles else {}
    train = train_settings(epochs, **schedule)
    settings = SampleSettings(max_samples=most, every_steps=every, burn_in_epochs=burn_in)
    try:
        settings.check(train)
    except ValueError:
        return
    steps = epochs * per_epoch
    plan = sample_plan(settings, train, per_epoch)
    kept = steps_of(plan, steps, tmp_path_factory.mktemp("plan"))
    assert len(kept) == plan.count <= most
    assert kept[-1] == steps
    assert kept[0] > plan.burn_in
    if cycles and most > 1:
        assert not any(is_exploring(train.schedule, step - 1, steps=steps) for step in kept)


def test_a_cyclical_temperature_follows_the_cycles() -> None:
    schedule = ScheduleSettings(name="cyclical", cycles=2, exploration=0.5)
    settings = OptimizerSettings(name="ConstrainedLangevin", lr=0.5, options={"temperature": 3.0})
    optimizer = ConstrainedLangevin([torch.nn.Parameter(torch.zeros(2))], lr=0.5, temperature=3.0, num_data=5)
    set_rate = rate_setter(optimizer, settings, schedule, steps_per_epoch=4, steps=8)
    assert set_rate is not None
    seen: list[tuple[float, float]] = []
    for step in range(8):
        set_rate(step)
        seen.append((round(optimizer.param_groups[0]["lr"], 4), optimizer.param_groups[0]["temperature"]))
    assert seen == [(0.5, 0.0), (0.4268, 0.0), (0.25, 3.0), (0.0732, 3.0)] * 2
    assert [step for step in range(9) if is_heated(schedule, step, steps_per_epoch=4, steps=8)] == [2, 6]


def test_ramps_of_temperature_and_friction() -> None:
    ramps = {
        "temperature": {"start": 0.0, "end": 2.0, "epochs": 2},
        "friction": {"start": 4.0, "end": 1.0, "epochs": 1},
    }
    read = recipe(optimizer={"name": "ConstrainedLangevin", "lr": 0.01}, schedule=ramps).train
    optimizer = ConstrainedLangevin([torch.nn.Parameter(torch.zeros(2))], lr=0.01, temperature=1.0, num_data=5)
    set_rate = rate_setter(optimizer, read.optimizer, read.schedule, steps_per_epoch=2, steps=16)
    assert set_rate is not None
    seen: list[tuple[float, float]] = []
    for step in range(6):
        set_rate(step)
        seen.append((optimizer.param_groups[0]["temperature"], optimizer.param_groups[0]["friction"]))
    assert seen == [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (2.0, 1.0)]
    assert [step for step in range(9) if is_heated(read.schedule, step, steps_per_epoch=2, steps=16)] == [4]


RAMP = {"start": 0.0, "end": 1.0, "epochs": 2}
SGD = {"name": "SGD", "lr": 0.1}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "burn-in": ({"burn_in_epochs": 8}, {}, "sample.burn_in_epochs (8) should be below train.epochs (8)"),
    "per_cycle": ({"per_cycle": 2}, {}, "sample.per_cycle belongs to the schedule 'cyclical', not to 'constant'"),
    "few": ({"max_samples": 2}, {"schedule": {"name": "cyclical", "cycles": 4}}, "at least the number of cycles (4)"),
    "unknown": ({"chain": 4}, {}, "unknown key 'sample.chain', did you mean 'sample.chains'?"),
    "none": ({"chains": 0}, {}, "sample.chains should be greater than or equal to 1, not 0"),
    "dtype": ({"dtype": "int8"}, {}, "sample.dtype should be 'float16', 'bfloat16', 'float32' or 'float64'"),
    "uneven": (
        {},
        {"schedule": {"name": "cyclical", "cycles": 3}},
        "epochs (8) should be a multiple of schedule.cycles",
    ),
    "no cycles": ({}, {"schedule": {"name": "cyclical"}}, "needs the number of cycles in the run"),
    "cycles": ({}, {"schedule": {"name": "cosine", "cycles": 2}}, "belong to the schedule 'cyclical', not to 'cosine'"),
    "warm-up": ({}, {"schedule": {"name": "cyclical", "cycles": 2, "warmup_epochs": 1}}, "has no warm-up"),
    "two": ({}, {"schedule": {"temperature": RAMP}}, "both set the temperature; leave out one of them"),
    "SGD": (
        {},
        {"optimizer": SGD, "schedule": {"temperature": RAMP}},
        "belongs to ConstrainedLangevin, and SGD has no",
    ),
    "friction": (
        {},
        {"optimizer": {"name": LANGEVIN["name"], "lr": 0.1}, "schedule": {"friction": RAMP}},
        "schedule.friction should be above 0 at both ends",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named(case: str) -> None:
    sample, train, sentence = REFUSED[case]
    with pytest.raises(RecipeError) as error:
        recipe(sample, **train)
    assert sentence in str(error.value)
