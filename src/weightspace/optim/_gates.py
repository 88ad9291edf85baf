"""Decides, at each step, at which weights the gates of penalties are open, and keeps what gates remember.

On a CPU decisions are numbers, and what is closed is not computed. On an accelerator they stay 0-dimensional tensors
that penalties are multiplied with: nothing waits for the device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from weightspace.errors import AttachError
from weightspace.gates import Always, ComparingGate, Products, ScheduledGate
from weightspace.kernels.parameters import ParameterInfo
from weightspace.optim._blocks import in_blocks, products
from weightspace.optim._parts import Parts
from weightspace.penalties import Penalty
from weightspace.sharding import ALONE, Together

Number = float | torch.Tensor
Pair = tuple[torch.Tensor, torch.Tensor]
_OPENED, _ASKED, _AVERAGE, _COSINE = "gate.opened", "gate.asked", "gate.average", "gate.cosine"


@dataclass(eq=False)
class Gated:
    """One penalty on one weight, as its gate sees it.

    Attributes:
        info: The weight.
        index: Place of the penalty among the rules.
        penalty: The penalty with its gate.
        asked: How often the gate was asked.
        opened: How often it was open, 0-dimensional, on the weight's device.
        average: What a comparing gate remembers of gradients; None if it remembers nothing.
        cosine: At the latest decision.
        is_open: The latest decision: a boolean, or a 0-dimensional tensor of an accelerator.
        asked_at: The step of the latest decision: a step within a step asks again.
    """

    info: ParameterInfo
    index: int
    penalty: Penalty
    asked: int = 0
    opened: torch.Tensor = field(init=False)
    average: torch.Tensor | None = None
    cosine: torch.Tensor | None = None
    is_open: bool | torch.Tensor = True
    asked_at: int = -1

    def __post_init__(self) -> None:
        gate, weight = self.penalty.gate, self.info.parameter
        self.opened = torch.zeros((), dtype=torch.int64, device=weight.device)
        if gate.looks_at in ("history", "previous"):
            wide = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype  # 16 bits would forget small changes
            self.average = torch.zeros_like(weight, dtype=wide, requires_grad=False)

    @property
    def is_ungated(self) -> bool:
        """True for `Always`: there is nothing to ask, count or save."""
        return isinstance(self.penalty.gate, Always)

    def scale(self, grad_scale: torch.Tensor | None) -> float | torch.Tensor:
        """What the penalty's gradient is multiplied with, the gate left out."""
        strength = self.penalty.weight * self.penalty.every
        return strength if grad_scale is None else grad_scale.to(self.info.parameter.device) * strength

    def state(self, parts: Parts) -> dict[str, torch.Tensor]:
        """Tensors only; of a sharded weight what is remembered of gradients is a DTensor like it."""
        if self.is_ungated:
            return {}
        state = {_OPENED: self.opened.clone(), _ASKED: torch.tensor(self.asked)}
        if self.cosine is not None:
            state[_COSINE] = self.cosine.clone()
        return state if self.average is None else {**state, _AVERAGE: parts.shared(self.info, self.average.clone())}

    def load(self, state: Mapping[str, torch.Tensor], parts: Parts) -> None:
        """What `state` gave; a memory of another shape is not used."""
        self.asked_at = -1
        if self.is_ungated or _OPENED not in state:
            return
        self.opened.copy_(torch.as_tensor(state[_OPENED]))
        self.asked = int(state[_ASKED])
        cosine = state.get(_COSINE)
        self.cosine = None if cosine is None else torch.as_tensor(cosine).detach().clone().to(self.opened.device)
        average = state.get(_AVERAGE)
        if self.average is not None and average is not None and average.shape == self.info.held.shape:
            self.average.copy_(parts.taken(self.info, average))


@dataclass(frozen=True, eq=False)
class Offer:
    """What a comparing gate can look at for one weight.

    Attributes:
        task: The penalty on the weight.
        gradient: The loss gradient after metrics.
        with_penalty: Gives `(<g, R>, <R, R>)`, `R` the penalty's gradient with its strength.
        second: The gradient of a second backward pass, for `"lookahead"`.
        seen: `<g, g>`, `<g, R>`, `<R, R>` where they are known already.
    """

    task: Gated
    gradient: torch.Tensor
    with_penalty: Callable[[], Pair]
    second: torch.Tensor | None = None
    seen: tuple[Number, Number, Number] | None = None


def ask_schedules(tasks: Iterable[Gated], step: int) -> None:
    """Decides for all gates that look at no gradient."""
    for task in tasks:
        gate = task.penalty.gate
        if isinstance(gate, ScheduledGate) and not task.is_ungated:
            owner = task.info.name if gate.scope == "layer" else f"rule {task.index}"
            task.is_open = gate.opens(step, zlib.crc32(owner.encode()))
            _count(task, task.is_open, step)


@torch.no_grad()
def ask_comparing(offers: Sequence[Offer], step: int, together: Together = ALONE) -> None:
    """Decides for all gates that compare gradients, each penalty's weights together, and updates their memories.

    Where processes hold parts of weights, inner products are summed over them: one small reduction for each penalty.
    """
    by_rule: dict[int, list[Offer]] = {}
    for offer in offers:
        by_rule.setdefault(offer.task.index, []).append(offer)
    for group in by_rule.values():
        gate = group[0].task.penalty.gate
        if isinstance(gate, ComparingGate):
            _ask(gate, group, step, together)


def _ask(gate: ComparingGate, offers: Sequence[Offer], step: int, together: Together) -> None:
    home = offers[0].gradient.device
    triples = [_triple(gate, offer) for offer in offers]
    products = Products(*(_stack(numbers, home) for numbers in zip(*triples, strict=True)))
    squares: Sequence[Number] = [square for square, _, _ in triples]
    if any(offer.task.info.is_split for offer in offers):
        products = _over_parts(products, offers, together)
        squares = products.gg.tolist() if is_read_at_once(home) else products.gg.unbind()
    if gate.looks_at == "total":
        products = products.of_sum()
    if gate.scope == "global":
        products = products.over_all()
    opens, cosines = gate.judge(products).expand(len(offers)), products.cosine.expand(len(offers))
    # One look for all weights of a penalty, which on a CPU waits for nothing.
    decisions: Sequence[bool | torch.Tensor] = opens.tolist() if is_read_at_once(home) else opens.unbind()
    for offer, decision, cosine, square in zip(offers, decisions, cosines.unbind(), squares, strict=True):
        task, device = offer.task, offer.gradient.device
        if task.average is not None and task.asked_at == step:
            continue  # it remembers this very gradient already
        task.cosine = cosine
        task.is_open = decision.to(device) if isinstance(decision, torch.Tensor) else decision
        _count(task, task.is_open, step)
        if task.average is not None:
            _remember(task.average, offer.gradient, square, gate.memory_decay)


def _over_parts(products: Products, offers: Sequence[Offer], together: Together) -> Products:
    """Sums over the processes that hold parts; weights that all of them hold whole count once."""
    counts = [float(offer.task.info.is_split or together.rank == 0) for offer in offers]
    numbers = torch.stack((products.gg, products.go, products.oo))
    return Products(*together.sum(numbers * numbers.new_tensor(counts)).unbind())


def _triple(gate: ComparingGate, offer: Offer) -> tuple[Number, Number, Number]:
    """`<g, g>`, `<g, o>`, `<o, o>` with what the gate compares g with."""
    if gate.looks_at == "total":
        return offer.seen or (dot(offer.gradient, offer.gradient), *offer.with_penalty())
    other = offer.second if gate.looks_at == "lookahead" else offer.task.average
    if other is None:
        raise AttachError(
            f"{offer.task.penalty.gate} on {offer.task.info.name} needs the gradient of a second backward pass; give "
            "the optimizer a closure: optimizer.step(closure)."
        )
    if is_read_at_once(other.device) and in_blocks(offer.gradient, other):
        return products(offer.gradient, other)
    return dot(offer.gradient, offer.gradient), dot(offer.gradient, other), dot(other, other)


def _remember(average: torch.Tensor, gradient: torch.Tensor, square: Number, decay: float) -> None:
    """`m <- decay m + (1 - decay) g`; a gradient that is not finite would stay in it for ever and is left out."""
    if is_read_at_once(average.device) or not isinstance(square, torch.Tensor):
        if math.isfinite(square):
            average.copy_(gradient) if decay == 0.0 else average.lerp_(gradient.to(average.dtype), 1.0 - decay)
        return
    fresh = gradient.to(average.dtype) if decay == 0.0 else average.lerp(gradient.to(average.dtype), 1.0 - decay)
    torch.where(square.isfinite(), fresh, average, out=average)


def is_read_at_once(device: torch.device) -> bool:
    """Whether a tensor's number can be had without waiting for the device."""
    return device.type == "cpu"


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`<a, b>` in at least float32, 0-dimensional; one pass where the two share a dense layout."""
    if a.dtype.itemsize < 4 or a.dtype != b.dtype:
        wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
        a, b = a.to(wide), b.to(wide)
    return torch.dot(*flat(a, b))


def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors as vectors in one common order: views where all have the layout of the first, which is dense."""
    first = tensors[0]
    order = sorted(range(first.ndim), key=lambda d: -first.stride(d) if first.shape[d] > 1 else -(2**62))
    return tuple(t.permute(order).reshape(-1) for t in tensors)


def _stack(numbers: Sequence[Number], device: torch.device) -> torch.Tensor:
    # float64 where there is one: a difference of squares of long vectors would lose digits.
    known = [n for n in numbers if not isinstance(n, torch.Tensor)]
    if len(known) == len(numbers):
        return torch.tensor(known, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    stacked = torch.stack([torch.as_tensor(n, dtype=torch.float64).to(device) for n in numbers])
    return stacked if device.type == "mps" else stacked.double()


def _count(task: Gated, decision: bool | torch.Tensor, step: int) -> None:
    if task.asked_at == step:
        return
    task.asked, task.asked_at = task.asked + 1, step
    if decision is not False:
        task.opened += decision
