"""One operator penalty on one weight: the layer that it sees, its gradient, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from weightspace.errors import AttachError, NonFiniteGradientError, OperatorError
from weightspace.kernels.stacking import Workspace
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.conv import fitting_size
from weightspace.optim._gates import Gated, Pair, dot
from weightspace.optim._inputs import InputSizes
from weightspace.optim._lookahead import Rate
from weightspace.optim._transform import Swap
from weightspace.penalties import Memory, OperatorPenalty
from weightspace.penalties.base import layer_size


@dataclass(eq=False)
class PenaltyTask(Gated):
    """One operator penalty on one weight.

    Attributes:
        memory: What the penalty remembers of this weight.
        latest: R at the latest evaluation.
    """

    memory: Memory = field(default_factory=Memory)
    latest: torch.Tensor | None = None
    _geometry: dict[tuple[int, ...], tuple[ConvGeometry, bool]] = field(
        default_factory=dict[tuple[int, ...], tuple[ConvGeometry, bool]]
    )

    @property
    def is_here(self) -> bool:
        """Whether this process holds the weight: of a sharded one, its owner does."""
        return self.info.parameter.numel() > 0

    @cached_property
    def rule(self) -> OperatorPenalty:
        """The penalty."""
        if not isinstance(self.penalty, OperatorPenalty):
            raise TypeError(f"{self.penalty} is no penalty on a linear map.")
        return self.penalty

    def value(self) -> torch.Tensor | None:
        """R at the latest evaluation."""
        return self.latest

    def operator(self, sizes: InputSizes) -> ConvOperator:
        """The layer on images of its latest forward pass, or of the penalty's own size.

        Raises:
            AttachError: The size is not known yet, or nothing of that size fits the layer.
        """
        size = self.size(sizes)
        if size is None:
            raise AttachError(
                f"{self.penalty} on {self.info.name} needs the size of what the layer reads, and no forward pass has "
                "gone through the layer since the rules were attached; run the model before optimizer.step() (and "
                "compile it after attach()), or pass input_size= to the rule."
            )
        return self.operator_at(size)

    def size(self, sizes: InputSizes) -> tuple[int, ...] | None:
        """Spatial sizes of the input if they are known; `()` if they do not matter."""
        dimensions = len(self.info.spatial_axes)
        if dimensions == 0:
            return ()
        try:
            given = layer_size(self.rule, dimensions, self.info.name)
        except OperatorError as error:
            raise AttachError(str(error)) from None
        if given is None and not self.rule.needs_size:
            return self.fitting_size()
        return sizes.of(self.info.name) if given is None else given

    def fitting_size(self, least: int = 1) -> tuple[int, ...]:
        """A size that the layer accepts, at least `least`."""
        return () if self.info.owner is None else fitting_size(self.info.owner, least)

    def operator_at(self, size: tuple[int, ...]) -> ConvOperator:
        """The layer on images of a given size, with its present weight."""
        known = self._geometry.get(size)
        owner = self.info.owner
        if known is None and owner is not None:
            try:
                fresh = operator_of(owner, size or None)
            except OperatorError as error:
                raise AttachError(f"{self.penalty} on {self.info.name}: {error}") from None
            known = self._geometry[size] = (fresh.geometry, fresh.is_transposed)
        if known is None:
            raise AttachError(f"{self.penalty} on {self.info.name}: the weight belongs to no layer.")
        return ConvOperator(self.info.parameter.detach(), *known)


@dataclass(frozen=True, eq=False)
class Addition:
    """The gradient of one operator penalty on one weight, without its strength."""

    task: PenaltyTask
    gradient: torch.Tensor

    def products(self, gradient: torch.Tensor, scale: float | torch.Tensor) -> Pair:
        """`(<g, R>, <R, R>)` with the penalty's gradient R times `scale`."""
        return dot(gradient, self.gradient) * scale, dot(self.gradient, self.gradient) * scale * scale

    def add_to(self, swap: Swap, scale: float | torch.Tensor, work: Workspace) -> None:
        """Adds the penalty's gradient, if the gate is open."""
        del work
        is_open = self.task.is_open
        if is_open is not False:
            swap.add(self.gradient, scale if is_open is True else is_open.to(self.gradient.dtype) * scale)

    def move(self, lr: Rate) -> None:
        """The step that the penalty alone would make."""
        weight = self.task.info.parameter.detach()
        weight.sub_(self.gradient * (lr * (self.task.penalty.weight * self.task.penalty.every)))


def raise_weight(due: Iterable[PenaltyTask]) -> None:
    """Raises NonFiniteGradientError for the first weight that holds NaN or infinity, if there is one."""
    for task in due:
        if not bool(task.info.parameter.isfinite().all()):
            raise NonFiniteGradientError(
                f"The weight {task.info.name} holds NaN or infinity, so {task.penalty} has no value; go back to a "
                "checkpoint and lower the learning rate."
            )


def raise_gradient(additions: Iterable[Addition]) -> None:
    """Raises NonFiniteGradientError for the first penalty's gradient that does, if there is one."""
    for task, gradient in ((a.task, a.gradient) for a in additions):
        if not bool(gradient.isfinite().all()):
            raise NonFiniteGradientError(
                f"The gradient of {task.penalty} on {task.info.name} is not finite; no weight was changed. The "
                "weight's values are out of the range in which it can be computed: lower the learning rate."
            )
