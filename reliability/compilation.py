"""`torch.compile` of the model and of the optimizer's step, for every case: the same weights, and how often it compiles.

Graphs are counted by a backend that goes through autograd's own tracing as inductor does (what it makes of numbers
decides what is compiled anew) and then runs them as they are; frames by dynamo's own counter. The learning rate is a
tensor that a schedule changes at every step, or a number that stays: torch compiles anew for each value of a number.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from reliability.cases import Case, batch, cases, make_model
from reliability.findings import METHODS, Finding
from reliability.precision import representative

STEPS = 20
WARM_UP = 3  # steps: the first makes state, the second sees it
LARGEST_ERROR = 1e-4  # of float32 weights; a compiled Adam orders its arithmetic otherwise


@dataclass
class Count:
    """What was compiled so far."""

    graphs: int = 0
    log: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def backend(self, module: Any, inputs: Any) -> Any:
        """Counts a graph and runs what autograd's tracing makes of it."""
        self.graphs += 1
        return lookup_backend("aot_eager")(module, inputs)

    def note(self) -> None:
        """After a step: graphs and frames so far."""
        self.log.append((self.graphs, int(_frames())))

    @property
    def late(self) -> int:
        """Graphs and frames that were compiled after the warm-up."""
        first, last = self.log[WARM_UP - 1], self.log[-1]
        return last[0] - first[0] + last[1] - first[1]


@dataclass(frozen=True)
class Outcome:
    """One case, compiled in one way.

    Attributes:
        case: The case.
        way: One of `WAYS`.
        graphs: How many were compiled in all steps.
        late: Graphs and frames that were compiled after the warm-up.
        error: Largest difference from the eager weights, relative to the largest weight.
        said: What failed, if anything did.
    """

    case: Case
    way: str
    graphs: int
    late: int
    error: float
    said: str = ""

    @property
    def holds(self) -> bool:
        """Nothing is compiled after the warm-up, and weights are those of the eager run."""
        return not self.said and self.late == 0 and self.error <= LARGEST_ERROR


def _frames() -> int:
    from torch._dynamo.utils import counters  # what torch's own tests count by

    return int(counters["frames"]["total"])


@contextmanager
def fresh() -> Generator[None]:
    """Nothing is compiled at its beginning and nothing is said about graph breaks, which are meant to be there."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    logger = logging.getLogger("torch._dynamo")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
            torch.compiler.reset()


def _cosine(optimizer: torch.optim.Optimizer) -> Any:
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS + 5)


def _run(case: Case, way: str | None, backend: Any, note: Callable[[], None]) -> nn.Module:
    """Trains, with a cosine schedule unless the rate is a number; compiled if there is a backend."""
    model = make_model(torch.float32)
    optimizer, rules = case.open(model)
    schedule = None if way == "step, lr a number" else _cosine(optimizer)
    step: Callable[..., Any] = optimizer.step
    forward: Callable[..., Any] = model
    if backend is not None and way == "model":
        forward = torch.compile(model, backend=backend, fullgraph=True)
    elif backend is not None:
        step = torch.compile(optimizer.step, backend=backend)
    for k in range(STEPS):
        x, y = batch(k, torch.float32)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(forward(x), y)
            loss.backward()
            return loss

        if rules is not None and rules.needs_closure:
            step(closure)
        else:
            closure()
            step()
        if schedule is not None:
            schedule.step()
        note()
    return model


WAYS = ("model", "step", "step, lr a number")


def run(case: Case, way: str, backend: Any = None) -> Outcome:
    """One case, compiled in one way (by another backend: graphs are not counted then), and the same in eager mode."""
    count = Count()
    try:
        with fresh():
            compiled = _run(case, way, backend or count.backend, count.note)
        plain = _run(case, way, None, lambda: None)  # the same learning rates
    except Exception as error:  # noqa: BLE001  # whatever it is, the case did not compile, and the table says so
        return Outcome(case, way, count.graphs, 0, float("inf"), f"{type(error).__name__}: {error}")
    pairs = [(p.detach(), q.detach()) for p, q in zip(compiled.parameters(), plain.parameters(), strict=True)]
    error = max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)
    return Outcome(case, way, count.graphs, count.late, error)


def measure(*, quick: bool = False) -> list[Finding]:
    """The step of all cases, some of them in all ways (few, with `quick`); a finding for each method."""
    every = cases()
    some = {c.name for c in representative(every, 12 if quick else 5)}
    findings: list[Finding] = []
    for method in METHODS:
        outcomes: list[Outcome] = []
        for each in (c for c in every if c.method == method):
            ways = WAYS if each.name in some else () if quick else ("step",)
            outcomes += [run(each, way) for way in ways]
        broken = [o for o in outcomes if not o.holds]
        most = max((o.graphs for o in outcomes), default=0)
        details = {
            way: {
                "cases": len(here := [o for o in outcomes if o.way == way]),
                "most graphs": max((o.graphs for o in here), default=0),
                f"compiled after step {WARM_UP}": sum(o.late for o in here),
                "largest error": max((o.error for o in here), default=0.0),
            }
            for way in WAYS
        }
        names = {f"{o.case.name}: {o.way}": o.said or f"{o.late} late, error {o.error:.2g}" for o in broken}
        text = f"at most {most} compilations in {STEPS} steps"
        if broken:
            text += f"; {len(broken)} of {len(outcomes)} fail"
        findings.append(Finding(method, text, not broken, {**details, "broken": names}))
    return findings
