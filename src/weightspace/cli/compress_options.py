"""The options of `weightspace compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A run's folder, its model.safetensors or a checkpoint; with --model any safetensors file.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", metavar="W", help="Prune: weights of at most this magnitude become zero."),
]
RatioOption = Annotated[
    float | None,
    typer.Option("--ratio", metavar="R", help="Prune: this share of the weights, the smallest, becomes zero."),
]
MaxLossOption = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        metavar="POINTS",
        help="Prune: as much as this loss of accuracy allows, in points of a percentage (0.5: from 91.0 % to 90.5 %). "
        "Chosen on training images, never on test images.",
    ),
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="WHAT",
        help="Prune whole groups, not single weights: out (output channels; --shrink removes them), kernel, in.",
    ),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--scope",
        metavar="WHERE",
        help="What a ratio is of: global (all weights are compared with one another; so by default) or layer (each "
        "layer loses the same share; so with --groups).",
    ),
]
FineTuneOption = Annotated[
    int | None,
    typer.Option("--fine-tune", min=1, metavar="EPOCHS", help="Then train with the run's recipe; zeros stay zero."),
]
ShrinkOption = Annotated[
    bool, typer.Option("--shrink", help="Then remove channels that carry nothing: a smaller network, equal outputs.")
]
BitsOption = Annotated[int | None, typer.Option("--bits", metavar="8", help="Then round weights to 8 bits.")]
OnnxOption = Annotated[
    Path | None, typer.Option("--onnx", metavar="FILE", help="Write the result as ONNX; its outputs are compared.")
]
ProgramOption = Annotated[
    Path | None,
    typer.Option("--program", metavar="FILE", help="Write the result as a torch.export program; likewise compared."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "--out",
        metavar="DIR",
        help="Write model.sparse.safetensors, model.small.safetensors (with --shrink) and compress.json there. "
        "Without it, only the table is made.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Prune even if that leaves a layer without any weight.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")]
FactoryOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FACTORY",
        help="For a file without run.json: a function that returns its model, or (model, example input).",
    ),
]
ArgumentOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="For --model: an argument of it. Repeatable.")
]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="SIZES", help="For --model: one example, such as 3x32x32.")
]
