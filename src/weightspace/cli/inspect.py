"""`weightspace inspect`: the diagnosis of a network, from a run, a recipe or any Python factory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from weightspace.cli.console import print_note, progress_bar, stdout
from weightspace.cli.factories import make_model
from weightspace.cli.options import SetOption
from weightspace.errors import InspectionError
from weightspace.training.recipe import bundled_recipes, load_recipe
from weightspace.training.recipe_files import parse_overrides

if TYPE_CHECKING:
    from torch import nn

    from weightspace.inspection.trace import Loss


@dataclass(frozen=True, eq=False)
class Subject:
    """What is inspected: a model, what it reads, and what its gradient is taken of."""

    model: nn.Module
    example: Any
    loss: Loss | None
    words: str


@dataclass(frozen=True)
class _Request:
    """The options that say what is inspected."""

    size: str | None
    options: tuple[str, ...]
    weights: Path | None
    overrides: tuple[str, ...]
    images: int
    seed: int


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A run's folder, its model.safetensors or a checkpoint; or a recipe (its fresh model); or "
            "module:factory, a function that returns a torch module, or (module, example input).",
        ),
    ],
    *,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="SIZES", help="For module:factory: one example, such as 3x224x224."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="For module:factory: an argument of it. Repeatable."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="For module:factory: weights to load, a safetensors file."),
    ] = None,
    set_: SetOption = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Images in the batch.")] = 16,
    detail: Annotated[
        str,
        typer.Option(
            metavar="TIER",
            help="moments (closed forms), extremes (and sigma_max, sigma_min), spectra (and all singular values, the "
            "Jacobian) or exact (sigma_min and all values under the true padding where that is possible).",
        ),
    ] = "spectra",
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="training or evaluation: what batch norm and dropout do.")
    ] = "training",
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report with plots.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides fresh weights and random inputs.")] = 0,
) -> None:
    """Diagnose a network: its layers as linear maps, activations and gradients by depth, and what to do.

    Prints verdict, table and advice; --html writes them with plots into one file.
    """
    from weightspace.inspection import inspect as look

    if mode not in ("training", "evaluation"):
        raise InspectionError(f"--mode is {mode!r}; choose training or evaluation.")
    subject = _subject(target, _Request(input_, tuple(option or ()), weights, tuple(set_ or ()), images, seed))
    subject.model.train(mode == "training")
    print_note(f"inspecting {subject.words}")
    with progress_bar("layers") as move:
        report = look(
            subject.model, subject.example, loss=subject.loss, detail=cast("Any", detail), seed=seed, progress=move
        )
    from weightspace.inspection.tables import as_renderable

    stdout().print(as_renderable(report), markup=False, highlight=False)
    for path, write in ((html, report.to_html), (json_, report.to_json)):
        if path is not None:
            print_note(f"wrote {write(path)}")


def _subject(target: str, request: _Request) -> Subject:
    """Whatever TARGET names, with the options that belong to it."""
    path = Path(target)
    is_recipe = target in bundled_recipes() or path.suffix in (".yaml", ".yml")
    if not is_recipe and not path.exists() and ":" in target:
        if request.overrides:
            raise InspectionError("--set changes a recipe; give arguments of a factory with --option.")
        return _made(target, request)
    for given, name in ((request.size, "--input"), (request.options, "--option"), (request.weights, "--weights")):
        if given:
            raise InspectionError(f"{name} goes with module:factory; {target} knows its own model and data.")
    return _trained(target, request, is_recipe=is_recipe)


def _trained(target: str, request: _Request, *, is_recipe: bool) -> Subject:
    """The model of a recipe or a run, on its own training images if they are at hand."""
    from torch.nn import functional

    from weightspace.training.steps import flat
    from weightspace.training.trained import batch_for, fresh_model, trained_model

    path = Path(target)
    if is_recipe:
        trained = fresh_model(load_recipe(target, request.overrides), request.seed)
        recipe = trained.recipe
    elif path.exists():
        trained = trained_model(path)
        # The folder of the data may be another than when it was trained.
        recipe = trained.recipe.with_overrides(parse_overrides(request.overrides))
    else:
        raise InspectionError(
            f"{target} is no file or folder, no recipe (see `weightspace recipes`), and no module:factory; give one."
        )
    batch = batch_for(recipe, request.images, request.seed)
    labels = batch.labels
    loss = None if labels is None else (lambda output: functional.cross_entropy(*flat(output, labels)))
    return Subject(trained.model, batch.images, loss, f"{trained.source}, on {batch.source}")


def _made(target: str, request: _Request) -> Subject:
    """What a function of the user's returns."""
    import torch

    from weightspace.training.trained import load_weights

    arguments = parse_overrides(request.options)
    with torch.random.fork_rng():
        torch.manual_seed(request.seed)
        model, example = make_model(target, arguments)
        if request.size is not None:
            example = torch.randn(request.images, *_sizes(request.size))
    if example is None:
        raise InspectionError(
            f"{target} returned a model but no example input; give its size with --input, such as --input 3x224x224."
        )
    if request.weights is not None:
        load_weights(model, request.weights)
    words = target if request.weights is None else f"{target} with the weights of {request.weights}"
    return Subject(model, example, None, words)


def _sizes(text: str) -> list[int]:
    parts = text.replace(",", "x").lower().split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InspectionError(f"--input is {text!r}; give whole numbers such as 3x224x224, without the batch.")
    return [int(part) for part in parts]
