"""Measures what rules declare, on every weight layout that they act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from weightspace.errors import VerificationError
from weightspace.kernels import Rule, Workspace
from weightspace.kernels.stacking import Batch
from weightspace.kernels.views import View
from weightspace.manifolds import Constraint
from weightspace.metrics import Layout, Metric

# Rounding in a few hundred operations, as a multiple of the machine epsilon; a wrong constant is off by far more.
_SLACK = 200.0
_ROUNDING = 1e-6  # of float32, beside a bound that is exact

ON_MANIFOLD = "that the weight lies on its manifold"


@dataclass(frozen=True)
class PropertyCheck:
    """One measured property.

    Attributes:
        rule: The rule, as it prints.
        parameters: Names of the weights of this layout.
        what: What was measured.
        error: The measured error, relative, dimensionless.
        bound: What it must not exceed.
    """

    rule: str
    parameters: tuple[str, ...]
    what: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """True if the error is within its bound (a NaN is not)."""
        return self.error <= self.bound


def measure_properties(rules: Sequence[Rule], batches: Iterable[Batch], work: Workspace) -> list[PropertyCheck]:
    """Runs every metric on a random gradient of every layout and measures what it declares.

    That is its defining equation; with `keep_norm` also the norm of the answer; where weights run stacked also that
    a stack gives what its weights give alone.

    Cost: up to five steps of the rules and a few passes more; the probe is drawn from a fixed seed and leaves the
    global random state alone.
    """
    checks: list[PropertyCheck] = []
    for batch in batches:
        for index, view in zip(batch.rules, batch.views, strict=True):
            rule = rules[index]
            if not isinstance(rule, Metric):
                continue
            probe = _Probe(rule, batch, view, work)
            checks.append(probe.equation())
            if probe.metric.keep_norm:
                checks.append(probe.norm())
            if batch.mode == "stacked" and len(batch.infos) > 1:
                checks.append(probe.stack())
    return checks


class _Probe:
    """One metric on one weight layout, and random gradients to measure it by.

    The same arithmetic in float64: in the weight's own precision a wrong constant could drown in rounding.
    """

    def __init__(self, metric: Metric, batch: Batch, view: View, work: Workspace) -> None:
        self.metric = metric
        self._batch = batch
        self._grid = view.grid
        self._work = work
        device = batch.infos[0].parameter.device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        generator = torch.Generator().manual_seed(0)
        self._grads = torch.randn((2, *view.shape), generator=generator, dtype=self._dtype).to(device)

    def _check(self, what: str, error: torch.Tensor) -> PropertyCheck:
        names = tuple(info.name for info in self._batch.infos)
        return PropertyCheck(str(self.metric), names, what, float(error), _SLACK * torch.finfo(self._dtype).eps)

    @torch.no_grad()
    def _apply(self, metric: Metric, grad: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(grad)
        metric.apply(grad, out, Layout(1, self._grid), self._work)
        return out

    def equation(self) -> PropertyCheck:
        """The residual of the metric's equation, without the free scale of `keep_norm`."""
        plain = cast("Metric", replace(cast("Any", self.metric), keep_norm=False))
        layout, grad = Layout(1, self._grid), self._grads[0]
        out = self._apply(plain, grad)
        wide, answer = grad.cpu().double(), out.cpu().double()
        residual = plain.residual(wide, answer, layout).abs().max()
        scale = plain.stiffness(layout, grad.shape[1]) * answer.abs().max() + wide.abs().max()
        return self._check(self.metric.declares, residual / scale)

    def norm(self) -> PropertyCheck:
        """The answer is as long as the gradient and, but for that, the answer without `keep_norm`."""
        grad = self._grads[0]
        plain = self._apply(cast("Metric", replace(cast("Any", self.metric), keep_norm=False)), grad)
        expected = plain * (torch.linalg.vector_norm(grad) / torch.linalg.vector_norm(plain))
        error = (self._apply(self.metric, grad) - expected).abs().max() / expected.abs().max()
        return self._check("that keep_norm gives the answer the norm of the gradient and nothing else", error)

    @torch.no_grad()
    def stack(self) -> PropertyCheck:
        """Two weights in one block, transformed in place as in a step; of unequal norm, so that none is shared."""
        grads = self._grads * torch.tensor([1.0, 3.0], dtype=self._dtype, device=self._grads.device).view(2, 1, 1, 1)
        alone = torch.stack([self._apply(self.metric, grad) for grad in grads])
        block = grads.flatten(0, 1).clone()
        self.metric.apply(block, block, Layout(2, self._grid), self._work)
        error = (block.view_as(alone) - alone).abs().max() / alone.abs().max()
        return self._check("that stacked weights get what each gets alone", error)


def check_constraint(
    constraint: Constraint, parameter: torch.Tensor, step: int, slack: torch.Tensor | None = None
) -> PropertyCheck:
    """How far a weight is from its manifold, beside what is allowed.

    Of the pieces of a product it is the one that comes nearest to its bound, or exceeds it most. `slack` holds the
    bound that steps without a correction carried along: it is allowed too.
    """
    error, bound = constraint.worst(parameter.detach(), step)
    carried = 0.0 if slack is None or not torch.isfinite(slack[0]) else float(slack[0]) + _ROUNDING
    return PropertyCheck(constraint.manifold.text(), (constraint.name,), ON_MANIFOLD, error, max(bound, carried))


def worst_of(facts: Iterable[Mapping[str, Sequence[PropertyCheck]]]) -> list[PropertyCheck]:
    """Of every property that several processes measured on their parts, what comes nearest to its bound."""
    found: dict[tuple[str, tuple[str, ...], str], PropertyCheck] = {}
    for check in (check for fact in facts for check in fact["checks"]):
        key = (check.rule, check.parameters, check.what)
        known = found.get(key)
        # A NaN is within no bound.
        if known is None or not check.error / check.bound <= known.error / known.bound:
            found[key] = check
    return list(found.values())


def raise_if_broken(checks: Iterable[PropertyCheck]) -> None:
    """Raises VerificationError naming the first property that does not hold."""
    for check in checks:
        if not check.holds:
            raise VerificationError(
                f"{check.rule} on {', '.join(check.parameters)}: {check.what} was found to hold up to "
                f"{check.error:.2e}, allowed is {check.bound:.2e}."
            )
