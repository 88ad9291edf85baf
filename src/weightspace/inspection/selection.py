"""Which layers of an inspection get a panel of their own, where there is no room for all."""

from __future__ import annotations

from collections.abc import Callable

import torch

from weightspace.inspection.report import Inspection, LayerReport

MOST_PANELS = 24
_FLAT = 1e-3  # relative range of a frequency map that shows nothing

Selection = tuple[list[LayerReport], list[LayerReport]]


def alerted(report: Inspection) -> frozenset[str]:
    """Names of the layers with an alert."""
    return frozenset(alert.layer for alert in report.alerts if alert.layer is not None)


def with_values(report: Inspection) -> Selection:
    """Layers with a singular value above zero: those that get a histogram, and the rest."""
    return _selected(report, lambda layer: bool((layer.spectrum.room() > 0).any()))


def with_map(report: Inspection) -> Selection:
    """Layers that do not treat all frequencies alike, as 1x1 kernels do: those that get a picture, and the rest."""
    return _selected(report, _has_pattern)


def map_of(layer: LayerReport) -> torch.Tensor:
    """Largest singular value at every frequency, `(rows, columns)`, float64 on the CPU; empty where it is not known."""
    grid = layer.spectrum.frequency_map
    if grid is None or grid.ndim != 2:
        return torch.zeros(0, 0, dtype=torch.float64)
    return grid.detach().to("cpu", torch.float64)


def _has_pattern(layer: LayerReport) -> bool:
    grid = map_of(layer)
    return grid.numel() > 0 and bool(grid.max() - grid.min() > _FLAT * grid.max())


def _selected(report: Inspection, is_known: Callable[[LayerReport], bool]) -> Selection:
    """At most `MOST_PANELS` layers, in the order of execution: the worst alerts, the rest spread over the depth."""
    worst = list(dict.fromkeys(alert.layer for alert in report.alerts))
    known = [layer for layer in report.layers if is_known(layer)]
    urgent = sorted(
        (i for i, layer in enumerate(known) if layer.name in worst), key=lambda i: worst.index(known[i].name)
    )
    urgent = urgent[:MOST_PANELS]
    others = sorted(set(range(len(known))) - set(urgent))
    room = min(MOST_PANELS - len(urgent), len(others))
    # From the first to the last of the others at equal distances; a single one is the first.
    spread = [others[round(k * (len(others) - 1) / max(1, room - 1))] for k in range(room)]
    shown = {*urgent, *spread}
    return [known[i] for i in sorted(shown)], [layer for i, layer in enumerate(known) if i not in shown]
