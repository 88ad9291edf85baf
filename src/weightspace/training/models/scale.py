"""What stands in for batch norm in a network without it: one gain for each layer and a bias for each channel.

A kernel that is kept on a manifold has a fixed norm, so somewhere the size of a layer's output must be free to be
learned. Here it is the gain, one number; it starts where He's initialization would be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """`(gain / divisor) x + bias` with one learned gain for all channels and one learned bias for each.

    Cost: one pass over the map, a third of what batch norm in training mode needs.

    Args:
        channels: Channels of the map.
        gain: What the gain starts with; biases start at 0.
        divisor: A fixed number: the norm of the filters before this layer, so that the same learning rate suits the
            gain whatever that norm is.

    >>> Scale(2, gain=3.0, divisor=2.0)(torch.ones(1, 2, 1, 1)).flatten().tolist()
    [1.5, 1.5]
    """

    def __init__(self, channels: int, *, gain: float, divisor: float = 1.0) -> None:
        super().__init__()
        self.divisor = divisor
        self.gain = nn.Parameter(torch.tensor(gain))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape."""
        return torch.addcmul(self.bias[:, None, None], x, self.gain / self.divisor)

    def extra_repr(self) -> str:
        """The number of channels and the divisor."""
        return f"{len(self.bias)}, divisor={self.divisor:g}"
