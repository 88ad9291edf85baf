"""Column "DDP": several processes, each with its part of the batch, against one process with all of it.

Every case of `reliability.cases` is trained in float64 inside `DistributedDataParallel` on gloo processes; compared are
weights, what gates decided, what rules measured, and how far weights are from their manifolds. Processes of one run are
compared bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import weightspace as ws
from reliability.cases import Case, Opened, batch, case, cases, make_model, train, weights
from reliability.findings import METHODS, Finding
from reliability.processes import run_ranks
from weightspace.kernels import Stage
from weightspace.penalties import OperatorPenalty
from weightspace.registry import REGISTRY, make_rule

WEIGHTS, FIGURES = 1e-10, 1e-8  # largest differences that we claim: of weights, of what gates and rules measure
_MOMENTUM = {"lr": 0.05, "momentum": 0.9}


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
        is_close = self.weights <= WEIGHTS and self.figures <= FIGURES and self.violations <= WEIGHTS
        return is_close and self.duty and self.ranks


# --------------------------------------------------------------------------- training, wrapped or not


def accumulate(model: nn.Module, opened: Opened, steps: int, *, rank: int = 0, ranks: int = 1) -> None:
    """Two joined batches a step; the gradients of the first are not averaged before those of the second are there."""
    optimizer, _ = opened
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(2):
            x, y = batch(2 * step + part)
            mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
            is_silent = part == 0 and isinstance(model, DistributedDataParallel)
            with model.no_sync() if is_silent else nullcontext():
                (nn.functional.cross_entropy(model(x[mine]), y[mine]) / 2).backward()
        optimizer.step()


def _with_shared_state(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], rule: Any, model: nn.Module
) -> Opened:
    """Inside DDP the optimizer's state is on one process each."""
    if isinstance(model, DistributedDataParallel):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer: torch.optim.Optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, **options)
    else:
        optimizer = kind(model.parameters(), **options)
    return optimizer, ws.attach(optimizer, model, rule, measure_every=2)


def _in_zero() -> list[Case]:
    sgd = partial(_with_shared_state, torch.optim.SGD, _MOMENTUM)
    adam = partial(_with_shared_state, torch.optim.AdamW, {"lr": 1e-3})
    band = ws.penalties.SingularValueBand(0.5, 1.5, weight=1e-2, gate=ws.gates.Coherent(threshold=0.3))
    rules = {
        "channel gradients": (sgd, ws.metrics.ChannelL2(smoothing=3.0)),
        "singular values": (adam, band),
        "gated penalties": (sgd, ws.penalties.L1(1e-3, application="proximal")),
    }
    found = [
        Case(f"ZeroRedundancyOptimizer, {type(rule).__name__}", method, partial(make, rule))
        for method, (make, rule) in rules.items()
    ]
    return [*found, Case("ZeroRedundancyOptimizer, SubmanifoldSGD", "submanifolds", _submanifold_in_zero)]


def _submanifold_in_zero(model: nn.Module) -> Opened:
    """Weights must be on their manifold before: in the beginning each process puts there only what it will step."""
    groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.Stiefel()})
    optimizer: torch.optim.Optimizer = ws.optim.SubmanifoldSGD(groups, **_MOMENTUM)
    if isinstance(model, DistributedDataParallel):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        plain = [{**group, "params": [parameter for _, parameter in group["params"]]} for group in groups]
        optimizer = ZeroRedundancyOptimizer(plain, ws.optim.SubmanifoldSGD, **_MOMENTUM)
    return optimizer, None


def _divided() -> list[Case]:
    """Every penalty on singular values and their like, its work divided among the processes."""
    found: list[Case] = []
    for entry in REGISTRY.values():
        for label, options in entry.variants.items() if issubclass(entry.factory, OperatorPenalty) else ():
            rule = make_rule(entry.name, **options)
            found.append(Case(f"{entry.name} {label}, divided", "singular values", partial(_open_divided, rule)))
    return found


def _open_divided(rule: Any, model: nn.Module) -> Opened:
    optimizer = torch.optim.SGD(model.parameters(), **_MOMENTUM)
    is_shared = isinstance(model, DistributedDataParallel)
    return optimizer, ws.attach(optimizer, model, rule, measure_every=2, share_work=is_shared)


Training = Callable[..., None]


def everything() -> dict[str, tuple[Case, Training]]:
    """By name: what is opened and how it is trained."""
    found: dict[str, tuple[Case, Training]] = {c.name: (c, train) for c in [*cases(), *_in_zero(), *_divided()]}
    for name in ("metric, band, L1, Stiefel", "L1 proximal, history", "SubmanifoldAdam", "ConstrainedLangevin OBABO"):
        found[f"{name}, accumulating"] = (case(name), accumulate)
    return found


def trained(name: str, steps: int, rank: int = 0, ranks: int = 1) -> Trained:
    """Trains a fresh model; with several ranks inside `DistributedDataParallel`."""
    opens, run = everything()[name]
    plain = make_model()
    model = DistributedDataParallel(plain) if ranks > 1 else plain
    optimizer, rules = opened = opens.open(model)
    run(model, opened, steps, rank=rank, ranks=ranks)
    numbers = {key: weight.flatten().tolist() for key, weight in weights(plain).items()}
    if rules is None:
        return Trained(numbers, violations=_violations(optimizer) if hasattr(optimizer, "verify") else {})
    is_constrained = any(rule.stage == Stage.MANIFOLD for rule in rules.rules)
    return Trained(numbers, rules.duty_cycles, rules.measurements, _violations(rules) if is_constrained else {})


def _violations(verifiable: Any) -> dict[str, float]:
    checks: list[ws.optim.PropertyCheck] = verifiable.verify()
    return {name: check.error for check in checks for name in check.parameters if "manifold" in check.what}


def _train_all(rank: int, ranks: int, names: Sequence[str], steps: int) -> list[Trained]:
    return [trained(name, steps, rank, ranks) for name in names]


# --------------------------------------------------------------------------- comparison


def differences(names: Sequence[str], ranks: int, steps: int) -> dict[str, Difference]:
    """Trains everything named on so many processes, launched once, and in this one."""
    by_rank = run_ranks(_train_all, ranks, ranks, names, steps)
    return {name: difference(trained(name, steps), [own[k] for own in by_rank]) for k, name in enumerate(names)}


def difference(alone: Trained, by_rank: Sequence[Trained]) -> Difference:
    """Of what the first process made from what one process alone made, and of the processes among each other."""
    first = by_rank[0]
    # ZeroRedundancyOptimizer cannot say how far weights are from their manifolds; that follows from the weights.
    far = _largest(first.violations.values(), alone.violations.values()) if first.violations else 0.0
    return Difference(
        weights=max(_largest(first.weights[name], alone.weights[name]) for name in alone.weights),
        figures=_largest(_flat(first.figures), _flat(alone.figures), relative=True),
        violations=far,
        duty=all(own.duty == alone.duty for own in by_rank),
        ranks=all(own == first for own in by_rank),
    )


def _largest(got: Iterable[float], want: Iterable[float], *, relative: bool = False) -> float:
    errors = [abs(a - b) / (max(1.0, abs(b)) if relative else 1.0) for a, b in zip(got, want, strict=True)]
    return math.inf if any(map(math.isnan, errors)) else max(errors, default=0.0)


def _flat(figures: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [figures[name][key] for name in sorted(figures) for key in sorted(figures[name])]


# --------------------------------------------------------------------------- noise


@dataclass(frozen=True)
class Noise:
    """How noise of several processes is related.

    Attributes:
        agreed: Without a seed all processes draw alike, whatever their own generators are.
        chains_differ: Chains with seeds of their own end with other weights.
        chains_repeat: A second run with the same seeds ends with the same bits.
        chains_are_those_of_one_process: And so does each chain by itself.
    """

    agreed: bool
    chains_differ: bool
    chains_repeat: bool
    chains_are_those_of_one_process: bool


def noise(ranks: int, steps: int = 3) -> Noise:
    """Trains one chain on all processes, and one on each."""
    by_rank = run_ranks(_noise_of, ranks, steps)
    own = [chains[0] for _, chains in by_rank]
    return Noise(
        agreed=all(one == by_rank[0][0] for one, _ in by_rank),
        chains_differ=len({repr(chain) for chain in own}) == ranks,
        chains_repeat=all(first == second for _, (first, second) in by_rank),
        chains_are_those_of_one_process=all(chain == _chain(rank, steps) for rank, chain in enumerate(own)),
    )


def _noise_of(rank: int, steps: int) -> tuple[list[float], list[list[float]]]:
    torch.manual_seed(100 + rank)
    q = nn.Parameter(torch.zeros(100, dtype=torch.float64))
    together = ws.optim.ConstrainedLangevin([q], lr=1e-3, temperature=1.0, num_data=10)
    q.grad = torch.zeros_like(q)
    together.step()
    return q.detach().tolist(), [_chain(rank, steps) for _ in range(2)]


def _chain(rank: int, steps: int) -> list[float]:
    """A chain of its own: not wrapped, all of the data, a seed by rank."""
    model = make_model()
    sampler = ws.optim.ConstrainedLangevin(model.parameters(), lr=1e-3, temperature=1.0, num_data=1000, seed=rank)
    train(model, (sampler, None), steps)
    return torch.cat([weight.flatten() for weight in weights(model).values()]).tolist()


# --------------------------------------------------------------------------- the column


def measure(*, quick: bool) -> list[Finding]:
    """One finding for each method."""
    known = everything()
    names = [name for k, name in enumerate(known) if not quick or k % 8 == 0]
    counts, steps = ((2,), 3) if quick else ((2, 4), 12)
    by_count = {ranks: differences(names, ranks, steps) for ranks in counts}
    drawn = {ranks: noise(ranks) for ranks in counts}
    findings: list[Finding] = []
    for method in METHODS:
        mine = [name for name in names if known[name][0].method == method]
        if not mine:
            continue
        found = {name: [by_count[ranks][name] for ranks in counts] for name in mine}
        held = sum(all(d.holds for d in each) for each in found.values())
        is_noisy = method == "constrained Langevin"
        drawn_right = not is_noisy or all(all(asdict(n).values()) for n in drawn.values())
        worst = max(d.weights for each in found.values() for d in each)
        text = f"{held} of {len(mine)} cases equal one process (float64: {worst:.1e})"
        details: dict[str, Any] = {
            "steps": steps,
            "bounds": {"weights, violations": WEIGHTS, "figures": FIGURES, "duty cycles": 0, "between processes": 0},
            "differences": {
                name: {f"{ranks} processes": asdict(d) for ranks, d in zip(counts, each, strict=True)}
                for name, each in found.items()
            },
        }
        if is_noisy:
            details["noise"] = {f"{ranks} processes": asdict(n) for ranks, n in drawn.items()}
        findings.append(Finding(method, text, held == len(mine) and drawn_right, details))
    return findings
