"""Reproducible noise: a function of the seed, the group and the number of the step, on whatever device.

So there is no generator's state to save: a resumed run repeats the noise of an uninterrupted one, and every process of
a distributed run that was given one seed draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MASK = 0xFFFFFFFF


class NoiseSource:
    """Standard normal numbers for one step of one group after another."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed = 0
        self._begun: set[torch.device] = set()

    def begin(self, seed: int, group: int, step: int) -> None:
        """Fixes what is drawn until the next call."""
        self._seed = stream_seed(seed, group, step)
        self._begun.clear()

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """For each tensor noise of its shape, strides and device; float32 for 16-bit ones."""
        return [
            self._draw(torch.empty_like(t, dtype=t.dtype if t.dtype.itemsize >= 4 else torch.float32)) for t in tensors
        ]

    def of_shape(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Noise of a shape, with dtype and device of `like`."""
        return self._draw(torch.empty(shape, dtype=like.dtype, device=like.device))

    def _draw(self, out: torch.Tensor) -> torch.Tensor:
        generator = self._generators.get(out.device)
        if generator is None:
            generator = self._generators[out.device] = torch.Generator(out.device)
        if out.device not in self._begun:
            generator.manual_seed(self._seed)
            self._begun.add(out.device)
        return out.normal_(generator=generator)


def stream_seed(seed: int, group: int, step: int) -> int:
    """A seed of 32 bits (torch's CPU generator reads no more) that no two steps of one group share.

    Example:
        >>> len({stream_seed(1, 0, step) for step in range(10_000)})
        10000
    """
    start = _mixed((seed & _MASK) ^ _mixed(seed >> 32) ^ _mixed(group + 0x9E3779B9))
    return _mixed((start + step) & _MASK)


def _mixed(x: int) -> int:
    """A bijection of 32-bit numbers in which every bit depends on all (the finalizer of MurmurHash3)."""
    x &= _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
