"""Pruning by magnitude: the smallest weights, or the channels and kernels of smallest norm, are set to zero.

    numbers    w = 0 where |w| <= threshold, or for the `ratio` of all numbers that are smallest
    groups     the same with |w_group| / sqrt(n) (n numbers in a group), the root mean square, in place of |w|

Source: textbook (LeCun, Denker, Solla 1990; Han et al. 2015; Li et al. 2017 for whole filters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn

from weightspace.compress._selected import DEFAULT, selected
from weightspace.compress.masks import Masks
from weightspace.errors import CompressError, SelectionError
from weightspace.kernels import ParameterInfo, Selection, describe
from weightspace.kernels.points import Channels, whole
from weightspace.kernels.selection import convs

Scope = Literal["global", "layer"]
Groups = Literal["out", "kernel", "in"]
# The dimensions of (groups, out, in, *taps) that one group spans, without the taps.
_SPANNED: dict[str, tuple[int, ...]] = {"out": (2,), "kernel": (), "in": (1,)}
_SCOPES = ("global", "layer")
# Below so many numbers one search is as fast as a sample of every so-many-th and a search of what it leaves.
_MANY, _SAMPLE = 1 << 18, 64


@dataclass(frozen=True)
class Choice:
    """What to prune, checked. The arguments of `prune` without the model.

    Raises:
        CompressError: An option is out of range, or not exactly one of threshold and ratio is given.
    """

    threshold: float | None = None
    ratio: float | None = None
    scope: Scope = "global"
    groups: Groups | None = None
    on: Selection | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.ratio is None):
            given = "neither" if self.ratio is None else "both"
            raise CompressError(f"prune() got {given} of threshold= and ratio=; pass one of them.")
        if self.threshold is not None and not (_is_number(self.threshold) and 0 <= self.threshold < math.inf):
            raise CompressError(f"prune() got threshold={self.threshold!r}; pass a finite number from 0.")
        if self.ratio is not None and not (_is_number(self.ratio) and 0 <= self.ratio <= 1):
            raise CompressError(f"prune() got ratio={self.ratio!r}; pass the share of zeros, from 0 to 1.")
        if self.scope not in _SCOPES:
            raise CompressError(f"prune() got scope={self.scope!r}; choose 'global' or 'layer'.")
        if self.groups is not None and self.groups not in _SPANNED:
            raise CompressError(f"prune() got groups={self.groups!r}; choose 'out', 'kernel', 'in' or None.")


def prune(
    model: nn.Module,
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    scope: Scope = "global",
    groups: Groups | None = None,
    on: Selection | None = None,
    force: bool = False,
) -> Masks:
    """Sets the smallest weights to zero, in place.

    Args:
        model: The model, wrapped or not. Tied weights count once.
        threshold: Numbers (or groups) of at most this magnitude become zero.
        ratio: The smallest `floor(ratio * n)` of n numbers (or groups) become zero, zeros that are there included; the
            ratio is taken as it is written, so 0.29 of 100 are 29. Among equals the first in the model's order go.
        scope: With a ratio: `"global"` compares all selected weights with one another, `"layer"` prunes the same share
            of each.
        groups: None prunes single numbers. `"out"`: all that makes an output channel, together with its bias, which
            would otherwise come through as a constant; `"in"`: all that reads an input channel; `"kernel"`: one
            spatial kernel. Their magnitude is the norm over the square root of their size.
        on: Which weights; None takes those of convolutions and linear layers (of convolutions for kernels). With
            groups, whatever has none is left out.
        force: Empty whole layers too.

    Returns:
        `Masks` of all selected weights (and of biases that were zeroed), for `.table()` and `.attach(optimizer)`.

    Raises:
        CompressError: An option is out of range, a weight holds NaN, or a layer would be left without any weight and
            `force` is not set; the model is then as it was.
        SelectionError: Nothing is selected, or something that cannot be pruned.

    Cost: some passes over the weights and a copy of them.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -2.0, 0.0, 3.0]]))
        >>> masks = prune(layer, ratio=0.5)
        >>> layer.weight.tolist(), masks.zeros
        ([[0.0, -2.0, 0.0, 3.0]], 0.5)
    """
    return prune_by(model, Choice(threshold, ratio, scope, groups, on), force=force)


@torch.no_grad()
def prune_by(model: nn.Module, choice: Choice, *, force: bool) -> Masks:
    """`prune` with its arguments checked."""
    infos = _with_groups(selected(model, choice.on, convs if choice.groups == "kernel" else DEFAULT), choice.groups)
    sizes = [_magnitudes(info, choice.groups) for info in infos]
    chosen = _choose(sizes, choice)
    dropped: dict[str, Tensor] = {}
    for info, small in zip(infos, chosen, strict=True):
        mask = (info.parameter == 0).logical_or_(_spread(info, small, choice.groups))
        if not force and bool(mask.all()):
            raise CompressError(_emptied(info, choice))
        dropped[info.name] = mask
    if choice.groups == "out":
        dropped.update(_biases(model, infos, dropped))
    masks = Masks(model, dropped)
    masks.apply()
    return masks


# ---------------------------------------------------------------- magnitudes


def _with_groups(infos: Sequence[ParameterInfo], groups: Groups | None) -> list[ParameterInfo]:
    """Those that have such groups: `on=ws.on.name("layer3.*")` selects biases and norms too, which have none."""
    kinds = {"out": ("linear",), "in": ("linear",), "kernel": ()}
    found = [
        info
        for info in infos
        if groups is None or (info.role == "weight" and (info.is_kernel or info.kind in kinds[groups]))
    ]
    if not found:
        names = ", ".join(f"{info.name} ({info.kind} {info.role})" for info in infos[:4])
        raise SelectionError(
            f"Nothing of what is selected has groups={groups!r}: {names}; select convolutions (or linear layers for "
            "'out' and 'in'), or prune single numbers with groups=None."
        )
    return found


def _magnitudes(info: ParameterInfo, groups: Groups | None) -> Tensor:
    """`|w|` or the root mean square of every group, flat, in at least float32.

    Raises:
        CompressError: The weight holds NaN.
    """
    weight = info.parameter.detach()
    wide = weight.float() if weight.itemsize < 4 else weight
    if groups is None:
        sizes = wide.abs().reshape(-1)
    else:
        parts = whole(wide, Channels(info.out_axis, info.groups))
        spanned = _spanned(parts, groups)
        norms = torch.linalg.vector_norm(parts, dim=spanned) if spanned else parts.abs()
        sizes = norms.reshape(-1) / math.sqrt(math.prod(parts.shape[axis] for axis in spanned))
    if bool(sizes.isnan().any()):
        count = int(weight.isnan().sum())
        raise CompressError(
            f"{info.name} holds {count} NaN, so it has no smallest weights; go back to a good checkpoint."
        )
    return sizes


def _spread(info: ParameterInfo, small: Tensor, groups: Groups | None) -> Tensor:
    """A mask of groups as a mask of the weight."""
    weight = info.parameter
    if groups is None:
        return small.view(weight.shape)
    mask = torch.empty_like(weight, dtype=torch.bool)
    parts = whole(mask, Channels(info.out_axis, info.groups))
    spanned = _spanned(parts, groups)
    kept_axes = [1 if axis in spanned else size for axis, size in enumerate(parts.shape)]
    parts.copy_(small.view(kept_axes).expand(parts.shape))
    return mask


def _spanned(parts: Tensor, groups: Groups) -> tuple[int, ...]:
    return (*_SPANNED[groups], *range(3, parts.ndim))


# ---------------------------------------------------------------- the choice


def _choose(sizes: Sequence[Tensor], choice: Choice) -> list[Tensor]:
    """For each list of magnitudes the mask of those to prune."""
    if choice.threshold is not None:
        return [size <= choice.threshold for size in sizes]
    ratio = Fraction(repr(float(choice.ratio or 0.0)))  # as it is written: 0.29 * 100 is 28.999... in binary
    if choice.scope == "layer":
        return [_smallest(size, math.floor(ratio * len(size))) for size in sizes]
    device, dtype = sizes[0].device, max((size.dtype for size in sizes), key=lambda d: d.itemsize)
    together = torch.cat([size.to(device, dtype) for size in sizes])
    masks = _smallest(together, math.floor(ratio * len(together))).split([len(size) for size in sizes])
    return [mask.to(size.device) for mask, size in zip(masks, sizes, strict=True)]


def _smallest(sizes: Tensor, count: int) -> Tensor:
    """The mask of exactly `count` smallest; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(sizes, dtype=torch.bool)
    limit = _kth(sizes, count)
    mask = sizes < limit
    equal = (sizes == limit).nonzero()[:, 0]
    mask[equal[: count - int(mask.count_nonzero())]] = True
    return mask


def _kth(sizes: Tensor, count: int) -> Tensor:
    """`sizes.kthvalue(count).values`, for many numbers in a third of its time.

    A sorted sample brackets the value; what lies below is counted, and only what lies between is selected from. Where
    the sample misleads (sizes in an order of their own), the whole is searched.
    """
    if len(sizes) < _MANY:
        return sizes.kthvalue(count).values
    sample = sizes[::_SAMPLE].sort().values
    place, margin = count // _SAMPLE, 4 * math.isqrt(len(sample))
    low, high = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
    rest = count - int((sizes < low).count_nonzero())
    between = sizes[(sizes >= low).logical_and_(sizes <= high)]
    if 0 < rest <= len(between):
        return between.kthvalue(rest).values
    return sizes.kthvalue(count).values


def _biases(model: nn.Module, infos: Sequence[ParameterInfo], dropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the biases of output channels that are all zero."""
    by_name = {name: info for info in describe(model) for name in (info.name, *info.aliases)}
    result: dict[str, Tensor] = {}
    for info in infos:
        empty = whole(dropped[info.name], Channels(info.out_axis, info.groups)).flatten(2).all(2).view(-1)
        if not bool(empty.any()):
            continue
        for name in (info.name, *info.aliases):
            bias = by_name.get(f"{name.removesuffix('weight')}bias")
            fits = bias is not None and bias.shape == tuple(empty.shape) and not bias.is_parametrized
            if bias is not None and fits:
                result[bias.name] = (bias.parameter == 0).logical_or_(empty)
    return result


def _emptied(info: ParameterInfo, choice: Choice) -> str:
    asked = f"threshold={choice.threshold:g}" if choice.threshold is not None else f"ratio={choice.ratio:g}"
    if not bool(info.parameter.any()):
        return (
            f"All {info.parameter.numel():,} weights of {info.name} are zero already, so nothing passes through it; "
            "go back to a checkpoint where it lives, leave it out with on=, or pass force=True."
        )
    layers = "" if choice.threshold is not None or choice.scope == "layer" else ", pass scope='layer'"
    return (
        f"{asked} would set all {info.parameter.numel():,} weights of {info.name} to zero, so nothing would pass "
        f"through it; take a smaller one{layers}, leave it out with on=, or pass force=True."
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
