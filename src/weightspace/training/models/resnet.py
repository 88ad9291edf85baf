"""Residual networks of basic blocks: ResNet-20/56 for CIFAR and ResNet-18/34.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015): section 4.2 for the CIFAR networks
(three stages of n blocks, 6n+2 layers), table 1 for ResNet-18 and ResNet-34. Module names are torchvision's
(`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so its weights load.

Without batch norm (`norm="none"`) a `Scale` stands in each of its places: a learned gain for each layer and a bias for
each channel. The gains start so that every block adds a residual of `1/sqrt(blocks)` times its input's size (De & Smith
2020, "Batch Normalization Biases Residual Blocks", section 5, has such a scalar at the end of each branch), and kernels
start with filters or slices of the norm that a manifold gives them (`unit`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.errors import RecipeError
from weightspace.training.models.checks import check_images, choice, count_of_layers, flag, positive_int, positive_ints
from weightspace.training.models.initialize import he_normal_fan_out, unit_kernels
from weightspace.training.models.scale import Scale

Shortcut = Literal["zero-padding", "projection"]
Stem = Literal["cifar", "imagenet"]
Norm = Literal["batch", "none"]
Unit = Literal["filter", "slice"]


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a network share.

    Attributes:
        shortcut: "zero-padding" (option A) or "projection" (option B) where shapes change.
        norm: "batch", or "none" for a `Scale` in the place of each batch norm.
        unit: Without batch norm, what starts with the norm that a manifold gives it.
        residual: Without batch norm, how large a block's residual starts relative to its input.
    """

    shortcut: Shortcut = "zero-padding"
    norm: Norm = "batch"
    unit: Unit = "filter"
    residual: float = 1.0

    def after(self, conv: nn.Conv2d, *, moment: float) -> nn.Module:
        """The layer that follows a convolution.

        Args:
            conv: The convolution.
            moment: Without batch norm: mean square of the result for inputs of mean square one.
        """
        if self.norm == "batch":
            return nn.BatchNorm2d(conv.out_channels)
        return Scale(conv.out_channels, gain=math.sqrt(moment), divisor=filter_norm(conv, self.unit))


def filter_norm(conv: nn.Conv2d, unit: Unit) -> float:
    """The norm (root mean square) that `unit_kernels` gives to filters.

    >>> filter_norm(nn.Conv2d(12, 4, 3), "filter"), filter_norm(nn.Conv2d(12, 4, 3), "slice")
    (1.0, 6.0)
    """
    return 1.0 if unit == "filter" else math.sqrt(conv.weight.shape[1] * min(conv.kernel_size))


class ZeroPaddingShortcut(nn.Module):
    """Option A of the paper: every `stride`-th pixel, new channels filled with zeros; no parameters.

    The zeros stand after the existing channels (the paper does not say where).

    Args:
        new_channels: How many zero channels are appended.
        stride: Spatial subsampling.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))` with 3 x 3 convolutions.

    Args:
        in_channels: Channels of x.
        channels: Channels of the result.
        stride: Stride of the first convolution and of the shortcut.
        style: Whether `bn1` and `bn2` are batch norms, and the shortcut: "zero-padding" (option A) or "projection"
            (option B: 1 x 1 convolution with batch norm); both are the identity where shapes agree.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv1: nn.Conv2d = _conv(in_channels, channels, kernel_size=3, stride=stride)
        self.bn1: nn.Module = style.after(self.conv1, moment=2.0)  # of which ReLU leaves one
        self.conv2: nn.Conv2d = _conv(channels, channels, kernel_size=3, stride=1)
        self.bn2: nn.Module = style.after(self.conv2, moment=style.residual**2)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            if style.shortcut == "projection":
                projection = _conv(in_channels, channels, kernel_size=1, stride=stride)
                self.downsample = nn.Sequential(projection, style.after(projection, moment=1.0))
            else:
                self.downsample = ZeroPaddingShortcut(channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, stages of basic blocks with doubling width and halving map, global average pooling, linear head.

    Cost: ResNet-20 on 32 x 32 images 41 million multiply-adds per image, ResNet-56 125 million, ResNet-18 with the
    CIFAR stem 555 million; with the ImageNet stem on 224 x 224, ResNet-18 1.8 and ResNet-34 3.7 billion.

    Args:
        name: The network's name in errors.
        blocks: Blocks in each of the three or four stages.
        in_channels: Image channels C.
        image_size: Image height and width in pixels; other sizes work too, because the head averages over the map.
        num_classes: Number of logits.
        width: Channels of the first stage.
        stem: "cifar": 3 x 3 convolution, stride 1; "imagenet": 7 x 7 with stride 2, then 3 x 3 max-pooling,
            also with stride 2.
        shortcut: "zero-padding" (option A, no parameters) or "projection" (option B) where shapes change.
        zero_init_residual: Start each block's last batch norm (or gain) at 0, so that every block begins as its
            shortcut.
        stem_stride: Stride of the "cifar" stem: 2 halves every map, which makes the network four times cheaper.
        norm: "batch", or "none": a learned gain for each layer and a bias for each channel take its place.
        unit: With norm "none": what starts with the norm that a manifold gives it. "filter": filters have norm one (in
            the mean square); "slice": spatial slices of k x k have norm sqrt(k), as orthogonal ones do. A fixed divisor
            in each `Scale` makes up for it, so both start as the same function, that of He's initialization but for
            the residuals.

    Raises:
        RecipeError: An option is out of range, or the image is so small that a stage would halve a 1 x 1 map.
    """

    def __init__(
        self,
        *,
        name: str,
        blocks: Sequence[int],
        in_channels: int,
        image_size: int,
        num_classes: int,
        width: int,
        stem: Stem,
        shortcut: Shortcut,
        zero_init_residual: bool,
        norm: Norm = "batch",
        unit: Unit = "filter",
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        choice(name, "stem", stem, ("cifar", "imagenet"))
        flag(name, "zero_init_residual", zero_init_residual)
        self.name = name
        self.in_channels: int = positive_int(name, "in_channels", in_channels)
        self.image_size: int = positive_int(name, "image_size", image_size)
        positive_int(name, "width", width)
        stages = positive_ints(name, "blocks", blocks)
        count_of_layers(name, "blocks", sum(stages))
        if len(stages) not in (3, 4):
            raise RecipeError(
                f'Model "{name}" has three or four stages, got blocks={blocks}; give for example [2, 2, 2].'
            )
        if isinstance(stem_stride, bool) or stem_stride not in (1, 2):
            raise RecipeError(f'Model "{name}" needs stem_stride to be 1 or 2, got {stem_stride!r}.')
        _check_size(name, image_size, stages=len(stages), stem=stem, stem_stride=stem_stride)
        style = _style(name, shortcut, norm, unit, blocks=sum(stages))
        imagenet = stem == "imagenet"
        self.conv1: nn.Conv2d = _conv(
            in_channels, width, kernel_size=7 if imagenet else 3, stride=2 if imagenet else stem_stride
        )
        self.bn1: nn.Module = style.after(self.conv1, moment=2.0)
        self.maxpool: nn.MaxPool2d | nn.Identity = (
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if imagenet else nn.Identity()
        )
        first, second, third, *fourth = stages
        self.layer1: nn.Sequential = _stage(width, width, first, stride=1, style=style)
        self.layer2: nn.Sequential = _stage(width, 2 * width, second, stride=2, style=style)
        self.layer3: nn.Sequential = _stage(2 * width, 4 * width, third, stride=2, style=style)
        # The CIFAR networks end after three stages.
        self.layer4: nn.Sequential | nn.Identity = (
            _stage(4 * width, 8 * width, fourth[0], stride=2, style=style) if fourth else nn.Identity()
        )
        channels = width * 2 ** (len(stages) - 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, positive_int(name, "num_classes", num_classes))
        if norm == "batch":
            he_normal_fan_out(self, head=self.fc)
        else:
            unit_kernels(self, head=self.fc, unit=unit)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.get_parameter("gain" if isinstance(module.bn2, Scale) else "weight"))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to logits (N, num_classes); a `DataError` for another rank or channel count."""
        check_images(images, self.name, self.in_channels, self.image_size, any_size=True)
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def cifar_resnet(
    name: str,
    blocks_per_stage: int,
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    width: int = 16,
    shortcut: Shortcut = "zero-padding",
    zero_init_residual: bool = False,
    norm: Norm = "batch",
    unit: Unit = "filter",
    stem_stride: int = 1,
) -> ResNet:
    """Builds a network of section 4.2: three stages of n blocks, 6n+2 layers, option A shortcuts as in the paper."""
    return ResNet(
        name=name,
        blocks=(blocks_per_stage,) * 3,
        in_channels=in_channels,
        image_size=image_size,
        num_classes=num_classes,
        width=width,
        stem="cifar",
        shortcut=shortcut,
        zero_init_residual=zero_init_residual,
        norm=norm,
        unit=unit,
        stem_stride=stem_stride,
    )


def imagenet_resnet(
    name: str,
    blocks: Sequence[int],
    *,
    in_channels: int,
    image_size: int,
    num_classes: int,
    width: int = 64,
    stem: Stem = "cifar",
    shortcut: Shortcut = "projection",
    zero_init_residual: bool = False,
    norm: Norm = "batch",
    unit: Unit = "filter",
) -> ResNet:
    """Builds a network of table 1 (four stages); with `stem="imagenet"` its parameters are torchvision's."""
    return ResNet(
        name=name,
        blocks=blocks,
        in_channels=in_channels,
        image_size=image_size,
        num_classes=num_classes,
        width=width,
        stem=stem,
        shortcut=shortcut,
        zero_init_residual=zero_init_residual,
        norm=norm,
        unit=unit,
    )


def _conv(in_channels: int, out_channels: int, *, kernel_size: int, stride: int) -> nn.Conv2d:
    """A convolution that keeps the map (at stride 1); no bias, because batch norm or a `Scale` follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int, style: BlockStyle) -> nn.Sequential:
    """Builds one stage, whose first block changes channels and map."""
    first = BasicBlock(in_channels, channels, stride=stride, style=style)
    rest = [BasicBlock(channels, channels, stride=1, style=style) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _style(name: str, shortcut: Shortcut, norm: Norm, unit: Unit, *, blocks: int) -> BlockStyle:
    """The style of all blocks, its options checked."""
    choice(name, "shortcut", shortcut, ("zero-padding", "projection"))
    choice(name, "norm", norm, ("batch", "none"))
    choice(name, "unit", unit, ("filter", "slice"))
    if norm == "batch" and unit != "filter":
        raise RecipeError(
            f'Model "{name}" got unit="{unit}", which scales kernels without batch norm; set norm="none".'
        )
    return BlockStyle(shortcut, norm, unit, residual=blocks**-0.5)


def _check_size(name: str, image_size: int, *, stages: int, stem: Stem, stem_stride: int) -> None:
    """Refuses images whose map would be 1 x 1 before the last halving: strided kernels would then see one pixel."""
    halvings = stages - 1 + (2 if stem == "imagenet" else stem_stride - 1)
    smallest = 2 ** (halvings - 1) + 1
    if image_size < smallest:
        advice = 'use stem="cifar"' if stem == "imagenet" else "use a network with fewer stages"
        raise RecipeError(
            f'Model "{name}" with stem="{stem}" halves the map {halvings} times and needs images of at least '
            f"{smallest} x {smallest} pixels, got {image_size} x {image_size}; {advice}.",
        )
