"""Checks of the names in a recipe against what they name: optimizers, models, data sets, rules.

Each check raises `ValueError` with one sentence, because pydantic collects those; the recipe turns them into
`RecipeError`. The heavy modules are imported when a recipe is read, not when this module is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from weightspace.errors import WeightspaceError, nearest

_UNUSABLE_OPTIONS = {
    "differentiable": "the training loop does not differentiate through steps",
    "capturable": "the training loop does not capture CUDA graphs",
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """`"did you mean 'x'?"` where a name is similar, otherwise the list of known names."""
    names = list(known)
    return nearest(name, names, "did you mean '{}'?") or f"known are {', '.join(names)}"


def check_optimizer(name: str, lr: float, options: Mapping[str, Any]) -> None:
    """Check an optimizer by building it on one small weight.

    Args:
        name: Class name in `torch.optim`, or `SubmanifoldSGD` or `SubmanifoldAdam` of `weightspace.optim`.
        lr: Learning rate.
        options: Keyword arguments of the class other than `params` and `lr`.

    Raises:
        ValueError: No such class, no such option, or a value that the class refuses.
    """
    import torch

    from weightspace.training.optimizers import SAMPLER, UNUSABLE, home, optimizer_classes

    known = optimizer_classes()
    if name not in known:
        if name in UNUSABLE:
            raise ValueError(f"the optimizer {name} cannot be used: {UNUSABLE[name]}; known are {', '.join(known)}")
        raise ValueError(f"there is no optimizer '{name}' in torch.optim, {suggestion(name, known)}")
    optimizer_class = known[name]
    parameters = inspect.signature(optimizer_class).parameters
    accepted = {key: entry.default for key, entry in parameters.items() if key not in {"params", "lr"}}
    for option, value in options.items():
        if option not in accepted:
            raise ValueError(f"{name} has no option '{option}', {suggestion(option, accepted)}")
        _check_option(option, value, accepted[option])
    try:
        known_here = {"temperature": 1.0, "num_data": 1} if name == SAMPLER else {}  # a run fills them in
        optimizer_class([torch.nn.Parameter(torch.zeros(2, 2))], lr=lr, **{**known_here, **options})
    except Exception as error:  # torch raises whatever its own code stumbles on
        raise ValueError(f"{home(name)} refuses these settings: {error}") from error


def _check_option(option: str, value: Any, default: Any) -> None:
    """Compare an option's kind with that of its default: torch finds some mistakes at the first step only."""
    if option in _UNUSABLE_OPTIONS and value:
        raise ValueError(f"options.{option} cannot be used: {_UNUSABLE_OPTIONS[option]}; leave it out")
    wanted = None
    if isinstance(default, bool) or option in {"foreach", "fused"}:  # whose None is torch's own choice
        wanted = None if isinstance(value, bool) or (value is None and default is None) else "true or false"
    elif isinstance(default, int | float):
        wanted = None if _is_number(value) else "a number"
    elif isinstance(default, tuple):
        entries = cast("tuple[object, ...]", default)
        given = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
        fits = len(given) == len(entries) and all(
            _is_number(entry) or (entry is None and usual is None) for entry, usual in zip(given, entries, strict=True)
        )
        wanted = None if fits else f"{len(entries)} numbers such as {list(entries)}"
    if wanted is not None:
        raise ValueError(f"options.{option} should be {wanted}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def check_text_options(name: str, given: Mapping[str, Any]) -> None:
    """Check that options of text go with text, and augmentations with images.

    Args:
        name: Data set.
        given: `level`, `context` and `augment` as far as the recipe sets them.

    Raises:
        ValueError: An option of the other kind of data.
    """
    from weightspace.training.data import DATASETS

    texts = [key for key, info in DATASETS.items() if info.kind == "text"]
    if name in texts and given.get("augment"):
        raise ValueError(f"augment changes images, and '{name}' is text; leave it out")
    for key in ("level", "context"):
        if name not in texts and given.get(key) is not None:
            raise ValueError(f"{key} belongs to texts ({', '.join(texts)}), not to '{name}'; leave it out")


def check_sampler_schedule(optimizer: str, options: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
    """Check that ramps of temperature and friction have an option to act on.

    Args:
        optimizer: Class name.
        options: Its options.
        schedule: The recipe's `train.schedule`.

    Raises:
        ValueError: The optimizer has no such option, or the ramp contradicts another one.
    """
    from weightspace.training.optimizers import SAMPLER

    for key in ("temperature", "friction"):
        if schedule[key] is None:
            continue
        if optimizer != SAMPLER:
            raise ValueError(f"schedule.{key} belongs to {SAMPLER}, and {optimizer} has no {key}; leave it out")
        if options.get(key) is not None:
            raise ValueError(f"optimizer.options.{key} and schedule.{key} both set the {key}; leave out one of them")
    if schedule["friction"] is not None and options.get("momentum") is not None:
        raise ValueError("schedule.friction and optimizer.options.momentum both set the damping; leave out one of them")
    if schedule["friction"] is not None and not schedule["friction"]["start"] * schedule["friction"]["end"]:
        raise ValueError("schedule.friction should be above 0 at both ends: without it no temperature is kept")


def check_kinds(data: str, model: str, *, channels_last: bool) -> None:
    """Check that a model reads what the data set consists of.

    Raises:
        ValueError: It does not, or a layout of images is asked for with text.
    """
    from weightspace.training.data import DATASETS
    from weightspace.training.models import MODELS

    kind, reads = DATASETS[data].kind, MODELS[model].reads
    if kind != reads:
        fitting = ", ".join(name for name, entry in MODELS.items() if entry.reads == kind)
        raise ValueError(
            f"the model '{model}' reads {reads}, but the data set '{data}' is {kind}; models for it: {fitting}"
        )
    if channels_last and kind != "images":
        raise ValueError(f"train.channels_last is a layout of images, and '{data}' is {kind}; leave it out")


def text_defaults(name: object) -> dict[str, Any]:
    """Level and context of a text where a recipe does not set them; empty for images and unknown names."""
    from weightspace.training.data import DATASETS
    from weightspace.training.data.text_load import CONTEXT

    info = DATASETS.get(name) if isinstance(name, str) else None
    return {"level": "character", "context": CONTEXT} if info is not None and info.kind == "text" else {}


def check_augment(names: Sequence[str]) -> None:
    """Check the names of augmentations.

    Raises:
        ValueError: No such augmentation, or one that is there twice.
    """
    from weightspace.training.data.augment import AUGMENTATIONS

    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the augmentation '{name}' stands there {names.count(name)} times; once is enough")
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
    except (WeightspaceError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(str(error)) from error


def rule_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `weightspace.registry.make_rule` for a recipe's rule entry."""
    return {key: value for key, value in entry.items() if key != "rule"}
