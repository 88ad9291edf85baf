"""Reproducible noise: a function of the seed, the group and the number of the step, on whatever device.

So there is no generator's state to save: a resumed run repeats the noise of an uninterrupted one, and every process of
a distributed run that was given one seed draws the same.

Numbers come in chunks, each from a stream of its own: threads share chunks out, and a process that holds a part of a
weight draws the chunks that its part has numbers of, and no others. Which number stands where depends on neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch

from weightspace.kernels.parameters import has_same_layout
from weightspace.kernels.stacking import Workspace

CHUNK = 1 << 16  # numbers of a stream
FAR_CHUNK = 1 << 22  # on accelerators, where a chunk is a launch
LANES = 64  # streams of a step at least; always a power of two, so that few groups' streams change with their size
_MASK = 0xFFFFFFFF

Task = tuple[int, torch.Tensor]  # the seed of a stream, and what it fills


@dataclass(frozen=True)
class Place:
    """Where the numbers of a part of a weight stand in the draws of a step.

    Attributes:
        chunk: The first chunk of the draw.
        total: Numbers of the draw.
        start: The part's first number in it.
        stride: From one draw's first number to the next one's, where a weight takes several at once.
    """

    chunk: int
    total: int
    start: int
    stride: int


class NoiseSource:
    """Standard normal numbers for one step of one group after another."""

    def __init__(self) -> None:
        self._generators: dict[torch.device, list[torch.Generator]] = {}
        self._drawn: dict[torch.device, int] = {}
        self._work = Workspace()
        self._stream = (0, 0, 0)
        self._places: Mapping[int, Place] | None = None

    def begin(
        self, seed: int, group: int, step: int, span: int = LANES, places: Mapping[int, Place] | None = None
    ) -> None:
        """Fixes what is drawn until the next call.

        Args:
            seed: Of the group.
            group: Its number.
            step: The number of the step.
            span: How many chunks a step may take: see `span_of`.
            places: Where the numbers of this process's parts stand, by identity of the part; None: it holds all.
        """
        self._stream = (seed, group, step * span)
        self._places = places
        self._drawn.clear()

    def like(self, tensors: Sequence[torch.Tensor], whose: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """For each tensor noise of its shape, strides and device; float32 for 16-bit ones.

        It lies in memory that the next call draws into.

        Args:
            tensors: What the noise is to be like.
            whose: The weights that it is for; the tensors themselves by default.
        """
        found: list[torch.Tensor] = [torch.empty(0)] * len(tensors)
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for k, t in enumerate(tensors):
            kinds.setdefault((t.device, t.dtype if t.dtype.itemsize >= 4 else torch.float32), []).append(k)
        for (device, dtype), members in kinds.items():
            sizes = [tensors[k].numel() for k in members]
            owners = [(tensors if whose is None else whose)[k] for k in members]
            flat = self._drawn_into((sum(sizes),), torch.empty(0, dtype=dtype, device=device), owners, sizes)
            for k, piece in zip(members, flat.split(sizes), strict=True):
                found[k] = _shaped(piece, tensors[k])
        return found

    def of_shape(self, shape: tuple[int, ...], like: torch.Tensor, whose: torch.Tensor | None = None) -> torch.Tensor:
        """Noise of a shape, with dtype and device of `like`, in memory that the next call draws into."""
        return self._drawn_into(shape, like, [like if whose is None else whose], [-1])

    def _drawn_into(
        self, shape: tuple[int, ...], like: torch.Tensor, owners: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> torch.Tensor:
        out = self._work.lend("noise", shape, like)
        flat = out.view(-1)
        if self._places is not None:
            self._draw_parts(flat, owners, [flat.numel()] if sizes[0] < 0 else sizes, self._places)
            return out
        chunks = flat.split(chunk_on(like.device)) if flat.numel() else ()
        first = self._drawn.get(like.device, 0)
        seeds = self._seeds(like.device, range(first, first + len(chunks)))
        self._drawn[like.device] = first + len(chunks)
        self._fill(list(zip(seeds, chunks, strict=True)))
        return out

    def _draw_parts(
        self, flat: torch.Tensor, owners: Sequence[torch.Tensor], sizes: Sequence[int], places: Mapping[int, Place]
    ) -> None:
        """The numbers of parts: chunks that lie within one part are drawn where they belong, others aside."""
        size, aside = chunk_on(flat.device), dict[int, tuple[int, list[tuple[torch.Tensor, int]]]]()
        tasks: list[tuple[int, torch.Tensor]] = []
        seen: dict[int, int] = {}
        for owner, piece in zip(owners, flat.split(list(sizes)), strict=True):
            place, turn = places[id(owner)], seen.get(id(owner), 0)
            seen[id(owner)] = turn + 1
            if not piece.numel():
                continue
            start = place.start + turn * place.stride
            for k in range(start // size, -(-(start + piece.numel()) // size)):
                length = min(size, place.total - k * size)
                begin, end = max(start, k * size), min(start + piece.numel(), k * size + length)
                target = piece[begin - start : end - start]
                if end - begin == length:
                    tasks.append((place.chunk + k, target))
                else:
                    aside.setdefault(place.chunk + k, (length, []))[1].append((target, begin - k * size))
        scratch = self._work.lend("edges", (sum(length for length, _ in aside.values()),), flat)
        pieces = scratch.split([length for length, _ in aside.values()]) if aside else ()
        tasks += zip(aside, pieces, strict=True)
        self._fill(list(zip(self._seeds(flat.device, [c for c, _ in tasks]), (t for _, t in tasks), strict=True)))
        for (_, targets), numbers in zip(aside.values(), pieces, strict=True):
            for target, begin in targets:
                target.copy_(numbers[begin : begin + target.numel()])

    def _seeds(self, device: torch.device, chunks: Sequence[int]) -> list[int]:
        self._generators.setdefault(device, [])
        place = list(self._generators).index(device)  # not its number: processes that draw alike have one each
        seed, group, first = self._stream
        return [stream_seed(seed, group + (place << 16), first + chunk) for chunk in chunks]

    def _fill(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        device = tasks[0][1].device
        workers = min(torch.get_num_threads(), len(tasks)) if device.type == "cpu" else 1
        generators = self._generators[device]
        generators += [torch.Generator(device) for _ in range(workers - len(generators))]
        if workers < 2:
            _fill(generators[0], tasks)
        else:
            shares = (tasks[w::workers] for w in range(workers))
            list(_pool(workers).map(_fill, generators, shares))


def chunk_on(device: torch.device) -> int:
    """Numbers of a stream on a device."""
    return CHUNK if device.type == "cpu" else FAR_CHUNK


def span_of(chunks: int) -> int:
    """How many numbers of streams to keep for a step that takes at most so many chunks: a power of two."""
    return max(LANES, 1 << max(0, chunks - 1).bit_length())


def shared_seed(generator: torch.Generator | None) -> int:
    """A seed from the generator (torch's own where it is None); all processes of a distributed run take the first's."""
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))  # alike wherever the weights are
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seeds = [seed]
        torch.distributed.broadcast_object_list(seeds)
        seed = seeds[0]
    return seed


def _fill(generator: torch.Generator, tasks: Sequence[Task]) -> None:
    for seed, chunk in tasks:
        chunk.normal_(generator=generator.manual_seed(seed))


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
