"""The base of gates: whether a penalty acts on a weight at a step.

A gate answers open or closed. It knows no penalty: it sees either nothing but the step (`ScheduledGate`) or the inner
products of the loss gradient with one other vector (`Products`), and remembers nothing itself. What it looks at is
computed and kept by the optimizer's side, from weights and reduced gradients alone, so that all ranks agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Literal

import torch

from weightspace.kernels.options import choice

Scope = Literal["layer", "global"]
"""Whether each weight is decided alone ("layer") or all together on their summed inner products ("global")."""
SCOPES: tuple[Scope, ...] = ("layer", "global")
"""All values of `Scope`."""
LooksAt = Literal["nothing", "total", "history", "previous", "lookahead"]
"""What the loss gradient g is compared with: nothing, g plus the penalty's gradient, an average of earlier gradients,
the gradient before, the gradient of the same batch where the penalty alone would have moved the weights."""


@dataclass(frozen=True)
class Products:
    """Inner products of the loss gradient `g` and another vector `o`, for some weights.

    Attributes:
        gg: `(weights,)`, `<g, g>`.
        go: `(weights,)`, `<g, o>`.
        oo: `(weights,)`, `<o, o>`.
    """

    gg: torch.Tensor
    go: torch.Tensor
    oo: torch.Tensor

    @property
    def cosine(self) -> torch.Tensor:
        """`(weights,)`, `<g, o> / (|g| |o|)` in [-1, 1]; NaN where a vector is zero or not finite.

        Example:
            >>> Products(*torch.tensor([[25.0, 0.0], [15.0, 0.0], [9.0, 1.0]])).cosine.tolist()
            [1.0, nan]
        """
        return (self.go / (self.gg.sqrt() * self.oo.sqrt())).clamp(-1.0, 1.0)

    def of_sum(self) -> Products:
        """The same for `g` and `g + o`.

        Example:
            >>> Products(*torch.tensor([[4.0], [-4.0], [8.0]])).of_sum()
            Products(gg=tensor([4.]), go=tensor([0.]), oo=tensor([4.]))
        """
        return Products(self.gg, self.gg + self.go, (self.gg + 2 * self.go + self.oo).clamp_min(0.0))

    def over_all(self) -> Products:
        """The products of all weights as one vector, `(1,)`."""
        return Products(self.gg.sum(0, keepdim=True), self.go.sum(0, keepdim=True), self.oo.sum(0, keepdim=True))


@dataclass(frozen=True, repr=False)
class Gate(ABC):
    """Whether a penalty acts; a frozen value, like the rules that carry it.

    Args:
        scope: `"layer"`: every weight has a decision of its own; `"global"`: one for all weights of the penalty.

    Raises:
        RuleError: An option is out of its range.
    """

    scope: Scope = field(default="layer", kw_only=True)

    def __post_init__(self) -> None:
        self._settle(scope=choice(type(self).__name__, "scope", self.scope, SCOPES))

    @property
    @abstractmethod
    def looks_at(self) -> LooksAt:
        """What the loss gradient is compared with."""

    def _settle(self, **values: object) -> None:
        """Keeps checked options: the only writing to a frozen gate, at its construction."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        # What was changed only: a gate is part of its penalty's name in tables.
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(frozen=True, repr=False)
class ScheduledGate(Gate):
    """A gate that needs to know the step only. What it keeps closed is not even computed."""

    @property
    def looks_at(self) -> LooksAt:
        """Nothing."""
        return "nothing"

    @abstractmethod
    def opens(self, step: int, seed: int) -> bool:
        """Whether the gate is open.

        Args:
            step: Optimizer steps taken before this one.
            seed: A number of the weight's own (of the penalty's, with `scope="global"`), alike on every rank.
        """


@dataclass(frozen=True, repr=False)
class ComparingGate(Gate):
    """A gate that looks at gradients."""

    @abstractmethod
    def judge(self, products: Products) -> torch.Tensor:
        """Whether the gate is open, `(weights,)` booleans; closed where a vector is zero or not finite."""

    @property
    def memory_decay(self) -> float:
        """What a memory keeps of itself at a step, `m <- decay m + (1 - decay) g`; 0 remembers the last gradient."""
        return 0.0
