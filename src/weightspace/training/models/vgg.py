"""Plain VGG-style network: 3 x 3 convolutions without batch norm, dropout before the classifier.

After Simonyan and Zisserman, "Very Deep Convolutional Networks" (2015), scaled to small images. Without
normalization a kernel's scale matters, which is what makes this network the one to watch weight-space methods on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from weightspace.errors import RecipeError
from weightspace.training.models.checks import (
    check_images,
    choice,
    count_of_layers,
    positive_int,
    positive_ints,
    probability,
)
from weightspace.training.models.initialize import he_normal_fan_in


class VGG(nn.Module):
    """Stages of (3 x 3 convolution, ReLU), 2 x 2 max-pooling between stages, pooling, then a classifier with dropout.

    Module names: `features.0`, `features.2`, ... are the convolutions; the classifier is (Dropout, Linear, ReLU) for
    each hidden width, then (Dropout, Linear), so `classifier.1` is its first linear layer and the last one is the
    head. Dropout modules are there even at probability 0: names do not depend on `dropout`.

    Cost: about `18 * S^2 * sum over layers of c_in * c_out / 4^stage` floating point operations per image of side S.

    Args:
        in_channels: Image channels C.
        image_size: Image height and width S in pixels.
        num_classes: Number of logits.
        widths: Output channels of each stage. Pooling halves the map between stages, so there may be
            at most `1 + floor(log2(S))` stages.
        convs_per_stage: Convolutions in each stage.
        hidden: Width of the classifier's hidden layer, or one width per hidden layer; an empty list for none.
        dropout: Probability of zeroing a unit before each of the classifier's linear layers.
        pooling: "average": mean over the last map, the network then takes images of other sizes too; "flatten":
            the last map as it is, for images of size S only.

    Raises:
        RecipeError: An option is out of range, or there are more stages than the image size allows.

    >>> net = VGG(in_channels=1, image_size=8, num_classes=10, widths=[4], convs_per_stage=1, hidden=[])
    >>> sum(p.numel() for p in net.parameters())  # 4 * 9 + 4 and 10 * 4 + 10
    90
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        widths: Sequence[int] = (64, 128, 256),
        convs_per_stage: int = 2,
        hidden: int | Sequence[int] = 256,
        dropout: float = 0.5,
        pooling: Literal["average", "flatten"] = "average",
    ) -> None:
        super().__init__()
        self.in_channels: int = positive_int("vgg", "in_channels", in_channels)
        self.image_size: int = positive_int("vgg", "image_size", image_size)
        choice("vgg", "pooling", pooling, ("average", "flatten"))
        stages = positive_ints("vgg", "widths", widths)
        _check_stages(len(stages), image_size)
        self.features: nn.Sequential = _features(
            in_channels, stages, count_of_layers("vgg", "convs_per_stage", convs_per_stage)
        )
        self.pooling = pooling
        self.minimum_size: int = 2 ** (len(stages) - 1)
        self.pool: nn.AdaptiveAvgPool2d | nn.Identity = (
            nn.AdaptiveAvgPool2d(1) if pooling == "average" else nn.Identity()
        )
        side = 1 if pooling == "average" else image_size // self.minimum_size
        self.classifier, head = _classifier(
            stages[-1] * side * side,
            positive_ints("vgg", "hidden", hidden, empty=True),
            positive_int("vgg", "num_classes", num_classes),
            probability("vgg", "dropout", dropout),
        )
        he_normal_fan_in(self, head=head)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, C, S, S) to logits (N, num_classes).

        With average pooling any height and width of at least `minimum_size` pixels will do.

        Raises:
            DataError: The batch has another rank, channel count or (where it matters) size.
        """
        large_enough = images.dim() == 4 and min(images.shape[2], images.shape[3]) >= self.minimum_size
        any_size = self.pooling == "average" and large_enough
        check_images(images, "vgg", self.in_channels, self.image_size, any_size=any_size)
        return self.classifier(self.pool(self.features(images)).flatten(1))


def _check_stages(stages: int, image_size: int) -> None:
    """Refuses a pooling of a 1 x 1 map."""
    allowed = image_size.bit_length()  # 1 + floor(log2(image_size))
    if stages > allowed:
        raise RecipeError(
            f'Model "vgg" was asked for {stages} stages on {image_size} x {image_size} images, which allow at most '
            f"{allowed} (the map is halved between stages); shorten widths to {allowed} or fewer entries.",
        )


def _features(in_channels: int, widths: Sequence[int], convs_per_stage: int) -> nn.Sequential:
    """Builds the convolutional part."""
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, width in enumerate(widths):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convs_per_stage):
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _classifier(width: int, hidden: Sequence[int], num_classes: int, dropout: float) -> tuple[nn.Sequential, nn.Linear]:
    """Builds the classifier and names its head, which is initialized differently."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(width, units), nn.ReLU()]
        width = units
    head = nn.Linear(width, num_classes)
    return nn.Sequential(*layers, nn.Dropout(dropout), head), head
