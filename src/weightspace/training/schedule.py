"""Schedules per step: of the learning rate, and of a sampler's temperature and friction.

Linear warm-up, then constant, cosine to zero, steps, or a power of the step; or cycles, cosine to zero in each, with
temperature 0 in their first part (Zhang, Li, Zhang, Chen, Wilson 2020, arXiv 1902.03932).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from weightspace.optim import convergence_conditions, langevin_schedules
from weightspace.optim.schedules import power_decay
from weightspace.training.optimizers import SAMPLER, is_on_manifold
from weightspace.training.recipe import OptimizerSettings, ScheduleSettings
from weightspace.training.recipe_settings import RampSettings


def lr_factor(schedule: ScheduleSettings, step: int, *, steps_per_epoch: int, steps: int) -> float:
    """The factor on the base learning rate for one step.

    Args:
        schedule: The recipe's schedule; its epochs may be fractions.
        step: Steps done before this one: 0 for the first.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A number in [0, 1]. Warm-up rises linearly and reaches 1 after `warmup_epochs`; cosine falls to 0 at `steps`;
        cyclical does so at the end of every cycle; a power counts its steps from the end of warm-up.

    >>> from weightspace.training.recipe import ScheduleSettings
    >>> cosine = ScheduleSettings(name="cosine")
    >>> [round(lr_factor(cosine, step, steps_per_epoch=2, steps=4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "cosine":
        return langevin_schedules.cosine(step - warmup, max(1, steps - warmup))
    if schedule.name == "step":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return schedule.gamma**passed
    if schedule.name == "cyclical":
        return langevin_schedules.cyclical(step, steps // (schedule.cycles or 1))
    if schedule.name == "power":
        return power_decay(1.0, step - warmup, schedule.rate or 0.0, schedule.exponent)
    return 1.0


def broken_conditions(schedule: ScheduleSettings) -> str | None:
    """What a schedule, continued forever, breaks of the conditions under which SGD on manifolds is known to converge.

    A run of a fixed number of steps may do very well without them.

    Returns:
        One sentence, or None where both conditions hold.

    >>> from weightspace.training.recipe import ScheduleSettings
    >>> broken_conditions(ScheduleSettings(name="power", rate=0.01, exponent=0.75)) is None
    True
    """
    conditions = convergence_conditions(schedule.name, schedule.exponent)
    if conditions.hold:
        return None
    return (
        f"the schedule breaks a condition of convergence on manifolds, {conditions.reason}; {{name: power, rate: 0.01, "
        "exponent: 0.75}, which is lr / (1 + 0.01 step)^0.75, satisfies both"
    )


def ramp(settings: RampSettings, step: int, *, steps_per_epoch: int) -> float:
    """The value of a ramp at one step.

    >>> from weightspace.training.recipe_settings import RampSettings
    >>> warming = RampSettings(start=0.0, end=1.0, epochs=2)
    >>> [ramp(warming, step, steps_per_epoch=2) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    steps = max(1, round(settings.epochs * steps_per_epoch))
    return langevin_schedules.ramp(step, steps, settings.start, settings.end)


def is_exploring(schedule: ScheduleSettings, step: int, *, steps: int) -> bool:
    """Whether a step is in the first part of a cycle, where a sampler's temperature is 0."""
    if schedule.cycles is None:
        return False
    return langevin_schedules.is_exploring(step, steps // schedule.cycles, schedule.exploration)


def is_heated(schedule: ScheduleSettings, step: int, *, steps_per_epoch: int, steps: int) -> bool:
    """Whether the temperature begins to be its final one after `step` steps: then thermometers start anew."""
    if schedule.temperature is not None:
        return step == max(1, round(schedule.temperature.epochs * steps_per_epoch))
    here, before = (is_exploring(schedule, at, steps=steps) for at in (step, step - 1))
    return before and not here


def rate_setter(
    optimizer: torch.optim.Optimizer,
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    *,
    steps_per_epoch: int,
    steps: int,
) -> Callable[[int], None] | None:
    """What sets the learning rate of a step, and a sampler's temperature and friction; None where nothing changes.

    To be called before the step. The rate is a function of the step, so there is no state to save. A scheduler of
    torch's wraps the optimizer's step and costs 8 µs more in every step.

    Args:
        optimizer: The torch optimizer whose learning rates are set.
        settings: Its settings: the base learning rate.
        schedule: The recipe's schedule.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A function of the steps done before.
    """
    ramps = {key: value for key in ("temperature", "friction") if (value := getattr(schedule, key)) is not None}
    if schedule.name == "constant" and not schedule.warmup_epochs and not ramps:
        return None

    on_manifolds = settings.manifold_lr_factor or 1.0
    temperature = float(settings.options.get("temperature", 1.0)) if settings.name == SAMPLER else None

    def set_rate(step: int) -> None:
        rate = settings.lr * lr_factor(schedule, step, steps_per_epoch=steps_per_epoch, steps=steps)
        other = {key: ramp(value, step, steps_per_epoch=steps_per_epoch) for key, value in ramps.items()}
        if temperature is not None and schedule.cycles is not None:
            other["temperature"] = 0.0 if is_exploring(schedule, step, steps=steps) else temperature
        for group in optimizer.param_groups:
            group["lr"] = rate * on_manifolds if is_on_manifold(group) else rate
            group.update(other)

    return set_rate
