"""Operator penalties under `DistributedDataParallel`: each is evaluated by one process, and all learn what it found.

All processes hold the same weights, so each of them could evaluate every penalty on every layer, and by itself would.
Divided, a step takes as long as the largest share, and what a penalty found (value, gradient, the vectors with which
its next search starts) is sent once to everyone, bit for bit. So weights, gates and saved states are those of an
evaluation everywhere, and alike on all processes even where their arithmetic is not.

With N numbers in the weights whose penalties are divided, each process sends its share of N and receives the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weightspace.errors import AttachError, OperatorError
from weightspace.optim._broadcasts import Broadcasts, Named
from weightspace.optim._checks import ShareWork
from weightspace.optim._finite import all_finite, sum_of
from weightspace.optim._inputs import InputSizes
from weightspace.optim._operator_penalties import PenaltyTask, raise_weight
from weightspace.optim._work_costs import estimated_seconds
from weightspace.sharding import ALONE, Together, share_out

EVERYWHERE = -1  # in place of an owner
# Measured with gloo on one machine: what a step's messages take however short they are, and bytes a second.
LATENCY, RATE = 1e-3, 0.5e9


def replica_of(model: nn.Module) -> DistributedDataParallel | None:
    """The `DistributedDataParallel` around a model, inside `torch.compile` or Lightning Fabric's wrapper or not."""
    while not isinstance(model, DistributedDataParallel):
        # The tables themselves: a wrapper's attributes may be those of what it wraps.
        inner = model._modules.get("_orig_mod") or model._modules.get("_forward_module")  # noqa: SLF001
        if inner is None:
            return None
        model = inner
    return model


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be done at one step.

    Attributes:
        tasks: Penalties on weights.
        owners: Who evaluates each of them.
        sizes: What the layers read.
        step: Steps taken before this one.
        must_check: Whether to raise for weights that are not finite.
    """

    tasks: Sequence[PenaltyTask]
    owners: Sequence[int]
    sizes: InputSizes
    step: int
    must_check: bool

    def __repr__(self) -> str:
        """Equal on all processes if they are at the same work."""
        jobs = [(task.info.name, task.index, owner) for task, owner in zip(self.tasks, self.owners, strict=True)]
        return f"{self.step} {jobs}"


class SharedWork:
    """Evaluates penalties: all of them here, or each on one of the processes that hold the same weights.

    Args:
        model: As it was given to `attach`.
        mode: Whether to divide; `"auto"` where it is estimated to save time.

    Attributes:
        evaluated: How many times this process has evaluated a penalty.
        broadcasts: How results travel.

    Raises:
        AttachError: `mode` is True and the model is no replica of any other.
    """

    def __init__(self, model: nn.Module, mode: ShareWork) -> None:
        self._mode: ShareWork = mode
        self._replica = replica_of(model) if mode is not False else None
        if mode is True and self._replica is None:
            raise AttachError(
                "attach() got share_work=True and a model that is not inside DistributedDataParallel, so that nobody "
                "shares its weights; pass the wrapped model, or leave share_work out."
            )
        self._tasks: list[PenaltyTask] = []
        self._costs: dict[int, float] | None = None
        self.evaluated = 0
        self.broadcasts = Broadcasts()

    def build(self, tasks: Sequence[PenaltyTask]) -> None:
        """Takes over the penalties of a routing, alike on all processes."""
        self._tasks, self._costs = list(tasks), None

    def evaluate(
        self, tasks: Sequence[PenaltyTask], sizes: InputSizes, step: int, *, must_check: bool
    ) -> list[torch.Tensor]:
        """The gradients of the penalties that are due; their values and memories are updated.

        Args:
            tasks: Penalties on weights, alike on all processes that share weights.
            sizes: What the layers read.
            step: Steps taken before this one.
            must_check: Raise for weights that are not finite.

        Raises:
            AttachError: A layer's input size is not known, no penalty can be had at that size, or the processes are not
                at the same work.
            NonFiniteGradientError: A weight is not finite.
        """
        together = self._together(tasks)
        owners = [EVERYWHERE] * len(tasks) if together.is_alone else self._owners(tasks, sizes, together)
        work = _Work(tasks, owners, sizes, step, must_check)
        if all(owner == EVERYWHERE for owner in owners):
            return self._evaluate(work, together.rank)
        found: list[torch.Tensor] = []
        error: Exception | None = None
        try:
            found = self._evaluate(work, together.rank)
        except Exception as raised:  # noqa: BLE001 - the others must not wait for this process for ever
            error = raised
        mine = [] if error is not None else _results(work, found, together.rank)
        received = self.broadcasts.tell(mine, work=work, error=error, together=together)
        for k, (task, owner) in enumerate(zip(tasks, owners, strict=True)):
            if owner not in (EVERYWHERE, together.rank):
                found[k] = _take(k, task, received[owner])
        return found

    # ------------------------------------------------------------------ who does what

    def _together(self, tasks: Sequence[PenaltyTask]) -> Together:
        replica = self._replica
        # Within model.join() a process without data left takes part in the model's own exchanges only.
        if replica is None or not tasks or cast("Any", replica)._join_config.enable:  # noqa: SLF001
            return ALONE
        group = cast("Any", replica).process_group
        ranks = torch.distributed.get_world_size(group)
        device = tasks[0].info.parameter.device
        return Together(group, torch.distributed.get_rank(group), ranks, device) if ranks > 1 else ALONE

    def _owners(self, tasks: Sequence[PenaltyTask], sizes: InputSizes, together: Together) -> list[int]:
        if self._costs is None:  # once a routing: from then on all processes know alike who does what
            seconds = torch.tensor([_seconds(task, sizes) for task in self._tasks])
            agreed = together.max(seconds).tolist()
            self._costs = {id(task): cost for task, cost in zip(self._tasks, agreed, strict=True)}
        costs = [self._costs[id(task)] for task in tasks]
        transfers = [task.info.parameter.numel() * task.info.parameter.element_size() / RATE for task in tasks]
        return owners_of(costs, transfers, together.ranks, must=self._mode is True)

    # ------------------------------------------------------------------ what is found here

    def _evaluate(self, work: _Work, rank: int) -> list[torch.Tensor]:
        """The gradients that are found here; empty tensors in place of the others'."""
        operators = [task.operator(work.sizes) for task in work.tasks]  # all, before any evaluation is paid for
        if work.must_check and operators and not all_finite(sum_of(o.weight) for o in operators):
            raise_weight(work.tasks)
        found: list[torch.Tensor] = []
        for task, owner, operator in zip(work.tasks, work.owners, operators, strict=True):
            task.memory.step = work.step
            if owner not in (EVERYWHERE, rank):
                found.append(torch.empty(0))
                continue
            self.evaluated += 1
            try:
                task.latest, gradient = task.rule.evaluate(operator, task.memory)
            except OperatorError as error:
                raise AttachError(f"{task.penalty} on {task.info.name}: {error}") from None
            found.append(gradient)
        return found


def owners_of(costs: Sequence[float], transfers: Sequence[float], ranks: int, *, must: bool = False) -> list[int]:
    """For each penalty the process that evaluates it, or `EVERYWHERE`; a function of its arguments alone.

    Args:
        costs: Seconds of each evaluation.
        transfers: Seconds that sending each result takes.
        ranks: Number of processes.
        must: Divide all of them, whatever it saves.

    Example:
        >>> owners_of([0.1, 0.1, 1e-4], [1e-3, 1e-3, 1e-3], 2)  # two to divide, one that is faster done than sent
        [0, 1, -1]
        >>> owners_of([0.1], [1e-3], 2)  # a single one takes as long as before
        [-1]
    """
    # What a penalty saves on average, against twice the estimate of what it costs.
    chosen = [k for k, cost in enumerate(costs) if must or cost * (1 - 1 / ranks) > 2 * transfers[k]]
    owners = share_out([costs[k] for k in chosen], ranks)
    loads = [0.0] * ranks
    for k, owner in zip(chosen, owners, strict=True):
        loads[owner] += costs[k]
    saved = sum(loads) - max(loads)
    if not must and saved <= LATENCY + sum(transfers[k] for k in chosen):
        return [EVERYWHERE] * len(costs)
    found = dict(zip(chosen, owners, strict=True))
    return [found.get(k, EVERYWHERE) for k in range(len(costs))]


def _seconds(task: PenaltyTask, sizes: InputSizes) -> float:
    """An estimate; of a layer that has not run yet on the smallest image that it accepts."""
    try:
        size = task.size(sizes)
        return estimated_seconds(task.rule, task.operator_at(task.fitting_size() if size is None else size).geometry)
    except (AttachError, OperatorError):
        return 0.0  # the evaluation itself will say what is wrong


def _results(work: _Work, found: Sequence[torch.Tensor], rank: int) -> list[Named]:
    """What others must know of the penalties that were evaluated for all."""
    results: list[Named] = []
    for k, (task, gradient) in enumerate(zip(work.tasks, found, strict=True)):
        if work.owners[k] == rank and task.latest is not None:
            results += [(f"{k} gradient", gradient), (f"{k} value", task.latest)]
            results += [(f"{k} vector {name}", vector) for name, vector in task.memory.vectors.items()]
    return results


def _take(place: int, task: PenaltyTask, received: dict[str, torch.Tensor]) -> torch.Tensor:
    """Puts what another process found where an evaluation here would have put it; gives the gradient."""
    device, start = task.info.parameter.device, f"{place} vector "
    task.latest = received[f"{place} value"].to(device).clone()  # no views, which would keep all results in memory
    task.memory.vectors = {
        name.removeprefix(start): vector.to(device).clone()
        for name, vector in received.items()
        if name.startswith(start)
    }
    return received[f"{place} gradient"].to(device)
