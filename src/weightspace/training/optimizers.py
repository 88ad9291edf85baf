"""The optimizers that recipes may name: those of `torch.optim`, and ours that move on manifolds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from weightspace.errors import RecipeError, RuleError, SelectionError
from weightspace.kernels import Rule, Stage

if TYPE_CHECKING:
    import torch
    from torch import nn

    import weightspace
    from weightspace.training.recipe import Recipe
    from weightspace.training.recipe_settings import OptimizerSettings

UNUSABLE = {
    "LBFGS": "it needs a closure, which the training loop does not give",
    "SparseAdam": "it needs sparse gradients, which no model here has",
    "Muon": "it takes matrices only, and every model here has vectors (biases) too",
    "Optimizer": "it is the base class of all others",
}
SAMPLER = "ConstrainedLangevin"
SUBMANIFOLD = ("SubmanifoldSGD", "SubmanifoldAdam", SAMPLER)


def optimizer_classes() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """Every usable optimizer by its name in recipes, sorted."""
    import torch

    import weightspace.optim

    found = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key not in UNUSABLE
    }
    ours = {name: getattr(weightspace.optim, name) for name in SUBMANIFOLD}
    return dict(sorted({**found, **ours}.items()))


def home(name: str) -> str:
    """An optimizer's name with the module that users import it from.

    >>> home("SGD"), home("SubmanifoldSGD")
    ('torch.optim.SGD', 'weightspace.optim.SubmanifoldSGD')
    """
    return f"{'weightspace' if name in SUBMANIFOLD else 'torch'}.optim.{name}"


def is_on_manifold(group: Mapping[str, Any]) -> bool:
    """Whether a parameter group of an optimizer has a manifold other than all of space."""
    return not str(group.get("manifold", "euclidean")).startswith("euclidean")


def constraints_of(rules: Iterable[Rule]) -> list[weightspace.manifolds.Manifold]:
    """Those of the rules that are manifolds."""
    import weightspace

    return [rule for rule in rules if isinstance(rule, weightspace.manifolds.Manifold)]


def attached_rules(recipe: Recipe) -> list[Rule]:
    """The rules that `attach` puts on a recipe's optimizer: all, but the manifolds of an optimizer that has its own."""
    rules = recipe.make_rules()
    if recipe.train.optimizer.name not in SUBMANIFOLD:
        return rules
    return [rule for rule in rules if rule.stage is not Stage.MANIFOLD]


def options_of(settings: OptimizerSettings, *, num_data: int, measure_every: int | None) -> dict[str, Any]:
    """The optimizer's options; a sampler's are completed by what the run knows.

    Args:
        settings: The recipe's.
        num_data: Number of training examples.
        measure_every: Steps between two measurements, None for none.
    """
    if settings.name != SAMPLER:
        return settings.options
    return {"num_data": num_data, "measure_every": measure_every, "temperature": 1.0, **settings.options}


def make_optimizer(recipe: Recipe, module: nn.Module, *, num_data: int) -> torch.optim.Optimizer:
    """The recipe's optimizer on a model; for ours the manifolds among the recipe's rules are its constraints.

    Weights are moved onto their manifolds here. A sampler takes `num_data`, the number of training examples.

    Raises:
        RecipeError: The class refuses the model, or two manifolds select the same parameters.
        SelectionError: A manifold fits none of the parameters that it selects.
    """
    settings = recipe.train.optimizer
    options = options_of(settings, num_data=num_data, measure_every=recipe.train.measure_every)
    groups = module.parameters() if settings.name not in SUBMANIFOLD else _constrained_groups(recipe, module)
    try:
        made = optimizer_classes()[settings.name](groups, lr=settings.lr, **options)
    except (RuleError, SelectionError):
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(
            f"train.optimizer: {home(settings.name)} refuses the model '{recipe.model.name}': {error}"
        ) from error
    if settings.manifold_lr_factor is not None:
        for group in made.param_groups:
            if is_on_manifold(group):
                group["lr"] = settings.lr * settings.manifold_lr_factor
    return made


def _constrained_groups(recipe: Recipe, module: nn.Module) -> list[dict[str, object]]:
    """The model's parameters in groups: one for each manifold, one for all others."""
    import weightspace

    manifolds = constraints_of(recipe.make_rules())
    if not manifolds:
        return [{"params": list(module.parameters())}]
    by_selection = {rule.selection: rule for rule in manifolds}
    if len(by_selection) < len(manifolds):
        raise RecipeError(
            "two manifolds of the recipe's rules select the same parameters, and a weight lives on one manifold; give "
            "each its own on=, such as on: name('layer1.*') & convs"
        )
    return list(weightspace.param_groups(module, by_selection))
