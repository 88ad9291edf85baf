"""Adds the gradients of penalties to what the metrics left in the stand-ins, and keeps what penalties remember."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from weightspace.errors import AttachError, NonFiniteGradientError, OperatorError
from weightspace.kernels import Route, Rule
from weightspace.kernels.parameters import ParameterInfo
from weightspace.operators import ConvGeometry, ConvOperator, operator_of
from weightspace.operators.conv import fitting_size
from weightspace.optim._finite import all_finite, sum_of
from weightspace.optim._inputs import InputSizes
from weightspace.optim._transform import Swap, read_numbers
from weightspace.penalties import Memory, Penalty
from weightspace.penalties.base import layer_size


@dataclass
class PenaltyTask:
    """One penalty on one weight.

    Attributes:
        info: The weight.
        index: Place of the penalty among the rules.
        penalty: The penalty.
        memory: What it remembers of this weight.
        value: R at the latest evaluation.
    """

    info: ParameterInfo
    index: int
    penalty: Penalty
    memory: Memory
    value: torch.Tensor | None = None
    _geometry: dict[tuple[int, ...], tuple[ConvGeometry, bool]] = field(
        default_factory=dict[tuple[int, ...], tuple[ConvGeometry, bool]]
    )

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
            given = layer_size(self.penalty, dimensions, self.info.name)
        except OperatorError as error:
            raise AttachError(str(error)) from None
        if given is None and not self.penalty.needs_size:
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
    """The gradient of one penalty on one weight, without its strength."""

    task: PenaltyTask
    gradient: torch.Tensor


class Penalties:
    """All penalties of a plan.

    Attributes:
        tasks: In the order in which they act.
        sizes: What the layers read.
    """

    def __init__(self) -> None:
        self.tasks: list[PenaltyTask] = []
        self.sizes = InputSizes()
        self._known: dict[tuple[str, int], PenaltyTask] = {}

    def build(self, rules: Sequence[Rule], routes: Iterable[Route]) -> None:
        """Takes over a routing; weights that were known keep what is remembered of them."""
        tasks: list[PenaltyTask] = []
        for route in routes:
            for index in route.rules:
                rule = rules[index]
                if isinstance(rule, Penalty):
                    tasks.append(self._task(route.info, index, rule))
        self.tasks = tasks
        self.sizes.watch(t.info for t in tasks if t.penalty.needs_size and t.penalty.input_size is None)

    def _task(self, info: ParameterInfo, index: int, penalty: Penalty) -> PenaltyTask:
        known = self._known.get((info.name, index))
        if known is None or known.info is not info:
            memory = known.memory if known is not None else Memory(seed=zlib.crc32(info.name.encode()))
            value = None if known is None else known.value
            known = self._known[info.name, index] = PenaltyTask(info, index, penalty, memory, value)
        return known

    def evaluate(self, step: int, *, must_check: bool) -> list[Addition]:
        """What to add at this step to the gradient of every weight that has one.

        Args:
            step: Steps taken before this one.
            must_check: Raise for weights or penalty gradients that are not finite; two synchronizations a device.

        Raises:
            AttachError: A layer's input size is not known, or no penalty can be had at that size.
            NonFiniteGradientError: A weight or a penalty's gradient is not finite.
        """
        due = [t for t in self.tasks if step % t.penalty.every == 0 and t.info.parameter.grad is not None]
        operators = [task.operator(self.sizes) for task in due]  # all of them, before any evaluation is paid for
        if must_check and not all_finite(sum_of(o.weight) for o in operators):
            _raise_weight(due)
        additions: list[Addition] = []
        for task, operator in zip(due, operators, strict=True):
            task.memory.step = step
            try:
                task.value, gradient = task.penalty.evaluate(operator, task.memory)
            except OperatorError as error:
                raise AttachError(f"{task.penalty} on {task.info.name}: {error}") from None
            additions.append(Addition(task, gradient))
        if must_check and not all_finite(sum_of(a.gradient) for a in additions):
            _raise_gradient(additions)
        return additions

    def values(self) -> dict[str, dict[str, float]]:
        """R at the latest evaluation, by parameter and penalty; one synchronization for each device."""
        measured = [(task, task.value) for task in self.tasks if task.value is not None]
        numbers = read_numbers([value for _, value in measured])
        result: dict[str, dict[str, float]] = {}
        for (task, _), number in zip(measured, numbers, strict=True):
            figures = result.setdefault(task.info.name, {})
            label = type(task.penalty).__name__
            figures[label if label not in figures else str(task.penalty)] = number
        return result

    def state(self) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """What is remembered, by parameter and index of the rule: tensors only."""
        state: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
        for task in self.tasks:
            vectors = {key: vector.clone() for key, vector in task.memory.vectors.items()}
            state.setdefault(task.info.name, {})[str(task.index)] = vectors
        return state

    def load(self, state: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]) -> None:
        """Restores what `state` gave; a vector that does not fit any more is not used by its penalty."""
        for task in self.tasks:
            saved = state.get(task.info.name, {}).get(str(task.index), {})
            device = task.info.parameter.device
            task.memory.vectors = {key: torch.as_tensor(v).detach().clone().to(device) for key, v in saved.items()}

    def copy_from(self, other: Penalties) -> None:
        """Takes over what the same rules remember on another model of the same parameters."""
        self.load(other.state())
        self.sizes.copy_from(other.sizes)
        values = {(task.info.name, task.index): task.value for task in other.tasks}
        for task in self.tasks:
            task.value = values.get((task.info.name, task.index))

    def clear(self) -> None:
        """Forgets everything and takes the recorders off."""
        self.tasks = []
        self._known.clear()
        self.sizes.clear()


def add(additions: Iterable[Addition], swaps: Iterable[Swap], grad_scale: torch.Tensor | None = None) -> None:
    """Adds `weight * every * gradient` to the stand-ins of this step.

    Args:
        additions: What to add.
        swaps: Parameters with their stand-ins, which hold the transformed gradients.
        grad_scale: What the gradients still are multiplied with, under a GradScaler whose optimizer divides itself.
    """
    stand_ins = {id(parameter): buffer for parameter, _, buffer in swaps}
    for addition in additions:
        task, gradient = addition.task, addition.gradient
        scaled = gradient if grad_scale is None else gradient * grad_scale.to(gradient)
        stand_ins[id(task.info.parameter)].add_(scaled, alpha=task.penalty.weight * task.penalty.every)


def _raise_weight(due: Iterable[PenaltyTask]) -> None:
    for task in due:
        if not bool(task.info.parameter.isfinite().all()):
            raise NonFiniteGradientError(
                f"The weight {task.info.name} holds NaN or infinity, so {task.penalty} has no value; go back to a "
                "checkpoint and lower the learning rate."
            )


def _raise_gradient(additions: Iterable[Addition]) -> None:
    for task, gradient in ((a.task, a.gradient) for a in additions):
        if not bool(gradient.isfinite().all()):
            raise NonFiniteGradientError(
                f"The gradient of {task.penalty} on {task.info.name} is not finite; no weight was changed. The "
                "weight's values are out of the range in which it can be computed: lower the learning rate."
            )
