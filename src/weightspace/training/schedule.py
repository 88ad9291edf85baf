"""Learning-rate schedules per step: linear warm-up, then constant, cosine to zero, steps, or a power of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from weightspace.optim import convergence_conditions
from weightspace.optim.schedules import power_decay
from weightspace.training.optimizers import is_on_manifold
from weightspace.training.recipe import OptimizerSettings, ScheduleSettings


def lr_factor(schedule: ScheduleSettings, step: int, *, steps_per_epoch: int, steps: int) -> float:
    """The factor on the base learning rate for one step.

    Args:
        schedule: The recipe's schedule; its epochs may be fractions.
        step: Steps done before this one: 0 for the first.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A number in [0, 1]. Warm-up rises linearly and reaches 1 after `warmup_epochs`; cosine falls to 0 at `steps`;
        a power counts its steps from the end of warm-up.

    >>> from weightspace.training.recipe import ScheduleSettings
    >>> cosine = ScheduleSettings(name="cosine")
    >>> [round(lr_factor(cosine, step, steps_per_epoch=2, steps=4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if schedule.name == "step":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return schedule.gamma**passed
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


def rate_setter(
    optimizer: torch.optim.Optimizer,
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    *,
    steps_per_epoch: int,
    steps: int,
) -> Callable[[int], None] | None:
    """What sets the learning rate of a step, to be called before it; None where the rate never changes.

    The rate is a function of the step, so there is no state to save. A scheduler of torch's wraps the optimizer's step
    and costs 8 µs more in every step.

    Args:
        optimizer: The torch optimizer whose learning rates are set.
        settings: Its settings: the base learning rate.
        schedule: The recipe's schedule.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A function of the steps done before.
    """
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return None

    on_manifolds = settings.manifold_lr_factor or 1.0

    def set_rate(step: int) -> None:
        rate = settings.lr * lr_factor(schedule, step, steps_per_epoch=steps_per_epoch, steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * on_manifolds if is_on_manifold(group) else rate

    return set_rate
