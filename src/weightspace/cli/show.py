"""`weightspace recipes` and `weightspace show`: what there is, and what a recipe comes down to."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml
from rich.console import ConsoleRenderable, RichCast
from rich.syntax import Syntax
from rich.table import Table

from weightspace.cli.console import print_note, stdout
from weightspace.cli.options import RecipeArgument, SetOption, read_recipe_option
from weightspace.errors import DataError
from weightspace.training.recipe import Recipe, bundled_recipes, load_recipe


def recipes() -> None:
    """List the recipes that come with weightspace."""
    table = Table("name", "data", "model", "arms", "what it is for", box=None, header_style="bold")
    for name in bundled_recipes():
        recipe = load_recipe(name)
        arms = str(len(recipe.compare.arms)) if recipe.compare is not None else "-"
        table.add_row(name, recipe.data.name, recipe.model.name, arms, recipe.description)
    stdout().print(table)


def show(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    arm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show what this arm of the comparison trains.", show_default=False),
    ] = None,
) -> None:
    """Print the recipe with all defaults and overrides, and which of its rules acts on which parameter.

    Nothing is trained or downloaded; the data set need not be there.
    """
    settings = read_recipe_option(recipe, set_)
    if arm is not None:
        settings = settings.for_arm(arm)
    text = yaml.safe_dump(settings.to_dict(), sort_keys=False, allow_unicode=True, width=100)
    console = stdout()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        console.out(text, highlight=False)
    shown = settings
    if not settings.rules and settings.compare is not None:
        arms = settings.compare.arms
        first = next((name for name in arms if settings.for_arm(name).rules), None)
        if first is None:
            return
        print_note(f"rules of the arm '{first}' (another: --arm NAME, of {', '.join(arms)}):")
        shown = settings.for_arm(first)
    from weightspace.training.optimizers import home

    if shown.rules:
        _print_routing(shown)
    else:
        print_note(f"no rules: {home(shown.train.optimizer.name)} as it is")
    _print_conditions(shown)


def _print_conditions(recipe: Recipe) -> None:
    """Say what the schedule lacks for the convergence that is known of SGD on manifolds."""
    from weightspace.training.optimizers import SAMPLER, SUBMANIFOLD
    from weightspace.training.schedule import broken_conditions

    name, sentence = recipe.train.optimizer.name, broken_conditions(recipe.train.schedule)
    # A sampler is not to converge to a point.
    if name in SUBMANIFOLD and name != SAMPLER and sentence is not None:
        print_note(f"note: {sentence}")


def _print_routing(recipe: Recipe) -> None:
    """Print which rule acts on which parameter, or why that is not known here."""
    from weightspace.training.trained import model_arguments

    try:
        shape = model_arguments(recipe)
    except DataError as error:
        what = "images, which are" if recipe.data.context is None else "text, which is"
        print_note(f"which parameters the rules act on depends on the {what} not here: {error}")
        return
    stdout().print(_routing(recipe, shape))


def _routing(recipe: Recipe, shape: dict[str, int]) -> ConsoleRenderable | RichCast:
    """The routing table of the recipe's rules on its model."""
    import torch

    import weightspace
    from weightspace.training.models import build_model
    from weightspace.training.optimizers import SUBMANIFOLD

    model = build_model(recipe.model.name, **shape, **recipe.model.options)
    rules = recipe.make_rules()
    if recipe.train.optimizer.name in SUBMANIFOLD:  # the manifolds are its own, the other rules are attached
        routes = weightspace.kernels.route(rules, weightspace.kernels.describe(model), list(model.parameters()))
        return weightspace.kernels.RoutingTable(tuple(rules), routes, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.train.optimizer.lr)
    return weightspace.attach(optimizer, model, *rules).table()
