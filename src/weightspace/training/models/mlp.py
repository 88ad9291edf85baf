"""Fully connected network; with its defaults and 28 x 28 gray images the classical 784-1000-10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from weightspace.training.models.checks import check_images, choice, positive_int, positive_ints
from weightspace.training.models.initialize import he_normal_fan_in


class MLP(nn.Module):
    """Flatten, then (Linear, ReLU) for each hidden width, then a linear head.

    Module names: `hidden.0`, `hidden.2`, ... are the hidden linear layers, `fc` is the head.

    Cost: one multiplication per weight and image, `sum of fan_in * fan_out` in all.

    Args:
        in_channels: Image channels C.
        image_size: Image height and width S in pixels.
        num_classes: Number of logits.
        hidden: Width of the hidden layer, or one width per hidden layer; an empty list is softmax regression.
        init: "he": He-normal weights, zero biases; "torch": what `nn.Linear` starts with, no number above
            1 / sqrt(fan_in): what bounds as tight as those of published circle constraints need.

    Raises:
        RecipeError: A width, channel or class count is no integer of at least 1, or `init` is neither.

    >>> sum(p.numel() for p in MLP(in_channels=1, image_size=28, num_classes=10).parameters())
    795010
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        hidden: int | Sequence[int] = 1000,
        init: Literal["he", "torch"] = "he",
    ) -> None:
        super().__init__()
        choice("mlp", "init", init, ("he", "torch"))
        self.in_channels: int = positive_int("mlp", "in_channels", in_channels)
        self.image_size: int = positive_int("mlp", "image_size", image_size)
        width = in_channels * image_size * image_size
        layers: list[nn.Module] = []
        for units in positive_ints("mlp", "hidden", hidden, empty=True):
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(width, positive_int("mlp", "num_classes", num_classes))
        if init == "he":
            he_normal_fan_in(self, head=self.fc)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, C, S, S) to logits (N, num_classes); a `DataError` for any other shape."""
        check_images(images, "mlp", self.in_channels, self.image_size, any_size=False)
        return self.fc(self.hidden(images.flatten(1)))
