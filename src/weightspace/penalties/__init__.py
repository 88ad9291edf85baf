"""Penalties on weights: where they should be, added to the loss gradient by `attach`, or enforced after the step.

`GramFrobenius`, `SingularValueBand` and their like act on the layer as a linear map of images; `SoftOrthogonality` and
`SelfConvolution` are baselines that act on the kernel. `L1`, `L2`, `ElasticNet` and `GroupL1` act on the numbers of a
weight, `CautiousWeightDecay` is their baseline. Any of them can be given a gate, see `weightspace.gates`.
"""

from weightspace.penalties.base import Memory, OperatorPenalty, Penalty
from weightspace.penalties.cautious import CautiousWeightDecay
from weightspace.penalties.elementwise import L1, L2, ElasticNet
from weightspace.penalties.groups import GroupL1
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
from weightspace.penalties.weights import WeightPenalty

__all__ = [
    "L1",
    "L2",
    "SPECTRAL_TERMS",
    "CautiousWeightDecay",
    "ConditionNumber",
    "ElasticNet",
    "GramFrobenius",
    "GramSpectralNorm",
    "GroupL1",
    "LargestSingularValue",
    "Memory",
    "OperatorPenalty",
    "Penalty",
    "SelfConvolution",
    "SingularValueBand",
    "SmallestSingularValue",
    "SoftOrthogonality",
    "SpectralPenalty",
    "WeightPenalty",
]
