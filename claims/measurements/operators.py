"""Convolutions as matrices: their structure, their singular values, and gradients of penalties, all against the dense matrix.

The dense matrix is built here by applying torch's own layer to unit vectors: nothing of weightspace is in it.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.operators import operator_of

Sizes = tuple[int, ...]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SMALL_SIDES = {1: 12, 2: 6, 3: 4}


def matrix_of(layer: nn.Module, channels: int, sides: Sizes) -> Tensor:
    """The layer's matrix, column by column: what it makes of every unit vector."""
    count = channels
    for side in sides:
        count *= side
    with torch.no_grad():
        outputs = layer(torch.eye(count, dtype=torch.float64).reshape(count, channels, *sides))
    return outputs.reshape(count, -1).T


def structure(*, is_quick: bool) -> dict[str, Any]:
    """How far zero-padded layers are from doubly block banded Toeplitz matrices of their kernel's entries."""
    cases = []
    for seed in range(2 if is_quick else 10):
        torch.manual_seed(seed)
        inputs, outputs, k, n = 1 + seed % 3, 1 + (seed // 3) % 4, (1, 3, 5)[seed % 3], 6 + seed % 2
        layer = nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False).double()
        blocks = matrix_of(layer, inputs, (n, n)).reshape(outputs, n, n, inputs, n, n)
        cases.append(
            {
                "seed": seed,
                "channels": [inputs, outputs],
                "kernel": k,
                "image": n,
                "largest_deviation": toeplitz_error(blocks, layer),
            }
        )
    return {"cases": cases}


def toeplitz_error(blocks: Tensor, layer: nn.Conv2d) -> float:
    """Largest difference between the matrix and one in which entry (o, y, x; i, y', x') is K[o, i, y'-y+c, x'-x+c], or 0."""
    n, k = blocks.shape[1], layer.kernel_size[0]
    expected = torch.zeros_like(blocks)
    for y, x, down, right in itertools.product(range(n), range(n), range(k), range(k)):
        source = (y + down - k // 2, x + right - k // 2)
        if 0 <= source[0] < n and 0 <= source[1] < n:
            expected[:, y, x, :, source[0], source[1]] = layer.weight.detach()[:, :, down, right]
    return float((blocks - expected).abs().max())


def layers(*, is_quick: bool) -> list[tuple[str, nn.Module, int, Sizes]]:
    """Layers of every padding mode x stride x dilation x groups x number of dimensions that torch accepts at this size."""
    found = []
    modes = ("zeros", "circular", "reflect", "replicate")
    for d, mode, stride, dilation, groups in itertools.product((1, 2, 3), modes, (1, 2), (1, 2), (1, 2)):
        if is_quick and (d != 2 or stride != 1):
            continue
        if d == 3 and (mode == "reflect" or dilation == 2):
            continue  # four pixels are too few for these
        torch.manual_seed(len(found))
        layer = CONVS[d](
            2, 4, 3, padding=dilation, stride=stride, dilation=dilation, groups=groups, padding_mode=mode, bias=False
        )
        name = f"{d}-d, {mode}, stride {stride}, dilation {dilation}, groups {groups}"
        found.append((name, layer.double(), 2, (SMALL_SIDES[d],) * d))
    return found


def spectra(*, is_quick: bool) -> dict[str, Any]:
    """Relative error of all singular values, against LAPACK on the dense matrix; and of torch's spectral_norm."""
    cases = []
    for name, layer, channels, sides in layers(is_quick=is_quick):
        exact = torch.linalg.svdvals(matrix_of(layer, channels, sides))
        found = ws.singular_values(layer, sides)
        assigned = layer.weight.detach().flatten(1)
        cases.append(
            {
                "layer": name,
                "values": len(exact),
                "found": len(found),
                "relative_error": float((found - exact).abs().max() / exact[0]) if len(found) == len(exact) else 1.0,
                "norm_over_flattened_norm": float(exact[0] / torch.linalg.matrix_norm(assigned, 2)),
            }
        )
    return {"cases": cases}


P = ws.penalties
TERMS: dict[str, P.Penalty] = {
    "GramSpectralNorm": P.GramSpectralNorm(padding_mode="layer"),
    "GramFrobenius": P.GramFrobenius(),
    "LargestSingularValue": P.LargestSingularValue(1.0),
    "SmallestSingularValue": P.SmallestSingularValue(0.5, padding_mode="layer"),
    "SingularValueBand": P.SingularValueBand(0.5, 1.5, padding_mode="layer"),
    "ConditionNumber": P.ConditionNumber(padding_mode="layer"),
}


def value_of(term: str, sigma: Tensor, positions: int) -> Tensor:
    """The definitions once more, over the singular values of the dense matrix."""
    outside = (sigma - 1.5).clamp(min=0) + (0.5 - sigma).clamp(min=0)
    values = {
        "GramSpectralNorm": (sigma**2 - 1).abs().max(),
        "GramFrobenius": ((sigma**2 - 1) ** 2).sum() / positions,
        "LargestSingularValue": (sigma[0] - 1).clamp(min=0) ** 2,
        "SmallestSingularValue": (0.5 - sigma[-1]).clamp(min=0) ** 2,
        "SingularValueBand": (outside**2).sum() / positions,
        "ConditionNumber": sigma[0].log() - sigma[-1].log(),
    }
    return values[term]


def gradients(*, is_quick: bool) -> dict[str, Any]:
    """Slopes of six penalties along random directions of the kernel, against central differences of the dense matrix.

    The layers are zero-padded and have more outputs than inputs, so that no singular value is close to zero.
    """
    step, side = 1e-5, 5
    cases = []
    for term, penalty in TERMS.items():
        for seed in range(1 if is_quick else 5):
            torch.manual_seed(seed)
            layer = nn.Conv2d(2, 5, 3, padding=1, bias=False).double()
            weight, direction = layer.weight.detach().clone(), torch.randn(5, 2, 3, 3, dtype=torch.float64)
            gradient = penalty.evaluate(operator_of(layer, side))[1]
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    layer.weight.copy_(weight + sign * step * direction)
                values.append(float(value_of(term, torch.linalg.svdvals(matrix_of(layer, 2, (side, side))), side**2)))
            slope = (values[0] - values[1]) / (2 * step)
            scale = float(gradient.norm() * direction.norm())
            cases.append(
                {"term": term, "seed": seed, "relative_error": abs(float((gradient * direction).sum()) - slope) / scale}
            )
    return {"cases": cases}
