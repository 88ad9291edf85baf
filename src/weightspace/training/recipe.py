"""Recipes: everything that decides a training run or a comparison, as checked YAML.

A recipe is frozen: `with_overrides` and `for_arm` return new, checked ones. `docs/recipes.md` lists every key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from weightspace.errors import RecipeError
from weightspace.training.recipe_checks import check_kinds, check_rule, rule_options
from weightspace.training.recipe_errors import explain
from weightspace.training.recipe_files import bundled_recipes, parse_overrides, read_recipe
from weightspace.training.recipe_paths import set_path
from weightspace.training.recipe_plain import check_plain
from weightspace.training.recipe_sampling import SampleSettings
from weightspace.training.recipe_settings import (
    ArmSettings,
    CompareSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    RandomSearch,
    RuleEntry,
    ScheduleSettings,
    Settings,
    TrainSettings,
    TuneSettings,
)
from weightspace.training.recipe_sweep import SweepSettings

if TYPE_CHECKING:
    from weightspace.kernels.rule import Rule

__all__ = [
    "ArmSettings",
    "CompareSettings",
    "DataSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RandomSearch",
    "Recipe",
    "RuleEntry",
    "SampleSettings",
    "ScheduleSettings",
    "SweepSettings",
    "TrainSettings",
    "TuneSettings",
    "bundled_recipes",
    "load_recipe",
    "run_fingerprint",
]


_MOST_TRIES = 10_000
IS_ITS_ROOT = ("folder", "text")
"""Data sets of which the place is all that is known."""


class Recipe(Settings):
    """A whole recipe. Make one with `load_recipe`, or `Recipe.from_dict` where it does not come from a file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # names folders
    description: str = ""
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    rules: tuple[RuleEntry, ...] = ()
    compare: CompareSettings | None = None
    sweep: SweepSettings | None = None
    sample: SampleSettings | None = None

    @model_validator(mode="after")
    def _samples_come_of_the_run(self) -> Recipe:
        if self.sample is not None:
            self.sample.check(self.train)
        return self

    @model_validator(mode="after")
    def _model_reads_the_data(self) -> Recipe:
        check_kinds(self.data.name, self.model.name, channels_last=self.train.channels_last)
        return self

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: tuple[RuleEntry, ...]) -> tuple[RuleEntry, ...]:
        for entry in rules:
            check_rule(entry)
        return rules

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the recipe") -> Recipe:
        """Check nested values and make a recipe of them.

        Args:
            values: What `to_dict` gives, or a parsed YAML file.
            source: Named first in errors.

        Raises:
            RecipeError: An unknown key, a missing one, or a value out of range, in the recipe or in what an arm
                or a tuning trial makes of it.
        """
        check_plain(values, source)
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(explain(error, cls, source)) from error
        recipe.check_arms(source)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON and YAML write them; `Recipe.from_dict` gives an equal recipe back."""
        return self.model_dump(mode="json")

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """A new recipe with some values replaced.

        Args:
            overrides: Dotted path to value: `{"train.optimizer.lr": 0.1, "rules.0.smoothing": 8.0}`.

        Raises:
            RecipeError: An unknown path or a value out of range.
        """
        values = self.to_dict()
        for path, value in overrides.items():
            set_path(values, path, value, Recipe)
        return Recipe.from_dict(values, source=f"recipe '{self.name}'")

    def for_arm(self, arm: str) -> Recipe:
        """The recipe that an arm trains: its `set` and `rules` applied; `compare`, `sweep` and `sample` left out.

        Args:
            arm: Name of an arm.

        Raises:
            RecipeError: No such arm, or its settings do not fit the recipe.
        """
        arms = self.compare.arms if self.compare is not None else {}
        if arm not in arms:
            raise RecipeError(f"recipe '{self.name}' has no arm '{arm}'; its arms are {', '.join(arms) or 'none'}")
        values = self.to_dict() | {"compare": None, "sweep": None, "sample": None}
        if (rules := arms[arm].rules) is not None:
            values["rules"] = list(rules)
        for path, value in arms[arm].set.items():
            set_path(values, path, value, Recipe)
        return Recipe.from_dict(values, source=f"recipe '{self.name}', arm '{arm}'")

    def make_rules(self) -> list[Rule]:
        """Fresh rule objects for `weightspace.attach`, in the recipe's order."""
        from weightspace.registry import make_rule

        return [make_rule(entry["rule"], **rule_options(entry)) for entry in self.rules]

    def check_arms(self, source: str) -> None:
        """Try every arm with every tuned value (or the ends of its ranges): a mistake shows before hours of training.

        Args:
            source: Named first in errors.

        Raises:
            RecipeError: An arm or a tuned value does not fit the recipe.
        """
        if self.compare is None:
            return
        tune = self.compare.tune
        tried: dict[str, Sequence[Any]] = {}
        if tune is not None:
            tried = {**tune.grid} if tune.grid is not None else {**tune.random.ranges} if tune.random else {}
        tries = sum(map(len, tried.values())) * len(self.compare.arms)
        if tries > _MOST_TRIES:
            raise RecipeError(
                f"{source}: compare tries {tries:,} settings of arms; at most {_MOST_TRIES:,} are checked"
            )
        for name, arm in self.compare.arms.items():
            recipe = self.for_arm(name)
            for path, values in {**tried, **arm.ranges}.items() if arm.tune else ():
                for value in values:
                    try:
                        recipe.with_overrides({path: value})
                    except RecipeError as error:
                        key = f"compare.arms.{name}.ranges" if path in arm.ranges else "compare.tune"
                        raise RecipeError(f"{source}: {key} cannot set {path}={value!r}: {error}") from error


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a recipe that comes with weightspace, by name.

    Args:
        path_or_name: `"my/recipe.yaml"`, or a bundled name such as `"quickstart"`.
        overrides: `"dotted.path=value"`, the value as YAML: `"train.epochs=3"`, `"data.augment=[crop, flip]"`.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: No such file or name, not YAML, an unknown key (the nearest known one is named), or a value
            out of range.
    """
    values, source = read_recipe(path_or_name)
    for path, value in parse_overrides(overrides).items():
        set_path(values, path, value, Recipe)
    return Recipe.from_dict(values, source=source)


def run_fingerprint(recipe: Recipe, seed: int) -> str:
    """Hash of the settings that decide the numbers of one run.

    Names, descriptions, the folder of the data files and the comparison, sweep or sampling around the run do not count.

    Args:
        recipe: The recipe as trained (`for_arm` and tuned values applied).
        seed: The run's seed.

    Returns:
        64 hexadecimal digits (sha256).
    """
    values = recipe.to_dict()
    decisive = {key: values[key] for key in ("data", "model", "train", "rules")}
    _leave_out_unused(decisive["train"])
    if recipe.data.name not in IS_ITS_ROOT:
        del decisive["data"]["root"]
    if recipe.data.level is None:  # images: these keys came with texts, and runs from before stay what they were
        del decisive["data"]["level"], decisive["data"]["context"]
    text = json.dumps([decisive, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _leave_out_unused(train: dict[str, Any]) -> None:
    """Keys that came after the first runs count only where they are used: those runs stay what they were."""
    if train["optimizer"]["manifold_lr_factor"] is None:
        del train["optimizer"]["manifold_lr_factor"]
    if train["schedule"]["name"] != "power":
        del train["schedule"]["rate"], train["schedule"]["exponent"]
    if train["schedule"]["name"] != "cyclical":
        del train["schedule"]["cycles"], train["schedule"]["exploration"]
    for key in ("temperature", "friction"):
        if train["schedule"][key] is None:
            del train["schedule"][key]
