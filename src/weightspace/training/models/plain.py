"""Deep plain network: many equal 3 x 3 convolutions with ReLU between them, no normalization, no shortcut.

Nothing in it keeps the signal level but the weights themselves, so it shows what a scheme for starting or constraining
weights does: at depth 24 and torch's default initialization SGD trains it at no learning rate that was tried, see
docs/results/deep-plain.md.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from weightspace.errors import RecipeError
from weightspace.training.models.checks import check_images, choice, count_of_layers, positive_int
from weightspace.training.models.initialize import he_normal_fan_in


class Plain(nn.Module):
    """`depth` times (3 x 3 convolution, ReLU), then the mean over the map and a linear head.

    The first `strided` convolutions have stride 2, so that all others work on a small map: 7 x 7 for 28 x 28 images.

    Module names: `features.0`, `features.2`, ..., `features.<2 * depth - 2>` are the convolutions, `fc` is the head.

    With torch's own initialization a weight has the variance `1 / (3 fan_in)`. ReLU halves the second moment, so both
    the part of the signal that depends on the image and the gradient lose a factor of about `sqrt(6)` a layer, and
    what is left are the biases. `init="he"` has the variance `2 / fan_in`, which keeps the level but for the rim of the
    map, where zero padding loses some.

    Cost: about `18 * width^2 * depth * (S / 2^strided)^2` floating point operations per image of side S.

    Args:
        in_channels: Image channels C.
        image_size: Image height and width S in pixels.
        num_classes: Number of logits.
        depth: Number of convolutions.
        width: Output channels of each.
        strided: How many of the first convolutions have stride 2; 0 for none, at most `depth`. None may halve a
            1 x 1 map.
        init: "torch": what `nn.Conv2d` and `nn.Linear` start with; "he": He-normal weights, zero biases.

    Raises:
        RecipeError: An option is out of range, or the image is too small for so many strided convolutions.

    >>> net = Plain(in_channels=1, image_size=28, num_classes=10, depth=3, width=2)
    >>> sum(p.numel() for p in net.parameters())  # (9 + 1) 2 and twice (9 * 2 + 1) 2, (2 + 1) 10
    126
    >>> [layer.stride[0] for layer in net.features if isinstance(layer, nn.Conv2d)]
    [2, 2, 1]
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        depth: int = 24,
        width: int = 16,
        strided: int = 2,
        init: Literal["torch", "he"] = "torch",
    ) -> None:
        super().__init__()
        self.in_channels: int = positive_int("plain", "in_channels", in_channels)
        self.image_size: int = positive_int("plain", "image_size", image_size)
        choice("plain", "init", init, ("torch", "he"))
        count_of_layers("plain", "depth", depth)
        positive_int("plain", "width", width)
        self.minimum_size: int = _smallest_image(strided, depth)
        if image_size < self.minimum_size:
            raise RecipeError(
                f'Model "plain" was asked for {strided} strided convolutions on {image_size} x {image_size} images, '
                f"and the last one would halve a 1 x 1 map; give images of at least {self.minimum_size} x "
                f"{self.minimum_size} pixels or lower strided."
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for index in range(depth):
            stride = 2 if index < strided else 1
            layers += [nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, positive_int("plain", "num_classes", num_classes))
        if init == "he":
            he_normal_fan_in(self, head=self.fc)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to logits (N, num_classes); H and W need be `minimum_size` pixels only.

        Raises:
            DataError: The batch has another rank or channel count, or images that are too small.
        """
        large_enough = images.dim() == 4 and min(images.shape[2], images.shape[3]) >= self.minimum_size
        check_images(images, "plain", self.in_channels, self.image_size, any_size=large_enough)
        return self.fc(self.pool(self.features(images)).flatten(1))


def _smallest_image(strided: int, depth: int) -> int:
    """Side of the smallest image of which the last strided convolution still reads two pixels.

    >>> [_smallest_image(strided, 24) for strided in range(4)]
    [1, 2, 3, 5]
    """
    if isinstance(strided, bool) or not isinstance(strided, int) or not 0 <= strided <= depth:
        raise RecipeError(
            f'Model "plain" needs strided to be an integer from 0 to depth, here {depth}, got {strided!r}; give 0 or 2.'
        )
    return 2 ** (strided - 1) + 1 if strided else 1
