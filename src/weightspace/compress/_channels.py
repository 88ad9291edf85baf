"""Which channels of a layer are zero, and what a constant that arrives at a layer adds to its bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# The common bases of all convolutions and of all batch norms, which torch exports under these names only.
CONV = nn.modules.conv._ConvNd  # noqa: SLF001
TRANSPOSED = nn.modules.conv._ConvTransposeNd  # noqa: SLF001
BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001
READERS = (nn.Linear, CONV)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution keeps channels apart: each output channel reads the input channel of its own number."""
    return isinstance(module, CONV) and 1 < module.groups == module.out_channels == module.in_channels


def zero_outputs(module: nn.Module) -> Tensor:
    """Which output channels have no non-zero weight, `(O,)`; biases do not count, they are constants.

    Batch, instance and group norms count by their gain.

    >>> layer = nn.Conv2d(2, 3, 1)
    >>> with torch.no_grad(): _ = layer.weight[1].zero_()
    >>> zero_outputs(layer).tolist()
    [False, True, False]
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return torch.zeros(0, dtype=torch.bool)
    weight = weight.detach()
    if isinstance(module, TRANSPOSED):
        # (I, O/g, ...): rows of a group belong to its own output channels
        grouped = weight.reshape(module.groups, module.in_channels // module.groups, weight.shape[1], -1)
        return ~grouped.ne(0).any(dim=3).any(dim=1).flatten()
    return ~weight.flatten(1).ne(0).any(dim=1) if weight.dim() > 1 else weight.eq(0)


def zero_inputs(module: nn.Module) -> Tensor:
    """Which input channels a layer reads with zero weights only, `(I,)`.

    >>> layer = nn.Conv2d(4, 2, 1, groups=2)
    >>> with torch.no_grad(): _ = layer.weight[1, 0].zero_()
    >>> zero_inputs(layer).tolist()
    [False, False, True, False]
    """
    weight: Tensor = module.get_parameter("weight").detach()
    if isinstance(module, nn.Linear):
        return ~weight.ne(0).any(dim=0)
    if isinstance(module, TRANSPOSED):
        return ~weight.flatten(1).ne(0).any(dim=1)
    groups: Any = module.groups
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return ~grouped.ne(0).any(dim=3).any(dim=1).flatten()


def takes_constants(module: nn.Module) -> bool:
    """Whether a constant input channel adds the same number at every position: then it is a bias.

    It does not where zeros are padded around the map, for there the border sees less of the constant.

    >>> takes_constants(nn.Conv2d(1, 1, 3)), takes_constants(nn.Conv2d(1, 1, 3, padding=1))
    (True, False)
    """
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, CONV) or module.transposed or module.groups > 1:
        return False
    if module.padding_mode != "zeros" or module.padding == "valid":
        return True
    if module.padding == "same":
        return all(size == 1 for size in module.kernel_size)
    return not any(module.padding)


def why_position(module: Any) -> str:
    """Why a constant input of a layer is no bias, for the end of a sentence that begins with the layer's name.

    >>> why_position(nn.Conv2d(1, 1, 3, padding=1))
    'pads its input with zeros, so that its border would differ'
    """
    if module.transposed:
        return "is transposed, so that its kernel overlaps itself unevenly"
    if module.groups > 1:
        return "has groups, which take no constants here"
    return "pads its input with zeros, so that its border would differ"


def fold(module: nn.Module, channels: Sequence[int], constants: Tensor) -> None:
    """Add to a layer's bias what constant input channels contribute; a missing bias is made.

    Args:
        module: A layer for which `takes_constants` holds; changed in place.
        channels: Input channels.
        constants: Their values, float64 `(len(channels),)`.
    """
    weight: Tensor = module.get_parameter("weight").detach()
    columns = weight[:, list(channels)].double()
    added = columns.flatten(2).sum(2) @ constants if columns.dim() > 2 else columns @ constants
    bias: Any = module.bias
    base = torch.zeros_like(added) if bias is None else bias.detach().double()
    folded = nn.Parameter((base + added).to(weight.dtype))
    module.register_parameter("bias", folded)


def can_merge(module: nn.Module) -> bool:
    """Whether the columns of input channels may be added up, for channels that are multiples of each other."""
    return isinstance(module, CONV) and not module.transposed and module.groups == 1


def merge(module: nn.Module, channel: int, into: int, ratio: float) -> None:
    """Let one input channel stand for another that is `ratio` times it: their columns add up.

    Args:
        module: A layer for which `can_merge` holds; changed in place.
        channel: The input channel that goes.
        into: The one that stays.
        ratio: `channel = ratio * into`, everywhere.

    >>> layer = nn.Conv2d(2, 1, 1)
    >>> with torch.no_grad(): _ = layer.weight.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    >>> merge(layer, 1, 0, 0.5)
    >>> layer.weight.flatten().tolist()
    [5.0, 4.0]
    """
    weight: Tensor = module.get_parameter("weight").detach()
    weight[:, into] = (weight[:, into].double() + ratio * weight[:, channel].double()).to(weight.dtype)
