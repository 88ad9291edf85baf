"""The bases of penalties: functions of one weight whose gradients are added to the loss gradient.

An `OperatorPenalty` sees a layer as a `ConvOperator`, the linear map from one image to one image; a `WeightPenalty`
sees the numbers of the weight. Both give their value R and the gradient dR/dK in closed form: no automatic
differentiation runs through a factorization. The optimizer gets

    metric(loss gradient) + weight * every * dR/dK          on every `every`-th step whose gate is open

and metric(loss gradient) else, so that with the default gate the average strength over steps is `weight`, however
rarely the penalty is evaluated. A penalty carries its gate and never asks it: the optimizer's side does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from weightspace.errors import OperatorError, RuleError
from weightspace.gates import Always, Gate
from weightspace.kernels.options import choice, number_from_zero, whole_number
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.rule import Rule, Stage
from weightspace.kernels.selection import Selection, dense_convs, linears
from weightspace.kernels.views import ViewName
from weightspace.operators import ConvOperator

PenaltyPadding = Literal["layer", "circular"]
PADDINGS: tuple[PenaltyPadding, ...] = ("layer", "circular")
_ALWAYS = Always()


@dataclass
class Memory:
    """What a penalty remembers of one weight between evaluations: tensors and numbers, saved with the rules.

    Attributes:
        step: The optimizer step of the evaluation, counted from 0.
        seed: A number of the weight's own, alike on every rank and in every process.
        vectors: Approximate singular vectors by name: where the next search starts.
    """

    step: int = 0
    seed: int = 0
    vectors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def generator(self) -> torch.Generator:
        """Randomness of this step and weight: a function of the two numbers, on the CPU, so that ranks agree."""
        return torch.Generator("cpu").manual_seed((self.step * 2_654_435_761 + self.seed) % 2**63)


@dataclass(frozen=True)
class Penalty(Rule):
    """A function of a weight whose gradient is added to the (transformed) loss gradient.

    Args:
        weight: Strength, at least 0: what the gradient is multiplied with.
        every: Steps from one evaluation to the next; the gradient is scaled by `every`, so that the average strength
            stays. Large products of learning rate, weight and `every` make single steps too long.
        gate: At which of these steps it acts, see `weightspace.gates`; at all of them by default.
        on: Which parameters.

    Raises:
        RuleError: An option is out of its range.
    """

    stage: ClassVar[Stage] = Stage.PENALTY

    weight: float = field(default=1e-3, kw_only=True)
    every: int = field(default=1, kw_only=True)
    gate: Gate = field(default=_ALWAYS, kw_only=True)
    on: Selection | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.gate, Gate):  # pyright: ignore[reportUnnecessaryIsInstance] - users are not type-checked
            raise RuleError(f"{name} got gate={self.gate!r}; pass a gate such as weightspace.gates.Coherent().")
        self._settle(
            weight=number_from_zero(name, "weight", self.weight), every=whole_number(name, "every", self.every)
        )

    @property
    def view(self) -> ViewName:
        """The whole weight."""
        return "kernel"


@dataclass(frozen=True)
class OperatorPenalty(Penalty):
    """A function of a weight, seen as a linear map, whose gradient is added to the (transformed) loss gradient.

    Args:
        input_size: Spatial sizes of the layer's input, one number for all dimensions or one for each. Left out: those
            of the layer's last forward pass, which `attach` records.
        padding_mode: `"layer"` takes the layer's own padding, `"circular"` its counterpart on a torus (of the next size
            that the stride divides); each penalty says what it costs and which is its default.
        on: Which parameters; dense convolutions and linear layers by default, the head included.
        weight, every, gate: See `Penalty`.

    Raises:
        RuleError: An option is out of its range.
    """

    default_on: ClassVar[Selection] = dense_convs | linears
    needs_size: ClassVar[bool] = True

    input_size: int | tuple[int, ...] | None = field(default=None, kw_only=True)
    padding_mode: PenaltyPadding = field(default="circular", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        self._settle(
            input_size=_sizes(name, self.input_size),
            padding_mode=choice(name, "padding_mode", self.padding_mode, PADDINGS),
        )

    @abstractmethod
    def evaluate(self, operator: ConvOperator, memory: Memory | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The penalty of a layer and its gradient.

        Args:
            operator: The layer; gradients of its weight are neither needed nor recorded.
            memory: What is remembered of this weight, and which step it is; it may be changed. Left out: nothing is.

        Returns:
            R, 0-dimensional, and dR/dK, of the weight's shape; both detached, in float32 or float64, without the
            factors `weight` and `every`.

        Raises:
            OperatorError: The operator is too large for what is asked.
        """

    def refusal(self, info: ParameterInfo) -> str | None:
        """Also refuses what is no weight of a convolution or linear layer."""
        if info.owner is None or info.role != "weight" or not (info.is_kernel or info.kind == "linear"):
            return f"{info.kind} {info.role}: a penalty acts on weights of convolutions and linear layers"
        return super().refusal(info)

    def why_not_selected(self, info: ParameterInfo) -> str:
        """The head is not excluded by default."""
        if self.on is None and info.is_kernel:
            return f"grouped kernel ({info.groups} groups)"
        return super().why_not_selected(info)


def _sizes(rule: str, value: object) -> int | tuple[int, ...] | None:
    """A number, a tuple of numbers, or None; lists (as recipes write them) become tuples."""
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str) and 1 <= len(value) <= 3:
        return tuple(whole_number(rule, "input_size", n) for n in value)
    if isinstance(value, Sequence):
        raise RuleError(f"{rule} got input_size={value!r}; pass one whole number, or one for each dimension.")
    return whole_number(rule, "input_size", value)


def layer_size(penalty: OperatorPenalty, dimensions: int, name: str) -> tuple[int, ...] | None:
    """`penalty.input_size` for a layer of so many spatial dimensions; None if it was left out.

    Raises:
        OperatorError: The number of sizes does not fit.
    """
    size = penalty.input_size
    if size is None or isinstance(size, int):
        return None if size is None else (size,) * dimensions
    if dimensions and len(size) != dimensions:
        raise OperatorError(
            f"{penalty} has input_size={size}, but {name} has {dimensions} spatial dimensions; restrict on=, or pass "
            "one number."
        )
    return size[:dimensions]
