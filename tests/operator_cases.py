"""Small convolutions of every kind, for the tests of closed forms, bounds and extremes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from weightspace.errors import OperatorError
from weightspace.operators import PADDING_MODES, ConvGeometry, ConvOperator

LARGEST_SIZE = {0: 1, 1: 9, 2: 5, 3: 3}


def some_geometry(choose: random.Random, mode: str | None = None) -> ConvGeometry | None:
    """A random geometry of 0 to 3 dimensions with few entries, or None where no window fits."""
    dimensions = choose.choice([0, 1, 1, 1, 2, 2, 3])
    groups = choose.choice([1, 1, 2]) if dimensions else 1

    def along(low: int, high: int) -> tuple[int, ...]:
        return tuple(choose.randint(low, high) for _ in range(dimensions))

    try:
        return ConvGeometry(
            groups * choose.choice([1, 2]),
            groups * choose.choice([1, 2, 3]),
            along(1, LARGEST_SIZE[dimensions]),
            along(1, 4),
            along(1, 3),
            along(1, 3),
            tuple(zip(along(-1, 4), along(-1, 4), strict=True)),
            mode or choose.choice(PADDING_MODES),
            groups,
        )
    except OperatorError:
        return None


def is_padded_once(geometry: ConvGeometry) -> bool:
    """Whether torch accepts the padding: circular padding may not exceed the size."""
    return geometry.padding_mode != "circular" or all(
        p <= n for n, pair in zip(geometry.input_size, geometry.padding, strict=True) for p in pair
    )


def some_operators(
    seed: int, count: int, dtype: torch.dtype = torch.float64, mode: str | None = None
) -> Iterator[ConvOperator]:
    """Random operators, transposed ones among them; a third has positive weights, whose top frequency is zero."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    while count:
        geometry = some_geometry(choose, mode)
        if geometry is None or not is_padded_once(geometry):
            continue
        count -= 1
        weight = torch.randn(geometry.weight_shape, dtype=dtype, generator=generator)
        weight = weight.abs() if choose.random() < 0.33 else weight
        yield ConvOperator(weight, geometry, is_transposed=choose.random() < 0.3)


every_mode = pytest.mark.parametrize("mode", PADDING_MODES)
