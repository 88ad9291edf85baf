"""Models to train: a registry of small image classifiers and a language model, built by name, without torchvision.

>>> import torch
>>> sorted(MODELS)
['alexnet', 'mlp', 'plain', 'resnet18', 'resnet20', 'resnet34', 'resnet56', 'resnet8', 'transformer', 'vgg']
>>> net = build_model("vgg", in_channels=1, image_size=8, num_classes=10, widths=[16, 32])
>>> net(torch.zeros(2, 1, 8, 8)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from weightspace.errors import RecipeError
from weightspace.training.data.kind import Kind
from weightspace.training.models.alexnet import AlexNet
from weightspace.training.models.checks import hint
from weightspace.training.models.mlp import MLP
from weightspace.training.models.plain import Plain
from weightspace.training.models.resnet import ResNet, cifar_resnet, imagenet_resnet
from weightspace.training.models.size import refuse_absurd
from weightspace.training.models.transformer import Transformer
from weightspace.training.models.vgg import VGG

__all__ = ["MLP", "MODELS", "VGG", "AlexNet", "ModelEntry", "Plain", "ResNet", "Transformer", "build_model"]

FROM_THE_DATA: Mapping[Kind, tuple[str, ...]] = {
    "images": ("in_channels", "image_size", "num_classes"),
    "text": ("vocabulary", "context"),
}
"""What a model is told of its data, by what the data consist of: `model_arguments` of a data set."""


@dataclass(frozen=True)
class ModelEntry:
    """One row of the registry.

    Attributes:
        name: What recipes call the model.
        summary: One line for tables and help.
        builder: Called with what `FROM_THE_DATA` lists and the options, all by keyword.
        reads: What its data consist of.
    """

    name: str
    summary: str
    builder: Callable[..., nn.Module]
    reads: Kind = "images"

    @property
    def options(self) -> Mapping[str, Any]:
        """The options a recipe may set, with their defaults, read from the builder's signature."""
        parameters = inspect.signature(self.builder).parameters.values()
        from_the_data = FROM_THE_DATA[self.reads]
        return {p.name: p.default for p in parameters if p.name not in from_the_data and p.default is not p.empty}


_ENTRIES = (
    ModelEntry("mlp", "fully connected, ReLU; 784-1000-10 on 28 x 28 gray images", MLP),
    ModelEntry("plain", "deep, equal 3 x 3 convolutions without batch norm, torch's or He's initialization", Plain),
    ModelEntry("vgg", "plain 3 x 3 convolutions without batch norm, dropout before the classifier", VGG),
    ModelEntry("alexnet", "five convolutions without batch norm, two hidden linear layers with dropout", AlexNet),
    ModelEntry(
        "resnet8",
        "the same family, n = 1: 0.08 million parameters, for comparisons on few cores",
        partial(cifar_resnet, "resnet8", 1),
    ),
    ModelEntry(
        "resnet20", "He et al. 2015, section 4.2, n = 3: 0.27 million parameters", partial(cifar_resnet, "resnet20", 3)
    ),
    ModelEntry(
        "resnet56", "He et al. 2015, section 4.2, n = 9: 0.85 million parameters", partial(cifar_resnet, "resnet56", 9)
    ),
    ModelEntry(
        "resnet18",
        "He et al. 2015, table 1: 11.2 million parameters",
        partial(imagenet_resnet, "resnet18", (2, 2, 2, 2)),
    ),
    ModelEntry(
        "resnet34",
        "He et al. 2015, table 1: 21.3 million parameters",
        partial(imagenet_resnet, "resnet34", (3, 4, 6, 3)),
    ),
    ModelEntry(
        "transformer", "decoder-only, pre-norm, for text: 0.8 million parameters on characters", Transformer, "text"
    ),
)

MODELS: Mapping[str, ModelEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every model by name."""


def build_model(name: str, **arguments: Any) -> nn.Module:
    """Builds a model with freshly drawn weights.

    Weights come from torch's global generator: call `torch.manual_seed` before, and the same seed gives the same
    weights bit for bit.

    Args:
        name: A key of `MODELS`.
        **arguments: What the model must know of its data, which `data.model_arguments` holds: `in_channels` (1 for
            gray, 3 for color), `image_size` in pixels and `num_classes` for images; `vocabulary` and `context` for
            text. And the model's own options; `MODELS[name].options` lists them with their defaults.

    Returns:
        The model in training mode, float32 (or torch's default dtype), on the CPU (or torch's default device).

    Raises:
        RecipeError: Unknown name or option (the nearest known one is named), a model for another kind of data, or a
            value out of range.

    >>> build_model("resnet19", in_channels=3, image_size=32, num_classes=10)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    weightspace.errors.RecipeError: Model "resnet19" is unknown: did you mean "resnet18"? Known: mlp, plain, ...
    """
    entry = MODELS.get(name)
    if entry is None:
        raise RecipeError(f'Model "{name}" is unknown: {hint(name, MODELS)}')
    needed = FROM_THE_DATA[entry.reads]
    for argument in needed:
        if argument not in arguments:
            raise RecipeError(
                f'Model "{name}" reads {entry.reads} and needs {", ".join(needed)}, but {argument} was not given; pass '
                f"**data.model_arguments of a data set that is {entry.reads}."
            )
    for option in arguments:
        if option not in needed and option not in entry.options:
            raise RecipeError(f'Model "{name}" has no option "{option}": {hint(option, entry.options)}')
    refuse_absurd(name, entry.builder, arguments)
    return entry.builder(**arguments)
