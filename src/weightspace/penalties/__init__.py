"""Penalties on weights: where the singular values of a layer should be, added to the loss gradient by `attach`.

`GramFrobenius`, `SingularValueBand` and their like act on the layer as a linear map of images; `SoftOrthogonality` and
`SelfConvolution` are baselines that act on the kernel.
"""

from weightspace.penalties.base import Memory, Penalty
from weightspace.penalties.orthogonality import SelfConvolution, SoftOrthogonality
from weightspace.penalties.singular_values import (
    SPECTRAL_TERMS,
    ConditionNumber,
    GramFrobenius,
    GramSpectralNorm,
    LargestSingularValue,
    SingularValueBand,
    SmallestSingularValue,
)
from weightspace.penalties.spectral import SpectralPenalty

__all__ = [
    "SPECTRAL_TERMS",
    "ConditionNumber",
    "GramFrobenius",
    "GramSpectralNorm",
    "LargestSingularValue",
    "Memory",
    "Penalty",
    "SelfConvolution",
    "SingularValueBand",
    "SmallestSingularValue",
    "SoftOrthogonality",
    "SpectralPenalty",
]
