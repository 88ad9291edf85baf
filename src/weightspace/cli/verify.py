"""`weightspace verify`: are the weights in a file where the manifolds have them?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from weightspace.cli.console import print_error, print_note, stdout
from weightspace.cli.factories import make_model
from weightspace.cli.options import SetOption
from weightspace.errors import RunError
from weightspace.files import write_json_atomically
from weightspace.training.recipe_files import parse_overrides

if TYPE_CHECKING:
    from torch import nn

    from weightspace.kernels import Rule
    from weightspace.training.constraints import ConstraintCheck, Measured

BROKEN = 1


def verify(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="A run's folder, its model.safetensors, a checkpoint, or any safetensors file."
        ),
    ],
    *,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="MANIFOLD", help="In place of the run's own, such as 'stiefel(matrix)'."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="SELECTION", help="Which parameters, such as convs: one for each --rule."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODULE:FACTORY", help="For a file without run.json: what made its model."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="For --model: an argument of the factory. Repeatable."),
    ] = None,
    set_: SetOption = None,
    steps: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Training steps, for products that are drawn anew.")
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
) -> int:
    """Measure how far weights are from the manifolds that they were trained on.

    Only the weights are looked at. Exit codes: 0 every constraint holds, 1 one is broken, 2 there is nothing to verify
    or the input is bad.
    """
    from weightspace.training.constraints import measure_constraints
    from weightspace.training.trained import history_of, weights_in

    if not target.exists():
        raise RunError(f"{target} does not exist; give a run's folder, its model.safetensors or a checkpoint")
    file = target if target.is_file() else weights_in(target)
    given = _given_rules(tuple(rule or ()), tuple(on or ()))
    if model is not None:
        network, rules = _users_model(model, file, tuple(option or ()), given, tuple(set_ or ()))
    elif option:
        raise RunError("--option is an argument of the factory that --model names; give --model module:factory as well")
    else:
        network, rules = _model_of_run(file, given, tuple(set_ or ()))
    history = history_of(file)
    taken = history.steps if steps is None else steps
    measured = measure_constraints(network, rules, steps=taken, slack=None if given else history.slack)
    if not measured.checks:
        raise RunError(_nothing(file, rules, measured))
    if json_ is not None:
        write_json_atomically(json_, _figures(file, measured))
        print_note(f"wrote {json_}")
    return _tell(file, measured)


def _given_rules(texts: tuple[str, ...], selections: tuple[str, ...]) -> list[Rule]:
    """The manifolds of `--rule`, each with its `--on`."""
    import weightspace

    if len(selections) not in (0, len(texts)):
        raise RunError(
            f"{len(texts)} --rule and {len(selections)} --on were given; give one --on for each --rule, or none"
        )
    manifolds = [weightspace.manifolds.parse(text) for text in texts]
    chosen = [weightspace.on.parse(text) for text in selections] or [None] * len(texts)
    return [replace(manifold, on=on) for manifold, on in zip(manifolds, chosen, strict=True)]


def _model_of_run(file: Path, given: list[Rule], overrides: tuple[str, ...]) -> tuple[nn.Module, list[Rule]]:
    from weightspace.training.trained import trained_model

    trained = trained_model(file, factory_option="--model")
    return trained.model, given or trained.recipe.with_overrides(parse_overrides(overrides)).make_rules()


def _users_model(
    factory: str, file: Path, options: tuple[str, ...], given: list[Rule], overrides: tuple[str, ...]
) -> tuple[nn.Module, list[Rule]]:
    import torch

    from weightspace.training.trained import load_weights

    if overrides:
        raise RunError("--set changes a recipe; with --model give the manifolds with --rule, arguments with --option")
    if not given:
        raise RunError("with --model no recipe says where weights live; give --rule 'stiefel(matrix)' --on convs")
    with torch.random.fork_rng():
        network, _ = make_model(factory, parse_overrides(options))
    load_weights(network, file)
    return network.requires_grad_(requires_grad=True), given  # a frozen weight was trained before it was frozen


def _nothing(file: Path, rules: list[Rule], measured: Measured) -> str:
    """Why there is nothing to verify."""
    from weightspace.training.optimizers import constraints_of

    manifolds = constraints_of(rules)
    if not manifolds:
        return f"nothing to verify: the recipe of {file} has no manifold among its rules; name one with --rule"
    if measured.skipped:
        name, reason = measured.skipped[0]
        return f"nothing to verify: {manifolds[0]} can hold none of the parameters that it selects ({name}: {reason})"
    return f"nothing to verify: {', '.join(map(str, manifolds))} selects no parameter of the model; give another --on"


def _tell(file: Path, measured: Measured) -> int:
    """Print the table and the verdict; the exit code."""
    table = Table("parameter", "manifold", box=None, header_style="bold")
    for column in ("points", "violation", "bound"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for check in measured.checks:
        table.add_row(
            escape(check.parameter),
            escape(check.manifold),
            str(check.points),
            f"{check.violation:.1e}",
            f"{check.bound:.1e}",
            "holds" if check.holds else f"BROKEN ({check.broken} of {check.points})",
            style=None if check.holds else "bold red",
        )
    stdout().print(table)
    for name, reason in measured.skipped:
        print_note(f"not constrained: {name}: {reason}")
    if not measured.broken:
        print_note(f"every constraint holds ({len(measured.checks)}, in {file})")
        return 0
    first = measured.broken[0]
    more = "" if len(measured.broken) == 1 else f", and {len(measured.broken) - 1} more"
    print_error(
        f"{len(measured.broken)} of {len(measured.checks)} constraints are broken in {file}: {first.parameter} is not "
        f"on {first.manifold}, violation {first.violation:.1e} where {first.bound:.1e} is allowed{more}"
    )
    return BROKEN


def _figures(file: Path, measured: Measured) -> dict[str, object]:
    return {"file": str(file), "holds": not measured.broken, "constraints": [_figure(c) for c in measured.checks]}


def _figure(check: ConstraintCheck) -> dict[str, object]:
    return {**vars(check), "holds": check.holds}
