"""The parts of a recipe, one frozen pydantic model each: types, defaults and limits of every key."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from weightspace.training.optimizers import SUBMANIFOLD
from weightspace.training.recipe_checks import (
    check_augment,
    check_data,
    check_model,
    check_optimizer,
    check_rule,
    check_sampler_schedule,
    check_text_options,
    text_defaults,
)

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"]
# Strict: `epochs: true` is no 1 and `lr: "0.1"` no number. An integer is a number all the same.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Runs = Annotated[int, Field(ge=1, le=10_000, strict=True)]  # each is an object long before it is a run
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Bound = Annotated[Annotated[int, Field(strict=True)] | Number, Field(gt=0)]  # a range between whole numbers stays one
Flag = Annotated[bool, Field(strict=True)]
RuleEntry = dict[str, Any]
"""One entry of `rules:` as it is written: the rule's name under `rule`, and its options."""
_MOST_SETTINGS = 10_000


def _ordered(ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    for path, (low, high) in ranges.items():
        if low >= high:
            raise ValueError(f"the range of '{path}' should go up, but {low:g} is not below {high:g}")
    return ranges


Ranges = Annotated[dict[str, tuple[Bound, Bound]], AfterValidator(_ordered)]  # dotted path to both ends


class Settings(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, nothing changes after validation."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Settings):
    """Which images, or which text in which tokens: `data:` in a recipe."""

    name: str
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    root: str | None = None
    augment: tuple[str, ...] = ()
    level: Literal["character", "word"] | None = None
    context: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        return {**values, **text_defaults(given.get("name")), **given}

    @model_validator(mode="after")
    def _options_belong_to_the_data(self) -> DataSettings:
        check_text_options(self.name, {"level": self.level, "context": self.context, "augment": self.augment})
        return self

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        check_data(name)
        return name

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, augment: tuple[str, ...]) -> tuple[str, ...]:
        check_augment(augment)
        return augment


class ModelSettings(Settings):
    """Which network: `model:` in a recipe."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _known(self) -> ModelSettings:
        check_model(self.name, self.options)
        return self


class OptimizerSettings(Settings):
    """Any optimizer of `torch.optim`, or one that moves on manifolds, by its class name: `train.optimizer:`."""

    name: str = "SGD"
    lr: Positive
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    manifold_lr_factor: Positive | None = None

    @model_validator(mode="after")
    def _known(self) -> OptimizerSettings:
        check_optimizer(self.name, self.lr, self.options)
        if self.manifold_lr_factor is not None and self.name not in SUBMANIFOLD:
            raise ValueError(
                f"manifold_lr_factor belongs to {' and '.join(SUBMANIFOLD)}, which know the weights on manifolds from "
                f"the others, not to {self.name}; leave it out"
            )
        return self


class RampSettings(Settings):
    """A number that goes from `start` to `end` within so many epochs and stays there: temperature or friction."""

    start: Annotated[Number, Field(ge=0)]
    end: Annotated[Number, Field(ge=0)]
    epochs: Positive


class ScheduleSettings(Settings):
    """Learning rate over the run, per step: `train.schedule:`. Epochs may be fractions.

    Under `cyclical` a sampler's temperature follows: 0 in the first part of a cycle, `exploration`. `temperature` and
    `friction` are ramps of a sampler's options of these names.
    """

    name: Literal["constant", "cosine", "step", "power", "cyclical"] = "constant"
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[Number, Field(gt=0, le=1)] = 0.1
    rate: Positive | None = None
    exponent: Positive = 1.0
    cycles: Epochs | None = None
    exploration: Annotated[Number, Field(ge=0, lt=1)] = 0.8
    temperature: RampSettings | None = None
    friction: RampSettings | None = None

    @model_validator(mode="after")
    def _milestones_belong_to_step(self) -> ScheduleSettings:
        if self.name == "step" and not self.milestones:
            raise ValueError("the schedule 'step' needs milestones, for example milestones: [10, 15]")
        if self.name != "step" and self.milestones:
            raise ValueError(f"milestones belong to the schedule 'step', not to '{self.name}'; leave them out")
        return self

    @model_validator(mode="after")
    def _rate_belongs_to_power(self) -> ScheduleSettings:
        if self.name == "power" and self.rate is None:
            raise ValueError("the schedule 'power' is lr / (1 + rate * step)^exponent and needs a rate, such as 0.01")
        if self.name != "power" and (self.rate is not None or self.exponent != 1.0):
            raise ValueError(f"rate and exponent belong to the schedule 'power', not to '{self.name}'; leave them out")
        return self

    @model_validator(mode="after")
    def _cycles_belong_to_cyclical(self) -> ScheduleSettings:
        if self.name == "cyclical" and self.cycles is None:
            raise ValueError("the schedule 'cyclical' needs the number of cycles in the run, for example cycles: 4")
        if self.name == "cyclical" and self.warmup_epochs:
            raise ValueError("the schedule 'cyclical' begins every cycle anew and has no warm-up; leave it out")
        if self.name == "cyclical" and self.temperature is not None:
            raise ValueError("the schedule 'cyclical' has the temperature follow its cycles; leave out the ramp")
        if self.name != "cyclical" and (self.cycles is not None or self.exploration != 0.8):
            raise ValueError(
                f"cycles and exploration belong to the schedule 'cyclical', not to '{self.name}'; leave them out"
            )
        return self


class TrainSettings(Settings):
    """How one run trains: `train:` in a recipe."""

    epochs: Epochs
    batch_size: PositiveInt
    optimizer: OptimizerSettings
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    precision: Precision = "32-true"
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    clip_norm: Positive | None = None
    channels_last: Flag = False
    deterministic: Flag = True
    measure_every: PositiveInt | None = 50
    evaluate_every: PositiveInt = 1

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) should be below epochs ({self.epochs})"
            )
        check_sampler_schedule(self.optimizer.name, self.optimizer.options, self.schedule.model_dump())
        if self.schedule.cycles is not None and self.epochs % self.schedule.cycles:
            raise ValueError(
                f"epochs ({self.epochs}) should be a multiple of schedule.cycles ({self.schedule.cycles}): all cycles "
                "are equally long"
            )
        if self.precision == "16-mixed" and self.optimizer.options.get("fused"):
            raise ValueError(
                "optimizer.options.fused does not go with precision 16-mixed: it unscales gradients inside the "
                "step, after rules have seen them; leave out fused, or use bf16-mixed"
            )
        return self


class RandomSearch(Settings):
    """Random search, log-uniform in each range, the same draws for every arm: `compare.tune.random:`."""

    trials: Runs
    ranges: Annotated[Ranges, Field(min_length=1)]


class TuneSettings(Settings):
    """The tuning budget that every tuned arm gets: `compare.tune:`. Exactly one of `grid` and `random`."""

    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] | None = None
    random: RandomSearch | None = None
    seeds: Runs = 1
    validation_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _one_search(self) -> TuneSettings:
        if (self.grid is None) == (self.random is None):
            raise ValueError("tune needs exactly one of 'grid' and 'random'")
        settings = math.prod(len(values) for values in (self.grid or {}).values())
        if settings > _MOST_SETTINGS:
            raise ValueError(
                f"the grid has {settings:,} settings, each of them a run; give at most {_MOST_SETTINGS:,} or use random"
            )
        return self


class ArmSettings(Settings):
    """One arm of a comparison: `compare.arms.<name>:`.

    `rules` None keeps the recipe's rules. `set` holds dotted overrides of the recipe for this arm. `ranges` are
    settings that random search draws for this arm alone, within the same number of trials.
    """

    tune: Flag = True
    rules: tuple[RuleEntry, ...] | None = None
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    ranges: Ranges = Field(default_factory=dict[str, tuple[float, float]])

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: tuple[RuleEntry, ...] | None) -> tuple[RuleEntry, ...] | None:
        for entry in rules or ():
            check_rule(entry)
        return rules

    @model_validator(mode="after")
    def _ranges_are_tuned(self) -> ArmSettings:
        if self.ranges and not self.tune:
            raise ValueError("an arm with tune: false has no trials for its ranges; leave out one of the two")
        for path in self.ranges:
            if path in self.set:
                raise ValueError(f"ranges and set both have '{path}'; tuning would overwrite it, leave out one of them")
        return self


class CompareSettings(Settings):
    """A comparison of arms over paired seeds: `compare:` in a recipe."""

    baseline: str
    seeds: Runs = 5
    level: Annotated[Number, Field(gt=0, lt=1)] = 0.95
    tune: TuneSettings | None = None
    arms: Annotated[dict[str, ArmSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> CompareSettings:
        if self.baseline not in self.arms:
            raise ValueError(f"the baseline '{self.baseline}' is not one of the arms: {', '.join(self.arms)}")
        return self

    @model_validator(mode="after")
    def _own_ranges_fit_the_search(self) -> CompareSettings:
        search = self.tune.random if self.tune is not None else None
        for name, arm in self.arms.items():
            if arm.ranges and search is None:
                raise ValueError(f"arm '{name}' has ranges, which only random search draws; add tune.random")
            for path in arm.ranges:
                if search is not None and path in search.ranges:
                    raise ValueError(
                        f"arm '{name}' has a range for '{path}', which tune.random draws for every arm; "
                        "leave one of both out"
                    )
        return self
