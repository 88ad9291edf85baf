"""Measures what rules declare: the defining equation of a metric, on every weight layout that it acts on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from weightspace.errors import VerificationError
from weightspace.kernels import Rule, Workspace
from weightspace.kernels.stacking import Batch
from weightspace.metrics import Layout, Metric

# Rounding in a few hundred operations, as a multiple of the machine epsilon; a wrong constant is off by far more.
_SLACK = 200.0


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
    """Runs every rule once on a random gradient of every layout and measures its defining equation.

    Cost: one step of the rules and a few passes more; the probe is drawn from a fixed seed and leaves the global random
    state alone.
    """
    return [
        _measure(cast("Metric", rules[index]), batch, k, work)
        for batch in batches
        for k, index in enumerate(batch.rules)
    ]


@torch.no_grad()
def _measure(metric: Metric, batch: Batch, place: int, work: Workspace) -> PropertyCheck:
    like = batch.infos[0].parameter
    view = batch.views[place]
    generator = torch.Generator().manual_seed(0)
    # The same arithmetic in float64: in the weight's own precision a wrong constant could drown in rounding.
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    probe = torch.randn(view.shape, generator=generator, dtype=dtype).to(like.device)
    out = torch.empty_like(probe)
    layout = Layout(1, view.grid)
    # The free scale of keep_norm is not part of the equation.
    plain = cast("Metric", replace(cast("Any", metric), keep_norm=False))
    plain.apply(probe, out, layout, work)
    wide_probe, wide_out = probe.cpu().double(), out.cpu().double()
    residual = plain.residual(wide_probe, wide_out, layout).abs().max()
    scale = plain.stiffness(layout, view.shape[1]) * wide_out.abs().max() + wide_probe.abs().max()
    return PropertyCheck(
        rule=str(metric),
        parameters=tuple(info.name for info in batch.infos),
        what=metric.declares,
        error=float(residual / scale),
        bound=_SLACK * torch.finfo(dtype).eps,
    )


def raise_if_broken(checks: Iterable[PropertyCheck]) -> None:
    """Raises VerificationError naming the first property that does not hold."""
    for check in checks:
        if not check.holds:
            raise VerificationError(
                f"{check.rule} on {', '.join(check.parameters)}: {check.what} was found to hold up to "
                f"{check.error:.2e}, allowed is {check.bound:.2e}."
            )
