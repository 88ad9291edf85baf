"""Reproducible noise: a function of the seed, the group and the number of the step, on whatever device.

So there is no generator's state to save: a resumed run repeats the noise of an uninterrupted one, and every process of
a distributed run that was given one seed draws the same.

On a CPU torch draws normal numbers on one core. Here numbers come in chunks, chunk k from generator k of `LANES`, and
the generators are spread over as many threads as torch may use: which number stands where does not depend on how many
these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from weightspace.kernels.parameters import has_same_layout
from weightspace.kernels.stacking import Workspace

CHUNK = 1 << 16  # numbers that a generator draws at a time
LANES = 64  # generators of a step; after 4 million numbers they go on where they were
_MASK = 0xFFFFFFFF


class NoiseSource:
    """Standard normal numbers for one step of one group after another."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, list[torch.Generator]] = {}
        self._drawn: dict[torch.device, int] = {}
        self._work = Workspace()
        self._stream = (0, 0, 0)

    def begin(self, seed: int, group: int, step: int) -> None:
        """Fixes what is drawn until the next call."""
        self._stream = (seed, group, step)
        self._drawn.clear()

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """For each tensor noise of its shape, strides and device; float32 for 16-bit ones.

        It lies in memory that the next call draws into.
        """
        found: list[torch.Tensor] = [torch.empty(0)] * len(tensors)
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for k, t in enumerate(tensors):
            kinds.setdefault((t.device, t.dtype if t.dtype.itemsize >= 4 else torch.float32), []).append(k)
        for (device, dtype), members in kinds.items():
            total = sum(tensors[k].numel() for k in members)
            flat = self._drawn_into((total,), torch.empty(0, dtype=dtype, device=device))
            start = 0
            for k in members:
                t = tensors[k]
                found[k] = _shaped(flat[start : start + t.numel()], t)
                start += t.numel()
        return found

    def of_shape(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Noise of a shape, with dtype and device of `like`, in memory that the next call draws into."""
        return self._drawn_into(shape, like)

    def _drawn_into(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        out = self._work.lend("noise", shape, like)
        flat = out.view(-1)
        if like.device.type != "cpu":
            flat.normal_(generator=self._generators(like.device, 1)[0])
            return out
        chunks = flat.split(CHUNK)
        first = self._drawn.get(like.device, 0)
        lanes = self._generators(like.device, first + len(chunks))
        self._drawn[like.device] = first + len(chunks)
        # Chunks of one lane follow each other, so they stay with one worker.
        queues: list[list[torch.Tensor]] = [[] for _ in range(min(LANES, len(chunks)))]
        for k, chunk in enumerate(chunks):
            queues[k % LANES].append(chunk)
        tasks = [(lanes[(first + k) % LANES], queue) for k, queue in enumerate(queues)]
        workers = min(torch.get_num_threads(), len(tasks))
        if workers < 2:
            _fill(tasks)
        else:
            list(_pool(workers).map(_fill, (tasks[w::workers] for w in range(workers))))
        return out

    def _generators(self, device: torch.device, count: int) -> list[torch.Generator]:
        """The lanes of a device, of which the first `count` are ready to go on."""
        lanes = self._lanes.setdefault(device, [])
        ready = self._drawn.get(device, 0)
        place = list(self._lanes).index(device)  # not the device's number: processes that draw alike have one each
        for lane in range(ready, min(count, LANES)):
            if lane == len(lanes):
                lanes.append(torch.Generator(device))
            seed, group, step = self._stream
            lanes[lane].manual_seed(stream_seed(seed, group + (place << 16), step * LANES + lane))
        self._drawn[device] = max(ready, count)
        return lanes


def shared_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator (torch's own where it is None); all processes of a distributed run take the first's."""
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))  # alike wherever the weights are
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seeds = [seed]
        torch.distributed.broadcast_object_list(seeds)
        seed = seeds[0]
    return seed


def _fill(tasks: Sequence[tuple[torch.Generator, list[torch.Tensor]]]) -> None:
    for generator, chunks in tasks:
        for chunk in chunks:
            chunk.normal_(generator=generator)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that outlive steps; torch lets go of Python's lock while it draws."""
    return ThreadPoolExecutor(workers, "weightspace-noise")


def _shaped(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The numbers in the shape of a tensor, and in its strides where these leave no gaps."""
    if like.is_contiguous():
        return flat.view(like.shape)
    dense = torch.empty_like(like, device="meta")  # torch's own rule for what `like` can be copied into
    shaped = flat.as_strided(dense.shape, dense.stride())
    return shaped if has_same_layout(shaped, like) else flat.view(like.shape)


def stream_seed(seed: int, group: int, number: int) -> int:
    """A seed of 32 bits (torch's CPU generator reads no more) that no two numbers of one group share.

    Example:
        >>> len({stream_seed(1, 0, number) for number in range(10_000)})
        10000
    """
    start = _mixed((seed & _MASK) ^ _mixed(seed >> 32) ^ _mixed(group + 0x9E3779B9))
    # Mixed twice: streams of two groups, were they intervals of one sequence, could repeat each other with a lag.
    return _mixed(_mixed(number) ^ start)


def _mixed(x: int) -> int:
    """A bijection of 32-bit numbers in which every bit depends on all (the finalizer of MurmurHash3)."""
    x &= _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
