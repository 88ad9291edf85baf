"""AlexNet-style network for small images: five convolutions, max-pooling, two hidden linear layers, no batch norm.

After Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012),
scaled to small images: the order of its layers, its strided first convolution, overlapping pooling and dropout are
kept; kernels, strides and widths are smaller, and local response normalization is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from weightspace.errors import RecipeError
from weightspace.training.models.checks import check_images, positive_int, positive_ints, probability
from weightspace.training.models.initialize import he_normal_fan_in

_KERNELS = (5, 5, 3, 3, 3)
_POOLED = (0, 1, 4)  # convolutions that a max-pooling follows, as in the paper


class AlexNet(nn.Module):
    """Five (convolution, ReLU), three of them pooled, then two hidden linear layers with dropout, and the head.

    Module names: `features.0`, `features.3`, `features.6`, `features.8` and `features.10` are the convolutions
    (5 x 5 with stride 2, 5 x 5, and three 3 x 3); `classifier.1` and `classifier.4` the hidden linear layers, and
    `classifier.6` the head. The map has sides S, S/2, S/4, S/8 and S/16 (rounded up) from the image to the
    classifier: pooling is 3 x 3 with stride 2, so that windows overlap.

    Cost: about `2 * S^2 * (25 C w1 / 4 + 25 w1 w2 / 16 + 9 (w2 w3 + w3 w4 + w4 w5) / 64)` floating point operations
    per image of side S for the convolutions, and 2 for each weight of the linear layers.

    Args:
        in_channels: Image channels C.
        image_size: Image height and width S in pixels; any size will do, as pooling stops at a 1 x 1 map.
        num_classes: Number of logits.
        widths: Output channels of the five convolutions, w1 to w5. The default is the paper's over four.
        hidden: Width of both hidden linear layers, or one width for each.
        dropout: Probability of zeroing a unit before each of the two hidden linear layers.

    Raises:
        RecipeError: An option is out of range; or not five widths, or more than two hidden ones.

    >>> net = AlexNet(in_channels=1, image_size=16, num_classes=10, widths=[1, 1, 1, 1, 1], hidden=1)
    >>> sum(p.numel() for p in net.parameters())  # 2 * 26 and 3 * 10, then 2 + 2 and 20
    106
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        widths: Sequence[int] = (24, 64, 96, 96, 64),
        hidden: int | Sequence[int] = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels: int = positive_int("alexnet", "in_channels", in_channels)
        self.image_size: int = positive_int("alexnet", "image_size", image_size)
        convolutions = positive_ints("alexnet", "widths", widths)
        if len(convolutions) != len(_KERNELS):
            raise RecipeError(
                f'Model "alexnet" needs five widths, one for each convolution, not {len(convolutions)}; '
                'for other depths use "vgg" or "plain".',
            )
        self.features: nn.Sequential = _features(in_channels, convolutions)
        probability("alexnet", "dropout", dropout)
        first, second = _hidden(hidden)
        head = nn.Linear(second, positive_int("alexnet", "num_classes", num_classes))
        side = _side(image_size)
        self.classifier = nn.Sequential(
            *(nn.Dropout(dropout), nn.Linear(convolutions[-1] * side * side, first), nn.ReLU()),
            *(nn.Dropout(dropout), nn.Linear(first, second), nn.ReLU()),
            head,
        )
        he_normal_fan_in(self, head=head)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, C, S, S) to logits (N, num_classes).

        Raises:
            DataError: The batch has another rank, channel count or size.
        """
        check_images(images, "alexnet", self.in_channels, self.image_size, any_size=False)
        return self.classifier(self.features(images).flatten(1))


def _features(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Builds the convolutional part."""
    layers: list[nn.Module] = []
    channels = in_channels
    for index, (width, size) in enumerate(zip(widths, _KERNELS, strict=True)):
        stride = 2 if index == 0 else 1
        layers += [nn.Conv2d(channels, width, kernel_size=size, stride=stride, padding=size // 2), nn.ReLU()]
        if index in _POOLED:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        channels = width
    return nn.Sequential(*layers)


def _hidden(hidden: int | Sequence[int]) -> tuple[int, int]:
    """The widths of both hidden layers."""
    widths = list(positive_ints("alexnet", "hidden", hidden))
    if len(widths) > 2:
        raise RecipeError(
            f'Model "alexnet" has two hidden linear layers, so "hidden" takes one width or two, not {len(widths)}; '
            "leave some out.",
        )
    return widths[0], widths[-1]


def _side(image_size: int) -> int:
    """Side of the last map: four times halved, rounded up.

    >>> [_side(size) for size in (1, 8, 28, 32, 33)]
    [1, 1, 2, 2, 3]
    """
    return -(-image_size // 2 ** (1 + len(_POOLED)))
