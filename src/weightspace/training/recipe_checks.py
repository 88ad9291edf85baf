"""Checks of the names in a recipe against what they name: optimizers, models, data sets, rules.

Each check raises `ValueError` with one sentence, because pydantic collects those; the recipe turns them into
`RecipeError`. The heavy modules are imported when a recipe is read, not when this module is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.training.recipe_errors import nearest

# They need a closure (LBFGS) or sparse gradients (SparseAdam), and the training loop gives neither.
_UNUSABLE_OPTIMIZERS = {"LBFGS", "SparseAdam", "Optimizer"}


def suggestion(name: str, known: Iterable[str]) -> str:
    """`"did you mean 'x'?"` where a name is similar, otherwise the list of known names."""
    names = list(known)
    guess = nearest(name, names)
    return f"did you mean '{guess}'?" if guess is not None else f"known are {', '.join(names)}"


def check_optimizer(name: str, lr: float, options: Mapping[str, Any]) -> None:
    """Check an optimizer by building it on one small weight.

    Args:
        name: Class name in `torch.optim`.
        lr: Learning rate.
        options: Keyword arguments of the class other than `params` and `lr`.

    Raises:
        ValueError: No such class, no such option, or a value that the class refuses.
    """
    import torch

    known = sorted(
        key
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key not in _UNUSABLE_OPTIMIZERS
    )
    if name not in known:
        if name in _UNUSABLE_OPTIMIZERS:
            raise ValueError(f"the optimizer {name} cannot be used by the training loop; known are {', '.join(known)}")
        raise ValueError(f"there is no optimizer '{name}' in torch.optim, {suggestion(name, known)}")
    optimizer_class = getattr(torch.optim, name)
    accepted = [key for key in inspect.signature(optimizer_class).parameters if key not in {"params", "lr"}]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{name} has no option '{option}', {suggestion(option, accepted)}")
    try:
        optimizer_class([torch.nn.Parameter(torch.zeros(2, 2))], lr=lr, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"torch.optim.{name} refuses these settings: {error}") from error


def check_model(name: str, options: Mapping[str, Any]) -> None:
    """Check that a model of this name exists and takes these options.

    Raises:
        ValueError: No such model, or no such option.
    """
    from weightspace.training.models import MODELS

    if name not in MODELS:
        raise ValueError(f"there is no model '{name}', {suggestion(name, MODELS)}")
    accepted = MODELS[name].options
    for option in options:
        if option not in accepted:
            raise ValueError(f"the model '{name}' has no option '{option}', {suggestion(option, accepted)}")


def check_data(name: str) -> None:
    """Check that a data set of this name exists.

    Raises:
        ValueError: No such data set.
    """
    from weightspace.training.data import DATASETS

    if name not in DATASETS:
        raise ValueError(f"there is no data set '{name}', {suggestion(name, DATASETS)}")


def check_augment(names: Iterable[str]) -> None:
    """Check the names of augmentations.

    Raises:
        ValueError: No such augmentation.
    """
    from weightspace.training.data.augment import AUGMENTATIONS

    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(f"there is no augmentation '{name}', {suggestion(name, AUGMENTATIONS)}")


def check_rule(entry: Mapping[str, Any]) -> None:
    """Check a rule entry such as `{rule: ChannelL2, smoothing: 4.0}` by making the rule.

    Raises:
        ValueError: The key `rule` is missing, no such rule, no such option, or a value out of range.
    """
    from weightspace.registry import make_rule

    if not isinstance(entry.get("rule"), str):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueError only
            "a rule entry needs the key 'rule', for example {rule: ChannelL2, smoothing: 4.0}"
        )
    try:
        make_rule(entry["rule"], **rule_options(entry))
    except (WeightspaceError, TypeError, ValueError) as error:
        raise ValueError(str(error)) from error


def rule_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `weightspace.registry.make_rule` for a recipe's rule entry."""
    return {key: value for key, value in entry.items() if key != "rule"}
