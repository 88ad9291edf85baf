"""`sample:` in a recipe: how many chains, which of their steps are kept, and how much disk they may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from weightspace.training.recipe_settings import Epochs, Flag, Number, PositiveInt, Runs, Settings

if TYPE_CHECKING:
    from weightspace.training.recipe_settings import TrainSettings

SampleDtype = Literal["float16", "bfloat16", "float32", "float64"]
_BURN_IN_SHARE = 0.5  # of the run, where a recipe does not say
_MEGABYTE = 1_000_000


class SampleSettings(Settings):
    """Chains and the samples that are kept of each: `sample:` in a recipe, read by `weightspace sample`.

    Samples are evenly spaced and end with the run's last step, under the schedule `cyclical` with the last step of each
    cycle. `max_samples: 1` keeps the last weights alone, which makes the chains a deep ensemble.
    """

    chains: Runs = 4
    burn_in_epochs: Annotated[Number, Field(ge=0)] | None = None
    every_steps: PositiveInt | None = None
    per_cycle: PositiveInt | None = None
    max_samples: Epochs = 50
    max_megabytes: Annotated[Number, Field(gt=0)] | None = None
    dtype: SampleDtype | None = None
    renew_batch_norm: Flag = False
    level: Annotated[Number, Field(gt=0, lt=1)] = 0.95

    def check(self, train: TrainSettings) -> None:
        """Check that samples can come of a run that trains like this.

        Raises:
            ValueError: The burn-in leaves nothing, or `per_cycle` is given without cycles.
        """
        if self.burn_in_epochs is not None and self.burn_in_epochs >= train.epochs:
            raise ValueError(
                f"sample.burn_in_epochs ({self.burn_in_epochs:g}) should be below train.epochs ({train.epochs}): no "
                "step would be left to sample"
            )
        cycles = train.schedule.cycles
        if self.per_cycle is not None and cycles is None:
            raise ValueError(
                f"sample.per_cycle belongs to the schedule 'cyclical', not to '{train.schedule.name}'; leave it out "
                "(max_samples is the number of samples), or set train.schedule: {name: cyclical, cycles: 4}"
            )
        if cycles is not None and self.max_samples < cycles and self.max_samples != 1:
            raise ValueError(
                f"sample.max_samples ({self.max_samples}) should be at least the number of cycles ({cycles}), so that "
                "each gives a sample; or 1, for the last weights alone"
            )


@dataclass(frozen=True)
class SamplePlan:
    """Which steps of a run are kept: `count` samples, `every` steps apart, ending with each cycle.

    Attributes:
        burn_in: Steps at the beginning that give none.
        every: Steps between two samples of a cycle.
        cycle: Steps of a cycle; of a run without cycles all of them.
        per_cycle: Samples of a cycle.
        count: Samples of the run.
        max_bytes: Of all samples of a chain together, or None.
        dtype: What weights are rounded to, or None.
    """

    burn_in: int
    every: int
    cycle: int
    per_cycle: int
    count: int
    max_bytes: int | None
    dtype: SampleDtype | None


def sample_plan(settings: SampleSettings, train: TrainSettings, steps_per_epoch: int) -> SamplePlan:
    """Which steps of a run are kept.

    Args:
        settings: The recipe's `sample`.
        train: The recipe's `train`.
        steps_per_epoch: Steps in an epoch.

    Returns:
        The plan. `every` is `every_steps`, or a multiple of it that keeps the count within `max_samples`.

    Raises:
        ValueError: There is no step to sample; says why.

    >>> from weightspace.training.recipe_settings import OptimizerSettings, TrainSettings
    >>> train = TrainSettings(epochs=10, batch_size=8, optimizer=OptimizerSettings(lr=0.1))
    >>> plan = sample_plan(SampleSettings(max_samples=10), train, steps_per_epoch=20)
    >>> plan.burn_in, plan.every, plan.count
    (100, 10, 10)
    >>> sample_plan(SampleSettings(max_samples=1), train, steps_per_epoch=20).count
    1
    """
    steps = train.epochs * steps_per_epoch
    cycles = train.schedule.cycles or 1
    share = _BURN_IN_SHARE if train.schedule.cycles is None else 0.0
    burn_in = steps * share if settings.burn_in_epochs is None else settings.burn_in_epochs * steps_per_epoch
    burn_in = min(round(burn_in), steps - 1)
    max_bytes = None if settings.max_megabytes is None else max(1, round(settings.max_megabytes * _MEGABYTE))
    if settings.max_samples == 1:
        return SamplePlan(burn_in, 1, steps, 1, 1, max_bytes, settings.dtype)
    cycle = steps // cycles
    # Of a cycle only its sampling part, and of the first one nothing before the burn-in has ended.
    room = steps - burn_in if train.schedule.cycles is None else sampling_steps(train.schedule.exploration, cycle)
    wanted = settings.max_samples // cycles if settings.per_cycle is None else settings.per_cycle
    wanted = min(wanted, settings.max_samples // cycles)
    every = max(1, room // wanted)
    if settings.every_steps is not None and settings.per_cycle is not None:
        every = settings.every_steps
    elif settings.every_steps is not None:
        every = settings.every_steps * max(1, math.ceil(((room - 1) // settings.every_steps + 1) / wanted))
    per_cycle = min(wanted, (room - 1) // every + 1)
    skipped = sum(cycle * (k + 1) - every * i <= burn_in for k in range(cycles) for i in range(per_cycle))
    count = cycles * per_cycle - skipped
    if count < 1:
        raise ValueError(f"the burn-in of {burn_in} steps leaves no sample of a run of {steps}; shorten it")
    return SamplePlan(burn_in, every, cycle, per_cycle, count, max_bytes, settings.dtype)


def sampling_steps(exploration: float, cycle: int) -> int:
    """Steps at the end of a cycle that sample, at least one; those before explore.

    >>> sampling_steps(0.8, 100)
    20
    """
    return max(1, cycle - round(exploration * cycle))
