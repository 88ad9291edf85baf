"""What the benchmarks of manifolds step on: kernel sets, gradients, and contestants with their arithmetic counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import device
from weightspace.manifolds import Manifold

Shape = tuple[int, int, int, int]
Count = Callable[[int, int], float]  # flops for one n x p matrix, n >= p
GRADIENTS = 4  # a fixed gradient would let the weights arrive, and steps become cheap
LEARNING_RATE = 0.01
MOMENTUM = 0.9


def resnet18_shapes(width: int = 64) -> list[Shape]:
    """The 20 convolutions of ResNet-18."""
    shapes: list[Shape] = [(width, 3, 7, 7)]
    for stage in range(4):
        out, into = width << stage, width << max(stage - 1, 0)
        shapes += [(out, into, 3, 3), *[(out, out, 3, 3)] * 3]
        if out != into:
            shapes.append((out, into, 1, 1))
    return shapes


def resnet50_shapes(width: int = 64) -> list[Shape]:
    """The 53 convolutions of ResNet-50: bottlenecks of 1x1, 3x3 and 1x1 kernels."""
    shapes: list[Shape] = [(width, 3, 7, 7)]
    into = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width << stage
        out = 4 * inner
        for block in range(blocks):
            shapes += [(inner, into, 1, 1), (inner, inner, 3, 3), (out, inner, 1, 1)]
            if block == 0:
                shapes.append((out, into, 1, 1))
            into = out
    return shapes


def has_slices(shape: Sequence[int]) -> bool:
    """Whether a slice is more than one number."""
    return math.prod(shape[2:]) > 1


@dataclass(frozen=True)
class Work:
    """Flops of a step.

    Attributes:
        formula: In words: N weights, matrices n x p with n >= p.
        elementwise: For each weight.
        count: For each constrained matrix.
        counted_steps: If above 0, the number is that of the products executed in so many steps, on average, instead.
    """

    formula: str
    elementwise: float = 0.0
    count: Count | None = None
    counted_steps: int = 0


@dataclass(frozen=True)
class Kernels:
    """Kernels on a manifold, and random gradients whose rows have norm about 1.

    Attributes:
        name: Of the set.
        manifold: Where the weights are; 1x1 kernels are free where the manifold's points are slices.
        weights: 4-D tensors, one a layer.
        gradients: `GRADIENTS` lists of tensors like them.
    """

    name: str
    manifold: Manifold
    weights: list[torch.Tensor]
    gradients: list[list[torch.Tensor]]

    @property
    def is_sliced(self) -> bool:
        """Whether points are spatial slices."""
        return self.manifold.grouping == "slice"

    def constrained(self) -> list[int]:
        """Numbers of the layers that the manifold holds."""
        return [k for k, w in enumerate(self.weights) if not self.is_sliced or has_slices(w.shape)]

    def points(self, weight: torch.Tensor) -> torch.Tensor:
        """The points of a 4-D weight `(..., n, p)`."""
        return _points(self.manifold, weight)

    def error(self, weights: Sequence[torch.Tensor]) -> float:
        """The largest violation: relative error of a norm, or error of a singular value."""
        errors = [self.manifold.violation(self.points(weights[k].detach())).max() for k in self.constrained()]
        return float(torch.stack(errors).max())

    def flops(self, work: Work) -> float:
        """Of a step over all of them."""
        total = work.elementwise * sum(w.numel() for w in self.weights)
        if work.count is None:
            return total
        for k in self.constrained():
            *lead, rows, columns = self.points(self.weights[k]).shape
            total += math.prod(lead) * work.count(max(rows, columns), min(rows, columns))
        return total

    def subset(self, name: str, layers: int) -> Kernels:
        """The first layers alone."""
        return Kernels(name, self.manifold, self.weights[:layers], [g[:layers] for g in self.gradients])

    def model(self) -> nn.Sequential:
        """Convolutions that hold copies of the weights."""
        layers: list[nn.Module] = []
        for weight in self.weights:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False, device="meta")
            layer.weight = nn.Parameter(weight.clone())
            layers.append(layer)
        return nn.Sequential(*layers)


def _points(manifold: Manifold, weight: torch.Tensor) -> torch.Tensor:
    if manifold.grouping == "slice":
        return weight
    return weight.flatten(1)[None] if manifold.grouping == "matrix" else weight.flatten(1)[:, None]


def kernels(name: str, shapes: Sequence[Shape], manifold: Manifold) -> Kernels:
    """Random kernels, moved onto the manifold."""
    torch.manual_seed(0)
    is_sliced = manifold.grouping == "slice"
    weights: list[torch.Tensor] = []
    for shape in shapes:
        weight = torch.randn(shape, device=device())
        if is_sliced and not has_slices(shape):
            weights.append(weight / shape[1] ** 0.5)
        else:
            weights.append(manifold.project(_points(manifold, weight)).reshape(shape).contiguous())
    gradients = [
        [torch.randn_like(w) / (w.shape[-1] if is_sliced else w[0].numel()) ** 0.5 for w in weights]
        for _ in range(GRADIENTS)
    ]
    return Kernels(name, manifold, weights, gradients)


@dataclass
class Contestant:
    """Something that steps.

    Attributes:
        name: As in the table.
        kernels: What it started from.
        take_step: One step with the gradients it is given.
        weights: Its weights at present, of any shape that the kernels' can be viewed in.
        work: Flops of a step.
        grouping: What it takes for a point.
        gradients: What `take_step` is given in turn, if not the kernels' own.
        steps: How many were taken.
    """

    name: str
    kernels: Kernels
    take_step: Callable[[list[torch.Tensor]], object]
    weights: Callable[[], list[torch.Tensor]]
    work: Work
    grouping: str
    gradients: list[list[torch.Tensor]] | None = None
    steps: int = 0
    _turn: Iterator[list[torch.Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.gradients or self.kernels.gradients)

    def __call__(self) -> None:
        """A step with the next gradients."""
        self.take_step(next(self._turn))
        self.steps += 1

    def flops(self) -> float:
        """Of a step: counted while stepping, or by the formula."""
        steps = self.work.counted_steps
        if not steps:
            return self.kernels.flops(self.work)
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                self()
        return counter.get_total_flops() / steps

    def error(self) -> float:
        """How far its weights are from the manifold."""
        shapes = [w.shape for w in self.kernels.weights]
        return self.kernels.error([w.detach().reshape(s) for w, s in zip(self.weights(), shapes, strict=True)])


def stepper(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]
) -> Callable[[list[torch.Tensor]], object]:
    """Hands an optimizer its gradients and lets it step."""

    def take_step(gradients: list[torch.Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return take_step
