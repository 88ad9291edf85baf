"""`shrink`: a smaller dense model without the channels that carry nothing, which computes the same.

A channel carries nothing if no layer reads it with a non-zero weight, or if it is constant whatever the input: all its
weights are zero, or its gain in the batch norm behind. A constant of zero is dropped; another constant goes into the
bias of the layers that read it, where that is exact. What a sum, a product or a concatenation ties together is found by
Torch-Pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") and removed together or not at all. What
comes out is compared with what went in, so a model that this reasoning does not fit is left as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightspace.compress._channels import BATCH_NORM, READERS
from weightspace.compress._constants import measured_constants
from weightspace.compress._dependencies import Network
from weightspace.compress._equality import (
    Inputs,
    as_inputs,
    doubled,
    outputs,
    probes,
    relative_difference,
)
from weightspace.compress._extras import package
from weightspace.compress._plan import Plan, make_plan
from weightspace.compress._verdicts import Kept
from weightspace.errors import CompressError

__all__ = ["Kept", "Layer", "Shrunk", "shrink"]

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.table import Table

_ROUNDING = 1e-9  # relative, in float64: sums in another order
_NOT_FOLLOWED = "removing them changes the outputs: the model does something there that Torch-Pruning cannot follow"
_FOLDED = 64  # times the dtype's precision: a folded bias is rounded once


@dataclass(frozen=True)
class Layer:
    """One layer before and after.

    Attributes:
        name: The module's name.
        kind: Its class.
        inputs: Input channels before and after; None where a layer has none of its own.
        outputs: Output channels before and after.
    """

    name: str
    kind: str
    inputs: tuple[int, int] | None
    outputs: tuple[int, int]

    @property
    def changed(self) -> bool:
        """Whether channels went."""
        return self.outputs[0] != self.outputs[1] or (self.inputs is not None and self.inputs[0] != self.inputs[1])


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What `shrink` made.

    Attributes:
        model: The smaller model: a copy, of the same classes, with smaller tensors.
        layers: Convolutions, linear layers and batch norms, in the model's order.
        parameters: Numbers in all parameters, before and after.
        kept: Channels that hold nothing and had to stay, with the reason.
        folded: How many constant channels went into biases.
        difference: Largest difference of outputs, relative to the largest output, in float64 where the model allows it.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    parameters: tuple[int, int]
    kept: tuple[Kept, ...]
    folded: int
    difference: float

    @property
    def removed(self) -> dict[str, int]:
        """Output channels removed, by layer, where there are any."""
        gone = {layer.name: layer.outputs[0] - layer.outputs[1] for layer in self.layers}
        return {name: count for name, count in gone.items() if count}

    def table(self) -> Table:
        """Channels of every layer before and after, as a rich table."""
        from rich.markup import escape
        from rich.table import Table

        table = Table("layer", "kind", box=None, header_style="bold")
        for title in ("inputs", "outputs"):
            table.add_column(title, justify="right")
        for layer in self.layers:
            inputs = "" if layer.inputs is None else _arrow(*layer.inputs)
            table.add_row(escape(layer.name), layer.kind, inputs, _arrow(*layer.outputs))
        return table

    def __repr__(self) -> str:
        before, after = self.parameters
        return f"<Shrunk {before:,} -> {after:,} parameters, outputs differ by {self.difference:.1e}>"


def shrink(
    model: nn.Module, example_input: Any, *, keep: Collection[str] = (), random_inputs: int = 2, seed: int = 0
) -> Shrunk:
    """Remove every channel that carries nothing, in a copy of a model.

    Works in evaluation mode: batch norms use their running statistics, dropout does nothing. The copy has the training
    mode of the model, and its parameters require gradients as the model's do. Channels of the model's outputs are never
    removed, and every layer keeps at least one channel.

    Cost: a few forward passes, and autograd's graph of one, for each round; rounds repeat until nothing goes.

    Args:
        model: The model with its zeros, for instance those of `prune` or of a group L1 penalty. Left as it is.
        example_input: A tensor `(N, ...)`, or a tuple of the model's arguments.
        keep: Names of layers whose output channels must stay.
        random_inputs: Outputs are compared on the example and on this many random inputs of its shape.
        seed: Decides the random inputs.

    Raises:
        CompressError: The model does not run on the example, a name in `keep` is no layer, or the smaller model's
            outputs differ. Also if Torch-Pruning is not installed: `pip install "weightspace[compress]"`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[:5].zero_(), model[0].bias[:5].zero_()
    >>> small = shrink(model, torch.randn(2, 4))
    >>> small.model[0], small.removed, small.parameters
    (Linear(in_features=4, out_features=3, bias=True), {'0': 5}, (67, 27))
    """
    package("torch_pruning", "removing channels")
    given = probes(as_inputs(example_input), random_inputs, seed=seed)
    names = dict(model.named_modules())
    for name in keep:
        if name not in names:
            raise CompressError(
                f"keep names {name!r}, but the model has no such layer; names are those of named_modules()"
            )
    judge = _Judge(model, given)
    current, kept, folded = _rounds(judge.copy_of(model), judge, frozenset(keep))
    current = _dressed(current, model)
    difference = judge.difference(current)
    if difference > judge.allowed(folded):
        raise CompressError(
            f"the smaller model's outputs differ from the model's by {difference:.1e} of the largest output; "
            "shrink cannot follow what this model does with its channels: name the layers that must stay with keep="
        )
    return Shrunk(
        current,
        tuple(_layers(model, current)),
        (_count(model), _count(current)),
        kept,
        folded,
        difference,
    )


def _rounds(current: nn.Module, judge: _Judge, keep: frozenset[str]) -> tuple[nn.Module, tuple[Kept, ...], int]:
    """Removes until nothing goes: the model that is left, what stayed and why, and how many constants were folded."""
    blocked, folded = dict[str, str](), 0
    while True:
        smaller, plan = _round(current, judge, blocked, keep)
        if smaller is not None:
            current, folded = smaller, folded + plan.folded
            continue
        if not plan.removals:
            return current, (*plan.kept, *(Kept(root, (), reason) for root, reason in blocked.items())), folded
        for root in [removal.root for removal in plan.removals]:
            # They do not fit as a whole, so each is tried alone; what changes the outputs then stays.
            smaller, single = _round(current, judge, blocked, keep, only=root)
            if smaller is not None:
                current, folded = smaller, folded + single.folded
            elif single.removals:
                blocked[root] = _NOT_FOLLOWED


class _Judge:
    """Compares models with the first one, in float64 if the model runs in it."""

    def __init__(self, model: nn.Module, given: list[Inputs]) -> None:
        self.given = given
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        try:
            self.double = True
            self.reference = outputs(doubled(model), given)
        except (RuntimeError, TypeError, NotImplementedError):  # buffers or inputs of a fixed dtype
            self.double = False
            try:
                self.reference = outputs(copy.deepcopy(model).eval(), given, double=False)
            except Exception as error:  # whatever a user's model raises
                raise CompressError(
                    f"{type(model).__name__} does not run on the example input: {' '.join(str(error).split())}"
                ) from error

    def copy_of(self, model: nn.Module) -> nn.Module:
        """A copy that Torch-Pruning can follow."""
        return copy.deepcopy(model).eval().requires_grad_(requires_grad=True)

    def cast(self, model: nn.Module) -> nn.Module:
        """A copy in the dtype of comparison."""
        return doubled(model) if self.double else copy.deepcopy(model).eval()

    def difference(self, model: nn.Module) -> float:
        """How far a model's outputs are off; infinity if it fails."""
        try:
            return relative_difference(self.reference, outputs(self.cast(model), self.given, double=self.double))
        except (RuntimeError, ValueError, IndexError, TypeError):  # shapes that no longer fit
            return float("inf")

    def allowed(self, folded: int) -> float:
        """The difference that rounding explains."""
        if self.double and not folded:
            return _ROUNDING
        return max(_ROUNDING, _FOLDED * torch.finfo(self.dtype).eps)


def _round(
    current: nn.Module, judge: _Judge, blocked: dict[str, str], keep: frozenset[str], only: str | None = None
) -> tuple[nn.Module | None, Plan]:
    """Plan and remove; no model if there is nothing to remove, or if the result differs."""
    smaller = copy.deepcopy(current)
    try:
        network = Network(smaller, judge.given[0])
    except Exception as error:  # whatever Torch-Pruning raises on a model that it cannot trace
        raise CompressError(
            f"Torch-Pruning cannot follow {type(smaller).__name__} ({type(error).__name__}: {error}), so nothing can "
            "be removed; a forward pass under torch.no_grad() is the usual cause"
        ) from error
    constants = measured_constants(judge.cast(smaller), judge.given, double=judge.double)
    plan = make_plan(network, constants, blocked=blocked, keep=keep, only=only)
    if not plan.removals:
        return None, plan
    try:
        plan.carry_out(network)
    except (RuntimeError, AssertionError, IndexError, ValueError):  # of Torch-Pruning, on what it cannot follow
        return None, plan
    return (smaller if judge.difference(smaller) <= judge.allowed(plan.folded) else None), plan


def _dressed(current: nn.Module, model: nn.Module) -> nn.Module:
    """Give a copy the training mode, gradient flags and memory formats of the model."""
    originals = dict(model.named_parameters())
    for name, parameter in current.named_parameters():
        like = originals.get(name)
        if like is None:
            continue
        parameter.requires_grad_(like.requires_grad)
        parameter.grad = None
        is_last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
        if is_last:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for (_, changed), (_, like) in zip(current.named_modules(), model.named_modules(), strict=True):
        changed.training = like.training
    return current


def _layers(before: nn.Module, after: nn.Module) -> list[Layer]:
    found: list[Layer] = []
    for (name, old), (_, new) in zip(before.named_modules(), after.named_modules(), strict=True):
        if isinstance(old, READERS):
            sizes = [_sizes(old), _sizes(new)]
            found.append(Layer(name, type(old).__name__, (sizes[0][0], sizes[1][0]), (sizes[0][1], sizes[1][1])))
        elif isinstance(old, BATCH_NORM):
            found.append(Layer(name, type(old).__name__, None, (old.num_features, _features(new))))
    return found


def _sizes(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _features(norm: Any) -> int:
    return int(norm.num_features)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _arrow(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"
