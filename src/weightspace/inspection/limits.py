"""From what on a figure is worth a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from weightspace.errors import InspectionError


@dataclass(frozen=True)
class Limits:
    """Thresholds of alerts; every alert names the one it passed.

    Attributes:
        sigma_max: Largest singular value of a layer, by its certified lower bound; times `sqrt(N_out / N_in)` for a
            layer that writes more than it reads. Convolutions of a ReLU network started after He have about 3.
        end_to_end: Factor by which signal or gradient may grow or shrink over the whole network.
        layer_gain: Factor by which a layer may make the measured gradient grow or shrink.
        disagreement: Factor between measured and expected gradient.
        dead_modes: Share of singular values below a thousandth of the largest.
        dead_channels: Share of input channels that are zero for all images.
        padding_loss: Share of a white signal's variance that zero padding takes.
        least_samples: Images times places from which dead channels are believed.

    Raises:
        InspectionError: A threshold is not a positive number.

    Example:
        >>> Limits(sigma_max=2.0).sigma_max
        2.0
    """

    sigma_max: float = 6.0
    end_to_end: float = 100.0
    layer_gain: float = 3.0
    disagreement: float = 3.0
    dead_modes: float = 0.05
    dead_channels: float = 0.1
    padding_loss: float = 0.2
    least_samples: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InspectionError(f"Limits got {field.name}={value!r}; give a positive number.")
