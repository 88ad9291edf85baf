"""Integers behind the moments: how often pairs of taps read the same entries; a matter of geometry alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from weightspace.operators.geometry import ConvGeometry


@dataclass(frozen=True, eq=False)
class OverlapBlock:
    """Pairs of taps that `W` couples with each other and with no other pair.

    Attributes:
        first, second: Flat indices `(pairs,)` of the taps of each pair.
        factors: The block of `W`, as matrices `(m, m)` whose Kronecker product it is.
        copies: 2 if the mirrored pairs `(second, first)` form another block, which is left out, else 1.
    """

    first: torch.Tensor
    second: torch.Tensor
    factors: tuple[torch.Tensor, ...]
    copies: int

    def couple(self, Q: torch.Tensor) -> torch.Tensor:
        """`W Q` for `Q (pairs, ...)`."""
        before, result = 1, Q
        for factor in self.factors:
            m = factor.shape[0]
            result = factor.to(Q) @ result.reshape(before, m, -1)
            before *= m
        return result.reshape(Q.shape)


def cheaper_side(geometry: ConvGeometry) -> tuple[bool, tuple[OverlapBlock, ...]]:
    """Whether to use `K_a^T K_b` instead of `K_a K_b^T`, and the blocks of its `W`.

    A stride leaves fewer coupled pairs on the output side, so the smaller matrices are not always the cheaper ones.
    """
    sides = (False, True)
    blocks = {side: _blocks(one_channel(geometry), side) for side in sides}
    channels = {False: geometry.out_channels, True: geometry.in_channels}
    cost = {side: channels[side] * sum(b.first.numel() * b.copies for b in blocks[side]) for side in sides}
    side = min(sides, key=lambda s: cost[s])
    return side, blocks[side]


def one_channel(geometry: ConvGeometry) -> ConvGeometry:
    """The geometry with one channel: what the integers depend on."""
    return replace(geometry, in_channels=1, out_channels=1, groups=1)


def _tap_sources(geometry: ConvGeometry, axis: int) -> list[list[int]]:
    """For each tap and output the input entry that is read, -1 for a zero: the tap matrix `R_a` of one dimension."""
    sources, s, d = geometry.sources(axis), geometry.stride[axis], geometry.dilation[axis]
    outputs = range(geometry.output_length(axis))
    return [[sources[s * p + d * a] for p in outputs] for a in range(geometry.kernel_size[axis])]


@lru_cache(maxsize=512)
def _blocks(spatial: ConvGeometry, transposed: bool) -> tuple[OverlapBlock, ...]:
    """The blocks of `W` over all dimensions: products of the blocks of every dimension, one of each mirrored two."""
    axes = [_axis_blocks(spatial, axis, transposed) for axis in range(spatial.dimensions)]
    blocks: list[OverlapBlock] = []
    for choice in itertools.product(*(range(len(axis)) for axis in axes)):
        mirrored = tuple(axis[i].mirror for axis, i in zip(axes, choice, strict=True))
        if choice > mirrored:
            continue
        first = second = torch.zeros(1, dtype=torch.int64, device="cpu")
        factors: list[torch.Tensor] = []
        for axis, i, taps in zip(axes, choice, spatial.kernel_size, strict=True):
            first = (first[:, None] * taps + axis[i].first).flatten()
            second = (second[:, None] * taps + axis[i].second).flatten()
            factors.append(axis[i].overlaps)
        if factors and math.prod(len(f) for f in factors) <= 64:  # one small product beats one for each dimension
            whole = factors[0]
            for factor in factors[1:]:
                whole = torch.kron(whole, factor)
            factors = [whole]
        blocks.append(OverlapBlock(first, second, tuple(factors), 1 if choice == mirrored else 2))
    return tuple(blocks)


@dataclass(frozen=True, eq=False)
class _AxisBlock:
    """A block along one dimension; `mirror` is the index of the block that holds the mirrored pairs."""

    first: torch.Tensor
    second: torch.Tensor
    overlaps: torch.Tensor
    mirror: int


def _axis_blocks(spatial: ConvGeometry, axis: int, transposed: bool) -> list[_AxisBlock]:
    taps = spatial.kernel_size[axis]
    rows, columns, values = _overlaps(spatial, axis, transposed)
    labels = _components(rows, columns, taps * taps)
    members: dict[int, list[int]] = {}
    for pair in rows.unique().tolist():
        members.setdefault(labels[pair], []).append(pair)
    number = {label: i for i, label in enumerate(members)}
    blocks: list[_AxisBlock] = []
    place = torch.full((taps * taps,), -1, dtype=torch.int64, device="cpu")
    owner = torch.tensor(labels, dtype=torch.int64, device="cpu")[rows]
    for label, pairs in members.items():
        index = torch.tensor(pairs, dtype=torch.int64, device="cpu")
        place[index] = torch.arange(len(pairs), device="cpu")
        inside = owner == label
        matrix = torch.zeros(len(pairs), len(pairs), dtype=torch.float64, device="cpu")
        matrix[place[rows[inside]], place[columns[inside]]] = values[inside].to(torch.float64)
        first, second = index // taps, index % taps
        mirror = number[labels[int(second[0]) * taps + int(first[0])]]
        blocks.append(_AxisBlock(first, second, matrix, mirror))
    return blocks


_Sparse = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, columns, values of a matrix, each place once


def _overlaps(spatial: ConvGeometry, axis: int, transposed: bool) -> _Sparse:
    """`w_d = V V^T` of one dimension over pairs of taps: `V[(a,b)]` is the matrix `R_a R_b^T`, flattened."""
    sources = torch.tensor(_tap_sources(spatial, axis), dtype=torch.int64, device="cpu")
    taps, outputs = sources.shape
    inputs = spatial.input_size[axis]
    tap, output = (sources >= 0).nonzero(as_tuple=True)
    entry = sources[tap, output]
    # The tap matrices on top of each other: row (tap, output), column input; or row (tap, input), column output.
    here, there, size = (entry, output, inputs) if transposed else (output, entry, outputs)
    left, right, value = _gram(tap * size + here, there, torch.ones_like(tap), taps * size)
    pair = (left // size) * taps + right // size
    position = (left % size) * size + right % size
    return _gram(pair, position, value, taps * taps)


def _gram(row: torch.Tensor, column: torch.Tensor, value: torch.Tensor, height: int) -> _Sparse:
    """`X X^T` of a sparse matrix X of integers, by pairing the entries of each column."""
    column, order = column.sort()
    row, value = row[order], value[order]
    _, column, counts = column.unique_consecutive(return_inverse=True, return_counts=True)
    partners, begins = counts[column], (counts.cumsum(0) - counts)[column]
    left = torch.arange(len(row), device="cpu").repeat_interleave(partners)
    nth = torch.arange(len(left), device="cpu") - (partners.cumsum(0) - partners)[left]
    right = begins[left] + nth
    place, inverse = (row[left] * height + row[right]).unique(return_inverse=True)
    sums = torch.zeros_like(place).index_add_(0, inverse, value[left] * value[right])
    return place // height, place % height, sums


@lru_cache(maxsize=512)
def tap_products(spatial: ConvGeometry, axis: int) -> torch.Tensor:
    """`<R_a, R_b>` of one dimension: at how many outputs two taps read the same entry."""
    sources = torch.tensor(_tap_sources(spatial, axis), dtype=torch.int64, device="cpu")
    return ((sources[:, None] == sources) & (sources >= 0)).sum(2)


def _components(rows: torch.Tensor, columns: torch.Tensor, nodes: int) -> list[int]:
    """The smallest index that each pair is connected with: one label a block."""
    labels = torch.arange(nodes, dtype=torch.int64, device="cpu")
    while True:
        spread = labels.scatter_reduce(0, rows, labels[columns], "amin")
        if torch.equal(spread, labels):
            return labels.tolist()
        labels = spread
