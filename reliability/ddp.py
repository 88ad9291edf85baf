"""Column "DDP": several processes, each with its part of the batch, against one process with all of it.

Every case of `reliability.cases` is trained in float64 inside `DistributedDataParallel` on gloo processes; compared are
weights, what gates decided and measured, and how far weights are from their manifolds. Processes of one run are
compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import weightspace as ws
from reliability.cases import Case, Opened, batch, cases, make_model, train, weights
from reliability.findings import METHODS, Finding
from reliability.processes import run_ranks
from weightspace.kernels import Stage
from weightspace.optim import Rules

WEIGHTS, FIGURES = 1e-10, 1e-8  # largest differences that we claim: of weights, of what gates and rules measure
RANKS, STEPS = (2, 4), 12
QUICK_RANKS, QUICK_STEPS = (2,), 4


@dataclass(frozen=True)
class Trained:
    """What is compared: plain numbers, which travel between processes bit for bit.

    Attributes:
        weights: By parameter.
        duty: By parameter and penalty: how often its gate was open.
        figures: By parameter and name: cosines, `rho`, values of penalties and the like at the last measured step.
        violations: By parameter: how far it is from its manifold.
    """

    weights: dict[str, list[float]]
    duty: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Of several processes from one.

    Attributes:
        weights: Largest absolute difference of a weight.
        figures: Largest difference of a figure, relative where it is above one.
        violations: Largest difference of the distances from the manifold.
        duty: Whether all gates were open equally often.
        ranks: Whether all processes ended with the same bits.
    """

    weights: float
    figures: float
    violations: float
    duty: bool
    ranks: bool

    @property
    def holds(self) -> bool:
        """Whether it is what we claim."""
        return (
            self.weights <= WEIGHTS
            and self.figures <= FIGURES
            and self.violations <= WEIGHTS
            and self.duty
            and self.ranks
        )


# --------------------------------------------------------------------------- one training, wrapped or not


def _plain(case: Case, model: nn.Module, steps: int, rank: int, ranks: int) -> Opened:
    opened = case.open(model)
    train(model, opened, steps, rank=rank, ranks=ranks)
    return opened


def _accumulating(case: Case, model: nn.Module, steps: int, rank: int, ranks: int) -> Opened:
    """Two joined batches a step; the first one's gradients are not averaged over processes before the second's are."""
    optimizer, rules = case.open(model)
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(2):
            x, y = batch(2 * step + part)
            mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
            is_silent = part == 0 and isinstance(model, DistributedDataParallel)
            with model.no_sync() if is_silent else nullcontext():
                (nn.functional.cross_entropy(model(x[mine]), y[mine]) / 2).backward()
        optimizer.step()
    return optimizer, rules


def _sharded_state(case: Case, model: nn.Module, steps: int, rank: int, ranks: int) -> Opened:
    """The optimizer's state lies on one process each: `ZeroRedundancyOptimizer`."""
    opened = SHARDED_STATE[case.name](model, ranks > 1)
    train(model, opened, steps, rank=rank, ranks=ranks)
    return opened


def _in_zero(
    make: Callable[[nn.Module], tuple[Any, type[torch.optim.Optimizer], dict[str, Any], list[Any]]],
    model: nn.Module,
    is_sharded: bool,
) -> Opened:
    params, kind, options, rules = make(model)
    if is_sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(params, kind, **options)
    else:
        optimizer = kind(params, **options)
    return optimizer, ws.attach(optimizer, model, *rules) if rules else None


WAYS: dict[str, Callable[[Case, nn.Module, int, int, int], Opened]] = {
    "plain": _plain,
    "accumulating": _accumulating,
    "sharded state": _sharded_state,
}
_MOMENTUM = {"lr": 0.05, "momentum": 0.9}
# By name: what is attached to which optimizer inside ZeroRedundancyOptimizer.
SHARDED_STATE: dict[str, Callable[[nn.Module, bool], Opened]] = {
    name: partial(_in_zero, make)
    for name, make in {
        "ChannelL2": lambda m: (m.parameters(), torch.optim.SGD, _MOMENTUM, [ws.metrics.ChannelL2(smoothing=3.0)]),
        "band": lambda m: (
            m.parameters(),
            torch.optim.AdamW,
            {"lr": 1e-3},
            [ws.penalties.SingularValueBand(0.5, 1.5, weight=1e-2, gate=ws.gates.Coherent(threshold=0.3))],
        ),
        "L1": lambda m: (m.parameters(), torch.optim.SGD, _MOMENTUM, [ws.penalties.L1(1e-3, form="proximal")]),
        "Stiefel": lambda m: (m.parameters(), torch.optim.AdamW, {"lr": 1e-3}, [ws.manifolds.Stiefel()]),
    }.items()
}


def trained(case: Case, way: str, steps: int, rank: int = 0, ranks: int = 1) -> Trained:
    """Trains a fresh model; with several ranks inside `DistributedDataParallel`."""
    plain = make_model()
    model = DistributedDataParallel(plain) if ranks > 1 else plain
    optimizer, rules = WAYS[way](case, model, steps, rank, ranks)
    numbers = {name: weight.flatten().tolist() for name, weight in weights(plain).items()}
    if rules is None:
        return Trained(numbers, violations=_violations(optimizer))
    is_constrained = any(rule.stage == Stage.MANIFOLD for rule in rules.rules)
    violations = _violations(rules) if is_constrained else {}
    return Trained(numbers, rules.duty_cycles, rules.measurements, violations)


def _violations(verifiable: Any) -> dict[str, float]:
    checks: list[ws.optim.PropertyCheck] = verifiable.verify()
    return {name: check.error for check in checks for name in check.parameters if "manifold" in check.what}


def _train_all(rank: int, ranks: int, jobs: Sequence[tuple[str, str]], steps: int) -> list[Trained]:
    by_name = {case.name: case for case in [*cases(), *_SHARDED_CASES]}
    return [trained(by_name[name], way, steps, rank, ranks) for way, name in jobs]
